package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"

	"github.com/harp-tunnel/harp/messages"
)

const (
	handshakeTimeout = 10 * time.Second
	endHeadTimeout   = 20 * time.Second // for a visitor's request head
	endIdleTimeout   = 2 * time.Minute  // between two requests of a visitor
	issueRetry       = 10 * time.Minute // after a certificate could not be obtained
)

// EndToEnd makes the agent end visitors' TLS itself, with a key that never leaves it: the edge sees the server name and
// encrypted bytes. Services then have no Path, and the edge's limit on bodies does not hold, as it sees none.
type EndToEnd struct {
	// GetCertificate returns the certificate for a visitor, as in tls.Config. Nil means that certificates come by ACME,
	// with the fields below.
	GetCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// CertDir keeps certificates and the account's key; required for ACME.
	CertDir string
	// Directory is the URL of the ACME directory; empty means Let's Encrypt. Roots are to trust it by; nil means the
	// system's.
	Directory string
	Roots     *x509.CertPool
	Email     string // for the authority; may be empty
}

// A tlsEnd is where visitors' TLS ends for all links of an agent.
type tlsEnd struct {
	config  *tls.Config
	manager *autocert.Manager // nil if the certificates are the user's own
	log     *slog.Logger
	life    context.Context // of Run; set before the first link

	mu    sync.Mutex
	names map[string]bool // that the edge has granted; whether the certificate is being obtained or there
}

// newTLSEnd checks e; nil gives nil.
func newTLSEnd(e *EndToEnd, log *slog.Logger) (*tlsEnd, error) {
	if e == nil {
		return nil, nil
	}
	t := &tlsEnd{log: log, names: make(map[string]bool)}
	t.config = &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, GetCertificate: e.GetCertificate,
	}
	if e.GetCertificate != nil {
		return t, nil
	}
	if e.CertDir == "" {
		return nil, errors.New("agent: no folder for certificates")
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: e.Roots}
	transport.DisableKeepAlives = true // there are few requests, months apart
	directory := e.Directory
	if directory == "" {
		directory = autocert.DefaultACMEDirectory
	}
	t.manager = &autocert.Manager{
		Prompt: autocert.AcceptTOS, Cache: autocert.DirCache(e.CertDir), HostPolicy: t.allow, Email: e.Email,
		Client: &acme.Client{DirectoryURL: directory, HTTPClient: &http.Client{Transport: whileUp{t, transport}, Timeout: time.Minute}},
	}
	t.config.GetCertificate = t.manager.GetCertificate
	t.config.NextProtos = append(t.config.NextProtos, acme.ALPNProto) // for TLS-ALPN-01 (RFC 8737), through the tunnel
	return t, nil
}

// whileUp carries requests to the authority as long as the agent runs: autocert knows no end of its own.
type whileUp struct {
	end   *tlsEnd
	inner http.RoundTripper
}

func (w whileUp) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(r.Context())
	context.AfterFunc(w.end.life, cancel) // stays until then, as the body is read later; requests are few
	return w.inner.RoundTrip(r.WithContext(ctx))
}

// allow is the policy of autocert: names that the edge has granted, and no others.
func (t *tlsEnd) allow(_ context.Context, host string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.names[host]; !ok {
		return errors.New(host + " is not a name of this agent")
	}
	return nil
}

// grant notes names that are served from now on, and gets their certificates before the first visitor comes. ctx is the
// link's life.
func (t *tlsEnd) grant(ctx context.Context, names []string, wg *sync.WaitGroup) {
	for _, name := range names {
		t.mu.Lock()
		under := t.names[name]
		t.names[name] = t.manager != nil
		t.mu.Unlock()
		if t.manager != nil && !under {
			wg.Go(func() { t.obtain(ctx, name) }) // ends with a certificate, or with ctx and the attempt under way
		}
	}
}

// obtain tries until there is a certificate, which autocert then renews.
func (t *tlsEnd) obtain(ctx context.Context, name string) {
	hello := &tls.ClientHelloInfo{ // of a client that takes an ECDSA certificate
		ServerName:       name,
		SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256},
		SupportedCurves:  []tls.CurveID{tls.CurveP256},
		CipherSuites:     []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
	}
	for {
		_, err := t.manager.GetCertificate(hello)
		if err == nil {
			t.log.Info("certificate ready: only this agent has its key", "hostname", name)
			return
		}
		t.log.Error("no certificate", "hostname", name, "reason", err, "again in", issueRetry)
		select {
		case <-time.After(issueRetry):
		case <-ctx.Done():
			t.mu.Lock()
			defer t.mu.Unlock()
			t.names[name] = false // the next link tries again
			return
		}
	}
}

// A tlsServer serves the visitors of one service over one link.
type tlsServer struct {
	end    *tlsEnd
	server *http.Server
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// newTLSServer returns a server for h. close ends it.
func (t *tlsEnd) newTLSServer(h http.Handler, wg *sync.WaitGroup) *tlsServer {
	s := &tlsServer{end: t, conns: make(chan net.Conn), closed: make(chan struct{})}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	s.server = &http.Server{
		Handler: fromVisitor(h), Protocols: protocols, DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout: endHeadTimeout, IdleTimeout: endIdleTimeout,
		ErrorLog: slog.NewLogLogger(t.log.Handler(), slog.LevelDebug),
	}
	wg.Go(func() { _ = s.server.Serve(s) }) // ends with close
	return s
}

// serve carries one visitor's connection until it ends.
func (s *tlsServer) serve(conn net.Conn) {
	tracked := &trackedConn{Conn: conn, gone: make(chan struct{})}
	defer tracked.Close()
	_ = conn.SetDeadline(time.Now().Add(handshakeTimeout))
	c := tls.Server(tracked, s.end.config)
	if err := c.Handshake(); err != nil {
		s.end.log.Debug("handshake failed", "from", conn.RemoteAddr(), "error", err)
		return
	}
	if c.ConnectionState().NegotiatedProtocol == acme.ALPNProto {
		return // the handshake is all that the authority wants
	}
	_ = conn.SetDeadline(time.Time{})
	select {
	case s.conns <- c:
		<-tracked.gone
	case <-s.closed:
	}
}

// Accept is for http.Server.
func (s *tlsServer) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

// Close is for http.Server.
func (s *tlsServer) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

// Addr is for http.Server.
func (s *tlsServer) Addr() net.Addr { return &net.TCPAddr{} }

// A trackedConn tells when it is closed. It is what a tls.Conn is over: net/http must see the tls.Conn itself.
type trackedConn struct {
	net.Conn
	once sync.Once
	gone chan struct{}
}

func (c *trackedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { close(c.gone) })
	return err
}

// fromVisitor gives h what the edge would have told it, and drops what the visitor claims to be told by an edge.
func fromVisitor(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name := range r.Header {
			if strings.HasPrefix(name, "X-Forwarded-") || strings.HasPrefix(name, "Harp-") || name == "Forwarded" || name == "X-Real-Ip" {
				delete(r.Header, name)
			}
		}
		if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
			r.Header["X-Forwarded-For"] = []string{host}
		}
		r.Header["X-Forwarded-Proto"] = []string{"https"}
		r.Header["X-Forwarded-Host"] = []string{r.Host}
		if r.ProtoMajor == 1 && r.Body != nil && r.Body != http.NoBody {
			_ = http.NewResponseController(w).EnableFullDuplex()
		}
		h.ServeHTTP(w, r)
	})
}

// takeTLS returns what takes a visitor's TLS connection, nil if the registration is unknown.
func (l *link) takeTLS(r messages.TLSRequest) func(net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.services[r.Registration]; !ok || l.tlsClosed {
		return nil
	}
	s := l.tls[r.Registration]
	if s == nil {
		s = l.agent.tlsEnd.newTLSServer(l.services[r.Registration].Handler, &l.agent.links)
		if l.tls == nil {
			l.tls = make(map[uint32]*tlsServer)
		}
		l.tls[r.Registration] = s
	}
	return s.serve
}

// tlsServers are those of the link; with no more to come, if final.
func (l *link) tlsServers(final bool) []*tlsServer {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tlsClosed = l.tlsClosed || final
	var all []*tlsServer
	for _, s := range l.tls {
		all = append(all, s)
	}
	return all
}

// restTLS closes visitors' connections once they are idle, until ctx ends.
func (l *link) restTLS(ctx context.Context) {
	for _, s := range l.tlsServers(false) {
		l.agent.links.Go(func() { _ = s.server.Shutdown(ctx) }) // ends with ctx
	}
}

// closeTLS ends all of the link's servers.
func (l *link) closeTLS() {
	for _, s := range l.tlsServers(true) {
		_ = s.server.Close()
		_ = s.Close()
	}
}

// grantTLS gets certificates for the names of a registration.
func (l *link) grantTLS(ctx context.Context, hostname string, s Service) {
	if t := l.agent.tlsEnd; t != nil {
		t.grant(ctx, append(slices.Clone(s.Hostnames), hostname), &l.agent.links)
	}
}
