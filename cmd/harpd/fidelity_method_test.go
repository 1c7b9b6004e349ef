package main

import (
	"fmt"
	"strings"
	"testing"
)

// TestMethods sends every kind of method; all are the upstream's to judge (RFC 9110 section 9.1).
func TestMethods(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, nil)
	tn := publish(t, r.Target)
	for _, method := range []string{
		"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE",
		"PROPFIND", "MKCOL", "REPORT", "M-SEARCH", "FOO", "get", "Post", "!#$%&'*+-.^_`|~09az",
	} {
		t.Run(method, func(t *testing.T) {
			m := tn.dial(t).do(method, "/x")
			if m.status() != 200 {
				t.Errorf("status line %q: the upstream answers every method with 200", m.Line)
			}
			if want := "ok"; method != "HEAD" && string(m.Body) != want {
				t.Errorf("body %q, want %q", m.Body, want)
			}
			if got, want := r.next(t).Line, method+" /x HTTP/1.1"; got != want {
				t.Errorf("the upstream saw %q, want %q: methods compare with case", got, want)
			}
		})
	}
}

// TestMethodBodies sends a body, an empty one and none with methods that net/http treats differently.
func TestMethodBodies(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, nil)
	tn := publish(t, r.Target)
	for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "get"} {
		t.Run(method, func(t *testing.T) {
			c := tn.dial(t)
			c.send(c.request(method, "/x", "Content-Length: 5") + "hello")
			c.final(method)
			if m := r.next(t); string(m.Body) != "hello" {
				t.Errorf("the upstream saw body %q: a body belongs to any method that has one", m.Body)
			}
			c.send(c.request(method, "/x", "Transfer-Encoding: chunked") + chunk("hello") + chunk(""))
			c.final(method)
			if m := r.next(t); string(m.Body) != "hello" {
				t.Errorf("the upstream saw body %q after a chunked one", m.Body)
			}
			c.do(method, "/x")
			if m := r.next(t); m.has("Transfer-Encoding") || len(m.Body) > 0 {
				t.Errorf("the upstream saw framing %s, %q: the request had no body", m.Framing, m.Fields)
			}
		})
	}
	for _, method := range []string{"POST", "PUT", "PATCH"} {
		c := tn.dial(t)
		c.do(method, "/x", "Content-Length: 0")
		if m := r.next(t); m.get("Content-Length") != "0" {
			t.Errorf("%s: the upstream saw %q: without Content-Length: 0 many servers answer 411", method, m.Fields)
		}
	}
}

// TestOptionsStar asks about the server as a whole (RFC 9110 section 9.3.7); net/http would answer it itself.
func TestOptionsStar(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, func(message) string {
		return "HTTP/1.1 204 No Content\r\nAllow: GET, FOO\r\n\r\n"
	})
	tn := publish(t, r.Target)
	c := tn.dial(t)
	m := c.do("OPTIONS", "*")
	if m.status() != 204 || m.get("Allow") != "GET, FOO" {
		t.Errorf("got %q %q, want the upstream's 204 and Allow", m.Line, m.Fields)
	}
	if got, want := r.next(t).Line, "OPTIONS * HTTP/1.1"; got != want {
		t.Errorf("the upstream saw %q, want %q", got, want)
	}
	if m := c.do("OPTIONS", "/x"); m.status() != 204 {
		t.Errorf("the next request on the connection got %q", m.Line)
	}
}

// TestHeadKeepsLength wants the length that the GET would have, and no body.
func TestHeadKeepsLength(t *testing.T) {
	t.Parallel()
	for name, fields := range map[string]string{
		"sized":      "Content-Length: 12345\r\n",
		"over limit": "Content-Length: 99999999999\r\n",
		"empty":      "Content-Length: 0\r\n",
		"chunked":    "Transfer-Encoding: chunked\r\n",
		"neither":    "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := recordUpstream(t, func(m message) string {
				if m.method() != "HEAD" {
					return okAnswer
				}
				return "HTTP/1.1 200 OK\r\nETag: \"x\"\r\n" + fields + "\r\n"
			})
			c := publish(t, r.Target).dial(t)
			m := c.do("HEAD", "/x")
			if m.status() != 200 || m.get("ETag") != `"x"` {
				t.Errorf("got %q %q, want the upstream's 200 and ETag", m.Line, m.Fields)
			}
			_, want, _ := strings.Cut(strings.TrimSpace(fields), "Content-Length: ")
			if got := m.get("Content-Length"); got != want {
				t.Errorf("Content-Length %q, want %q: HEAD tells the size of what GET would send", got, want)
			}
			if m := c.do("GET", "/y"); string(m.Body) != "ok" {
				t.Errorf("the next answer on the connection is %q %q: HEAD has no body", m.Line, m.Body)
			}
		})
	}
}

// TestConnectRefused wants a plain refusal: a tunnel is not a forward proxy.
func TestConnectRefused(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, nil)
	tn := publish(t, r.Target)
	tn.needsTunnel(t)
	for name, request := range map[string]string{
		"foreign host":         "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
		"foreign, tunnel Host": fmt.Sprintf("CONNECT example.com:443 HTTP/1.1\r\nHost: %s\r\n\r\n", tn.Host),
		"tunnel":               fmt.Sprintf("CONNECT %s:443 HTTP/1.1\r\nHost: %[1]s:443\r\n\r\n", tn.Host),
		"path":                 fmt.Sprintf("CONNECT /x HTTP/1.1\r\nHost: %s\r\n\r\n", tn.Host),
	} {
		t.Run(name, func(t *testing.T) {
			c := tn.dial(t)
			c.send(request)
			if m := c.final("CONNECT"); m.status() < 400 {
				t.Errorf("got %q, want a refusal", m.Line)
			}
			if seen := r.complete(); len(seen) > 0 {
				t.Errorf("the upstream saw %q: nothing may reach it", seen[0].Line)
			}
		})
	}
	if m := tn.dial(t).do("GET", "/x"); m.status() != 200 {
		t.Errorf("a plain request afterwards got %q", m.Line)
	}
}
