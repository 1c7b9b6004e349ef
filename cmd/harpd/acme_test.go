package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/tunnel/agent"
)

// An autoEdge is an edge with --tls auto, a certificate authority, and the DNS by which they find each other.
type autoEdge struct {
	cfg   config
	ca    *pebble
	names *names
	log   *syncBuffer
	at    listenAddrs
	stop  func() // ends the edge and waits for it
}

// newAutoEdge prepares an edge; start starts it.
func newAutoEdge(t *testing.T, o pebbleOptions) *autoEdge {
	t.Helper()
	e := &autoEdge{log: new(syncBuffer)}
	s := newSetup(t, nil)
	e.cfg = s.cfg
	e.cfg.TLS, e.cfg.DataDir = "auto", t.TempDir()
	e.cfg.HTTP, e.cfg.HTTPS, e.cfg.DNS = freeAddr(t), freeAddr(t), freeAddr(t)
	e.cfg.PublicIP = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	e.names = startNames(t, e.cfg.DNS)
	o.HTTP, o.TLS, o.DNS = port(t, e.cfg.HTTP), port(t, e.cfg.HTTPS), e.names.Addr
	e.ca = startPebble(t, o)
	e.cfg.ACMECA, e.cfg.ACMECARoot, e.cfg.ACMEDNS = e.ca.Directory, e.ca.RootFile, "builtin"
	e.cfg.Resolver = []string{e.names.Addr}
	e.cfg.acmeRetry, e.cfg.acmeCheckEvery = 200*time.Millisecond, 200*time.Millisecond
	return e
}

func port(t *testing.T, addr string) int {
	t.Helper()
	p, err := netip.ParseAddrPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return int(p.Port())
}

func (e *autoEdge) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	started, ended := make(chan listenAddrs, 1), make(chan error, 1)
	go func() {
		ended <- runLogged(ctx, e.cfg, cli.NewLogger(e.log, "info", "text"), func(at listenAddrs) { started <- at })
	}()
	select {
	case e.at = <-started:
	case err := <-ended:
		cancel()
		t.Fatalf("the edge did not start: %v", err)
	}
	e.stop = func() {
		cancel()
		await(t, ended, "the edge to end", func(err error) {
			if err != nil {
				t.Errorf("the edge ended with %v", err)
			}
			ended <- nil
		})
	}
	t.Cleanup(func() {
		e.stop()
		if t.Failed() {
			t.Logf("the edge said:\n%s", e.log.tail(80))
		}
	})
}

// TestWildcardByBuiltinDNS: from nothing to a certificate for the domain and every name below it.
func TestWildcardByBuiltinDNS(t *testing.T) {
	t.Parallel()
	e := newAutoEdge(t, pebbleOptions{})
	e.start(t)
	roots := e.ca.roots(t)
	for _, name := range []string{testDomain, "x." + testDomain} {
		eventually(t, "a certificate for "+name, func() bool {
			_, err := handshake(e.at.HTTPS, name, roots)
			return err == nil
		})
	}
	state, err := handshake(e.at.HTTPS, "x."+testDomain, roots)
	if err != nil || state.NegotiatedProtocol != "h2" || state.PeerCertificates[0].DNSNames[0] != "*."+testDomain {
		t.Errorf("%v, %q, %v", err, state.NegotiatedProtocol, state.PeerCertificates[0].DNSNames)
	}
	res := plain(t, e.at.HTTP, "x."+testDomain)
	if res.StatusCode != http.StatusPermanentRedirect || !strings.HasPrefix(res.Header.Get("Location"), "https://x."+testDomain+":") {
		t.Errorf("plain HTTP got %s to %q", res.Status, res.Header.Get("Location"))
	}
}

// plain makes a request to the edge over plain HTTP.
func plain(t *testing.T, addr, host string) *http.Response {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, "http://"+addr+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = host
	tr := &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{}).DialContext}
	res, err := tr.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	res.Body = io.NopCloser(strings.NewReader(string(b)))
	return res
}

// publish runs an agent at the edge for h, with the hostnames; the error of its end comes on the channel.
func (e *autoEdge) publish(t *testing.T, key identity.Key, h http.Handler, hostnames ...string) (registered chan agent.Registration, ended chan error) {
	t.Helper()
	return e.publishAs(t, key, nil, agent.Service{Handler: h, Hostnames: hostnames})
}

// publishAs is publish for an agent that may end TLS itself.
func (e *autoEdge) publishAs(t *testing.T, key identity.Key, end *agent.EndToEnd, s agent.Service) (registered chan agent.Registration, ended chan error) {
	t.Helper()
	pool := e.ca.roots(t)
	registered, ended = make(chan agent.Registration, 10), make(chan error, 1)
	a, err := agent.New(agent.Options{
		Server: "https://" + net.JoinHostPort("localhost", fmt.Sprint(port(t, e.at.HTTPS))), Key: key,
		TLSConfig: func() (*tls.Config, error) { return &tls.Config{RootCAs: pool, ServerName: testDomain}, nil },
		Services:  []agent.Service{s}, EndToEnd: end,
		Logger: cli.NewLogger(e.log, "info", "text"), ExitOnFailure: true,
		OnRegister: func(r agent.Registration) { registered <- r },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		ended <- a.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return registered, ended
}

// awaitWildcard waits until the edge has its certificates.
func (e *autoEdge) awaitWildcard(t *testing.T) *x509.CertPool {
	t.Helper()
	roots := e.ca.roots(t)
	eventually(t, "the wildcard certificate", func() bool {
		_, err := handshake(e.at.HTTPS, testDomain, roots)
		if err == nil {
			_, err = handshake(e.at.HTTPS, "x."+testDomain, roots)
		}
		return err == nil
	})
	return roots
}

// visit makes a request to the edge over TLS.
func visit(addr, host string, roots *x509.CertPool) (status int, body string, err error) {
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		},
	}
	defer tr.CloseIdleConnections()
	res, err := (&http.Client{Transport: tr, Timeout: patience}).Get("https://" + host + "/")
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}

// TestCustomDomain: a hostname whose CNAME leads to the key's name is served, with a certificate of its own.
func TestCustomDomain(t *testing.T) {
	t.Parallel()
	e := newAutoEdge(t, pebbleOptions{})
	e.start(t)
	roots := e.awaitWildcard(t)
	key, err := identity.Generate()
	if err != nil {
		t.Fatal(err)
	}
	label := key.Public().Thumbprint().Label("")
	e.names.set(t, "app.example.org", "CNAME www.example.org.")
	e.names.set(t, "www.example.org", "CNAME "+strings.ToUpper(label)+"."+testDomain+".")
	e.names.set(t, "example.org", "A 127.0.0.1")
	e.names.set(t, "_harp.example.org", `TXT "something else"`, `TXT "`+label+`"`)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "this is "+r.Host) })
	registered, _ := e.publish(t, key, h, "app.example.org", "example.org")
	await(t, registered, "the registration", func(agent.Registration) {})
	for _, host := range []string{"app.example.org", "example.org"} {
		eventually(t, "a certificate for "+host, func() bool {
			status, body, err := visit(e.at.HTTPS, host, roots)
			return err == nil && status == 200 && body == "this is "+host
		})
	}
	if _, err := handshake(e.at.HTTPS, "other.example.org", roots); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("a name that nobody serves: %v", err)
	}
}

// TestCustomDomainRefused: without the record nothing is served, and the refusal names the record.
func TestCustomDomainRefused(t *testing.T) {
	t.Parallel()
	e := newAutoEdge(t, pebbleOptions{})
	e.start(t)
	e.awaitWildcard(t)
	key, err := identity.Generate()
	if err != nil {
		t.Fatal(err)
	}
	label := key.Public().Thumbprint().Label("")
	other := strings.Repeat("a", 52) + "." + testDomain
	e.names.set(t, "nothing.example.org")
	e.names.set(t, "theirs.example.org", "CNAME "+other+".")
	e.names.set(t, "elsewhere.example.org", "CNAME www.example.net.")
	e.names.set(t, "wrong.example.org", "A 127.0.0.1")
	e.names.set(t, "_harp.wrong.example.org", `TXT "`+strings.Repeat("a", 52)+`"`)
	for host, found := range map[string]string{
		"nothing.example.org":   "has no CNAME",
		"theirs.example.org":    "leads to " + other,
		"elsewhere.example.org": "leads to www.example.net",
		"wrong.example.org":     "has another label at _harp.wrong.example.org",
	} {
		_, ended := e.publish(t, key, http.NotFoundHandler(), host)
		await(t, ended, "the refusal of "+host, func(err error) {
			var refused *agent.RefusedError
			want := host + " " + found + ": add the record " + host + ". CNAME " + label + "." + testDomain +
				". or, for a name that cannot have one, _harp." + host + `. TXT "` + label + `"`
			if !errors.As(err, &refused) || refused.Code != "hostname" || refused.Reason != want {
				t.Errorf("%s: %v\nwant %s", host, err, want)
			}
		})
	}
	_, ended := e.publish(t, key, http.NotFoundHandler(), "x."+testDomain)
	await(t, ended, "the refusal", func(err error) {
		if err == nil || !strings.Contains(err.Error(), "is a name of this server") {
			t.Errorf("a name below the domain: %v", err)
		}
	})
}

// TestAuthorityIsDown: what is on disk is served; without a certificate plain HTTP says why, and when the authority is
// there again all is well without a restart.
func TestAuthorityIsDown(t *testing.T) {
	t.Parallel()
	e := newAutoEdge(t, pebbleOptions{})
	e.ca.stop()
	e.start(t)
	eventually(t, "plain HTTP to say why", func() bool {
		res := plain(t, e.at.HTTP, "x."+testDomain)
		b, _ := io.ReadAll(res.Body)
		return res.StatusCode == http.StatusServiceUnavailable && strings.Contains(string(b), "connection refused")
	})
	eventually(t, "the log to say what is missing", func() bool {
		return strings.Contains(e.log.String(), "missing: ACME: the authority does not answer")
	})
	if _, err := handshake(e.at.HTTPS, testDomain, nil); err == nil {
		t.Error("there is a certificate")
	}
	u, err := url.Parse(e.ca.Directory)
	if err != nil {
		t.Fatal(err)
	}
	again := startPebble(t, pebbleOptions{
		Addr: u.Host, DNS: e.names.Addr, Files: e.ca.files, Validity: time.Hour, HTTP: port(t, e.cfg.HTTP), TLS: port(t, e.cfg.HTTPS),
	})
	e.ca = again
	roots := e.awaitWildcard(t)

	e.stop()
	again.stop()
	e.start(t) // with the certificates on disk, and no authority
	eventually(t, "the certificate on disk to be served", func() bool {
		_, err := handshake(e.at.HTTPS, "x."+testDomain, roots)
		return err == nil
	})
	if res := plain(t, e.at.HTTP, "x."+testDomain); res.StatusCode != http.StatusPermanentRedirect {
		t.Errorf("plain HTTP got %s, want a redirect", res.Status)
	}
}

// TestRenewal: certificates that live for half a minute are replaced, with no connection dropped.
func TestRenewal(t *testing.T) {
	t.Parallel()
	e := newAutoEdge(t, pebbleOptions{Validity: 20 * time.Second})
	e.start(t)
	roots := e.awaitWildcard(t)
	conn, err := tls.Dial("tcp", e.at.HTTPS, &tls.Config{ServerName: testDomain, RootCAs: roots, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	first := conn.ConnectionState().PeerCertificates[0].SerialNumber
	eventually(t, "another certificate", func() bool {
		state, err := handshake(e.at.HTTPS, testDomain, roots)
		return err == nil && state.PeerCertificates[0].SerialNumber.Cmp(first) != 0
	})
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", testDomain)
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != http.StatusNotFound {
		t.Errorf("the connection from before: %v", err)
	}
}

// TestBadNonces: an authority that refuses half of all nonces is asked again.
func TestBadNonces(t *testing.T) {
	t.Parallel()
	e := newAutoEdge(t, pebbleOptions{BadNonces: 50})
	e.start(t)
	e.awaitWildcard(t)
}

// TestChallengeByProgram: --acme-dns 'exec PATH', with a program that changes this test's DNS.
func TestChallengeByProgram(t *testing.T) {
	t.Parallel()
	e := newAutoEdge(t, pebbleOptions{})
	records := filepath.Join(t.TempDir(), "records")
	program := filepath.Join(t.TempDir(), "set-txt")
	text := "#!/bin/sh\necho \"$@\" >> " + records + "\n"
	if err := os.WriteFile(program, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	e.names.alone()
	e.cfg.ACMEDNS, e.cfg.acmeExec = "exec", program
	done := make(chan struct{})
	defer func() { <-done }()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // ends with ctx
		defer close(done)
		for ctx.Err() == nil {
			e.names.setTXT(readRecords(records))
			time.Sleep(20 * time.Millisecond)
		}
	}()
	e.start(t)
	e.awaitWildcard(t)
	if text, _ := os.ReadFile(records); strings.Count(string(text), "present") != 2 || strings.Count(string(text), "cleanup") != 2 {
		t.Errorf("the program was called with\n%s", text)
	}
}

// readRecords returns the TXT values by name that the calls in a file have left.
func readRecords(file string) map[string][]string {
	records := make(map[string][]string)
	text, _ := os.ReadFile(file)
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		values := slices.DeleteFunc(records[f[1]], func(v string) bool { return v == f[2] })
		if f[0] == "present" {
			values = append(values, f[2])
		}
		records[f[1]] = values
	}
	return records
}

// TestDataDirIsTaken: a second edge on the same folder is told so.
func TestDataDirIsTaken(t *testing.T) {
	t.Parallel()
	s := newSetup(t, nil)
	cfg := s.cfg
	cfg.TLS, cfg.DataDir, cfg.HTTPS = "internal", t.TempDir(), "127.0.0.1:0"
	release, err := lockDataDir(cfg.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	err = run(context.Background(), cfg, func(listenAddrs) { t.Error("it started") })
	var e *cli.Error
	if !errors.As(err, &e) || !strings.Contains(err.Error(), cfg.DataDir) || !strings.Contains(e.Hint, "--data-dir") {
		t.Errorf("got %v, want an error that names the folder, and a hint", err)
	}
}

// TestInternalCAHint: a folder that cannot be made is not the same as a root that is broken.
func TestInternalCAHint(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	broken := t.TempDir()
	if err := os.WriteFile(filepath.Join(broken, "internal-ca"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{file: "--data-dir", filepath.Join(file, "below"): "--data-dir", broken: "internal-ca"} {
		_, err := openInternalCA(dir)
		var e *cli.Error
		if !errors.As(err, &e) || !strings.Contains(e.Hint, want) {
			t.Errorf("%s: got %v and another hint than one with %s: %+v", dir, err, want, e)
		}
	}
	if hint := internalCAHint(broken, &fs.PathError{Op: "open", Path: broken, Err: syscall.EACCES}); !strings.Contains(hint, "run as") || strings.Contains(hint, "new root") {
		t.Errorf("of who may not read the CA: %q, which must not cost him the CA", hint)
	}
}

// TestHostnameWithoutCertificate: the operator is told of a hostname that visitors cannot reach by HTTPS.
func TestHostnameWithoutCertificate(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.TLS = "files"
	cfg.Cert, cfg.CertKey, _ = writeCertificate(t)
	internal := testConfig(t)
	internal.TLS = "internal"
	off := testConfig(t)
	for _, test := range []struct {
		cfg      config
		hostname string
		warns    bool
	}{{cfg, "app.example.org", true}, {cfg, "x." + testDomain, false}, {internal, "app.example.org", true}, {off, "app.example.org", false}} {
		log := new(syncBuffer)
		c, err := openCertificates(test.cfg, cli.NewLogger(log, "info", "text"))
		if err != nil {
			t.Fatal(err)
		}
		c.prepareHostname(test.hostname)
		c.end()
		if got := strings.Contains(log.String(), "hostname="+test.hostname); got != test.warns {
			t.Errorf("--tls %s, %s: warned %v, want %v: %s", test.cfg.TLS, test.hostname, got, test.warns, log.String())
		}
	}
}

// TestChallengeProgramMissing: it is told at the start, not with the first certificate.
func TestChallengeProgramMissing(t *testing.T) {
	t.Parallel()
	s := newSetup(t, nil)
	cfg := s.cfg
	cfg.TLS, cfg.DataDir, cfg.HTTPS = "auto", t.TempDir(), "127.0.0.1:0"
	cfg.ACMEDNS, cfg.acmeExec = "exec", filepath.Join(t.TempDir(), "no-such-program")
	err := run(context.Background(), cfg, func(listenAddrs) { t.Error("it started") })
	var e *cli.Error
	if !errors.As(err, &e) || !strings.Contains(err.Error(), cfg.acmeExec) || e.Hint == "" {
		t.Errorf("got %v, want an error that names the program, and a hint", err)
	}
}
