package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/acme"

	"github.com/harp-tunnel/harp/messages"
)

const (
	handshakeTimeout = 10 * time.Second
	endHeadTimeout   = 20 * time.Second // for a visitor's request head
	endIdleTimeout   = 2 * time.Minute  // between two requests of a visitor
	endMaxHead       = 128 << 10        // bytes of a visitor's request head, as at the edge
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
	config       *tls.Config
	certificates *certificates // nil if they are the user's own
	log          *slog.Logger
}

// newTLSEnd checks e and the services; nil gives nil.
func newTLSEnd(e *EndToEnd, services []Service, log *slog.Logger) (*tlsEnd, error) {
	if e == nil {
		return nil, nil
	}
	for _, s := range services {
		if s.Path != "" {
			return nil, fmt.Errorf("agent: the path %s does not go with TLS that ends here: the edge cannot see paths", s.Path)
		}
	}
	t := &tlsEnd{log: log}
	t.config = &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, GetCertificate: e.GetCertificate,
	}
	if e.GetCertificate != nil {
		return t, nil
	}
	var err error
	if t.certificates, err = newCertificates(e, log); err != nil {
		return nil, err
	}
	t.config.GetCertificate = t.certificates.get
	t.config.NextProtos = append(t.config.NextProtos, acme.ALPNProto) // for TLS-ALPN-01 (RFC 8737), through the tunnel
	return t, nil
}

// live gives the end of Run.
func (t *tlsEnd) live(ctx context.Context) {
	if t != nil && t.certificates != nil {
		t.certificates.life = ctx
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

// newTLSServer returns a server for h, which has the given names. close ends it.
func (t *tlsEnd) newTLSServer(h http.Handler, names []string, wg *sync.WaitGroup) *tlsServer {
	s := &tlsServer{end: t, conns: make(chan net.Conn), closed: make(chan struct{})}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	s.server = &http.Server{
		Handler: fromVisitor(h, names), Protocols: protocols, DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout: endHeadTimeout, IdleTimeout: endIdleTimeout, MaxHeaderBytes: endMaxHead,
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

// A tlsService is what a link keeps of a service whose TLS ends here.
type tlsService struct {
	names  []string
	stop   context.CancelFunc // ends what gets its certificates
	server *tlsServer         // nil before the first visitor
}

// takeTLS returns what takes a visitor's TLS connection, nil if the registration is unknown.
func (l *link) takeTLS(r messages.TLSRequest) func(net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.services[r.Registration]; !ok || l.tlsClosed {
		return nil
	}
	e := l.tls[r.Registration]
	if e.server == nil {
		e.server = l.agent.tlsEnd.newTLSServer(l.services[r.Registration].Handler, e.names, &l.agent.links)
	}
	return e.server.serve
}

// tlsServers are those of the link; with no more to come, if final.
func (l *link) tlsServers(final bool) []*tlsServer {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tlsClosed = l.tlsClosed || final
	var all []*tlsServer
	for _, e := range l.tls {
		if e.server != nil {
			all = append(all, e.server)
		}
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

// grantTLS takes the names of a registration into use, and gets certificates for them until it has ended.
func (l *link) grantTLS(registration uint32, hostname string, s Service) {
	t := l.agent.tlsEnd
	if t == nil {
		return
	}
	ctx, stop := context.WithCancel(l.life)
	e := &tlsService{names: append(slices.Clone(s.Hostnames), hostname), stop: stop}
	l.mu.Lock()
	if l.tls == nil {
		l.tls = make(map[uint32]*tlsService)
	}
	l.tls[registration] = e
	l.mu.Unlock()
	if t.certificates == nil {
		return
	}
	for _, name := range e.names {
		t.certificates.grant(name)
		l.agent.links.Go(func() { t.certificates.obtain(ctx, name) }) // ends with a certificate, or ctx
	}
}
