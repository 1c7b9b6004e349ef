package server

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
)

// What an idle link may take at the edge. Its connection, which is in memory here, is part of it, the agent is not.
const (
	linkBudget     = 10 << 10 // bytes of heap and stacks
	linkGoroutines = 1
	linkTimers     = 1
	linkMapEntries = 2 // of Server.links and registry.hosts
)

// TestLinkBudget measures the memory of idle links, which are pinged: of 2,000, or as many as HARP_LINKS says.
func TestLinkBudget(t *testing.T) {
	n := 2000
	if v := os.Getenv("HARP_LINKS"); v != "" {
		var err error
		if n, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
	}
	if raceEnabled {
		n = min(n, 200)
	}
	got := measureIdleLinks(t, n)
	if got.heap+got.stacks > linkBudget && !raceEnabled {
		t.Errorf("a link takes %.0f bytes of heap and stacks, want at most %d", got.heap+got.stacks, linkBudget)
	}
	if got.goroutines > linkGoroutines+.05 {
		t.Errorf("a link takes %.2f goroutines, want %d", got.goroutines, linkGoroutines)
	}
}

// TestLinkTimers counts the timers of idle links, which takes a slow heap profile. Those that were stopped lately count, too.
func TestLinkTimers(t *testing.T) {
	rate := runtime.MemProfileRate
	runtime.MemProfileRate = 1
	defer func() { runtime.MemProfileRate = rate }()
	if got := measureIdleLinks(t, 100).timers; got > linkTimers+.5 || got < linkTimers {
		t.Errorf("a link takes %.2f timers, want %d", got, linkTimers)
	}
}

// measureIdleLinks returns what one of n links takes at an edge.
func measureIdleLinks(t *testing.T, n int) footprint {
	t.Helper()
	interval := time.Second + time.Second*time.Duration(n)/2000 // about 2,000 pings a second
	s, err := New(Options{Domain: testDomain, Open: true, PingInterval: interval})
	if err != nil {
		t.Fatal(err)
	}
	l := &memListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	web := &http.Server{Handler: s}
	var serving sync.WaitGroup
	serving.Go(func() { _ = web.Serve(l) }) // ends with Close
	defer serving.Wait()
	defer web.Close()
	key := newKey(t)
	var pings atomic.Int64
	holdIdleLink(t, l, key, "first", &pings)
	before := measureFootprint()
	for i := range n {
		holdIdleLink(t, l, key, strconv.Itoa(i), &pings)
	}
	for end := time.Now().Add(3 * interval); pings.Load() < int64(n) && time.Now().Before(end); {
		time.Sleep(interval / 10)
	}
	got := measureFootprint().each(before, n)
	t.Logf("%d links, each: %.0f bytes of heap (%.0f with what is free between), %.0f of stacks, %.2f goroutines; %d pings",
		n, got.heap, got.inUse, got.stacks, got.goroutines, pings.Load())
	if got := s.mapEntries(); got > linkMapEntries*(n+1) {
		t.Errorf("%d map entries for %d links, want %d for each", got, n, linkMapEntries)
	}
	if got := len(s.Status().Links); got != n+1 {
		t.Errorf("%d links are up, want %d", got, n+1)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	return got
}

// mapEntries counts the entries in all maps that are there for as long as the server.
func (s *Server) mapEntries() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.routes.mu.RLock()
	defer s.routes.mu.RUnlock()
	return len(s.links) + len(s.routes.hosts) + len(s.routes.seen) + len(s.names.owners) +
		len(s.hosts.byKey) + len(s.proofs.byKey)
}

// A footprint is what a process takes: bytes, or numbers.
type footprint struct{ heap, inUse, stacks, goroutines, timers float64 }

func measureFootprint() (f footprint) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	f = footprint{
		heap: float64(m.HeapAlloc), inUse: float64(m.HeapInuse), stacks: float64(m.StackInuse),
		goroutines: float64(runtime.NumGoroutine()),
	}
	size, _ := runtime.MemProfile(nil, false)
	records := make([]runtime.MemProfileRecord, 2*size)
	size, _ = runtime.MemProfile(records, false)
	for _, r := range records[:size] {
		frames := runtime.CallersFrames(r.Stack())
		for more := true; more; {
			var frame runtime.Frame
			if frame, more = frames.Next(); frame.Function == "time.newTimer" {
				f.timers += float64(r.InUseObjects())
				break
			}
		}
	}
	return f
}

// each is what each of n has added to before.
func (f footprint) each(before footprint, n int) footprint {
	each := func(a, b float64) float64 { return (a - b) / float64(n) }
	return footprint{
		heap: each(f.heap, before.heap), inUse: each(f.inUse, before.inUse), stacks: each(f.stacks, before.stacks),
		goroutines: each(f.goroutines, before.goroutines), timers: each(f.timers, before.timers),
	}
}

// holdIdleLink registers a session over a connection in memory, and counts the pings that it gets from then on.
func holdIdleLink(t *testing.T, l *memListener, key identity.Key, session string, pings *atomic.Int64) {
	t.Helper()
	c := &idleConn{pings: pings}
	c.wake.L = &c.mu
	l.conns <- c
	c.sends([]byte("GET " + messages.ConnectPath + " HTTP/1.1\r\nHost: " + testDomain + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: " + messages.Subprotocol + "\r\n\r\n"))
	head := c.awaits(t, "\r\n\r\n")
	_, challenge, _ := strings.Cut(head, messages.ChallengeField+": ")
	challenge, _, _ = strings.Cut(challenge, "\r\n")
	text := signed(t, key, challenge, identity.Registration{Session: session})
	c.sends(clientFrame(1, text))
	if answer := c.awaits(t, "}"); !strings.Contains(answer, `"hostname"`) {
		t.Fatalf("the answer to a registration: %q", answer)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle, c.out = true, nil
}

// clientFrame is a WebSocket message from a client, masked with zeros (RFC 6455, section 5.2).
func clientFrame(opcode byte, p []byte) []byte {
	b := []byte{0x80 | opcode, 0x80 | 126}
	b = binary.BigEndian.AppendUint16(b, uint16(len(p)))
	return append(append(b, 0, 0, 0, 0), p...)
}

var pong = clientFrame(2, messages.AppendPing(nil, messages.FlagAck, [messages.PingLen]byte{}))

// An idleConn is the edge's end of a connection to an agent that, once idle, answers what it gets like a ping.
type idleConn struct {
	pings *atomic.Int64
	mu    sync.Mutex // guards the fields below
	wake  sync.Cond  // when one of them has changed
	in    []byte     // to be read by the edge
	out   []byte     // written by the edge, until idle
	idle  bool
	late  bool // a read deadline has passed
	over  bool
}

func (c *idleConn) sends(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.in = append(c.in, p...)
	c.wake.Broadcast()
}

// awaits takes what the edge has written, up to and with mark.
func (c *idleConn) awaits(t *testing.T, mark string) string {
	t.Helper()
	late := time.AfterFunc(patience, func() { _ = c.Close() })
	defer late.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if i := bytes.Index(c.out, []byte(mark)); i >= 0 {
			text := string(c.out[:i+len(mark)])
			c.out = c.out[i+len(mark):]
			return text
		}
		if c.over {
			t.Fatalf("the edge wrote %q, want %q in it", c.out, mark)
		}
		c.wake.Wait()
	}
}

func (c *idleConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.in) == 0 {
		switch {
		case c.over:
			return 0, io.EOF
		case c.late:
			return 0, os.ErrDeadlineExceeded
		}
		c.wake.Wait()
	}
	n := copy(p, c.in)
	if c.in = c.in[n:]; len(c.in) == 0 {
		c.in = nil
	}
	return n, nil
}

func (c *idleConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return 0, net.ErrClosed
	}
	if c.idle {
		c.in = append(c.in, pong...)
		c.pings.Add(1)
	} else {
		c.out = append(c.out, p...)
	}
	c.wake.Broadcast()
	return len(p), nil
}

func (c *idleConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	c.wake.Broadcast()
	return nil
}

// SetReadDeadline obeys only what net/http needs to take a read back: a time that has passed, or none.
func (c *idleConn) SetReadDeadline(at time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.late = !at.IsZero() && at.Before(time.Now())
	c.wake.Broadcast()
	return nil
}

func (c *idleConn) SetDeadline(at time.Time) error   { return c.SetReadDeadline(at) }
func (c *idleConn) SetWriteDeadline(time.Time) error { return nil }
func (c *idleConn) LocalAddr() net.Addr              { return idleAddr }
func (c *idleConn) RemoteAddr() net.Addr             { return idleAddr }

var idleAddr = &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1234}

// A memListener hands out the connections that are sent to it.
type memListener struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *memListener) Addr() net.Addr { return idleAddr }
