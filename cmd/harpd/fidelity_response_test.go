package main

import (
	"bytes"
	"compress/gzip"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestBodilessStatus wants 204 and 304 without a body, with their fields, and the connection in step after them.
func TestBodilessStatus(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, answer string
		kept         []field
	}{
		{"204", "HTTP/1.1 204 No Content\r\nETag: \"x\"\r\nX-Kept: 1\r\n\r\n", []field{{"ETag", `"x"`}, {"X-Kept", "1"}}},
		{"304", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nCache-Control: max-age=5\r\nVary: Accept\r\nExpires: 0\r\n\r\n",
			[]field{{"ETag", `"x"`}, {"Cache-Control", "max-age=5"}, {"Vary", "Accept"}, {"Expires", "0"}}},
		{"304 with length", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 12345\r\n\r\n", []field{{"ETag", `"x"`}}},
		{"304 beyond the limit", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 99999999999\r\n\r\n", []field{{"ETag", `"x"`}}},
		{"205", "HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\nX-Kept: 1\r\n\r\n", []field{{"X-Kept", "1"}}},
		{"200 empty", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Kept: 1\r\n\r\n", []field{{"X-Kept", "1"}, {"Content-Length", "0"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := recordUpstream(t, func(m message) string {
				if m.target() == "/x" {
					return tt.answer
				}
				return okAnswer
			})
			c := publish(t, r.Target).dial(t)
			m := c.do("GET", "/x")
			if m.Line[9:12] != tt.answer[9:12] || len(m.Body) > 0 {
				t.Errorf("got %q and body %q", m.Line, m.Body)
			}
			wantFields(t, "the visitor", m.head, tt.kept)
			if m.status() == 204 && (m.has("Content-Length") || m.has("Transfer-Encoding")) {
				t.Errorf("204 carries framing %q, against RFC 9110 section 8.6", m.Fields)
			}
			if n := m.get("Content-Length"); m.status() == 304 && n != "" && !strings.Contains(tt.answer, "Content-Length: "+n) {
				t.Errorf("304 carries Content-Length %q, which is not the upstream's", n)
			}
			if m := c.do("GET", "/y"); string(m.Body) != "ok" {
				t.Errorf("the next answer on the connection is %q %q", m.Line, m.Body)
			}
		})
	}
}

// TestRanges asks http.ServeContent for parts, as video players and download managers do.
func TestRanges(t *testing.T) {
	t.Parallel()
	content := pattern(100_000)
	modified := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	target := serveUpstream(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"tag"`)
		w.Header().Set("Content-Type", "video/x")
		http.ServeContent(w, r, "", modified, bytes.NewReader(content))
	}))
	c := publish(t, target).dial(t)
	for _, tt := range []struct {
		name, fields string
		status       int
		contentRange string
		want         []byte
	}{
		{"none", "X-None: 1", 200, "", content},
		{"first byte", "Range: bytes=0-0", 206, "bytes 0-0/100000", content[:1]},
		{"last five", "Range: bytes=-5", 206, "bytes 99995-99999/100000", content[99_995:]},
		{"from the middle", "Range: bytes=50000-", 206, "bytes 50000-99999/100000", content[50_000:]},
		{"beyond", "Range: bytes=100000-", 416, "bytes */100000", nil},
		{"If-Range same", "If-Range: \"tag\"\r\nRange: bytes=1-2", 206, "bytes 1-2/100000", content[1:3]},
		{"If-Range other", "If-Range: \"old\"\r\nRange: bytes=1-2", 200, "", content},
		{"not modified", "If-None-Match: \"tag\"", 304, "", nil},
		{"not modified since", "If-Modified-Since: Fri, 02 Jan 2026 03:04:05 GMT", 304, "", nil},
		{"precondition failed", "If-Match: \"old\"", 412, "", nil},
	} {
		m := c.do("GET", "/video", tt.fields)
		if m.status() != tt.status || m.get("Content-Range") != tt.contentRange {
			t.Errorf("%s: got %q with Content-Range %q, want %d with %q", tt.name, m.Line, m.get("Content-Range"), tt.status, tt.contentRange)
		}
		if diff := sameBytes(m.Body, tt.want); diff != "" && tt.status < 400 {
			t.Errorf("%s: the visitor got %s", tt.name, diff)
		}
		if tt.status < 300 && m.get("Accept-Ranges") != "bytes" {
			t.Errorf("%s: Accept-Ranges is %q", tt.name, m.get("Accept-Ranges"))
		}
	}

	m := c.do("GET", "/video", "Range: bytes=0-9,20-29,-10")
	kind, params, err := mime.ParseMediaType(m.get("Content-Type"))
	if m.status() != 206 || kind != "multipart/byteranges" || err != nil {
		t.Fatalf("several ranges: got %q of type %q", m.Line, m.get("Content-Type"))
	}
	parts := multipart.NewReader(bytes.NewReader(m.Body), params["boundary"])
	for _, want := range [][]byte{content[:10], content[20:30], content[99_990:]} {
		p, err := parts.NextPart()
		if err != nil {
			t.Fatalf("several ranges: %v", err)
		}
		got, err := io.ReadAll(p)
		if diff := sameBytes(got, want); diff != "" || err != nil {
			t.Errorf("part %q holds %s (%v)", p.Header.Get("Content-Range"), diff, err)
		}
	}
	if _, err := parts.NextPart(); err != io.EOF {
		t.Errorf("several ranges: one part more, or a broken end: %v", err)
	}
}

// TestGzipLeftAlone wants nobody on the way to ask for, undo or redo a content coding.
func TestGzipLeftAlone(t *testing.T) {
	t.Parallel()
	var zipped bytes.Buffer
	zw := gzip.NewWriter(&zipped)
	zw.Write(pattern(10_000))
	zw.Close()
	_, wire := framed(zipped.Bytes(), true)
	r := recordUpstream(t, func(message) string {
		return "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nVary: Accept-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n" + wire
	})
	c := publish(t, r.Target).dial(t)
	for _, accept := range []string{"", "gzip", "br, zstd;q=0.5", "identity", "gzip, deflate"} {
		var fields []string
		if accept != "" {
			fields = append(fields, "Accept-Encoding: "+accept)
		}
		m := c.do("GET", "/x", fields...)
		if got := strings.Join(r.next(t).values("Accept-Encoding"), "|"); got != accept {
			t.Errorf("the upstream saw Accept-Encoding %q, want %q: only the visitor knows what it can read", got, accept)
		}
		if m.get("Content-Encoding") != "gzip" {
			t.Errorf("Accept-Encoding %q: Content-Encoding is %q, want the upstream's gzip", accept, m.get("Content-Encoding"))
		}
		if diff := sameBytes(m.Body, zipped.Bytes()); diff != "" {
			t.Errorf("Accept-Encoding %q: the visitor got %s", accept, diff)
		}
	}
	line, body := framed(zipped.Bytes(), false)
	c.send(c.request("POST", "/x", "Content-Encoding: gzip", line) + body)
	c.final("POST")
	if m := r.next(t); m.get("Content-Encoding") != "gzip" || sameBytes(m.Body, zipped.Bytes()) != "" {
		t.Errorf("the upstream got Content-Encoding %q and %s", m.get("Content-Encoding"), sameBytes(m.Body, zipped.Bytes()))
	}
}

// TestNothingMadeUp sends bodies that net/http would sniff and label, and a request without the usual fields.
func TestNothingMadeUp(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{
		"html": "<html><body>x</body></html>", "json": `{"a":1}`, "png": "\x89PNG\r\n\x1a\n0000", "text": "plain", "empty": "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := recordUpstream(t, func(m message) string {
				line, wire := framed([]byte(content), m.target() == "/chunked")
				return "HTTP/1.1 200 OK\r\n" + line + "\r\n\r\n" + wire
			})
			c := publish(t, r.Target).dial(t)
			for _, target := range []string{"/sized", "/chunked"} {
				m := c.do("GET", target)
				wantOnlyFields(t, "the visitor", m.head, nil, "Content-Length", "Transfer-Encoding", "Date", "X-Request-ID", "Connection", "Via")
				sent := r.next(t)
				wantOnlyFields(t, "the upstream", sent.head, nil, "Host", "Via", "X-Request-ID",
					"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "Forwarded", "X-Real-IP", "Connection")
			}
		})
	}
}

// TestOwnErrorPages wants the upstream's own errors untouched, and only the edge's marked with Harp-Error.
func TestOwnErrorPages(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, func(m message) string {
		return "HTTP/1.1 " + m.target()[1:] + " X\r\nHarp-Error: forged\r\nContent-Type: text/x\r\nContent-Length: 4\r\n\r\nmine"
	})
	tn := publish(t, r.Target)
	tn.needsTunnel(t)
	c := tn.dial(t)
	for _, code := range []string{"404", "413", "429", "500", "502", "503", "504"} {
		m := c.do("GET", "/"+code, "Accept: text/html")
		if string(m.Body) != "mine" || m.get("Content-Type") != "text/x" || m.Line[9:12] != code {
			t.Errorf("%s became %q %q of type %q", code, m.Line, m.Body, m.get("Content-Type"))
		}
		if m.has("Harp-Error") {
			t.Errorf("%s carries the upstream's Harp-Error %q: it would pass for the edge's own", code, m.get("Harp-Error"))
		}
	}
}

// TestResponseFraming has upstreams that break the rules of framing: 502, or one clear body.
func TestResponseFraming(t *testing.T) {
	t.Parallel()
	const smuggled = "HTTP/1.1 200 OK\r\nX-Smuggled: 1\r\nContent-Length: 0\r\n\r\n"
	for name, answer := range map[string]string{
		"two lengths":        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 90\r\n\r\nok" + smuggled,
		"length list":        "HTTP/1.1 200 OK\r\nContent-Length: 2, 90\r\n\r\nok" + smuggled,
		"length and chunked": "HTTP/1.1 200 OK\r\nContent-Length: 12\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + smuggled,
		"length not number":  "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok" + smuggled,
		"negative length":    "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok" + smuggled,
		"unknown coding":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\nok" + smuggled,
		"space before colon": "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok" + smuggled,
		"folded":             "HTTP/1.1 200 OK\r\nX-A: 1\r\n Content-Length: 90\r\nContent-Length: 2\r\n\r\nok" + smuggled,
		"unasked second":     "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + smuggled,
		"body on 204":        "HTTP/1.1 204 No Content\r\nContent-Length: 60\r\n\r\n" + smuggled,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := recordUpstream(t, func(m message) string {
				if m.target() == "/x" {
					return answer
				}
				return okAnswer
			})
			tn := publish(t, r.Target)
			tn.needsTunnel(t)
			c := tn.dial(t)
			c.send(c.request("GET", "/x"))
			m := c.response("GET") // the strict reader takes one clear framing only
			switch {
			case m.status() == 502 && m.has("Harp-Error"):
			case m.Err == nil && !m.has("X-Smuggled") && (string(m.Body) == "ok" || m.status() == 204):
			default:
				t.Errorf("got %q %q and body %q (%v), want 502 or the one body that is meant", m.Line, m.Fields, m.Body, m.Err)
			}
			for range 3 { // whatever waits on the upstream's connection belongs to nobody
				c := tn.dial(t)
				c.send(c.request("GET", "/y"))
				if m := c.response("GET"); m.has("X-Smuggled") {
					t.Errorf("the next visitor got the rest of another's answer: %q", m.Fields)
				}
			}
		})
	}
}
