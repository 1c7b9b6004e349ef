package server

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
)

const (
	end    = messages.FlagEnd
	ends   = "ends"   // the connection does, and where that is in the message the message is visibly not whole
	either = "either" // that, or all of it comes before the breach is seen
)

// A hostileResponse is what an agent says, and what the visitor has to get.
type hostileResponse struct {
	why    string
	method string
	head   func(stream uint32) []byte
	then   func(stream uint32) []byte
	want   string // the whole answer without Date and X-Request-Id, fields sorted; a Harp-Error code for an answer of the edge's
	after  string // what becomes of the connection; empty if another response can follow
}

func respond(flags messages.Flags, status int, fields ...string) func(uint32) []byte {
	return func(stream uint32) []byte { return head(messages.TypeHTTPResponse, flags, stream, status, fields...) }
}

func body(stream uint32, flags messages.Flags, text string) []byte {
	return messages.AppendBody(nil, messages.TypeBody, flags, stream, []byte(text))
}

func trailers(stream uint32, fields ...string) []byte {
	b := messages.AppendTrailers(nil, stream, "")
	for i := 0; i < len(fields); i += 2 {
		b = messages.AppendField(b, fields[i], fields[i+1])
	}
	b, _ = messages.Finish(b, 0)
	return b
}

var hostileResponses = []hostileResponse{
	{"101 to a plain request", "GET", respond(0, 101, "Upgrade", "x"), nil, "upstream-broke", ""},
	{"data before the head", "GET", func(s uint32) []byte { return body(s, 0, "HTTP/1.1 200 OK") }, nil, "upstream-broke", ""},
	{"status 999", "GET", respond(end, 999, "Content-Length", "0"), nil, "999 status code 999\nContent-Length: 0\n\n", ""},
	{"fields of one connection and of the edge", "GET", respond(end, 200, "Content-Length", "0", "Connection", "close, X-Mine", "X-Mine", "1",
		"Keep-Alive", "9", "Transfer-Encoding", "chunked", "Upgrade", "h2c", "Proxy-Connection", "x", "Harp-Error", "fake", "harp_tunnel", "x", "X-Ok", "y"),
		nil, "200 OK\nContent-Length: 0\nX-Ok: y\n\n", ""},
	{"Transfer-Encoding without a length", "GET", respond(0, 200, "transfer-encoding", "identity"), func(s uint32) []byte { return body(s, end, "hi") },
		"200 OK\nTransfer-Encoding: chunked\n\n2\nhi\n0\n\n", ""},
	{"a length that is too short", "GET", respond(0, 200, "Content-Length", "5"), func(s uint32) []byte { return body(s, end, "HTTP/1.1 200 OK") },
		"200 OK\nContent-Length: 5\n\n", ends},
	{"a length that is too long", "GET", respond(0, 200, "Content-Length", "5"), func(s uint32) []byte { return body(s, end, "abc") },
		"200 OK\nContent-Length: 5\n\nabc", ends},
	{"a length without a body", "GET", respond(end, 200, "Content-Length", "5"), nil, "200 OK\nContent-Length: 5\n\n", ends},
	{"two lengths", "GET", respond(0, 200, "Content-Length", "2", "content-length", "4"), func(s uint32) []byte { return body(s, end, "abcd") }, "upstream-broke", ""},
	{"twice the same length", "GET", respond(0, 200, "Content-Length", "2", "Content-Length", "2"), func(s uint32) []byte { return body(s, end, "ab") }, "upstream-broke", ""},
	{"a list of lengths", "GET", respond(0, 200, "Content-Length", "2, 2"), func(s uint32) []byte { return body(s, end, "ab") }, "upstream-broke", ""},
	{"a negative length", "GET", respond(0, 200, "Content-Length", "-1"), func(s uint32) []byte { return body(s, end, "ab") }, "upstream-broke", ""},
	{"a signed length", "GET", respond(0, 200, "Content-Length", "+2"), func(s uint32) []byte { return body(s, end, "ab") }, "upstream-broke", ""},
	{"a hexadecimal length", "HEAD", respond(end, 200, "Content-Length", "0x2"), nil, "upstream-broke", ""},
	{"a length of 2^63", "GET", respond(0, 200, "Content-Length", "9223372036854775808"), func(s uint32) []byte { return body(s, end, "ab") }, "upstream-broke", ""},
	{"an empty length", "GET", respond(end, 200, "Content-Length", ""), nil, "upstream-broke", ""},
	{"a body for HEAD", "HEAD", respond(0, 200, "Content-Length", "3"), func(s uint32) []byte { return body(s, end, "abc") }, "200 OK\nContent-Length: 3\n\n", ""},
	{"a longer body for HEAD", "HEAD", respond(0, 200, "Content-Length", "3"), func(s uint32) []byte { return body(s, end, "abcdef") }, "200 OK\nContent-Length: 3\n\n", ends},
	{"a body for 204", "GET", respond(0, 204, "Content-Length", "3"), func(s uint32) []byte { return body(s, end, "abc") }, "204 No Content\n\n", ends},
	{"a body for 304", "GET", respond(0, 304, "Content-Length", "3"), func(s uint32) []byte { return body(s, end, "abc") }, "304 Not Modified\n\n", ends},
	{"an end after 304", "GET", respond(0, 304, "Content-Length", "3"), func(s uint32) []byte { return body(s, end, "") }, "304 Not Modified\n\n", ""},
	{"a huge length for 304", "GET", respond(0, 304, "Content-Length", "999999999"), func(s uint32) []byte { return body(s, end, "") }, "304 Not Modified\n\n", ""},
	{"a second head", "GET", respond(0, 200), func(s uint32) []byte { return append(body(s, 0, "a"), respond(end, 200)(s)...) },
		"200 OK\nTransfer-Encoding: chunked\n\n", ends},
	{"data after the end", "GET", respond(0, 200, "Content-Length", "1"), func(s uint32) []byte { return append(body(s, end, "a"), body(s, end, "HTTP/1.1 200 OK")...) },
		"200 OK\nContent-Length: 1\n\na", either},
	{"trailers that frame, route or pretend", "GET", respond(0, 200, "Trailer", "X-Sum, Content-Length", "X-Sum", "head"), func(s uint32) []byte {
		return append(body(s, 0, "a"), trailers(s, "Content-Length", "9", "Transfer-Encoding", "chunked", "Host", "evil", "Connection", "close",
			"Harp-Error", "fake", "Upgrade", "x", "Set-Cookie", "a=1", "X-Sum", "1", "X-Sum", "2", "Trailer", "X")...)
	}, "200 OK\nTrailer: X-Sum, Content-Length\nTransfer-Encoding: chunked\nX-Sum: head\n\n1\na\n0\nSet-Cookie: a=1\nX-Sum: 1\nX-Sum: 2\n\n", ""},
	{"trailers twice", "GET", respond(0, 200, "Content-Length", "1"), func(s uint32) []byte {
		return append(body(s, 0, "a"), append(trailers(s, "A", "1"), trailers(s, "B", "2")...)...)
	}, "200 OK\nContent-Length: 1\n\na", either},
	{"endless trailers", "GET", respond(0, 200), func(s uint32) []byte {
		return append(body(s, 0, "a"), trailers(s, "X", strings.Repeat("x", 900_000))...)
	}, "200 OK\nTransfer-Encoding: chunked\n\n", ends},
	{"a field that cannot be encoded", "GET", func(s uint32) []byte {
		return head(messages.TypeHTTPResponse, end, s, 200, "X-A", "1\r\nSet-Cookie: evil=1")
	}, nil, "upstream-broke", ""},
	{"a name with a colon", "GET", respond(end, 200, "X-A: 1", "2"), nil, "upstream-broke", ""},
	{"interim heads with everything", "GET", func(s uint32) []byte {
		return append(respond(0, 103, "Link", "</a>", "Harp-Error", "x", "Transfer-Encoding", "chunked", "Content-Length", "7", "Connection", "close")(s),
			respond(end, 200, "Content-Length", "0")(s)...)
	}, nil, "103 Early Hints\nLink: </a>\n\n200 OK\nContent-Length: 0\n\n", ""},
	{"an interim head that ends", "GET", respond(end, 103), nil, "upstream-broke", ""},
	{"a flood of interim heads", "GET", func(s uint32) []byte {
		return slices.Repeat(respond(0, 199, "X", strings.Repeat("x", 5000))(s), 200)
	}, nil, "flood", ""},
}

// A hostile agent says anything that messages can carry. What the visitor gets must be one unambiguous message: nothing
// in it may be taken for the head of another, and a body that is not whole must not look whole.
func TestHostileResponses(t *testing.T) {
	for _, test := range hostileResponses {
		t.Run(test.why, func(t *testing.T) {
			e := newEdge(t, Options{})
			a := e.script(newKey(t), identity.Registration{})
			v := e.visit()
			v.says(test.method+" / HTTP/1.1\nHost: "+a.host+"\n\n", "")
			m := a.wants("the request", messages.TypeHTTPRequest)
			a.sends(test.head(m.Stream))
			if test.then != nil {
				time.Sleep(5 * time.Millisecond)
				a.sends(test.then(m.Stream))
			}
			next := make(chan struct{})
			go func() { // what comes behind the answer shows where the visitor would see its end
				defer close(next)
				v.says("OPTIONS /next HTTP/1.1\nHost: "+a.host+"\n\n", "")
				for m := range a.in {
					if m.Type == messages.TypeHTTPRequest {
						a.sends(head(messages.TypeHTTPResponse, end, m.Stream, 200, "Content-Length", "0", "X-Next", "1"))
						return
					}
				}
			}()
			test.check(t, v.answers(test.method))
			a.conn.Close()
			receive(t, "the next visitor", next)
		})
	}
}

// check compares what the visitor got until the next response or the end.
func (h hostileResponse) check(t *testing.T, got string) {
	t.Helper()
	switch {
	case h.want == "flood":
		if !strings.Contains(got, "Harp-Error: upstream-broke") || strings.Count(got, "199 ") > 100 {
			t.Errorf("got %d interim heads and then %.200q", strings.Count(got, "199 "), got[max(0, len(got)-200):])
		}
	case !strings.Contains(h.want, "\n"):
		if !strings.Contains(got, "502 Bad Gateway") || !strings.Contains(got, "Harp-Error: "+h.want) || !strings.Contains(got, "X-Next") {
			t.Errorf("got %q, want an answer of the edge's, code %s, and the next response", got, h.want)
		}
	case h.after == either && !strings.Contains(got, "X-Next"):
		if !strings.HasPrefix(h.want, got) {
			t.Errorf("got  %q\nwant %q, or its beginning and the end", got, h.want)
		}
	case h.after == ends:
		if strings.TrimSuffix(got, "a") != h.want && strings.TrimSuffix(got, "1\na\n") != h.want { // what came before the breach
			t.Errorf("got  %q\nwant %q and the end", got, h.want)
		}
	default:
		if want := h.want + "200 OK\nContent-Length: 0\nX-Next: 1\n\n"; got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}

// answers reads what comes on the connection until the answer to /next or the end. Status lines lose their version, and
// heads the fields that differ from time to time; the rest is sorted.
func (v *visitor) answers(method string) string {
	v.t.Helper()
	_ = v.SetReadDeadline(time.Now().Add(5 * time.Second))
	var got strings.Builder
	for {
		line, err := v.r.ReadString('\n')
		if err != nil {
			if e, ok := err.(net.Error); ok && e.Timeout() {
				v.t.Errorf("the connection hangs after %q%q", got.String(), line)
			}
			return got.String() + line
		}
		line = strings.TrimSuffix(line, "\r\n")
		status, ok := strings.CutPrefix(line, "HTTP/1.1 ")
		if !ok {
			got.WriteString(line + "\n")
			if line == "0" {
				got.WriteString(v.sortedFields())
			}
			continue
		}
		fields := v.sortedFields()
		got.WriteString(status + "\n" + fields)
		if strings.Contains(fields, "X-Next") {
			return got.String()
		}
		var n int
		for f := range strings.SplitSeq(fields, "\n") {
			_, _ = fmt.Sscanf(f, "Content-Length: %d", &n)
		}
		if method == "HEAD" || strings.HasPrefix(status, "304") {
			n = 0
		}
		b := make([]byte, n)
		n, _ = io.ReadFull(v.r, b)
		got.Write(b[:n])
	}
}

func (v *visitor) sortedFields() string {
	var lines []string
	for {
		line, err := v.r.ReadString('\n')
		if line = strings.TrimSuffix(line, "\r\n"); line == "" || err != nil {
			break
		}
		if !strings.HasPrefix(line, "Date: ") && !strings.HasPrefix(line, "X-Request-Id: ") {
			lines = append(lines, line+"\n")
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "") + "\n"
}

func TestResponseLimit(t *testing.T) {
	const limit = 100_000
	e := newEdge(t, Options{MaxBody: limit})
	_, host := e.publish(func(w http.ResponseWriter, r *http.Request) {
		var n int
		var kind string
		fmt.Sscanf(r.URL.Path, "/%d/%s", &n, &kind)
		if kind == "sized" {
			w.Header().Set("Content-Length", fmt.Sprint(n))
		} else {
			w.(http.Flusher).Flush()
		}
		for ; n > 0; n -= 1000 {
			io.WriteString(w, strings.Repeat("x", min(n, 1000)))
		}
	})
	for _, n := range []int{0, 1, limit - 1, limit} {
		for _, kind := range []string{"sized", "chunked"} {
			if got := e.get(host, fmt.Sprintf("/%d/%s", n, kind)); got.StatusCode != 200 || len(got.body) != n || got.err != nil {
				t.Errorf("%s, %d bytes: %d, %d bytes, %v", kind, n, got.StatusCode, len(got.body), got.err)
			}
		}
	}
	e.wantError("a byte too many, announced", e.get(host, fmt.Sprintf("/%d/sized", limit+1)), responseTooLargeError(limit))
	if got := e.get(host, fmt.Sprintf("/%d/chunked", limit+1)); got.err == nil || len(got.body) > limit {
		t.Errorf("a byte too many, not announced: %d bytes, %v; want a transfer that breaks", len(got.body), got.err)
	}
	if got, err := e.ask("HEAD", "http://"+host+fmt.Sprintf("/%d/sized", 10*limit), nil); err != nil || got.StatusCode != 200 || got.ContentLength != 10*limit {
		t.Errorf("HEAD of something large: %v, %v", got.Response, err)
	}
	if n := e.metric("harp_limits_total{limit=max-body}"); n != 2 {
		t.Errorf("counted %v times, want 2", n)
	}
	if n := e.metric("harp_requests_total{code=502}"); n != 1 {
		t.Errorf("%v requests counted as 502, want 1: what the visitor got", n)
	}
}

func TestBrokenBodyIsVisibleToEveryVersion(t *testing.T) {
	t.Parallel()
	e := newEdge(t, Options{})
	a := e.script(newKey(t), identity.Registration{})
	for _, version := range []string{"1.0", "1.1"} {
		v := e.visit()
		v.says("GET / HTTP/"+version+"\nHost: "+a.host+"\n\n", "")
		m := a.awaits("the request", messages.TypeHTTPRequest)
		a.sends(head(messages.TypeHTTPResponse, 0, m.Stream, 200))
		a.sends(messages.AppendBody(nil, messages.TypeBody, 0, m.Stream, []byte("part")))
		a.sends(messages.AppendCancel(nil, messages.TypeCancel, m.Stream, messages.CancelBroken, "it broke"))
		v.head()
		rest, err := v.rest()
		if version == "1.0" && !isReset(err) || strings.HasSuffix(rest, "0\r\n\r\n") || !strings.Contains(rest, "part") {
			t.Errorf("HTTP/%s: %q, %v", version, rest, err)
		}
	}
}

// A visitor who takes nothing must not hold the link's other streams.
func TestVisitorThatDoesNotRead(t *testing.T) {
	e := newEdge(t, Options{MaxBody: -1})
	stopped := make(chan error, 1)
	_, host := e.publish(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/endless" {
			io.WriteString(w, "quick")
			return
		}
		for p := make([]byte, 64<<10); ; {
			if _, err := w.Write(p); err != nil {
				stopped <- err
				return
			}
		}
	})
	v := e.visit()
	v.says("GET /endless HTTP/1.1\nHost: "+host+"\n\n", "")
	v.head()
	for range 20 {
		e.wantBody("beside a visitor who does not read", e.get(host, "/quick"), 200, "quick")
	}
	v.Close()
	if err := receive(t, "the agent to hear of it", stopped); err == nil {
		t.Error("no error")
	}
	eventually(t, "nothing runs", func() bool { return e.metric("harp_streams") == 0 })
}

func TestHeadDoesNotWaitForTheBody(t *testing.T) {
	e := newEdge(t, Options{})
	a := e.script(newKey(t), identity.Registration{})
	v := e.visit()
	v.says("GET / HTTP/1.1\nHost: "+a.host+"\n\n", "")
	m := a.wants("the request", messages.TypeHTTPRequest)
	a.sends(head(messages.TypeHTTPResponse, 0, m.Stream, 200, "Content-Length", "10"))
	if status, _ := v.head(); status != "HTTP/1.1 200 OK" {
		t.Error(status)
	}
	for _, part := range []string{"01234", "56789"} {
		a.sends(messages.AppendBody(nil, messages.TypeBody, 0, m.Stream, []byte(part)))
		got := make([]byte, 5)
		if _, err := io.ReadFull(v.r, got); err != nil || string(got) != part {
			t.Errorf("got %q, %v: each piece goes out as it comes", got, err)
		}
	}
	a.sends(messages.AppendBody(nil, messages.TypeBody, messages.FlagEnd, m.Stream, nil))
	eventually(t, "nothing runs", func() bool { return e.metric("harp_streams") == 0 })
}
