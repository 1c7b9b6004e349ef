package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
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
			want := host + " " + found + ": add the record " + host + ". CNAME " + label + "." + testDomain + "."
			if !errors.As(err, &refused) || refused.Code != "hostname" || !strings.HasPrefix(refused.Reason, want) {
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
