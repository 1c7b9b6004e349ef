package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// sizedUpstream answers each request with its target as the body, in the framing that the target names.
func sizedUpstream(t *testing.T) *recorder {
	return recordUpstream(t, func(m message) string {
		line, wire := framed([]byte(m.target()), strings.HasPrefix(m.target(), "/chunked"))
		if m.method() == "HEAD" {
			wire = ""
		}
		return "HTTP/1.1 200 OK\r\n" + line + "\r\n\r\n" + wire
	})
}

// TestHTTP10 speaks HTTP/1.0 to the edge, as old scripts, load balancers' probes and ab do.
func TestHTTP10(t *testing.T) {
	t.Parallel()
	r := sizedUpstream(t)
	tn := publish(t, r.Target)
	tn.needsTunnel(t)
	head10 := func(target, fields string) string {
		return fmt.Sprintf("GET %s HTTP/1.0\r\nHost: %s\r\n%s\r\n", target, tn.Host, fields)
	}
	for _, target := range []string{"/sized", "/chunked"} {
		c := tn.dial(t)
		c.send(head10(target, ""))
		m := c.final("GET")
		if m.status() != 200 || string(m.Body) != target || m.Framing == "chunked" {
			t.Errorf("%s: got %q and %s body %q: HTTP/1.0 knows no chunks", target, m.Line, m.Framing, m.Body)
		}
		c.expectClosed("HTTP/1.0 without keep-alive ends with its answer")
	}

	c := tn.dial(t)
	for i := range 3 {
		c.send(head10("/sized", "Connection: keep-alive\r\n"))
		m := c.final("GET")
		if string(m.Body) != "/sized" || !strings.EqualFold(m.get("Connection"), "keep-alive") {
			t.Fatalf("answer %d of a kept connection is %q, Connection %q", i, m.Body, m.get("Connection"))
		}
	}
	c.send(head10("/chunked", "Connection: keep-alive\r\n"))
	if m := c.final("GET"); string(m.Body) != "/chunked" || m.Framing == "chunked" {
		t.Errorf("got %s body %q", m.Framing, m.Body)
	}

	c = tn.dial(t)
	c.send(fmt.Sprintf("POST /sized HTTP/1.0\r\nHost: %s\r\nContent-Length: 5\r\n\r\nhello", tn.Host))
	if m := c.final("POST"); string(m.Body) != "/sized" {
		t.Errorf("POST got %q %q", m.Line, m.Body)
	}
	for _, m := range r.complete() {
		if m.method() == "POST" && string(m.Body) != "hello" {
			t.Errorf("the upstream saw body %q", m.Body)
		}
		if !strings.HasSuffix(m.Line, " HTTP/1.1") {
			t.Errorf("the upstream saw %q: the agent's own version counts on its connection", m.Line)
		}
	}
}

// TestPipelining sends five requests at once; answers come in order, whatever is quickest.
func TestPipelining(t *testing.T) {
	t.Parallel()
	r := sizedUpstream(t)
	c := publish(t, r.Target).dial(t)
	var all strings.Builder
	methods := []string{"GET", "POST", "HEAD", "POST", "GET"}
	for i, method := range methods {
		switch i {
		case 1:
			all.WriteString(c.request(method, "/sized1", "Content-Length: 5") + "hello")
		case 3:
			all.WriteString(c.request(method, "/chunked3", "Transfer-Encoding: chunked") + chunk("hello") + chunk(""))
		default:
			all.WriteString(c.request(method, fmt.Sprintf("/sized%d", i)))
		}
	}
	c.send(all.String())
	for i, method := range methods {
		m := c.final(method)
		want := []string{"/sized0", "/sized1", "", "/chunked3", "/sized4"}[i]
		if m.status() != 200 || string(m.Body) != want {
			t.Fatalf("answer %d is %q %q, want %q", i, m.Line, m.Body, want)
		}
	}
	for i, m := range r.complete() {
		if m.method() != methods[i] {
			t.Errorf("request %d reached the upstream as %q: one connection's requests run in order", i, m.Line)
		}
	}
}

// TestKeepAlive sends 200 requests of all kinds over one connection.
func TestKeepAlive(t *testing.T) {
	t.Parallel()
	r := sizedUpstream(t)
	c := publish(t, r.Target).dial(t)
	for i := range 200 {
		var m message
		target := fmt.Sprintf("/%s%d", []string{"sized", "chunked"}[i%2], i)
		switch i % 5 {
		case 0, 1:
			m = c.do("GET", target)
		default:
			m = c.post(target, pattern(i*i), i%3 == 0)
		}
		if m.status() != 200 || m.Err != nil || string(m.Body) != target {
			t.Fatalf("request %d got %q %q (%v)", i, m.Line, m.Body, m.Err)
		}
		if v := m.get("Connection"); strings.EqualFold(v, "close") {
			t.Fatalf("answer %d says Connection: close: the visitor would have to dial anew", i)
		}
		r.next(t)
	}
	c.send(c.request("GET", "/sized", "Connection: close"))
	c.final("GET")
	c.expectClosed("the visitor asked for that")
}

// TestUpstreamVersions has upstreams that frame their answers in the ways of old.
func TestUpstreamVersions(t *testing.T) {
	t.Parallel()
	large := string(pattern(300_000))
	for name, tt := range map[string]struct{ answer, want string }{
		"close-delimited":         {"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + large, large},
		"close-delimited, silent": {"HTTP/1.1 200 OK\r\n\r\n" + large, large},
		"close-delimited, empty":  {"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", ""},
		"1.0 close-delimited":     {"HTTP/1.0 200 OK\r\n\r\n" + large, large},
		"1.0 sized":               {"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello"},
		"1.0 kept":                {"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello", "hello"},
		"no reason phrase":        {"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", "hello"},
		"empty reason phrase":     {"HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nhello", "hello"},
		"bare LF":                 {"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", "hello"},
		"chunk extensions":        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b;c=\"d\"\r\nhello\r\n0;e\r\n\r\n", "hello"},
		"Chunked in capitals":     {"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n005\r\nhello\r\n000\r\n\r\n", "hello"},
		"list of equal lengths":   {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", "hello"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tn := publish(t, scriptUpstream(t, func(_ *testing.T, conn net.Conn, br *bufio.Reader) {
				if m := readMessage(br, ""); m.Err == nil {
					io.WriteString(conn, tt.answer)
				}
			}))
			tn.needsTunnel(t)
			c := tn.dial(t)
			for range 2 {
				c.send(c.request("GET", "/x"))
				m := c.response("GET")
				if m.status() != 200 || m.Err != nil || !strings.HasPrefix(m.Line, "HTTP/1.1 ") {
					t.Fatalf("got %q (%v), want a whole HTTP/1.1 answer", m.Line, m.Err)
				}
				if diff := sameBytes(m.Body, []byte(tt.want)); diff != "" {
					t.Errorf("the visitor got %s", diff)
				}
			}
		})
	}
}

// TestSlowVisitor stops reading; other visitors of the same agent must not wait for that one.
func TestSlowVisitor(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, func(m message) string {
		if m.target() != "/large" {
			return okAnswer
		}
		line, wire := framed(pattern(30<<20), false)
		return "HTTP/1.1 200 OK\r\n" + line + "\r\n\r\n" + wire
	})
	tn := publish(t, r.Target, withConfig(func(c *config) { c.MaxBody = 0 }))
	slow := tn.dial(t)
	slow.send(slow.request("GET", "/large"))
	h := slow.readHead()
	for range 20 {
		if m := tn.dial(t).do("GET", "/y"); m.status() != 200 {
			t.Fatalf("another visitor got %q", m.Line)
		}
	}
	slow.SetReadDeadline(time.Now().Add(2 * patience))
	if m := readRest(slow.br, h, "GET"); m.Err != nil || sameBytes(m.Body, pattern(30<<20)) != "" {
		t.Errorf("the slow visitor got %s (%v)", sameBytes(m.Body, pattern(30<<20)), m.Err)
	}
}
