package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// smuggled is a request that hides in the body or behind the end of another. If the upstream sees it as a request
// of its own, a visitor can put words into the mouth of the next one.
const smuggled = "GET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n"

// ambiguous are requests that two servers may read in two ways; HOST stands for the tunnel's host.
// Each is refused, or forwarded as exactly one request that says one thing.
var ambiguous = map[string]string{
	"CL.TE":                 "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 49\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled,
	"TE.CL":                 "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n2\r\nhi\r\n0\r\n\r\n" + smuggled,
	"CL 0 and TE":           "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled,
	"GET with CL.TE":        "GET /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled,
	"two lengths":           "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0\r\nContent-Length: 60\r\n\r\n" + smuggled,
	"length list":           "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0, 60\r\n\r\n" + smuggled,
	"plus in length":        "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: +0\r\n\r\n" + smuggled,
	"negative length":       "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: -1\r\n\r\n" + smuggled,
	"hex length":            "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0x0\r\n\r\n" + smuggled,
	"empty length":          "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: \r\n\r\n" + smuggled,
	"huge length":           "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 18446744073709551616\r\n\r\n" + smuggled,
	"length with space":     "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0 0\r\n\r\n" + smuggled,
	"length with VT":        "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: \x0b0\r\n\r\n" + smuggled,
	"space before colon":    "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length : 0\r\n\r\n" + smuggled,
	"TE, space before it":   "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + smuggled,
	"TE, tab before colon":  "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n" + smuggled,
	"TE xchunked":           "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + smuggled,
	"TE identity":           "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: identity\r\nContent-Length: 0\r\n\r\n" + smuggled,
	"TE gzip, chunked":      "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + smuggled,
	"TE chunked, identity":  "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + smuggled,
	"TE chunked, chunked":   "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + smuggled,
	"two TE":                "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" + smuggled,
	"empty TE":              "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: \r\nContent-Length: 0\r\n\r\n" + smuggled,
	"TE with VT":            "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + smuggled,
	"TE with NUL":           "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\x00\r\n\r\n0\r\n\r\n" + smuggled,
	"TE folded":             "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + smuggled,
	"TE quoted":             "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0\r\nTransfer-Encoding: \"chunked\"\r\n\r\n" + smuggled,
	"TE in HTTP/1.0":        "POST /x HTTP/1.0\r\nHost: HOST\r\nConnection: keep-alive\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled,
	"bare CR before TE":     "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\nX-A: b\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"NUL in a value":        "GET /x HTTP/1.1\r\nHost: HOST\r\nX-A: a\x00b\r\n\r\n",
	"NUL in a name":         "GET /x HTTP/1.1\r\nHost: HOST\r\nX\x00A: b\r\n\r\n",
	"CR in a value":         "GET /x HTTP/1.1\r\nHost: HOST\r\nX-A: a\rb\r\n\r\n",
	"field without name":    "GET /x HTTP/1.1\r\nHost: HOST\r\n: b\r\n\r\n",
	"field without colon":   "GET /x HTTP/1.1\r\nHost: HOST\r\nnonsense\r\n\r\n",
	"space before a field":  "GET /x HTTP/1.1\r\n X-A: b\r\nHost: HOST\r\n\r\n",
	"folded field":          "GET /x HTTP/1.1\r\nHost: HOST\r\nX-A: b\r\n c\r\n\tX-Smuggled: 1\r\n\r\n",
	"folded length":         "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0\r\n 5\r\n\r\n" + smuggled,
	"bare LF head":          "GET /x HTTP/1.1\nHost: HOST\nX-A: b\n\n",
	"bare LF in the head":   "POST /x HTTP/1.1\r\nHost: HOST\r\nX-A: b\nContent-Length: 2\r\n\r\nhi",
	"leading blank line":    "\r\nGET /x HTTP/1.1\r\nHost: HOST\r\n\r\n",
	"leading spaces":        "  GET /x HTTP/1.1\r\nHost: HOST\r\n\r\n",
	"two spaces":            "GET  /x HTTP/1.1\r\nHost: HOST\r\n\r\n",
	"tab in request line":   "GET\t/x\tHTTP/1.1\r\nHost: HOST\r\n\r\n",
	"words after version":   "GET /x HTTP/1.1 HTTP/1.1\r\nHost: HOST\r\n\r\n",
	"HTTP/1.2":              "GET /x HTTP/1.2\r\nHost: HOST\r\n\r\n",
	"HTTP/2.0 in words":     "GET /x HTTP/2.0\r\nHost: HOST\r\n\r\n",
	"version of letters":    "GET /x HTTP/x.y\r\nHost: HOST\r\n\r\n",
	"HTTP/0.9":              "GET /with-more-bytes-than-an-HTTP/2-preface\r\n\r\n",
	"method not a token":    "GE(T /x HTTP/1.1\r\nHost: HOST\r\n\r\n",
	"two hosts":             "GET /x HTTP/1.1\r\nHost: HOST\r\nHost: other.example\r\n\r\n",
	"two equal hosts":       "GET /x HTTP/1.1\r\nHost: HOST\r\nHost: HOST\r\n\r\n",
	"host list":             "GET /x HTTP/1.1\r\nHost: HOST, other.example\r\n\r\n",
	"host with path":        "GET /x HTTP/1.1\r\nHost: HOST/y\r\n\r\n",
	"host with user":        "GET /x HTTP/1.1\r\nHost: other.example@HOST\r\n\r\n",
	"host with space":       "GET /x HTTP/1.1\r\nHost: HOST other.example\r\n\r\n",
	"two equal lengths":     "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
	"equal length list":     "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2, 2\r\n\r\nhi",
	"leading zeros":         "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 00002\r\n\r\nhi",
	"Chunked in capitals":   "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: CHUNKED\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
	"underscore TE":         "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\nTransfer_Encoding: chunked\r\n\r\nhi",
	"chunk extension":       "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n2;a=\"b\";c\r\nhi\r\n0;d\r\n\r\n",
	"bare LF in extension":  "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n2;\nhi\r\n2d\r\n0\r\n\r\n" + smuggled + "0\r\n\r\n",
	"CR in extension":       "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n2;a\rb\r\nhi\r\n0\r\n\r\n",
	"chunk size in 0x":      "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\nhi\r\n0\r\n\r\n",
	"chunk size with plus":  "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n+2\r\nhi\r\n0\r\n\r\n",
	"negative chunk":        "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\nhi\r\n0\r\n\r\n",
	"chunk size not hex":    "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhi\r\n0\r\n\r\n",
	"empty chunk size":      "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n\r\nhi\r\n0\r\n\r\n",
	"chunk size overflow":   "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000002\r\nhi\r\n0\r\n\r\n",
	"chunk too short":       "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhi\r\n0\r\n\r\nX",
	"chunk too long":        "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nhi\r\n0\r\n\r\n",
	"chunk without CRLF":    "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi0\r\n\r\n",
	"bare LF chunks":        "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n2\nhi\n0\n\n",
	"long chunk extension":  "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1;"+strings.Repeat("x", 4000)+"\r\na\r\n", 30) + "0\r\n\r\n",
	"length in trailers":    "POST /x HTTP/1.1\r\nHost: HOST\r\nTrailer: Content-Length\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nContent-Length: 60\r\n\r\n",
	"TE in trailers":        "POST /x HTTP/1.1\r\nHost: HOST\r\nTrailer: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nTransfer-Encoding: gzip\r\n\r\n",
	"host in trailers":      "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nHost: other.example\r\n\r\n",
	"folded trailer":        "POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-A: b\r\n c\r\n\r\n",
	"Connection: length":    "POST /x HTTP/1.1\r\nHost: HOST\r\nConnection: Content-Length\r\nContent-Length: 2\r\n\r\nhi",
	"Connection: TE":        "POST /x HTTP/1.1\r\nHost: HOST\r\nConnection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
	"Connection: host":      "GET /x HTTP/1.1\r\nHost: HOST\r\nConnection: Host\r\n\r\n",
	"h2c upgrade with body": "POST /x HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 2\r\n\r\nhi",
}

// oneFraming are those that net/http reads by one framing alone, without saying that there was another: by
// Transfer-Encoding, which overrides Content-Length (RFC 9112 section 6.3), or in HTTP/1.0 by Content-Length. What
// follows is then the next request of the same visitor, with an answer of its own. Section 6.1 would have the connection
// closed before that.
var oneFraming = []string{"CL.TE", "TE.CL", "CL 0 and TE", "GET with CL.TE", "TE folded", "TE in HTTP/1.0"}

// TestAmbiguousRequests wants each of them refused, or forwarded in one unambiguous form.
func TestAmbiguousRequests(t *testing.T) {
	t.Parallel()
	for name, request := range ambiguous {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := recordUpstream(t, func(m message) string {
				return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(m.target()), m.target())
			})
			tn := publish(t, r.Target)
			tn.needsTunnel(t)
			answers := exchange(tn.dial(t), strings.ReplaceAll(request, "HOST", tn.Host))
			if len(answers) == 0 {
				t.Fatal("no answer at all; a bad request is refused with 400")
			}
			seen := slices.DeleteFunc(r.complete(), func(m message) bool { return m.target() == "/marker" })
			report := fmt.Sprintf("first answer %q of %d, the upstream saw %s", answers[0].Line, len(answers), describe(seen))
			refused := slices.Contains([]int{400, 404, 411, 413, 421, 431, 501, 505}, answers[0].status())
			pipelined := slices.Contains(oneFraming, name) && len(seen) == 2 && seen[1].target() == "/smuggled" &&
				len(answers) == 2 && string(answers[1].Body) == "/smuggled"
			switch {
			case pipelined:
				seen = seen[:1]
			case len(seen) > 1:
				t.Errorf("one request became %d: %s", len(seen), report)
			case refused && len(seen) > 0:
				t.Errorf("refused, but the upstream has been asked: %s", report)
			case !refused && (answers[0].status() != 200 || len(seen) != 1):
				t.Errorf("neither refused with 400 nor forwarded once: %s", report)
			}
			for _, m := range seen {
				wantUnambiguous(t, m, tn.Host, report)
			}
			if m := tn.dial(t).do("GET", "/next"); m.status() != 200 || string(m.Body) != "/next" {
				t.Errorf("the next visitor got %q %q", m.Line, m.Body)
			}
			if next := r.complete(); len(next) != 1 || next[0].target() != "/next" {
				t.Errorf("the next visitor's request reached the upstream as %s", describe(next))
			}
		})
	}
}

// wantUnambiguous looks at what is left of an ambiguous request; its framing has passed the strict reader already.
func wantUnambiguous(t *testing.T, m message, host, report string) {
	t.Helper()
	if strings.HasPrefix(m.target(), "/smuggled") {
		t.Errorf("the hidden request was served: %s", report)
	}
	if len(m.values("Host")) != 1 || m.get("Host") != host {
		t.Errorf("the upstream saw Host %q, want %q alone: %s", m.values("Host"), host, report)
	}
	if strings.EqualFold(m.get("Upgrade"), "h2c") {
		t.Errorf("the upstream saw Upgrade: h2c: behind it, requests would pass unseen")
	}
	for _, name := range []string{"Content-Length", "Transfer-Encoding", "Host"} {
		if v := fieldValues(m.Trailers, name); len(v) > 0 {
			t.Errorf("trailer %s: %q went through, though it may not be one (RFC 9110 section 6.5.1)", name, v)
		}
	}
}

// exchange sends a request, and behind its first answer a clear one for /marker that ends the connection. It returns
// all answers but that one's.
func exchange(c *rawConn, request string) []message {
	c.send(request)
	var all []message
	for {
		c.SetReadDeadline(time.Now().Add(patience))
		m := readMessage(c.br, "GET")
		if m.Line == "" {
			if isTimeout(m.Err) {
				c.t.Errorf("after %d answers the connection hangs", len(all))
			}
			return all
		}
		if m.status() >= 200 && string(m.Body) != "/marker" {
			all = append(all, m)
		}
		if m.Err != nil {
			return all
		}
		if len(all) == 1 && string(m.Body) != "/marker" {
			c.write(c.request("GET", "/marker", "Connection: close")) // an error means closed: as good
		}
	}
}

func describe(seen []message) string {
	var all []string
	for _, m := range seen {
		all = append(all, fmt.Sprintf("%q %q and body %.80q", m.Line, m.Fields, m.Body))
	}
	return fmt.Sprintf("%d requests: %s", len(seen), strings.Join(all, "; "))
}
