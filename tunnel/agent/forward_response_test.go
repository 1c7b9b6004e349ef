package agent

import (
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// answer forwards one request to an upstream that sends raw once it has read the head.
func answer(t *testing.T, method, raw string, o ForwardOptions) (w *tunnelWriter, aborted bool) {
	t.Helper()
	addr := playUpstream(t, func(_ int, p *peer) {
		p.head()
		io.WriteString(p, raw)
	})
	w = newTunnelWriter()
	aborted = w.serve(newTestForwarder(t, addr, o), request(t, method, "/", nil, 0))
	return w, aborted
}

// made removes what writeHead puts there to keep net/http from making fields up.
func made(h http.Header) http.Header {
	for name, values := range h {
		if values == nil {
			delete(h, name)
		}
	}
	return h
}

func TestResponses(t *testing.T) {
	type fields = http.Header
	for _, c := range []struct {
		why, method, raw string
		status           int
		header           fields
		body             string
		trailers         fields
	}{
		{"sized", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, fields{"Content-Length": {"5"}}, "hello", nil},
		{"names are made canonical, values trimmed", "GET", "HTTP/1.1 200 OK\r\ncontent-length:\t5 \r\nx-ODD: \t a b\t \r\n\r\nhello",
			200, fields{"Content-Length": {"5"}, "X-Odd": {"a b"}}, "hello", nil},
		{"repeated fields", "GET", "HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nX: y\r\nset-cookie: b=2\r\nSet-Cookie:\r\nContent-Length: 0\r\n\r\n",
			200, fields{"Set-Cookie": {"a=1", "b=2", ""}, "X": {"y"}, "Content-Length": {"0"}}, "", nil},
		{"bare LF", "GET", "HTTP/1.1 200 OK\nA: b\nContent-Length: 2\n\nhi", 200, fields{"A": {"b"}, "Content-Length": {"2"}}, "hi", nil},
		{"folded line", "GET", "HTTP/1.1 200 OK\r\nA: b\r\n \t c\r\nContent-Length: 0\r\n\r\n", 200, fields{"A": {"b c"}, "Content-Length": {"0"}}, "", nil},
		{"no reason", "GET", "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 200, fields{"Content-Length": {"0"}}, "", nil},
		{"empty reason", "GET", "HTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n", 404, fields{"Content-Length": {"0"}}, "", nil},
		{"odd status", "GET", "HTTP/1.1 799 Hm\r\nContent-Length: 0\r\n\r\n", 799, fields{"Content-Length": {"0"}}, "", nil},
		{"until close", "GET", "HTTP/1.1 200 OK\r\n\r\nhello", 200, nil, "hello", nil},
		{"until close, empty", "GET", "HTTP/1.1 200 OK\r\n\r\n", 200, nil, "", nil},
		{"HTTP/1.0", "GET", "HTTP/1.0 200 OK\r\nContent-Type: a/b\r\n\r\nhello", 200, fields{"Content-Type": {"a/b"}}, "hello", nil},
		{"HTTP/1.0 sized", "GET", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello", 200, fields{"Content-Length": {"5"}}, "hello", nil},
		{"chunked", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=\"y\"\r\nlo\r\n0\r\n\r\n", 200, nil, "hello", nil},
		{"chunk sizes with zeros and blanks", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n0003 \r\nhel\r\n00A\r\n0123456789\r\n000\r\n\r\n",
			200, nil, "hel0123456789", nil},
		{"trailers", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 7\r\nx-more: 1\r\nX-More: 2\r\nContent-Length: 9\r\n\r\n",
			200, fields{"Trailer": {"X-Sum"}}, "hi", fields{"X-Sum": {"7"}, "X-More": {"1", "2"}}},
		{"chunked overrides a length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", 200, nil, "hi", nil},
		{"equal lengths", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2, 02\r\n\r\nhi", 200, fields{"Content-Length": {"2"}}, "hi", nil},
		{"HEAD keeps its length", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", 200, fields{"Content-Length": {"1000"}}, "", nil},
		{"HEAD chunked", "HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200, nil, "", nil},
		{"304 keeps its length", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\nEtag: \"a\"\r\n\r\n",
			304, fields{"Content-Length": {"1000"}, "Etag": {`"a"`}}, "", nil},
		{"204", "GET", "HTTP/1.1 204 No Content\r\n\r\n", 204, nil, "", nil},
		{"hop-by-hop fields", "GET", "HTTP/1.1 200 OK\r\nConnection: close, x-mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: a\r\nUpgrade: h2c\r\nX-Theirs: 1\r\nContent-Length: 0\r\n\r\n",
			200, fields{"X-Theirs": {"1"}, "Content-Length": {"0"}}, "", nil},
		{"gzip is left alone", "GET", "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
			200, fields{"Content-Encoding": {"gzip"}, "Content-Length": {"4"}}, "\x1f\x8b\x08\x00", nil},
		{"bytes in values", "GET", "HTTP/1.1 200 OK\r\nA: \xfc\xff\x01\r\nContent-Length: 0\r\n\r\n", 200, fields{"A": {"\xfc\xff\x01"}, "Content-Length": {"0"}}, "", nil},
	} {
		t.Run(c.why, func(t *testing.T) {
			checkForwardLeaks(t)
			w, aborted := answer(t, c.method, c.raw, ForwardOptions{})
			if aborted || w.failed {
				t.Errorf("%s: aborted %v, failed %v %q", c.why, aborted, w.code, w.reason)
				return
			}
			if c.header == nil {
				c.header = fields{}
			}
			if c.trailers == nil {
				c.trailers = fields{}
			}
			if w.status != c.status || w.body.String() != c.body {
				t.Errorf("%s: status %d, body %q; want %d, %q", c.why, w.status, w.body.String(), c.status, c.body)
			}
			if got := made(w.sent); !reflect.DeepEqual(got, c.header) {
				t.Errorf("%s: fields %q, want %q", c.why, got, c.header)
			}
			if got := w.trailers(); !reflect.DeepEqual(got, c.trailers) {
				t.Errorf("%s: trailers %q, want %q", c.why, got, c.trailers)
			}
		})
	}
}

// TestResponsesBroken has upstreams send what is no response: the visitor must learn of it, and get none of it.
func TestResponsesBroken(t *testing.T) {
	long := strings.Repeat("x", 2000)
	for why, c := range map[string]struct{ raw, reason string }{
		"nothing":                     {"", "closed the connection"},
		"half a status line":          {"HTTP/1.1 20", "broke off in the head"},
		"half a head":                 {"HTTP/1.1 200 OK\r\nA: b\r\n", "broke off in the head"},
		"another protocol":            {"SSH-2.0-OpenSSH_9.6\r\n\r\n", `no HTTP answer ("SSH-2.0`},
		"HTTP/2 status line":          {"HTTP/2.0 200 OK\r\n\r\n", "no HTTP answer"},
		"empty line first":            {"\r\nHTTP/1.1 200 OK\r\n\r\n", "no HTTP answer"},
		"status of two digits":        {"HTTP/1.1 20 OK\r\n\r\n", "no HTTP answer"},
		"status of four digits":       {"HTTP/1.1 2000 OK\r\n\r\n", "no HTTP answer"},
		"status 099":                  {"HTTP/1.1 099 OK\r\n\r\n", "no HTTP answer"},
		"CR in the reason":            {"HTTP/1.1 200 O\rK\r\n\r\n", "no HTTP answer"},
		"space before the colon":      {"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello", "malformed"},
		"no colon":                    {"HTTP/1.1 200 OK\r\nA\r\n\r\n", "malformed"},
		"no name":                     {"HTTP/1.1 200 OK\r\n: a\r\n\r\n", "malformed"},
		"folded first line":           {"HTTP/1.1 200 OK\r\n A: b\r\n\r\n", "folded"},
		"NUL in a value":              {"HTTP/1.1 200 OK\r\nA: b\x00c\r\n\r\n", "control character"},
		"CR in a value":               {"HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n", "control character"},
		"two lengths":                 {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", "different Content-Lengths"},
		"two lengths in one":          {"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello", "different Content-Lengths"},
		"negative length":             {"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello", "malformed Content-Length"},
		"signed length":               {"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello", "malformed Content-Length"},
		"length beyond all":           {"HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775808\r\n\r\n", "malformed Content-Length"},
		"empty length":                {"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nhello", "malformed Content-Length"},
		"another coding":              {"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "transfer coding"},
		"chunked twice":               {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "transfer coding"},
		"identity":                    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n", "transfer coding"},
		"101 unasked":                 {"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "unasked"},
		"17 interim answers":          {strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 17) + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "interim"},
		"a head that is too long":     {"HTTP/1.1 200 OK\r\nA: " + long + "\r\n\r\n", "more than 1000 bytes"},
		"a head that does not end":    {"HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", 1000), "more than 1000 bytes"},
		"a line that does not end":    {long + long + long, "more than 1000 bytes"},
		"nothing after interim heads": {"HTTP/1.1 103 Early Hints\r\n\r\n", "broke off"},
	} {
		t.Run(why, func(t *testing.T) {
			checkForwardLeaks(t)
			w, aborted := answer(t, "GET", c.raw, ForwardOptions{MaxHeadBytes: 1000})
			if aborted || w.code != messages.CancelBroken || w.status != 0 || !strings.Contains(w.reason, c.reason) {
				t.Errorf("%s: aborted %v, status %d, failed with %v %q; want %v and a word about %q",
					why, aborted, w.status, w.code, w.reason, messages.CancelBroken, c.reason)
			}
		})
	}
}

// TestResponsesCutShort has upstreams break off in the body: what came is passed on, and the end is not.
func TestResponsesCutShort(t *testing.T) {
	for why, c := range map[string]struct {
		raw, body string
		reset     bool
	}{
		"sized":                       {"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello", "hello", false},
		"sized, nothing came":         {"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n", "", false},
		"chunk":                       {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nhello", "hello", false},
		"between chunks":              {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "hello", false},
		"in a chunk's size":           {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0", "hello", false},
		"before the last line":        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n", "hello", false},
		"in the trailers":             {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n", "hello", false},
		"bad trailers":                {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA : b\r\n\r\n", "hello", false},
		"trailers without end":        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n" + strings.Repeat("A: b\r\n", 1000), "hello", false},
		"no size":                     {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n\r\nhello", "hello", false},
		"bad size":                    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nx\r\n", "hello", false},
		"signed size":                 {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n+1\r\na\r\n", "hello", false},
		"size beyond all":             {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n10000000000000005\r\nhello\r\n", "hello", false},
		"bare LF behind a size":       {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5\nhello\r\n0\r\n\r\n", "hello", false},
		"no CRLF behind data":         {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n", "hello", false},
		"extensions without end":      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5;" + strings.Repeat("x", 5000), "hello", false},
		"until close, but by a reset": {"HTTP/1.1 200 OK\r\n\r\nhello", "hello", true},
	} {
		t.Run(why, func(t *testing.T) {
			checkForwardLeaks(t)
			seen := make(chan struct{})
			addr := playUpstream(t, func(_ int, p *peer) {
				p.head()
				io.WriteString(p, c.raw)
				if c.reset {
					<-seen // else the reset overtakes the body
					p.reset()
				}
			})
			w := newTunnelWriter()
			if c.reset {
				go func() { // ends with the flush behind the body, or with the test's token
					<-w.flushed
					close(seen)
				}()
			}
			aborted := w.serve(newTestForwarder(t, addr, ForwardOptions{MaxHeadBytes: 1000}), request(t, "GET", "/", nil, 0))
			w.flushed <- struct{}{}
			if !aborted || w.failed || w.status != 200 || w.body.String() != c.body {
				t.Errorf("%s: aborted %v, failed %v, status %d, body %q; want 200, %q and http.ErrAbortHandler",
					why, aborted, w.failed, w.status, w.body.String(), c.body)
			}
			if got := w.events[len(w.events)-1]; got != "flush" {
				t.Errorf("%s: the last thing done was %q, want a flush of what came", why, got)
			}
		})
	}
}

func TestInterimResponses(t *testing.T) {
	checkForwardLeaks(t)
	w, _ := answer(t, "GET", "HTTP/1.1 100 Continue\r\n\r\n"+
		"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nLink: </b>; rel=preload\r\n\r\n"+
		strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 14)+
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", ForwardOptions{})
	want := []string{"Continue", "Early Hints\nLink: </a>; rel=preload\r\nLink: </b>; rel=preload"}
	for range 14 {
		want = append(want, "Processing")
	}
	want = append(want, "OK\nContent-Length: 2", "body hi")
	if !reflect.DeepEqual(w.events, want) {
		t.Errorf("the visitor's side saw %q, want %q", w.events, want)
	}
}

// TestFlushing counts flushes: none where the end is at hand, one before each wait.
func TestFlushing(t *testing.T) {
	big := strings.Repeat("x", 100<<10)
	for why, c := range map[string]struct {
		raw     string
		flushes int
	}{
		"sized, all at once":   {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 0},
		"chunked, all at once": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nhello\r\n0\r\n\r\n", 0},
		"no body":              {"HTTP/1.1 204 No Content\r\n\r\n", 0},
		"until close":          {"HTTP/1.1 200 OK\r\n\r\nhello", 1},
	} {
		w, _ := answer(t, "GET", c.raw, ForwardOptions{})
		if got := strings.Count(fmt.Sprint(w.events), "flush"); got != c.flushes {
			t.Errorf("%s: %d flushes in %q, want %d", why, got, w.events, c.flushes)
		}
	}
	w, _ := answer(t, "GET", fmt.Sprintf("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(big), big), ForwardOptions{})
	if w.body.String() != big {
		t.Errorf("a large chunk came out as %d bytes, want %d", w.body.Len(), len(big))
	}
}

// TestTrickledBody sends a body piece by piece: each must be passed on before the next is sent.
func TestTrickledBody(t *testing.T) {
	for name, frame := range map[string]struct {
		head string
		each func(s string) string
		end  string
	}{
		"sized":       {"Content-Length: 10\r\n", func(s string) string { return s }, ""},
		"chunked":     {"Transfer-Encoding: chunked\r\n", func(s string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(s), s) }, "0\r\n\r\n"},
		"until close": {"", func(s string) string { return s }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			checkForwardLeaks(t)
			w := newTunnelWriter()
			wait := func(what string) {
				select {
				case <-w.flushed:
				case <-time.After(time.Second):
					t.Errorf("%s was not flushed", what)
				}
			}
			addr := playUpstream(t, func(_ int, p *peer) {
				p.head()
				p.send("HTTP/1.1 200 OK\r\n" + frame.head + "\r\n")
				wait("the head")
				for i := range 10 {
					p.send(frame.each(fmt.Sprint(i)))
					if i < 9 || name != "sized" {
						wait(fmt.Sprint("piece ", i))
					}
				}
				p.send(frame.end)
			})
			if w.serve(newTestForwarder(t, addr, ForwardOptions{}), request(t, "GET", "/", nil, 0)) || w.body.String() != "0123456789" {
				t.Errorf("got %q, want all pieces and a clean end", w.body.String())
			}
		})
	}
}
