package dns

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	mdns "github.com/miekg/dns"
)

// TestManyTCP: connections that say nothing keep nobody from an answer, by UDP or TCP, and their number is bounded.
func TestManyTCP(t *testing.T) {
	t.Parallel()
	_, addr := start(t, nil)
	for range maxTCPNet + 10 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	for _, network := range []string{"udp", "tcp"} {
		if res := ask(t, network, addr, new(mdns.Msg).SetQuestion("tunnels.example.com.", mdns.TypeA)); len(res.Answer) != 1 {
			t.Errorf("over %s: %v", network, res)
		}
	}
}

// A pipes is a listener of connections within the process, from any address.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

type pipe struct {
	net.Conn
	remote net.Addr
}

func (p pipe) RemoteAddr() net.Addr { return p.remote }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	return nil
}

func (p *pipes) Addr() net.Addr { return new(net.TCPAddr) }

func (p *pipes) dial(addr string) net.Conn {
	near, far := net.Pipe()
	p.conns <- pipe{far, net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 1))}
	return near
}

// TestBounded: the oldest connection gives way, of the same network where that has too many.
func TestBounded(t *testing.T) {
	t.Parallel()
	inner := &pipes{conns: make(chan net.Conn, 1), closed: make(chan struct{})}
	b := newBounded(inner)
	defer b.Close()
	connect := func(addr string) (near, far net.Conn) {
		near = inner.dial(addr)
		far, err := b.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { near.Close(); far.Close(); far.Close() })
		return near, far
	}
	isOpen := func(near net.Conn) bool {
		_ = near.SetReadDeadline(time.Now().Add(time.Millisecond))
		_, err := near.Read(make([]byte, 1))
		ne, ok := err.(net.Error)
		return ok && ne.Timeout()
	}
	first, _ := connect("198.51.100.1")
	crowd, _ := connect("192.0.2.1")
	for i := range maxTCPNet - 1 {
		connect(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}).String())
	}
	if !isOpen(crowd) {
		t.Error("a connection was closed before its network had too many")
	}
	connect("192.0.2.77")
	if isOpen(crowd) || !isOpen(first) {
		t.Error("of a network with too many it is not its own oldest that was closed")
	}
	for i := b.conns.Len(); i < maxTCP; i++ {
		connect(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}).String())
	}
	if !isOpen(first) {
		t.Error("a connection was closed before there were too many")
	}
	connect("10.9.9.9")
	if isOpen(first) || b.conns.Len() != maxTCP {
		t.Errorf("with too many the oldest is open still: %v, of %d", isOpen(first), b.conns.Len())
	}
	near, far := connect("10.9.9.9")
	near.Close()
	far.Close()
	if n := b.nets[netOf(netip.MustParseAddr("10.9.9.9"))]; n != 1 {
		t.Errorf("a network is counted with %d connections, want 1", n)
	}
}

// TestSlowTCP: one who asks and does not read, or begins to ask and does not end, is not waited for, and never holds up the
// end of the server.
func TestSlowTCP(t *testing.T) { synctest.Test(t, testSlowTCP) }

func testSlowTCP(t *testing.T) {
	s, err := New(Options{Domain: "tunnels.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	l := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, nil, []net.Listener{l}) }() // ends with cancel
	query, err := new(mdns.Msg).SetQuestion("tunnels.example.com.", mdns.TypeSOA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	query = append([]byte{0, byte(len(query))}, query...)

	silent := l.dial("192.0.2.1")
	if took := untilClosed(silent); took != tcpIdle {
		t.Errorf("who says nothing was let go after %v, want %v", took, tcpIdle)
	}
	slow := l.dial("192.0.2.1")
	if _, err := slow.Write(query[:len(query)-1]); err != nil {
		t.Fatal(err)
	}
	if took := untilClosed(slow); took != tcpIdle {
		t.Errorf("who does not end his query was let go after %v, want %v", took, tcpIdle)
	}
	deaf := l.dial("192.0.2.1")
	if _, err := deaf.Write(query); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := deaf.Write(query); err == nil || time.Since(began) != tcpWrite { // the server reads no more till it has written
		t.Errorf("who does not read was let go after %v (%v), want %v", time.Since(began), err, tcpWrite)
	}
	deaf = l.dial("192.0.2.1")
	if _, err := deaf.Write(query); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	cancel()
	if err := <-done; err != nil || time.Since(began) > tcpWrite {
		t.Errorf("the server ended after %v: %v", time.Since(began), err)
	}
	for _, c := range []net.Conn{silent, slow, deaf} {
		c.Close()
	}
}

// untilClosed is how long it takes the other side to close c.
func untilClosed(c net.Conn) time.Duration {
	began := time.Now()
	_, _ = c.Read(make([]byte, 1))
	return time.Since(began)
}
