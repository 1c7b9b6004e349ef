package main

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

const maxBody = 512_000 // the default limit of each body, in bytes

// framed returns a body with its framing field line; chunks are of uneven sizes.
func framed(b []byte, chunked bool) (line, wire string) {
	if !chunked {
		return fmt.Sprintf("Content-Length: %d", len(b)), string(b)
	}
	var w strings.Builder
	for size := 1; len(b) > 0; size = size*3 + 1 {
		n := min(size, len(b))
		w.WriteString(chunk(b[:n]))
		b = b[n:]
	}
	w.WriteString(chunk(""))
	return "Transfer-Encoding: chunked", w.String()
}

// eachFraming runs f for sized and chunked bodies.
func eachFraming(t *testing.T, f func(t *testing.T, chunked bool)) {
	t.Run("sized", func(t *testing.T) { f(t, false) })
	t.Run("chunked", func(t *testing.T) { f(t, true) })
}

// post sends a body from another goroutine, so that an early answer is not lost, and returns the response.
func (c *rawConn) post(target string, b []byte, chunked bool) message {
	c.t.Helper()
	line, wire := framed(b, chunked)
	sent := make(chan struct{})
	go func() { defer close(sent); c.write(c.request("POST", target, line) + wire) }() // ends when the edge takes or closes
	m := c.response("POST")
	if m.status() >= 400 {
		c.Close() // the edge need not read the rest
	}
	<-sent
	return m
}

// TestRequestBodies sends bodies of every size up to the limit; the upstream must see each byte.
func TestRequestBodies(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, nil)
	tn := publish(t, r.Target)
	eachFraming(t, func(t *testing.T, chunked bool) {
		c := tn.dial(t)
		for _, size := range []int{0, 1, 2, 4095, 32_768, 65_537, maxBody - 1, maxBody} {
			want := pattern(size)
			if m := c.post("/x", want, chunked); m.status() != 200 || m.Err != nil {
				t.Fatalf("%d bytes got %q %q (%v), want 200", size, m.Line, m.Body, m.Err)
			}
			m := r.next(t)
			if diff := sameBytes(m.Body, want); diff != "" {
				t.Errorf("the upstream saw %s of %d bytes sent", diff, size)
			}
			if size > 0 && !chunked && m.get("Content-Length") != fmt.Sprint(size) {
				t.Errorf("the upstream saw framing %q, want the length that the visitor gave: many servers need it", m.Framing)
			}
		}
	})
}

// TestResponseBodies is the same towards the visitor.
func TestResponseBodies(t *testing.T) {
	t.Parallel()
	eachFraming(t, func(t *testing.T, chunked bool) {
		t.Parallel()
		r := recordUpstream(t, func(m message) string {
			var size int
			fmt.Sscanf(m.target(), "/%d", &size)
			line, wire := framed(pattern(size), chunked)
			return "HTTP/1.1 200 OK\r\n" + line + "\r\n\r\n" + wire
		})
		c := publish(t, r.Target).dial(t)
		for _, size := range []int{0, 1, 2, 4095, 32_768, 65_537, maxBody - 1, maxBody} {
			m := c.do("GET", fmt.Sprintf("/%d", size))
			if m.status() != 200 {
				t.Fatalf("%d bytes got %q %q, want 200", size, m.Line, m.Body)
			}
			if diff := sameBytes(m.Body, pattern(size)); diff != "" {
				t.Errorf("the visitor got %s of %d bytes sent", diff, size)
			}
			if !chunked && m.get("Content-Length") != fmt.Sprint(size) {
				t.Errorf("Content-Length %q, want the upstream's %d: without it there is no progress bar", m.get("Content-Length"), size)
			}
		}
	})
}

// TestRequestOverLimit sends one byte too many: 413, and the upstream never sees a complete request.
func TestRequestOverLimit(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, nil)
	tn := publish(t, r.Target)
	tn.needsTunnel(t)
	eachFraming(t, func(t *testing.T, chunked bool) {
		for _, size := range []int{maxBody + 1, 3 * maxBody} {
			m := tn.dial(t).post("/x", pattern(size), chunked)
			if m.status() != 413 || !m.has("Harp-Error") {
				t.Errorf("%d bytes got %q with Harp-Error %q, want the edge's 413", size, m.Line, m.get("Harp-Error"))
			}
			for _, m := range r.complete() {
				t.Errorf("the upstream saw a complete request of %d bytes: a cut body must not look whole", len(m.Body))
			}
		}
		if m := tn.dial(t).post("/x", pattern(100), chunked); m.status() != 200 {
			t.Errorf("the next request got %q", m.Line)
		}
		r.complete() // that one, and what is left of the others
	})
}

// TestResponseOverLimit wants 502, or if the head has gone out a broken transfer, never a clean short body.
func TestResponseOverLimit(t *testing.T) {
	t.Parallel()
	for _, framing := range []string{"sized", "chunked", "close-delimited", "chunked after a pause"} {
		t.Run(framing, func(t *testing.T) {
			t.Parallel()
			started := make(chan struct{})
			target := scriptUpstream(t, func(t *testing.T, conn net.Conn, br *bufio.Reader) {
				if m := readMessage(br, ""); m.Err != nil || m.target() != "/large" {
					io.WriteString(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
					return
				}
				large := pattern(maxBody + 1)
				switch framing {
				case "sized", "chunked":
					line, wire := framed(large, framing == "chunked")
					io.WriteString(conn, "HTTP/1.1 200 OK\r\n"+line+"\r\n\r\n"+wire)
				case "close-delimited":
					io.WriteString(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"+string(large))
				default:
					io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"+chunk(large[:10]))
					select {
					case <-started:
					case <-time.After(patience):
					}
					io.WriteString(conn, chunk(large[10:])+chunk(""))
				}
			})
			tn := publish(t, target)
			tn.needsTunnel(t)
			c := tn.dial(t)
			c.send(c.request("GET", "/large"))
			h := c.readHead()
			close(started)
			c.SetReadDeadline(time.Now().Add(patience))
			m := readRest(c.br, h, "GET")
			switch {
			case m.status() == 502 && m.Err == nil && m.has("Harp-Error") && framing != "chunked after a pause":
			case framing == "sized":
				t.Errorf("got %q and %d bytes (%v): the length was known, so 502", m.Line, len(m.Body), m.Err)
			case m.status() != 200 || m.Err == nil || isTimeout(m.Err):
				t.Errorf("got %q and %d bytes, ended by %v; want a broken transfer", m.Line, len(m.Body), m.Err)
			case len(m.Body) > maxBody || sameBytes(m.Body, pattern(maxBody + 1)[:len(m.Body)]) != "":
				t.Errorf("got %d bytes that are not the first of the body, or beyond the limit", len(m.Body))
			case framing == "chunked after a pause" && len(m.Body) < 10:
				t.Errorf("got %d bytes: what was sent before the limit arrives", len(m.Body))
			}
			if m := tn.dial(t).do("GET", "/y"); m.status() != 200 {
				t.Errorf("the next request got %q", m.Line)
			}
		})
	}
}

// TestNoLimit moves 20 MiB each way with the limit off.
func TestNoLimit(t *testing.T) {
	t.Parallel()
	large := pattern(20 << 20)
	sum := fmt.Sprintf("%x", sha256.Sum256(large))
	target := serveUpstream(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hash := sha256.New()
		n, err := io.Copy(hash, r.Body)
		w.Header().Set("X-Received", fmt.Sprintf("%d %x %v", n, hash.Sum(nil), err))
		if r.URL.Path == "/sized" {
			w.Header().Set("Content-Length", fmt.Sprint(len(large)))
		}
		w.Write(large)
	}))
	tn := publish(t, target, withConfig(func(c *config) { c.MaxBody = 0 }))
	eachFraming(t, func(t *testing.T, chunked bool) {
		path := "/sized"
		if chunked {
			path = "/chunked"
		}
		m := tn.dial(t).post(path, large, chunked)
		if m.status() != 200 || m.Err != nil {
			t.Fatalf("got %q and %d bytes, ended by %v", m.Line, len(m.Body), m.Err)
		}
		if got, want := m.get("X-Received"), fmt.Sprintf("%d %s <nil>", len(large), sum); got != want {
			t.Errorf("the upstream received %s, want %s", got, want)
		}
		if got := fmt.Sprintf("%x", sha256.Sum256(m.Body)); got != sum {
			t.Errorf("the visitor received %d bytes with sum %s, want %d with %s", len(m.Body), got, len(large), sum)
		}
	})
}
