package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/harp-tunnel/harp/tunnel"
)

// answering listens, and answers with the statuses, one after the other, before it takes links.
func answering(t *testing.T, statuses ...int) *fakeEdge {
	e := listenEdge(t, "")
	var n atomic.Int32
	e.server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i := int(n.Add(1)) - 1
		if i >= len(statuses) {
			e.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Location", "https://elsewhere.example/")
		http.Error(w, "words of \x1b[1mthe operator\u009b31m\nand more", statuses[i])
	})
	e.server.Start()
	return e
}

func TestHTTPRefusalAtFirstStart(t *testing.T) {
	for _, status := range []int{400, 401, 403, 404, 410, 426, 301, 308} {
		err := startAgent(t, answering(t, status), nil).wait()
		says := fmt.Sprintf("the server answered %d: words of [1mthe operator31m", status)
		if got := ended(err); got != "refused: http: "+says {
			t.Errorf("%d: Run returned %s, want a refusal with %q", status, got, says)
		}
		if err.Error() != says {
			t.Errorf("%d: the error says %q, want %q", status, err, says)
		}
		if answer, ok := errors.AsType[*tunnel.RefusedError](err); !ok || answer.Status != status || answer.Location == "" {
			t.Errorf("%d: %+v is behind the refusal, want the answer, with where it leads to", status, answer)
		}
	}
}

func TestHTTPRefusalThatMayPass(t *testing.T) {
	for _, status := range []int{302, 429, 500, 502, 503} {
		e := answering(t, status)
		startAgent(t, e, nil)
		e.accept(1).wants(1, "/", "main /")
	}
	a := startAgent(t, answering(t, 503), func(o *Options) { o.ExitOnFailure = true })
	if err := a.wait(); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "words of [1mthe operator") {
		t.Errorf("with ExitOnFailure Run returned %v, want ErrUnreachable with the server's words", err)
	}
}

// After the first link, 404 is taken for a server that is being worked on.
func TestHTTPRefusalLater(t *testing.T) {
	e := startEdge(t)
	startAgent(t, e, nil)
	l := e.accept(1)
	addr := e.server.Listener.Addr().String()
	e.server.Close()

	other := listenEdge(t, addr)
	asked := make(chan struct{}, 100)
	other.server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked <- struct{}{}; len(asked) < 2 {
			http.NotFound(w, r)
			return
		}
		other.ServeHTTP(w, r)
	})
	other.server.Start()
	l.cut()
	other.accept(1).wants(1, "/", "main /")
}

// What answers is no edge: it may be a captive portal, so the agent goes on.
func TestGarbageForAnAnswer(t *testing.T) {
	const switching = "HTTP/1.1 101 Switching Protocols\r\n"
	for _, answer := range []string{
		"", "\x00\x01\x02\r\n\r\n", "SSH-2.0-OpenSSH_9.2\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
		switching + "\r\n",
		switching + "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\nSec-WebSocket-Protocol: harp.v1\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 2<<20),
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() { // ends when l closes
			defer close(done)
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				p := newPeer(t, c)
				p.head()
				_, _ = io.WriteString(c, answer) // the agent need not take all of it
				c.Close()
			}
		}()
		a := startAgent(t, nil, func(o *Options) { o.Server, o.ExitOnFailure = "http://"+l.Addr().String(), true })
		if err := a.wait(); !errors.Is(err, ErrUnreachable) {
			t.Errorf("answer %.40q: Run returned %v, want ErrUnreachable", answer, err)
		}
		l.Close()
		<-done
	}
}

// Without a challenge there is nothing to sign.
func TestNoChallenge(t *testing.T) {
	e := startEdge(t)
	e.challenge = func() string { return "" }
	a := startAgent(t, e, func(o *Options) { o.ExitOnFailure = true })
	if err := a.wait(); !errors.Is(err, ErrUnreachable) || strings.Count(fmt.Sprint(err), "sign registration") != 1 {
		t.Errorf("Run returned %v, want ErrUnreachable because nothing can be signed", err)
	}
	if _, _, err := e.next().NextMessage(); err == nil {
		t.Error("the agent keeps the link, or sends something on it")
	}
}

// newCertificate returns a certificate for 127.0.0.1 and edge.test that has signed itself, and who trusts it.
func newCertificate(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"edge.test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, roots
}

// startTLSEdge is an edge at https://, with whatever certificate current holds.
func startTLSEdge(t testing.TB, current *atomic.Pointer[tls.Certificate]) *fakeEdge {
	t.Helper()
	e := listenEdge(t, "")
	e.server.TLS = &tls.Config{
		Certificates: []tls.Certificate{*current.Load()}, // else httptest brings its own
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return &tls.Config{Certificates: []tls.Certificate{*current.Load()}}, nil
		},
	}
	e.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	e.server.StartTLS()
	return e
}

func TestCertificateIsRotated(t *testing.T) {
	var current atomic.Pointer[tls.Certificate]
	var trusted atomic.Pointer[x509.CertPool]
	rotate := func() {
		c, roots := newCertificate(t)
		current.Store(&c)
		trusted.Store(roots)
	}
	rotate()
	e := startTLSEdge(t, &current)
	var asked atomic.Int32
	startAgent(t, e, func(o *Options) {
		o.TLSConfig = func() (*tls.Config, error) {
			asked.Add(1)
			return &tls.Config{RootCAs: trusted.Load()}, nil
		}
	})
	for i := range int32(3) {
		l := e.accept(1)
		if got := asked.Load(); got != i+1 {
			t.Errorf("TLSConfig was called %d times for %d dials", got, i+1)
		}
		l.wants(1, "/", "main /")
		rotate()
		l.cut()
	}
}

func TestTLSConfigFails(t *testing.T) {
	_, roots := newCertificate(t)
	var current atomic.Pointer[tls.Certificate]
	other, _ := newCertificate(t)
	current.Store(&other)
	broken := errors.New("no such file")
	e := startTLSEdge(t, &current)
	for _, c := range []struct {
		name   string
		config func() (*tls.Config, error)
		want   func(error) bool
	}{
		{"it returns an error", func() (*tls.Config, error) { return nil, broken }, func(err error) bool { return errors.Is(err, broken) }},
		{"it trusts another", func() (*tls.Config, error) { return &tls.Config{RootCAs: roots}, nil }, isUnknownAuthority},
		{"it returns nothing", func() (*tls.Config, error) { return nil, nil }, isUnknownAuthority},
		{"there is none", nil, isUnknownAuthority},
	} {
		a := startAgent(t, e, func(o *Options) { o.TLSConfig, o.ExitOnFailure = c.config, true })
		if err := a.wait(); !errors.Is(err, ErrUnreachable) || !c.want(err) {
			t.Errorf("%s: Run returned %v, want ErrUnreachable with its cause", c.name, err)
		}
	}
}

func isUnknownAuthority(err error) bool {
	var unknown x509.UnknownAuthorityError
	return errors.As(err, &unknown)
}

// newResolver returns one for which edge.test has the address that current returns and no other name exists, and how
// many answers it gave.
func newResolver(current func() netip.Addr) (r *net.Resolver, answers *atomic.Int32) {
	answers = new(atomic.Int32)
	serve := func(c net.Conn) error {
		for {
			var size [2]byte
			if _, err := io.ReadFull(c, size[:]); err != nil {
				return err
			}
			query := make([]byte, binary.BigEndian.Uint16(size[:]))
			if _, err := io.ReadFull(c, query); err != nil {
				return err
			}
			answer, err := answerQuery(query, current())
			if err != nil {
				return err
			}
			answers.Add(1)
			if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
				return err
			}
		}
	}
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe() // which carries no datagrams, so that each message has its length before it
		go func() {             // ends when the resolver closes its end
			defer far.Close()
			_ = serve(far)
		}()
		return near, nil
	}}, answers
}

// answerQuery answers one query of the DNS.
func answerQuery(query []byte, addr netip.Addr) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
		return nil, fmt.Errorf("query %x: %w", query, err)
	}
	q := m.Questions[0]
	m = dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true}, Questions: m.Questions}
	header := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 3600} // which nobody is to heed
	switch {
	case !strings.EqualFold(q.Name.String(), "edge.test."):
		m.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA && addr.Is4():
		m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AResource{A: addr.As4()}}}
	case q.Type == dnsmessage.TypeAAAA && addr.Is6():
		m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}}}
	}
	return m.Pack()
}

// The edge has got another address: the next dial has to find it.
func TestNameIsLookedUpAtEachDial(t *testing.T) {
	four, six := listenBoth(t)
	var current atomic.Pointer[netip.Addr]
	addrs := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}
	current.Store(&addrs[0])
	old := net.DefaultResolver
	t.Cleanup(func() { net.DefaultResolver = old }) // after the agent has ended
	net.DefaultResolver, _ = newResolver(func() netip.Addr { return *current.Load() })
	_, port, _ := net.SplitHostPort(four.server.Listener.Addr().String())
	startAgent(t, nil, func(o *Options) { o.Server = "http://edge.test:" + port })
	for i, e := range []*fakeEdge{four, six, four} {
		l := e.next()
		if claim := l.grant(); claim.Audience != "edge.test" {
			t.Errorf("dial %d signs for %q, want edge.test: the name, not the address", i, claim.Audience)
		}
		l.serve()
		l.wants(1, "/", "main /")
		current.Store(&addrs[(i+1)%2])
		l.cut()
	}
}

// listenBoth returns edges that have one port on 127.0.0.1 and on ::1.
func listenBoth(t *testing.T) (four, six *fakeEdge) {
	t.Helper()
	for range 20 {
		four = listenEdge(t, "")
		_, port, _ := net.SplitHostPort(four.server.Listener.Addr().String())
		if l, err := net.Listen("tcp", "[::1]:"+port); err == nil {
			l.Close()
			six = listenEdge(t, "[::1]:"+port)
			four.server.Start()
			six.server.Start()
			return four, six
		}
	}
	t.Skip("no port is free on both 127.0.0.1 and ::1")
	return nil, nil
}
