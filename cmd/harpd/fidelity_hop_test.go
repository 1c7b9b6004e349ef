package main

import (
	"fmt"
	"strings"
	"testing"
)

// TestHopByHopRequest wants fields that concern the visitor's own connection not to pass (RFC 9110 section 7.6.1).
func TestHopByHopRequest(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, nil)
	tn := publish(t, r.Target)
	tn.needsTunnel(t)
	c := tn.dial(t)
	c.do("GET", "/x",
		"Connection: x-foo, X-Bar", "connection: X-Baz", "X-Foo: 1", "X-Bar: 2", "X-Bar: 3", "x-baz: 4", "X-Kept: 5",
		"Keep-Alive: timeout=5", "Proxy-Connection: keep-alive", "TE: gzip, deflate;q=0.5", "Proxy-Authorization: Basic eDp5")
	m := r.next(t)
	for _, name := range []string{"X-Foo", "X-Bar", "X-Baz", "Keep-Alive", "Proxy-Connection", "TE", "Upgrade"} {
		if v := m.values(name); len(v) > 0 {
			t.Errorf("the upstream saw %s %q, which was for the edge only", name, v)
		}
	}
	for _, v := range m.values("Connection") {
		if strings.Contains(strings.ToLower(v), "x-") {
			t.Errorf("the upstream saw Connection %q", v)
		}
	}
	if m.get("X-Kept") != "5" {
		t.Errorf("X-Kept is %q: it was named nowhere", m.get("X-Kept"))
	}

	c.do("GET", "/x", "Connection: TE", "TE: trailers")
	if v := r.next(t).values("TE"); len(v) != 1 || v[0] != "trailers" {
		t.Errorf("the upstream saw TE %q, want trailers: the tunnel passes them on, and gRPC servers ask for it", v)
	}
}

// TestHopByHopNamesEndToEnd has visitors name fields in Connection that are not theirs to take away.
func TestHopByHopNamesEndToEnd(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, nil)
	tn := publish(t, r.Target)
	tn.needsTunnel(t)
	for _, name := range []string{
		"Host", "Content-Length", "Transfer-Encoding", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Request-ID", "Forwarded",
	} {
		c := tn.dial(t)
		c.send(c.request("POST", "/x", "Connection: close, "+name, "Content-Length: 5") + "hello")
		answer := c.final("POST")
		if answer.status() == 400 {
			continue
		}
		m := r.next(t)
		if string(m.Body) != "hello" || m.get("Host") != tn.Host {
			t.Errorf("Connection: %s: the upstream saw Host %q and body %q", name, m.get("Host"), m.Body)
		}
		for _, own := range []string{"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Request-ID"} {
			if !m.has(own) {
				t.Errorf("Connection: %s took %s away, which the edge sets and the upstream relies on", name, own)
			}
		}
	}
}

// TestHopByHopResponse is the same for the upstream's connection.
func TestHopByHopResponse(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, func(message) string {
		return "HTTP/1.1 200 OK\r\nConnection: x-foo\r\nX-Foo: 1\r\nKeep-Alive: timeout=5, max=100\r\n" +
			"Proxy-Connection: keep-alive\r\nX-Kept: 2\r\nContent-Length: 2\r\n\r\nok"
	})
	tn := publish(t, r.Target)
	tn.needsTunnel(t)
	m := tn.dial(t).do("GET", "/x")
	for _, name := range []string{"X-Foo", "Keep-Alive", "Proxy-Connection"} {
		if v := m.values(name); len(v) > 0 {
			t.Errorf("the visitor saw %s %q, which was for the agent only", name, v)
		}
	}
	if m.get("X-Kept") != "2" {
		t.Errorf("X-Kept is %q", m.get("X-Kept"))
	}
}

// TestUpstreamCloses wants the visitor's connection kept when the upstream ends its own.
func TestUpstreamCloses(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, func(m message) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(m.target()), m.target())
	})
	tn := publish(t, r.Target)
	tn.needsTunnel(t)
	c := tn.dial(t)
	for i := range 5 {
		target := fmt.Sprintf("/%d", i)
		if m := c.do("GET", target); string(m.Body) != target || strings.EqualFold(m.get("Connection"), "close") {
			t.Fatalf("answer %d is %q with Connection %q: the upstream's close is not the visitor's", i, m.Body, m.get("Connection"))
		}
	}
}
