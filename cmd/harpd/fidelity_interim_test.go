package main

import (
	"bufio"
	"io"
	"net"
	"testing"
	"time"
)

// An expectation is one exchange with Expect: 100-continue as the upstream's side sees it.
type expectation struct {
	target string
	heads  chan head   // one for each request head, sent before its body is read
	bodies chan string // what came after the head
}

// expectUpstream answers each request head with early, reads a body if early leaves room for one, then late.
func expectUpstream(t *testing.T, early, late string) *expectation {
	e := &expectation{heads: make(chan head, 10), bodies: make(chan string, 10)}
	e.target = scriptUpstream(t, func(t *testing.T, conn net.Conn, br *bufio.Reader) {
		h, err := readHead(br)
		if err != nil {
			return
		}
		if n := br.Buffered(); n > 0 && h.has("Expect") {
			t.Errorf("%d bytes of body came with the head: the visitor was to wait for 100", n)
		}
		e.heads <- h
		io.WriteString(conn, early)
		if late == "" {
			rest, _ := io.ReadAll(br) // until the proxy gives the connection up
			e.bodies <- string(rest)
			return
		}
		m := readRest(br, h, "")
		if m.Err != nil {
			t.Errorf("read the body after %q: %v", early, m.Err)
		}
		e.bodies <- string(m.Body)
		io.WriteString(conn, late)
	})
	return e
}

const plainOK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"

// TestExpectContinue wants the upstream's own 100, and the body only after it.
func TestExpectContinue(t *testing.T) {
	t.Parallel()
	eachFraming(t, func(t *testing.T, chunked bool) {
		t.Parallel()
		e := expectUpstream(t, "HTTP/1.1 100 Continue\r\n\r\n", plainOK)
		c := publish(t, e.target).dial(t)
		line, wire := framed([]byte("hello"), chunked)
		c.send(c.request("POST", "/x", "Expect: 100-continue", line))
		if h := c.readHead(); h.status() != 100 {
			t.Fatalf("got %q, want the upstream's 100", h.Line)
		}
		await(t, e.heads, "the request", func(h head) {
			if h.get("Expect") != "100-continue" {
				t.Errorf("the upstream saw Expect %q: it decides, so it has to know", h.get("Expect"))
			}
		})
		c.send(wire)
		if m := c.final("POST"); m.status() != 200 || string(m.Body) != "ok" {
			t.Errorf("got %q %q after the body", m.Line, m.Body)
		}
		await(t, e.bodies, "the body", func(b string) {
			if b != "hello" {
				t.Errorf("the upstream saw body %q", b)
			}
		})
	})
}

// TestExpectRefused wants the refusal first and alone, and no body on the upstream's connection.
func TestExpectRefused(t *testing.T) {
	t.Parallel()
	for _, refusal := range []string{
		"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 6\r\n\r\nno way",
		"HTTP/1.1 413 Content Too Large\r\nContent-Length: 6\r\n\r\nno way",
		"HTTP/1.1 401 Unauthorized\r\nContent-Length: 6\r\nConnection: close\r\n\r\nno way",
		"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nno way",
		"HTTP/1.1 303 See Other\r\nLocation: /y\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nno way\r\n0\r\n\r\n",
	} {
		t.Run(refusal[9:12], func(t *testing.T) {
			t.Parallel()
			eachFraming(t, func(t *testing.T, chunked bool) {
				for range 10 { // who is first to write, the refusal or a 100 of the edge's own, is a matter of luck
					if expectRefusal(t, refusal, chunked); t.Failed() {
						return
					}
				}
			})
		})
	}
}

func expectRefusal(t *testing.T, refusal string, chunked bool) {
	t.Helper()
	e := expectUpstream(t, refusal, "")
	tn := publish(t, e.target)
	c := tn.dial(t)
	line, _ := framed(pattern(1000), chunked)
	c.send(c.request("POST", "/x", "Expect: 100-continue", line))
	sent := time.Now()
	m := c.response("POST")
	if took := time.Since(sent); took > pieceLimit/2 {
		t.Errorf("the refusal took %v: something waits for the body that it refuses", took)
	}
	if m.Line[9:12] != refusal[9:12] || string(m.Body) != "no way" || m.Err != nil {
		t.Errorf("got %q %q (%v) first, want the upstream's answer without a 100 before it", m.Line, m.Body, m.Err)
	}
	c.Close()
	await(t, e.heads, "the request", func(head) {})
	tn.dial(t).do("GET", "/y") // must not run on the connection that still waits for a body
	await(t, e.heads, "the next request on a connection of its own", func(h head) {
		if h.target() != "/y" {
			t.Errorf("the upstream saw %q: a refused request may not run again", h.Line)
		}
	})
	if direct() {
		return // the visitor's own connection is the upstream's then
	}
	await(t, e.bodies, "the upstream's connection to be given up", func(b string) {
		if b != "" {
			t.Errorf("the upstream was sent %q after it had refused the body", b)
		}
	})
}

// TestExpectIgnored has an upstream that never sends 100, as HTTP/1.0 servers do: a visitor then sends the
// body unasked (RFC 9110 section 10.1.1).
func TestExpectIgnored(t *testing.T) {
	t.Parallel()
	eachFraming(t, func(t *testing.T, chunked bool) {
		t.Parallel()
		e := expectUpstream(t, "", plainOK)
		c := publish(t, e.target).dial(t)
		line, wire := framed([]byte("hello"), chunked)
		c.send(c.request("POST", "/x", "Expect: 100-continue", line))
		await(t, e.heads, "the request before its body", func(head) {})
		c.send(wire)
		if m := c.final("POST"); m.status() != 200 || string(m.Body) != "ok" {
			t.Errorf("got %q %q", m.Line, m.Body)
		}
		await(t, e.bodies, "the body", func(b string) {
			if b != "hello" {
				t.Errorf("the upstream saw body %q", b)
			}
		})
	})
}

// TestEarlyHints wants two 103 at once when they are sent, and a final head that is free of their fields.
func TestEarlyHints(t *testing.T) {
	t.Parallel()
	next := make(chan struct{}, 10)
	target := scriptUpstream(t, func(t *testing.T, conn net.Conn, br *bufio.Reader) {
		if m := readMessage(br, ""); m.Err != nil {
			return
		}
		for _, s := range []string{
			"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nLink: </b.css>; rel=preload\r\nX-Hint: 1\r\n\r\n",
			"HTTP/1.1 103 Early Hints\r\nLink: </c.css>; rel=preload\r\n\r\n",
			"HTTP/1.1 102 Processing\r\n\r\n",
			"HTTP/1.1 200 OK\r\nX-Final: 1\r\nContent-Length: 2\r\n\r\nok",
		} {
			io.WriteString(conn, s)
			select {
			case <-next: // the visitor has it
			case <-time.After(patience):
				return
			}
		}
	})
	c := publish(t, target).dial(t)
	c.send(c.request("GET", "/x"))
	want := []struct {
		status int
		links  int
	}{{103, 2}, {103, 1}, {102, 0}, {200, 0}}
	for _, w := range want {
		m := c.response("GET")
		next <- struct{}{}
		if m.status() != w.status || len(m.values("Link")) != w.links {
			t.Fatalf("got %q with Link %q, want %d with %d of them, as the upstream sent it", m.Line, m.values("Link"), w.status, w.links)
		}
		if m.has("X-Hint") != (w.links == 2) {
			t.Errorf("%d: X-Hint is %q: the fields of one head are not those of another", w.status, m.values("X-Hint"))
		}
		if w.status == 200 && (string(m.Body) != "ok" || m.get("X-Final") != "1") {
			t.Errorf("the final answer is %q %q", m.Fields, m.Body)
		}
	}
}

// TestEarlyHintsHTTP10 wants no interim answer for a visitor who does not know any (RFC 9110 section 15.2).
func TestEarlyHintsHTTP10(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, func(message) string {
		return "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" + okAnswer
	})
	tn := publish(t, r.Target)
	tn.needsTunnel(t)
	c := tn.dial(t)
	c.send("GET /x HTTP/1.0\r\nHost: " + tn.Host + "\r\n\r\n")
	if m := c.response("GET"); m.status() != 200 || string(m.Body) != "ok" || m.has("Link") {
		t.Errorf("got %q %q, want the final answer alone", m.Line, m.Fields)
	}
}
