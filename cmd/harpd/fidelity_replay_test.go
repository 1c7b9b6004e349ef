package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
)

// executions counts how often the upstream carried out each request, by its target.
type executions struct {
	mu    sync.Mutex
	count map[string]int
}

func (e *executions) run(target string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.count == nil {
		e.count = map[string]int{}
	}
	e.count[target]++
}

func (e *executions) of(target string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.count[target]
}

// TestNeverTwice posts to upstreams that give up kept connections at the worst moments. A request that may have
// been carried out must not be sent again (RFC 9110 section 9.2.2); a visitor who sees 200 must have been served.
func TestNeverTwice(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		// second does what the upstream does once a kept connection has brought a further request; it reports
		// whether it carried that request out.
		second func(conn net.Conn, br *bufio.Reader) (target string, ran bool)
	}{
		{"after the request", func(_ net.Conn, br *bufio.Reader) (string, bool) {
			m := readMessage(br, "")
			return m.target(), m.Err == nil
		}},
		{"after the request, by RST", func(conn net.Conn, br *bufio.Reader) (string, bool) {
			m := readMessage(br, "")
			resetConn(conn)
			return m.target(), m.Err == nil
		}},
		{"after the head", func(_ net.Conn, br *bufio.Reader) (string, bool) {
			h, err := readHead(br)
			return h.target(), err == nil
		}},
		{"after the first byte", func(_ net.Conn, br *bufio.Reader) (string, bool) {
			br.Peek(1)
			return "", false
		}},
		{"after the first byte, by RST", func(conn net.Conn, br *bufio.Reader) (string, bool) {
			br.Peek(1)
			resetConn(conn)
			return "", false
		}},
		{"in its answer", func(conn net.Conn, br *bufio.Reader) (string, bool) {
			m := readMessage(br, "")
			io.WriteString(conn, "HTTP/1.1 20")
			return m.target(), m.Err == nil
		}},
		{"after an interim answer", func(conn net.Conn, br *bufio.Reader) (string, bool) {
			m := readMessage(br, "")
			io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\n\r\n")
			return m.target(), m.Err == nil
		}},
		{"at once", nil},
		{"while idle", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var ran executions
			closed := make(chan struct{}, 100)
			target := scriptUpstream(t, func(_ *testing.T, conn net.Conn, br *bufio.Reader) {
				m := readMessage(br, "")
				if m.Err != nil {
					return
				}
				ran.run(m.target())
				io.WriteString(conn, okAnswer)
				if tt.second == nil {
					conn.Close()
					closed <- struct{}{}
					return
				}
				if target, ok := tt.second(conn, br); ok {
					ran.run(target)
				}
			})
			tn := publish(t, target)
			tn.needsTunnel(t)
			c := tn.dial(t)
			failed := 0
			for i := range 30 {
				if i > 0 && tt.name == "while idle" {
					await(t, closed, "the upstream to close", func(struct{}) {})
				}
				target := fmt.Sprintf("/%d", i)
				switch i % 3 {
				case 0:
					c.send(c.request("POST", target, "Content-Length: 5") + "hello")
				case 1:
					c.send(c.request("POST", target, "Transfer-Encoding: chunked") + chunk("hello") + chunk(""))
				default:
					c.send(c.request("PATCH", target, "Content-Length: 0"))
				}
				m := c.final("POST")
				n := ran.of(target)
				switch {
				case n > 1:
					t.Errorf("request %d ran %d times", i, n)
				case m.status() == 200 && n != 1:
					t.Errorf("request %d got 200 but ran %d times", i, n)
				case m.status() != 200 && m.status() != 502:
					t.Errorf("request %d got %q, want 200 or 502", i, m.Line)
				}
				if m.status() != 200 {
					failed++
					if !m.has("Harp-Error") {
						t.Errorf("request %d got %q without Harp-Error", i, m.Line)
					}
				}
			}
			t.Logf("%d of 30 got 502", failed)
			if failed > 0 && tt.name == "while idle" {
				t.Errorf("%d of 30 got 502, though the upstream closed idle connections only and long before", failed)
			}
		})
	}
}
