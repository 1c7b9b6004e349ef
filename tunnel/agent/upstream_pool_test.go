package agent

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// TestReuse counts the connections that two requests in a row take.
func TestReuse(t *testing.T) {
	for _, c := range []struct {
		why, first string
		conns      int32
	}{
		{"sized", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 1},
		{"chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 1},
		{"chunked with trailers", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n\r\n", 1},
		{"no content", "HTTP/1.1 204 No Content\r\n\r\n", 1},
		{"keep-alive in HTTP/1.0", "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 0\r\n\r\n", 1},
		{"HTTP/1.0", "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", 2},
		{"close", "HTTP/1.1 200 OK\r\nConnection: foo, close\r\nContent-Length: 0\r\n\r\n", 2},
		{"bytes left over", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nX", 2},
		{"a second response", strings.Repeat("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 2), 2},
		{"chunked and a length", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 2},
		{"chunked in HTTP/1.0", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 2},
		{"a limit that is over", "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=0\r\nContent-Length: 0\r\n\r\n", 1},
	} {
		t.Run(c.why, func(t *testing.T) {
			checkForwardLeaks(t)
			var conns atomic.Int32
			addr := playUpstream(t, func(n int, p *peer) {
				conns.Store(int32(n + 1))
				for range 2 {
					if _, err := p.r.Peek(1); err != nil {
						return
					}
					p.head()
					p.send(c.first)
				}
			})
			f := newTestForwarder(t, addr, ForwardOptions{})
			for i := range 2 {
				w := newTunnelWriter()
				if w.serve(f, request(t, "GET", "/", nil, 0)) || w.failed {
					t.Errorf("request %d failed: %q", i, w.reason)
				}
				time.Sleep(5 * time.Millisecond) // what is left over may arrive a little later
			}
			if got := conns.Load(); got != c.conns {
				t.Errorf("%d connections, want %d", got, c.conns)
			}
			f.Close()
		})
	}
}

// TestIdleConnections looks into the pool: its bounds, and that what rests holds no buffers.
func TestIdleConnections(t *testing.T) {
	checkForwardLeaks(t)
	release := make(chan struct{})
	addr := playUpstream(t, func(_ int, p *peer) {
		p.head()
		<-release
		p.send("HTTP/1.1 200 OK\r\nKeep-Alive: max=9, timeout=5\r\nContent-Length: 0\r\n\r\n")
		p.rest()
	})
	f := newTestForwarder(t, addr, ForwardOptions{MaxIdle: 3})
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() { newTunnelWriter().serve(f, request(t, "GET", "/", nil, 0)) })
	}
	time.Sleep(20 * time.Millisecond)
	close(release)
	wg.Wait()
	if n := len(f.pool.idle); n != 3 {
		t.Errorf("%d idle connections, want MaxIdle", n)
	}
	for _, c := range f.pool.idle {
		if c.in.buf != nil || c.in.lent.small != nil || c.in.lent.large != nil {
			t.Error("an idle connection holds a receive buffer")
		}
		if c.restLimit != 4*time.Second {
			t.Errorf("rests %v, want a second less than the upstream's Keep-Alive timeout", c.restLimit)
		}
		c.restsSince = c.restsSince.Add(-3 * time.Second)
	}
	if c := f.pool.get(false); c != nil {
		t.Error("a connection that rested 3 s was given to a request that cannot be sent again")
	}
	f.pool.expire()
	if n := len(f.pool.idle); n != 0 {
		t.Errorf("%d idle connections left", n)
	}
	none := newTestForwarder(t, addr, ForwardOptions{MaxIdle: -1})
	newTunnelWriter().serve(none, request(t, "GET", "/", nil, 0))
	if n := len(none.pool.idle); n != 0 {
		t.Errorf("%d idle connections with MaxIdle -1", n)
	}
}

// A staleUpstream answers the first request of each connection, and ends the connection at some moment of the next.
// It counts how often each request target has arrived, whether or not it was answered.
type staleUpstream struct {
	moment string
	delay  time.Duration
	mu     sync.Mutex
	seen   map[string]int
}

func (u *staleUpstream) note(line string) string {
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, target, ok := strings.Cut(line, " /"); ok {
		target, _, _ = strings.Cut(target, " ")
		u.seen[target]++
	}
	return line
}

// request reads a whole request; it returns false at the end of the connection.
func (u *staleUpstream) request(p *peer) bool {
	line, err := p.r.ReadString('\n')
	if err != nil {
		return false
	}
	u.note(line)
	if head := p.head(); strings.Contains(head, "Content-Length: 4\r\n") {
		p.want("data")
	}
	return true
}

func (u *staleUpstream) script(n int, p *peer) {
	if !u.request(p) {
		return
	}
	p.send(okEmpty)
	if n%2 == 1 { // every other connection is a good one
		for u.request(p) {
			p.send(okEmpty)
		}
		return
	}
	end := func() {
		if strings.HasSuffix(u.moment, "reset") {
			p.reset()
			return
		}
		p.Conn.(*net.TCPConn).CloseWrite() // and go on reading: what comes now has come too late
		for {
			line, err := p.r.ReadString('\n')
			if err != nil {
				return
			}
			u.note(line)
		}
	}
	switch strings.Fields(u.moment)[0] {
	case "idle":
		time.Sleep(u.delay)
	case "byte":
		if _, err := p.r.Peek(1); err != nil {
			return
		}
	case "line":
		line, err := p.r.ReadString('\n')
		if err != nil {
			return
		}
		u.note(line)
	case "head":
		line, err := p.r.ReadString('\n')
		if err != nil {
			return
		}
		u.note(line)
		p.head()
	case "body":
		if !u.request(p) {
			return
		}
	case "answer":
		if !u.request(p) {
			return
		}
		io.WriteString(p, "HTTP/1.1 2")
		time.Sleep(5 * time.Millisecond) // a reset would overtake it
	}
	end()
}

// TestNeverTwice has an upstream end its connections at every moment between two requests. What is not safe to repeat
// arrives at most once, in no part twice; what is safe gets its answer.
func TestNeverTwice(t *testing.T) {
	moments := []string{"byte", "byte reset", "line", "line reset", "head", "head reset", "body", "body reset", "answer", "answer reset"}
	for range 20 {
		moments = append(moments, "idle", "idle reset")
	}
	checkForwardLeaks(t)
	for i, moment := range moments {
		for _, method := range []string{"POST", "POST-empty", "DELETE", "GET", "HEAD"} {
			u := &staleUpstream{moment: moment, delay: time.Duration(i) * 10 * time.Microsecond, seen: make(map[string]int)}
			addr := playUpstream(t, u.script)
			f := newTestForwarder(t, addr, ForwardOptions{})
			warm := newTunnelWriter()
			if warm.serve(f, request(t, "GET", "/warm", nil, 0)); warm.status != 200 {
				t.Fatalf("first request: %q", warm.reason)
			}
			r := request(t, strings.TrimSuffix(method, "-empty"), "/it", nil, 0)
			r.Header = http.Header{}
			if method == "POST" {
				r = request(t, method, "/it", strings.NewReader("data"), 4)
			}
			w := newTunnelWriter()
			w.serve(f, r)
			f.Close()
			u.mu.Lock()
			seen := u.seen["it"]
			u.mu.Unlock()
			safe := method == "GET" || method == "HEAD"
			what := fmt.Sprintf("%s while the upstream ends its connection (%s, %v)", method, moment, u.delay)
			switch {
			case !safe && seen > 1:
				t.Errorf("%s: arrived %d times", what, seen)
			case safe && !strings.HasPrefix(moment, "answer") && w.status != 200:
				t.Errorf("%s: status %d, %v %q; it could be sent again", what, w.status, w.code, w.reason)
			case w.status != 200 && w.code != messages.CancelBroken:
				t.Errorf("%s: status %d, %v %q; want 200 or %v", what, w.status, w.code, w.reason, messages.CancelBroken)
			case w.status == 200 && seen == 0:
				t.Errorf("%s: answered, and never arrived", what)
			}
		}
	}
}

// TestStaleConnectionIsNoticed ends the connection well before the next request, which then must not fail at all.
func TestStaleConnectionIsNoticed(t *testing.T) {
	for _, moment := range []string{"idle", "idle reset"} {
		checkForwardLeaks(t)
		u := &staleUpstream{moment: moment, seen: make(map[string]int)}
		f := newTestForwarder(t, playUpstream(t, u.script), ForwardOptions{})
		newTunnelWriter().serve(f, request(t, "GET", "/warm", nil, 0))
		time.Sleep(20 * time.Millisecond)
		w := newTunnelWriter()
		if w.serve(f, request(t, "POST", "/it", strings.NewReader("data"), 4)); w.status != 200 || u.seen["it"] != 1 {
			t.Errorf("%s: status %d %q, arrived %d times; want 200, once", moment, w.status, w.reason, u.seen["it"])
		}
		f.Close()
	}
}
