package server

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
)

// An upstreamAnswer is what a scripted agent sends, for each request the same.
type upstreamAnswer struct {
	why    string
	status int
	fields []string // pairs of name and value
	body   string
	breaks bool // the answer is one that the connection does not outlive
}

func (u upstreamAnswer) messages(stream uint32) []byte {
	if u.body == "" {
		return head(messages.TypeHTTPResponse, messages.FlagEnd, stream, u.status, u.fields...)
	}
	b := head(messages.TypeHTTPResponse, 0, stream, u.status, u.fields...)
	return messages.AppendBody(b, messages.TypeBody, messages.FlagEnd, stream, []byte(u.body))
}

// A visitor gets the same answer whether net/http has a part in it or not, and can go on.
func TestAnswerIsTheSameBothWays(t *testing.T) {
	const date = "Mon, 02 Jan 2006 15:04:05 GMT"
	f := newFastEdge(t, Options{MaxBody: 1000}, nil)
	a := f.script(newKey(t), identity.Registration{})
	for _, u := range []upstreamAnswer{
		{why: "a length", status: 200, fields: []string{"Content-Length", "5", "Content-Type", "text/plain"}, body: "hello"},
		{why: "no length", status: 200, fields: []string{"Content-Type", "text/plain"}, body: "hello"},
		{why: "no type", status: 200, fields: []string{"Content-Length", "6"}, body: "<html>"},
		{why: "a date", status: 200, fields: []string{"Date", date, "Content-Length", "1"}, body: "x"},
		{why: "nothing", status: 200},
		{why: "an empty body", status: 200, fields: []string{"Content-Length", "0"}},
		{why: "204", status: 204},
		{why: "204 with a length", status: 204, fields: []string{"Content-Length", "0"}},
		{why: "204 with a body", status: 204, body: "x", breaks: true},
		{why: "304", status: 304, fields: []string{"ETag", `"x"`}},
		{why: "304 with a length", status: 304, fields: []string{"ETag", `"x"`, "Content-Length", "5"}},
		{why: "205", status: 205},
		{why: "404", status: 404, fields: []string{"Content-Length", "4"}, body: "gone"},
		{why: "an unusual status", status: 299, fields: []string{"Content-Length", "1"}, body: "x"},
		{why: "a status beyond all", status: 999, body: "x"},
		{why: "500", status: 500, fields: []string{"Content-Length", "1"}, body: "x"},
		{why: "cookies", status: 200, fields: []string{"Set-Cookie", "a=b", "Set-Cookie", "c=d", "X-Empty", ""}, body: "x"},
		{why: "lower case", status: 200, fields: []string{"content-length", "1", "set-cookie", "a=b", "x-odd_name", "y"}, body: "x"},
		{why: "blanks", status: 200, fields: []string{"X-Blank", " a\tb ", "X-High", "\xe4"}, body: "x"},
		{why: "an id of its own", status: 200, fields: []string{"X-Request-Id", "its"}, body: "x"},
		{why: "fields of the edge", status: 200, fields: []string{"Harp-Error", "x", "harp_error", "x"}, body: "x"},
		{why: "Connection: close", status: 200, fields: []string{"Connection", "close", "Content-Length", "1"}, body: "x"},
		{why: "hop-by-hop fields", status: 200, fields: []string{"Connection", "X-Hop", "X-Hop", "1", "Keep-Alive", "5", "Proxy-Connection", "x"}, body: "x"},
		{why: "chunked twice", status: 200, fields: []string{"Transfer-Encoding", "chunked"}, body: "0\r\n\r\n"},
		{why: "announced trailers", status: 200, fields: []string{"Trailer", "X-Sum"}, body: "x"},
		{why: "426", status: 426, fields: []string{"Upgrade", "other", "Connection", "Upgrade"}, body: "x"},
		{why: "a length that is too large", status: 200, fields: []string{"Content-Length", "9"}, body: "hello", breaks: true},
		{why: "a length that is too small", status: 200, fields: []string{"Content-Length", "3"}, body: "hello", breaks: true},
		{why: "a length without a body", status: 200, fields: []string{"Content-Length", "3"}, breaks: true},
		{why: "no number", status: 200, fields: []string{"Content-Length", "+5"}, body: "hello"},
		{why: "two lengths", status: 200, fields: []string{"Content-Length", "5", "Content-Length", "5"}, body: "hello"},
		{why: "a body over the limit", status: 200, body: strings.Repeat("x", 1001), breaks: true},
		{why: "a length over the limit", status: 200, fields: []string{"Content-Length", "1001"}, body: strings.Repeat("x", 1001)},
	} {
		var got [2]answer
		for i, from := range []*edge{f.edge, f.front} {
			v := from.visit()
			v.says("GET /"+u.why[:1]+" HTTP/1.1\nHost: "+a.host+"\nX-Request-Id: same\n\n", "")
			a.sends(u.messages(a.awaits(u.why, messages.TypeHTTPRequest).Stream))
			got[i] = v.answer()
			if u.breaks {
				continue
			}
			v.says("GET /after HTTP/1.1\nHost: "+a.host+"\n\n", "")
			a.sends(upstreamAnswer{status: 200, body: "after"}.messages(a.awaits(u.why+": the next", messages.TypeHTTPRequest).Stream))
			f.wantBody(u.why+": the next", v.answer(), 200, "after")
		}
		wantSameAnswer(t, u.why, got[1], got[0])
	}
	f.wantQuiet()
}

// wantSameAnswer wants two answers to be the same, but for the time in Date.
func wantSameAnswer(t *testing.T, why string, got, want answer) {
	t.Helper()
	if got.Status != want.Status || got.body != want.body || (got.err == nil) != (want.err == nil) ||
		got.ContentLength != want.ContentLength || !slices.Equal(got.TransferEncoding, want.TransferEncoding) || got.Close != want.Close {
		t.Errorf("%s: got %s %.80q (%v), length %d, %q, want %s %.80q (%v), length %d, %q", why, got.Status, got.body, got.err,
			got.ContentLength, got.TransferEncoding, want.Status, want.body, want.err, want.ContentLength, want.TransferEncoding)
	}
	for _, a := range []answer{got, want} {
		if at, err := http.ParseTime(a.Header.Get("Date")); err != nil || len(a.Header["Date"]) != 1 {
			t.Errorf("%s: Date: %q", why, a.Header["Date"])
		} else if time.Since(at).Abs() < time.Minute {
			a.Header["Date"] = []string{"now"}
		}
	}
	if !maps.EqualFunc(got.Header, want.Header, slices.Equal) {
		t.Errorf("%s: got %q, want %q", why, got.Header, want.Header)
	}
	if !maps.EqualFunc(got.Trailer, want.Trailer, slices.Equal) {
		t.Errorf("%s: got trailers %q, want %q", why, got.Trailer, want.Trailer)
	}
}
