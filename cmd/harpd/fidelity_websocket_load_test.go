package main

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// TestWebSocketMany has 200 sockets open at once that all talk.
func TestWebSocketMany(t *testing.T) {
	t.Parallel()
	const sockets, rounds = 200, 10
	tn := publish(t, serveUpstream(t, gorillaEcho(websocket.Upgrader{})))
	conns := make([]*websocket.Conn, sockets)
	for i := range conns {
		conns[i], _ = tn.gorillaDial(t, websocket.Dialer{}, nil)
	}
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Go(func() { // ends after its rounds or with the deadline of c
			for n := range rounds {
				want := fmt.Sprintf("socket %d round %d %0*d", i, n, n*100, 0)
				if err := c.WriteMessage(websocket.TextMessage, []byte(want)); err != nil {
					t.Errorf("socket %d, round %d: %v", i, n, err)
					return
				}
				if _, p, err := c.ReadMessage(); err != nil || string(p) != want {
					t.Errorf("socket %d, round %d: the echo is %.50q, %v", i, n, p, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestWebSocketOutlivesRequestTimeout has a socket rest for longer than a response may take to begin.
func TestWebSocketOutlivesRequestTimeout(t *testing.T) {
	t.Parallel()
	const timeout = 300 * time.Millisecond
	for name, opts := range map[string][]option{"plain": nil, "TLS": {withTLS()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, p := openPair(t, append(opts, withConfig(func(c *config) { c.RequestTimeout = timeout }))...)
			for range 2 {
				p.visitor.wantQuiet(3*timeout, "nobody has said anything")
				for _, way := range []struct {
					from, to *rawConn
					wire     string
				}{
					{p.visitor, p.upstream, maskedFrame(opText, "still here").wire()},
					{p.upstream, p.visitor, plainFrame(opText, "so am I").wire()},
				} {
					way.from.send(way.wire)
					way.to.want(way.wire, "a request timeout is not for open sockets")
				}
			}
		})
	}
}

// TestWebSocketSlowReader has one end stop reading while the other sends without end: other sockets on the same link
// must not wait, and what was sent must arrive once it is read.
func TestWebSocketSlowReader(t *testing.T) {
	t.Parallel()
	for _, who := range []string{"upstream", "visitor"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			target, next := switchUpstream(t, switchToWebSocket)
			tn := publish(t, target)
			slow, quick := tn.openPair(t, next), tn.openPair(t, next)
			from, to, flow := slow.visitor, slow.upstream, maskedFrame(opBinary, string(pattern(100_000))).wire()
			if who == "visitor" {
				from, to, flow = slow.upstream, slow.visitor, plainFrame(opBinary, string(pattern(100_000))).wire()
			}
			usual := quick.talk(100)
			stop, sent := make(chan struct{}), make(chan int, 1)
			go func() { // ends when stop is closed and the last frame was read
				n := 0
				defer func() { sent <- n }()
				for {
					select {
					case <-stop:
						return
					default:
					}
					if err := from.write(flow); err != nil {
						t.Errorf("frame %d: %v", n, err)
						return
					}
					n++
				}
			}()
			<-time.After(500 * time.Millisecond) // by now every window and buffer is full
			if took := quick.talk(100); took > 2*time.Second+10*usual {
				t.Errorf("100 round trips beside a slow reader took %v, without it %v", took, usual)
			}
			close(stop)
			n := 0
			for {
				to.want(flow, "the slow reader reads again, and nothing may be lost")
				n++
				select {
				case total := <-sent:
					for ; n < total; n++ {
						to.want(flow, "the slow reader reads again, and nothing may be lost")
					}
					t.Logf("%d MB were on their way", total/10)
					return
				default:
				}
			}
		})
	}
}

// talk sends short messages to and fro and returns how long that took.
func (p wsPair) talk(rounds int) time.Duration {
	p.visitor.t.Helper()
	start := time.Now()
	for i := range rounds {
		ask, reply := maskedFrame(opText, fmt.Sprintf("ask %d", i)).wire(), plainFrame(opText, fmt.Sprintf("reply %d", i)).wire()
		p.visitor.send(ask)
		p.upstream.want(ask, "a socket is not to wait for another one")
		p.upstream.send(reply)
		p.visitor.want(reply, "a socket is not to wait for another one")
	}
	return time.Since(start)
}

// TestWebSocketBesideRequests has a socket with much traffic in both directions beside ordinary requests.
func TestWebSocketBesideRequests(t *testing.T) {
	t.Parallel()
	echoes := gorillaEcho(websocket.Upgrader{})
	tn := publish(t, serveUpstream(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			echoes.ServeHTTP(w, r)
			return
		}
		fmt.Fprint(w, "plain")
	})))
	g, _ := tn.gorillaDial(t, websocket.Dialer{}, nil)
	var wg sync.WaitGroup
	stop, large := make(chan struct{}), pattern(200_000)
	wg.Go(func() { // ends when stop is closed
		for {
			select {
			case <-stop:
				return
			default:
				wantGorillaEcho(t, g, websocket.BinaryMessage, large)
			}
		}
	})
	c := tn.dial(t)
	for range 50 {
		if m := c.do("GET", "/x"); m.status() != 200 || string(m.Body) != "plain" {
			t.Errorf("got %q %q", m.Line, m.Body)
		}
	}
	close(stop)
	wg.Wait()
}
