package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

const (
	pieces     = 5
	pieceGap   = 100 * time.Millisecond // so that no piece rides on the one before it
	pieceGoal  = 50 * time.Millisecond  // how soon a piece is to arrive
	pieceLimit = time.Second            // beyond this it was held back, not merely slow on a busy machine
)

// A stopwatch keeps the worst delay between the sending and the arrival of a piece.
type stopwatch struct{ worst time.Duration }

func (s *stopwatch) since(sent time.Time) { s.worst = max(s.worst, time.Since(sent)) }

func (s *stopwatch) report(t *testing.T) {
	t.Helper()
	note := ""
	if s.worst > pieceGoal {
		note = ", over the goal of " + pieceGoal.String()
	}
	t.Logf("worst delay of a piece %v%s", s.worst.Round(10*time.Microsecond), note)
	if s.worst > pieceLimit {
		t.Errorf("a piece took %v: something waits for more to come before it passes it on", s.worst)
	}
}

// TestTrickledResponse sends each piece only after the one before has arrived at the visitor.
func TestTrickledResponse(t *testing.T) {
	t.Parallel()
	piece := func(i int) string { return fmt.Sprintf("data: %d\n\n", i) }
	size := len(piece(0))
	for name, tt := range map[string]struct {
		head string
		wrap func(string) string
	}{
		"SSE":             {"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n", chunk[string]},
		"octets":          {"Content-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n", chunk[string]},
		"no type":         {"Transfer-Encoding: chunked\r\n", chunk[string]},
		"sized":           {fmt.Sprintf("Content-Type: text/html\r\nContent-Length: %d\r\n", size*pieces), nil},
		"close-delimited": {"Content-Type: text/plain\r\nConnection: close\r\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			next, sent := make(chan struct{}, 1), make(chan time.Time, 1)
			target := scriptUpstream(t, func(_ *testing.T, conn net.Conn, br *bufio.Reader) {
				if m := readMessage(br, ""); m.Err != nil {
					return
				}
				sent <- time.Now()
				io.WriteString(conn, "HTTP/1.1 200 OK\r\n"+tt.head+"\r\n")
				for i := range pieces {
					if _, ok := <-next; !ok {
						return
					}
					p := piece(i)
					if tt.wrap != nil {
						p = tt.wrap(p)
					}
					sent <- time.Now()
					io.WriteString(conn, p)
				}
				if tt.wrap != nil {
					io.WriteString(conn, tt.wrap(""))
				}
			})
			t.Cleanup(func() { close(next) })
			var watch stopwatch
			c := publish(t, target).dial(t)
			c.send(c.request("GET", "/x"))
			h := c.readHead() // before any of the body exists
			if h.status() != 200 {
				t.Fatalf("got %q", h.Line)
			}
			watch.since(<-sent)
			b, err := bodyOf(c.br, h, "GET")
			if err != nil {
				t.Fatal(err)
			}
			for i := range pieces {
				<-time.After(pieceGap)
				next <- struct{}{}
				got := make([]byte, size)
				c.SetReadDeadline(time.Now().Add(patience))
				if _, err := io.ReadFull(b, got); err != nil || string(got) != piece(i) {
					t.Fatalf("piece %d is %q (%v), want it before the next one is sent", i, got, err)
				}
				watch.since(<-sent)
			}
			if _, err := b.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("after the last piece: %v, want a clean end", err)
			}
			watch.report(t)
		})
	}
}

// TestTrickledRequest is the same towards the upstream.
func TestTrickledRequest(t *testing.T) {
	t.Parallel()
	eachFraming(t, func(t *testing.T, chunked bool) {
		t.Parallel()
		arrived := make(chan string, 1)
		target := scriptUpstream(t, func(t *testing.T, conn net.Conn, br *bufio.Reader) {
			h, err := readHead(br)
			if err != nil {
				return
			}
			arrived <- h.Line
			b, err := bodyOf(br, h, "")
			if err != nil {
				t.Error(err)
				return
			}
			for p := make([]byte, 4); ; {
				if _, err := io.ReadFull(b, p); err != nil {
					break
				}
				arrived <- string(p)
			}
			io.WriteString(conn, plainOK)
		})
		var watch stopwatch
		c := publish(t, target).dial(t)
		line := fmt.Sprintf("Content-Length: %d", 4*pieces)
		if chunked {
			line = "Transfer-Encoding: chunked"
		}
		sent := time.Now()
		c.send(c.request("POST", "/x", line))
		await(t, arrived, "the head before its body", func(string) { watch.since(sent) })
		for i := range pieces {
			<-time.After(pieceGap)
			p := fmt.Sprintf("p%03d", i)
			sent := time.Now()
			if chunked {
				c.send(chunk(p))
			} else {
				c.send(p)
			}
			await(t, arrived, "a piece before the next one is sent", func(got string) {
				watch.since(sent)
				if got != p {
					t.Errorf("piece %d is %q, want %q", i, got, p)
				}
			})
		}
		if chunked {
			c.send(chunk(""))
		}
		if m := c.final("POST"); m.status() != 200 {
			t.Errorf("got %q", m.Line)
		}
		watch.report(t)
	})
}

// TestTrickledChunk sends one chunk in two pieces, and not its end: what it carries arrives when all of it is there. That
// half of it is kept until then is net/http's doing.
func TestTrickledChunk(t *testing.T) {
	t.Parallel()
	arrived := make(chan string, 2)
	target := scriptUpstream(t, func(_ *testing.T, conn net.Conn, br *bufio.Reader) {
		h, err := readHead(br)
		if err != nil {
			return
		}
		b, err := bodyOf(br, h, "")
		for p := make([]byte, 4); err == nil; {
			if _, err = io.ReadFull(b, p); err == nil {
				arrived <- string(p)
			}
		}
		io.WriteString(conn, plainOK)
	})
	c := publish(t, target).dial(t)
	c.send(c.request("POST", "/x", "Transfer-Encoding: chunked") + "8\r\nfour")
	c.send("more")
	select {
	case <-arrived:
	case <-time.After(pieceLimit):
		t.Errorf("a chunk that is complete did not arrive in %v", pieceLimit)
	}
	c.send("\r\n" + chunk(""))
	if m := c.final("POST"); m.status() != 200 {
		t.Errorf("got %q", m.Line)
	}
}

// TestBothWaysAtOnce talks like a telephone: each piece is echoed while the request goes on.
func TestBothWaysAtOnce(t *testing.T) {
	t.Parallel()
	upstreams := map[string]func(*testing.T) *tunnel{
		"raw": func(t *testing.T) *tunnel {
			return publish(t, scriptUpstream(t, func(_ *testing.T, conn net.Conn, br *bufio.Reader) {
				h, err := readHead(br)
				if err != nil {
					return
				}
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
				b, err := bodyOf(br, h, "")
				for p := make([]byte, 4); err == nil; {
					if _, err = io.ReadFull(b, p); err == nil {
						io.WriteString(conn, chunk(p))
					}
				}
				io.WriteString(conn, chunk(""))
			}))
		},
		"net/http": func(t *testing.T) *tunnel { return publish(t, serveUpstream(t, http.HandlerFunc(echo))) },
		"handler":  func(t *testing.T) *tunnel { return publishHandler(t, http.HandlerFunc(echo)) },
	}
	for name, start := range upstreams {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var watch stopwatch
			c := start(t).dial(t)
			c.send(c.request("POST", "/x", "Transfer-Encoding: chunked"))
			h := c.readHead() // while the request has no body yet
			b, err := bodyOf(c.br, h, "POST")
			if err != nil {
				t.Fatal(err)
			}
			for i := range pieces {
				<-time.After(pieceGap)
				want, got := fmt.Sprintf("p%03d", i), make([]byte, 4)
				sent := time.Now()
				c.send(chunk(want))
				c.SetReadDeadline(time.Now().Add(patience))
				if _, err := io.ReadFull(b, got); err != nil || string(got) != want {
					t.Fatalf("the echo of %q is %q (%v)", want, got, err)
				}
				watch.since(sent)
			}
			c.send(chunk(""))
			if rest, err := io.ReadAll(b); err != nil || len(rest) > 0 {
				t.Errorf("after the request ended: %q, %v; want a clean end", rest, err)
			}
			watch.report(t)
		})
	}
}

func echo(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	rc.EnableFullDuplex()
	w.WriteHeader(200)
	rc.Flush()
	for b := make([]byte, 4); ; {
		n, err := r.Body.Read(b)
		w.Write(b[:n])
		rc.Flush()
		if err != nil {
			return
		}
	}
}

// TestLargeBothWays echoes more than all windows and buffers hold while the upload goes on: nobody may wait
// for the other side to finish first.
func TestLargeBothWays(t *testing.T) {
	t.Parallel()
	large := pattern(12 << 20)
	tn := publish(t, serveUpstream(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		io.Copy(w, r.Body)
	})), withConfig(func(c *config) { c.MaxBody = 0 }))
	m := tn.dial(t).post("/x", large, true)
	if diff := sameBytes(m.Body, large); diff != "" || m.Err != nil {
		t.Errorf("the echo holds %s (%v)", diff, m.Err)
	}
}

// TestAnswerBeforeBodyEnds has an upstream that answers in full while the upload goes on.
func TestAnswerBeforeBodyEnds(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"kept":    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly",
		"refused": "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 5\r\n\r\nearly",
		"chunked": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachFraming(t, func(t *testing.T, chunked bool) {
				seen := make(chan struct{})
				target := scriptUpstream(t, func(_ *testing.T, conn net.Conn, br *bufio.Reader) {
					if h, err := readHead(br); err != nil || h.target() != "/x" {
						io.WriteString(conn, plainOK)
						return
					}
					io.ReadFull(br, make([]byte, 10))
					io.WriteString(conn, answer)
					if name == "refused" {
						conn.(*net.TCPConn).CloseWrite()
					}
					select { // closing with the upload unread would reset what was sent
					case <-seen:
					case <-t.Context().Done():
					}
					io.Copy(io.Discard, br)
				})
				tn := publish(t, target)
				c := tn.dial(t)
				line, wire := framed(pattern(300_000), chunked)
				c.send(c.request("POST", "/x", line) + wire[:100_000])
				sent := time.Now()
				m := c.response("POST")
				close(seen)
				if took := time.Since(sent); took > pieceLimit/2 {
					t.Errorf("the answer took %v: it does not have to wait for the upload", took)
				}
				if m.Line[9:12] != answer[9:12] || string(m.Body) != "early" || m.Err != nil {
					t.Errorf("got %q %q (%v) while the upload goes on, want the upstream's answer in full", m.Line, m.Body, m.Err)
				}
				c.Close()
				if m := tn.dial(t).do("GET", "/y"); m.status() != 200 {
					t.Errorf("the next request got %q", m.Line)
				}
			})
		})
	}
}
