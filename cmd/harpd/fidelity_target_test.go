package main

import (
	"fmt"
	"strings"
	"testing"
)

// TestTargetByteForByte compares the request line that the upstream reads with the one that was sent.
func TestTargetByteForByte(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, nil)
	tn := publish(t, r.Target)
	c := tn.dial(t)
	for _, target := range []string{
		"/", "/a/", "//", "//a//b//", "///", "//evil.example/x", "/a/../b", "/a/./b", "/.", "/..", "/../..", "/.../",
		"/a%2Fb", "/a%2fb", "/%2F", "/%2e%2e/x", "/%61", "/%41%7e", "/a%20b", "/a+b", "/a%2Bb", "/%00", "/%0d%0a", "/%C3%BC", "/%ff",
		"/a;b=c;d", "/;", "/a,b=c", "/~u", "/!$&'()*+,;=:@-._~", "/a:b", "/http://other.example/x",
		"/?", "/x?", "/x??", "/x?a", "/x?a=", "/x?=", "/x?&", "/x?a&b;c=d;e", "/x?;", "/x?a=b?c=d", "/x?a=/../b",
		"/x?a=1&a=2&A=3", "/x?b=2&a=1", "/x?%", "/x?a=%zz", "/x?%zz=%", "/x?a=%2", "/x?a=+%20%2B", "/x?a[]=1&b={}", "/x?q='\"`|^\\",
		"/Ünïcödé/日本?q=日本語", "/\xe9?\xe9", "/x?\xff\xfe", `/a\b`, "/a|b^c`{}[]", `/a"b<c>`,
		"/.well-known/harp/connect", "/.well-known/acme-challenge/x", "/healthz", "/metrics", "/status", "/debug/pprof/", "/favicon.ico",
		"/" + strings.Repeat("long/", 1638), "/?" + strings.Repeat("q=%2F&", 1365),
	} {
		m := c.do("GET", target)
		if m.status() != 200 {
			t.Errorf("GET %.80q got %q, want the upstream's 200", target, m.Line)
			c = tn.dial(t)
			continue
		}
		if got, want := r.next(t).Line, "GET "+target+" HTTP/1.1"; got != want {
			t.Errorf("the upstream saw %.200q, want %.200q: a target is the upstream's to read", got, want)
		}
	}
}

// TestTargetRefusedOrKept sends targets that servers read in different ways: each is refused with 400 or kept.
func TestTargetRefusedOrKept(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, nil)
	tn := publish(t, r.Target)
	for _, target := range []string{
		"/%", "/%z", "/%zz", "/a%2", "/a#b", "/#", "/?a#b", "/a\x7fb", "/a\tb", "/a b", "x", "?x", "*", "http:", "http:///x",
	} {
		c := tn.dial(t)
		m := c.do("GET", target)
		switch seen := r.complete(); {
		case m.status() == 400 && len(seen) == 0:
		case m.status() == 200 && len(seen) == 1 && seen[0].Line == "GET "+target+" HTTP/1.1":
		case len(seen) == 0:
			t.Errorf("GET %q got %q without the upstream; a bad target is refused with 400", target, m.Line)
		default:
			t.Errorf("GET %q got %q, the upstream saw %q: refuse it with 400 or leave it as it is", target, m.Line, seen[0].Line)
		}
	}
}

// TestTargetAbsoluteForm sends what clients send to a proxy, with the host in the target as well.
func TestTargetAbsoluteForm(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, nil)
	tn := publish(t, r.Target)
	c := tn.dial(t)
	absolute := "http://" + tn.Host + "/a%2Fb//c?d;%zz"
	if m := c.do("GET", absolute); m.status() != 200 {
		t.Fatalf("got %q: a server must accept the absolute form (RFC 9112 section 3.2.2)", m.Line)
	}
	m := r.next(t)
	if got := m.target(); got != absolute && got != "/a%2Fb//c?d;%zz" {
		t.Errorf("the upstream saw target %q, want the same in absolute or origin form", got)
	}
	if got := m.get("Host"); got != tn.Host {
		t.Errorf("the upstream saw Host %q, want %q", got, tn.Host)
	}

	tn.needsTunnel(t)
	c = tn.dial(t)
	c.send(fmt.Sprintf("GET http://%s/x HTTP/1.1\r\nHost: other.%s\r\n\r\n", tn.Host, testDomain))
	got := c.final("GET")
	for _, m := range r.complete() {
		if got.status() != 200 || strings.HasPrefix(m.get("Host"), "other.") {
			t.Errorf("got %q and the upstream saw %q with Host %q: the target decides, and Host must not say another", got.Line, m.Line, m.get("Host"))
		}
	}
	if s := got.status(); s != 200 && s != 400 && s != 421 {
		t.Errorf("two hosts in one request got %q, want 400 or the target's own", got.Line)
	}
}

// TestTargetTooLong wants an answer, not a dead connection, when a head is beyond all reason.
func TestTargetTooLong(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, nil)
	tn := publish(t, r.Target)
	tn.needsTunnel(t)
	c := tn.dial(t)
	sent := make(chan error, 1)
	go func() { sent <- c.write(c.request("GET", "/"+strings.Repeat("x", 4<<20))) }() // ends when c closes
	m := c.response("GET")
	if s := m.status(); s != 431 && s != 414 {
		t.Errorf("4 MiB of target got %q, want 431 or 414", m.Line)
	}
	c.Close()
	<-sent
	if seen := r.complete(); len(seen) > 0 {
		t.Errorf("the upstream saw %d bytes of request line", len(seen[0].Line))
	}
}
