package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// oddFields are fields that proxies like to join, sort, trim, decode or drop.
var oddFields = []field{
	{"X-Many", "1"}, {"X-Many", "2, 3"}, {"X-Many", ""}, {"X-Many", "1"},
	{"X-Other", "between"}, {"x-many", "last"},
	{"X-Empty", ""}, {"X-Quotes", `"a\"b", c;d="e,f"`}, {"X-Inner", "a \t b"},
	{"X-Utf8", "Grüße 日本"}, {"X-Latin1", "caf\xe9 \xff"}, {"X-Percent", "%41%zz"},
	{"X_Under_Score", "u"}, {"x.dot", "d"}, {"X!#$%&'*+-.^_`|~9", "token"},
	{"Authorization", "Basic dTpw"}, {"Referer", "http://a.example/?x;y"},
	{"Accept", "text/html"}, {"Accept", "*/*;q=0.1"}, {"Cache-Control", "no-cache"}, {"Pragma", "no-cache"},
	{"If-None-Match", `"a", W/"b"`}, {"Range", "bytes=0-1"}, {"DNT", "1"}, {"Upgrade-Insecure-Requests", "1"},
}

func fieldLines(fields []field) []string {
	var lines []string
	for _, f := range fields {
		lines = append(lines, f.Name+": "+f.Value)
	}
	return lines
}

// wantFields compares the values of every field in want, in order, one line each.
func wantFields(t *testing.T, where string, got head, want []field) {
	t.Helper()
	for _, f := range want {
		if g, w := got.values(f.Name), fieldValues(want, f.Name); !slices.Equal(g, w) {
			t.Errorf("%s: %s is %q, want %q: fields keep their values, their number and their order", where, f.Name, g, w)
		}
	}
}

// wantOnlyFields reports fields that somebody on the way made up.
func wantOnlyFields(t *testing.T, where string, got head, sent []field, allowed ...string) {
	t.Helper()
	for _, f := range got.Fields {
		same := func(name string) bool { return strings.EqualFold(name, f.Name) }
		if len(fieldValues(sent, f.Name)) == 0 && !slices.ContainsFunc(allowed, same) {
			t.Errorf("%s: nobody sent %s: %q", where, f.Name, f.Value)
		}
	}
}

// TestRequestFields sends odd and repeated fields to the upstream.
func TestRequestFields(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, nil)
	tn := publish(t, r.Target)
	tn.dial(t).do("GET", "/x", fieldLines(oddFields)...)
	m := r.next(t)
	wantFields(t, "the upstream", m.head, oddFields)
	wantOnlyFields(t, "the upstream", m.head, oddFields, "Host", "Via", "X-Request-ID",
		"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "Forwarded", "X-Real-IP", "Connection")
	if got := m.get("Host"); got != tn.Host {
		t.Errorf("the upstream saw Host %q, want %q as the visitor sent it", got, tn.Host)
	}
}

// TestResponseFields sends odd and repeated fields, many cookies among them, to the visitor.
func TestResponseFields(t *testing.T) {
	t.Parallel()
	sent := append(slices.Clone(oddFields), []field{
		{"Set-Cookie", "a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT"}, {"Set-Cookie", "b=2; Path=/; HttpOnly"},
		{"X-Between", "1"}, {"Set-Cookie", ""}, {"Set-Cookie", "a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT"}, {"set-cookie", "c=\"x,y\""},
		{"Date", "Thu, 01 Jan 2015 00:00:00 GMT"}, {"Server", "ancient/0.1"}, {"Vary", "Accept"}, {"Vary", "Cookie"},
		{"Link", "</a>; rel=preload"}, {"Link", "</b>; rel=preload"}, {"WWW-Authenticate", "Basic realm=\"x\""}, {"WWW-Authenticate", "Bearer"},
		{"Strict-Transport-Security", "max-age=1"}, {"Alt-Svc", "h3=\":443\""}, {"Location", "/%2F//;?%zz"}, {"Content-Language", "de"},
	}...)
	r := recordUpstream(t, func(message) string {
		return "HTTP/1.1 200 OK\r\n" + strings.Join(fieldLines(sent), "\r\n") + "\r\nContent-Length: 2\r\n\r\nok"
	})
	m := publish(t, r.Target).dial(t).do("GET", "/x")
	wantFields(t, "the visitor", m.head, sent)
	wantOnlyFields(t, "the visitor", m.head, sent, "Content-Length", "X-Request-ID", "Connection", "Keep-Alive", "Via")
	if m.has("Content-Type") {
		t.Errorf("Content-Type %q: the upstream sent none and nobody may guess one", m.get("Content-Type"))
	}
}

// TestStatusLine wants any status code through, with or without a reason phrase.
func TestStatusLine(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, func(m message) string {
		return "HTTP/1.1 " + strings.TrimPrefix(m.target(), "/") + " Odd Reason\r\nContent-Length: 0\r\n\r\n"
	})
	c := publish(t, r.Target).dial(t)
	for _, code := range []int{200, 201, 202, 203, 205, 206, 207, 226, 250, 299, 300, 301, 302, 303, 307, 308, 399, 400, 401, 402, 403, 404, 407, 410, 418, 421, 451, 499, 500, 501, 502, 503, 504, 599, 600, 999} {
		m := c.do("GET", fmt.Sprintf("/%d", code))
		if m.status() != code {
			t.Errorf("got %q, want the upstream's %d", m.Line, code)
		}
		if m.has("Harp-Error") {
			t.Errorf("%d carries Harp-Error %q: that is for the edge's own answers", code, m.get("Harp-Error"))
		}
	}
}

// TestLargeHeads sends 32 KB of fields each way, as one line and as many.
func TestLargeHeads(t *testing.T) {
	t.Parallel()
	var many []field
	for i := range 64 {
		many = append(many, field{fmt.Sprintf("X-Large-%02d", i), strings.Repeat(string(rune('a'+i%26)), 512)})
	}
	for name, large := range map[string][]field{
		"one line":   {{"X-Large", strings.Repeat("0123456789abcdef", 2048)}},
		"many lines": many,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := recordUpstream(t, func(message) string {
				return "HTTP/1.1 200 OK\r\n" + strings.Join(fieldLines(large), "\r\n") + "\r\nContent-Length: 2\r\n\r\nok"
			})
			m := publish(t, r.Target).dial(t).do("GET", "/x", fieldLines(large)...)
			if m.status() != 200 || string(m.Body) != "ok" {
				t.Fatalf("got %q %q: 32 KB of fields are usual with large cookies", m.Line, m.Body)
			}
			wantFields(t, "the upstream", r.next(t).head, large)
			wantFields(t, "the visitor", m.head, large)
		})
	}
}

// TestTooManyFields wants 431 for a head beyond all reason, and no harm to others.
func TestTooManyFields(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, nil)
	tn := publish(t, r.Target)
	tn.needsTunnel(t)
	c := tn.dial(t)
	sent := make(chan error, 1)
	large := slices.Repeat([]string{"X-Large: " + strings.Repeat("x", 8000)}, 500)
	go func() { sent <- c.write(c.request("GET", "/x", large...)) }() // ends when c closes
	if m := c.response("GET"); m.status() != 431 {
		t.Errorf("4 MB of fields got %q, want 431", m.Line)
	}
	c.Close()
	<-sent
	if m := tn.dial(t).do("GET", "/y"); m.status() != 200 {
		t.Errorf("another visitor got %q", m.Line)
	}
}
