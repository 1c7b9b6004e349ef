package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/tunnel/agent"
)

const (
	testDomain = "tunnels.test"

	// patience bounds every single wait of a test; nothing comes near it unless something is broken.
	patience = 10 * time.Second
)

// direct says that visitors dial the upstream itself (HARP_FIDELITY_DIRECT=1): what a test expects of the
// tunnel must hold of a plain server first.
func direct() bool { return os.Getenv("HARP_FIDELITY_DIRECT") == "1" }

func TestMain(m *testing.M) {
	// Certmagic keeps one for each account as long as the process lives, and one for five seconds after each lock. Autocert
	// gives authorizations back for up to a minute.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.(*RingBufferRateLimiter).loop"),
		goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.keepLockfileFresh"),
		goleak.IgnoreAnyFunction("golang.org/x/crypto/acme/autocert.(*Manager).deactivatePendingAuthz"))
}

// A tunnel is a running edge, agent and upstream for one test or benchmark.
type tunnel struct {
	Addr     string         // what visitors dial: host:port, or the path of a socket in direct mode
	Host     string         // <label>.domain, for the Host field
	URL      string         // http(s)://Host without a port; for use with client
	Upstream string         // what the agent dials: host:port or the path of a socket; empty for a handler
	Roots    *x509.CertPool // nil without withTLS

	network   string
	stopAgent func() // ends the agent and waits for it; may be called twice
}

// setup is what options change before anything starts.
type setup struct {
	cfg     config
	forward agent.ForwardOptions
	service agent.Service
	tls     bool
}

type option func(*setup)

// withTLS makes visitors dial TLS: an edge with --tls files and a throw-away certificate.
func withTLS() option { return func(s *setup) { s.tls = true } }

// withConfig changes the edge's configuration; addresses are set already.
func withConfig(f func(*config)) option { return func(s *setup) { f(&s.cfg) } }

// withForward changes how the agent forwards; of no use with publishHandler.
func withForward(f func(*agent.ForwardOptions)) option { return func(s *setup) { f(&s.forward) } }

// withService changes the registration: session, path prefix, mode.
func withService(f func(*agent.Service)) option { return func(s *setup) { f(&s.service) } }

// publish runs an edge and an agent for upstream, a TARGET as people type it, and returns once the name is
// served. Everything is stopped and waited for when the test ends.
func publish(t testing.TB, upstream string, opts ...option) *tunnel {
	t.Helper()
	network, addr := splitTarget(t, upstream)
	tn := &tunnel{Upstream: addr, network: "tcp"}
	s := newSetup(t, opts)
	if direct() {
		tn.Addr, tn.network = addr, network
		tn.serveDirect(t, s, upstream)
		return tn
	}
	fwd, err := agent.Forward(upstream, s.forward)
	if err != nil {
		t.Fatalf("forward to %s: %v", upstream, err)
	}
	t.Cleanup(fwd.Close) // runs after the agent has ended
	s.service.Handler = fwd
	tn.start(t, s)
	return tn
}

// publishHandler is publish for a handler in the agent's own process.
func publishHandler(t testing.TB, h http.Handler, opts ...option) *tunnel {
	t.Helper()
	tn := &tunnel{network: "tcp"}
	s := newSetup(t, opts)
	if direct() {
		target := serveUpstream(t, h)
		_, tn.Addr = splitTarget(t, target)
		tn.serveDirect(t, s, target)
		return tn
	}
	s.service.Handler = h
	tn.start(t, s)
	return tn
}

// needsTunnel skips a test that means nothing against a plain server.
func (tn *tunnel) needsTunnel(t testing.TB) {
	t.Helper()
	if direct() {
		t.Skip("only the tunnel does this")
	}
}

// client returns a client that dials the edge whatever the URL's host is, takes bodies as they come, and does
// not follow redirects. Without h2 it speaks HTTP/1.1 only.
func (tn *tunnel) client(t testing.TB, h2 bool) *http.Client {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, tn.network, tn.Addr)
		},
		DisableCompression: true,
		Protocols:          new(http.Protocols),
	}
	tr.Protocols.SetHTTP1(!h2)
	tr.Protocols.SetHTTP2(h2)
	tr.Protocols.SetUnencryptedHTTP2(h2)
	if tn.Roots != nil {
		tr.TLSClientConfig = &tls.Config{RootCAs: tn.Roots}
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{
		Transport:     tr,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func newSetup(t testing.TB, opts []option) *setup {
	s := &setup{cfg: testConfig(t)}
	for _, o := range opts {
		o(s)
	}
	return s
}

func testConfig(t testing.TB) config {
	return config{
		Domain:         testDomain,
		HTTP:           "127.0.0.1:0",
		TLS:            "off",
		DataDir:        t.TempDir(),
		MaxBody:        512_000,
		RequestTimeout: 30 * time.Second,
		PingInterval:   10 * time.Second,
		MaxStreams:     1000,
		RouteHost:      true,
		Admin:          "off",
		LogLevel:       "error",
		LogFormat:      "text",
	}
}

// start runs the edge and the agent, and sets the tunnel's addresses.
func (tn *tunnel) start(t testing.TB, s *setup) {
	t.Helper()
	if s.tls {
		s.cfg.TLS, s.cfg.HTTPS = "files", "127.0.0.1:0"
		s.cfg.Cert, s.cfg.CertKey, tn.Roots = writeCertificate(t)
	}
	addrs := startEdge(t, s.cfg)
	tn.Addr = addrs.HTTP
	server, scheme := "http://"+addrs.HTTP, "http://"
	if s.tls {
		tn.Addr, server, scheme = addrs.HTTPS, "https://"+addrs.HTTPS, "https://"
	}
	reg := tn.startAgent(t, server, s)
	tn.Host = reg.Hostname
	tn.URL = scheme + tn.Host
}

// startEdge runs harpd until the test ends.
func startEdge(t testing.TB, cfg config) listenAddrs {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	up, ended := make(chan listenAddrs, 1), make(chan error, 1)
	go func() { ended <- run(ctx, cfg, func(a listenAddrs) { up <- a }) }() // ends with ctx
	t.Cleanup(func() {
		cancel()
		await(t, ended, "harpd to stop", func(err error) {
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("harpd stopped with %v", err)
			}
		})
	})
	select {
	case a := <-up:
		return a
	case err := <-ended:
		ended <- err
		t.Fatalf("harpd did not start: %v", err)
	case <-time.After(patience):
		t.Fatal("harpd does not listen")
	}
	panic("not reached")
}

func (tn *tunnel) startAgent(t testing.TB, server string, s *setup) agent.Registration {
	t.Helper()
	registered := make(chan agent.Registration, 16)
	o := agentOptions(t, server, tn.Roots)
	o.Services = []agent.Service{s.service}
	o.OnRegister = func(r agent.Registration) {
		select {
		case registered <- r:
		default:
		}
	}
	a, err := agent.New(o)
	if err != nil {
		t.Fatalf("agent: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }() // ends with ctx
	tn.stopAgent = sync.OnceFunc(func() {
		cancel()
		await(t, ended, "the agent to stop", func(error) {})
	})
	t.Cleanup(tn.stopAgent)
	select {
	case r := <-registered:
		return r
	case err := <-ended:
		ended <- err
		t.Fatalf("the agent ended before it was registered: %v", err)
	case <-time.After(patience):
		t.Fatal("the agent did not register")
	}
	panic("not reached")
}

func agentOptions(t testing.TB, server string, roots *x509.CertPool) agent.Options {
	t.Helper()
	key, err := identity.Generate()
	if err != nil {
		t.Fatal(err)
	}
	o := agent.Options{
		Server: server,
		Key:    key,
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	if roots != nil {
		o.TLSConfig = func() (*tls.Config, error) { return &tls.Config{RootCAs: roots}, nil }
	}
	return o
}

// serveDirect fills in a tunnel that is none: visitors dial the upstream, or a bare TLS end before it.
func (tn *tunnel) serveDirect(t testing.TB, s *setup, target string) {
	tn.Host, tn.URL = "direct."+testDomain, "http://direct."+testDomain
	tn.stopAgent = func() {}
	if !s.tls {
		return
	}
	certFile, keyFile, roots := writeCertificate(t)
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	protos := []string{"http/1.1"}
	if strings.HasPrefix(target, "h2c:") {
		protos = []string{"h2"}
	}
	network, addr := tn.network, tn.Addr
	terminator := scriptListener(t, func(c net.Conn) net.Conn {
		return tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: protos})
	}, func(c net.Conn, br *bufio.Reader) {
		up, err := net.Dial(network, addr)
		if err != nil {
			return
		}
		defer up.Close()
		go func() { io.Copy(up, br); up.Close() }() // ends when either side closes
		io.Copy(c, up)
	})
	tn.network, tn.Addr, tn.Roots, tn.URL = "tcp", terminator, roots, "https://"+tn.Host
}

// serveUpstream runs a real net/http server and returns its target.
func serveUpstream(t testing.TB, h http.Handler) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // aborts are part of the tests
	srv := &http.Server{Handler: h, ErrorLog: quiet}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ln) }() // ends when srv closes
	t.Cleanup(func() {
		srv.Close()
		await(t, ended, "the upstream to stop", func(error) {})
	})
	return "http://" + ln.Addr().String()
}

// scriptUpstream listens on plain TCP, calls script for each connection, closes the connection after it, and
// returns the target. A script may not call t.Fatal.
func scriptUpstream(t *testing.T, script func(t *testing.T, conn net.Conn, br *bufio.Reader)) string {
	t.Helper()
	return "http://" + scriptListener(t, func(c net.Conn) net.Conn { return c }, func(c net.Conn, br *bufio.Reader) { script(t, c, br) })
}

func scriptListener(t testing.TB, wrap func(net.Conn) net.Conn, script func(net.Conn, *bufio.Reader)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		conns = map[net.Conn]bool{} // nil once the test is over
	)
	wg.Go(func() { // ends when ln closes
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			if conns == nil {
				conn.Close()
				mu.Unlock()
				return
			}
			conns[conn] = true
			mu.Unlock()
			wg.Go(func() { // ends when the script does; closing conn ends its waits
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(3 * patience))
				c := wrap(conn)
				script(c, bufio.NewReaderSize(c, 64<<10))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		conns = nil
		mu.Unlock()
		wg.Wait()
	})
	return ln.Addr().String()
}

// splitTarget returns what a dialler needs to reach a target.
func splitTarget(t testing.TB, target string) (network, addr string) {
	t.Helper()
	if path, ok := strings.CutPrefix(target, "unix:"); ok {
		return "unix", path
	}
	u, err := url.Parse(target)
	if err != nil || u.Host == "" {
		t.Fatalf("target %q: %v", target, err)
	}
	return "tcp", u.Host
}

// writeCertificate makes a throw-away certificate for the domain, all its hosts and loopback.
func writeCertificate(t testing.TB) (certFile, keyFile string, roots *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: testDomain},
		DNSNames:              []string{testDomain, "*." + testDomain, "localhost"},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, b := range map[string][]byte{
		certFile: certPEM,
		keyFile:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(certPEM)
	return certFile, keyFile, roots
}

// await hands the next value of c to use; the test fails if none comes. It may be called from any goroutine.
func await[T any](t testing.TB, c <-chan T, what string, use func(T)) {
	t.Helper()
	select {
	case v := <-c:
		use(v)
	case <-time.After(2 * patience):
		t.Errorf("waited %v for %s", 2*patience, what)
	}
}
