package agent

import (
	"fmt"
	"net/http"
	"reflect"
	"testing"

	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

// TestFieldsOfRequest: what passes without a map reaches the upstream as it does with one, and nothing else passes.
func TestFieldsOfRequest(t *testing.T) {
	add := ForwardOptions{HeaderAdd: http.Header{"X-Key": {"secret"}}}
	for _, c := range []struct {
		why    string
		o      ForwardOptions
		fields []string // name, value, …
		passes bool
	}{
		{"nothing", ForwardOptions{}, nil, true},
		{"common fields", ForwardOptions{}, []string{"User-Agent", "x", "Cookie", "a", "Accept", "b", "Cookie", "c", "Expect", "100-continue"}, true},
		{"a field is added", add, []string{"Accept", "b"}, true},
		{"a field is replaced", add, []string{"Accept", "b", "X-Key", "forged"}, false},
		{"a name in other letters", ForwardOptions{}, []string{"connection", "x"}, false},
		{"the connection's own", ForwardOptions{}, []string{"A", "b", "Connection", "a"}, false},
		{"an upgrade", ForwardOptions{}, []string{"Upgrade", "x"}, false},
		{"a length", ForwardOptions{}, []string{"Content-Length", "0"}, false},
		{"a second Host", ForwardOptions{}, []string{"Host", "evil"}, false},
		{"TE", ForwardOptions{}, []string{"Te", "trailers"}, false},
		{"a coding", ForwardOptions{}, []string{"Transfer-Encoding", "chunked"}, false},
	} {
		f := newTestForwarder(t, "1", c.o)
		var b []byte
		for i := 0; i < len(c.fields); i += 2 {
			b = messages.AppendField(b, c.fields[i], c.fields[i+1])
		}
		fields := messages.Fields(b)
		if got := f.passes(fields); got != c.passes {
			t.Errorf("%s: passes is %v, want %v", c.why, got, c.passes)
		}
		if !c.passes {
			continue
		}
		r := &http.Request{Method: "GET", RequestURI: "/", Host: "h"}
		got := sentFields(t, f, r, fields)
		r.Header = tunnel.HeaderOf(fields)
		if want := sentHead(t, f, r); got != want {
			t.Errorf("%s: sent\n%s\nwith a map it is\n%s", c.why, got, want)
		}
	}
}

// checkFields holds appendFields against copyTo for a final head that was framed.
func checkFields(t *testing.T, h *responseHead) (ok bool) {
	t.Helper()
	want := make(http.Header)
	h.copyTo(want, false)
	b, length, ok := h.appendFields(nil)
	if !ok {
		return false
	}
	trailers := append(messages.AppendTrailers(nil, 1, ""), b...)
	fields, err := messages.ParseTrailers(string(trailers[messages.HeaderLen:]))
	if err != nil {
		t.Errorf("fields %q would break the link's rules: %v", b, err)
	}
	if got := tunnel.HeaderOf(fields); !reflect.DeepEqual(got, want) {
		t.Errorf("fields are %q, want %q", got, want)
	}
	if values := want["Content-Length"]; length < 0 != (values == nil) || values != nil && values[0] != fmt.Sprint(length) {
		t.Errorf("length is %d, want that of %q", length, values)
	}
	return true
}

func TestFieldsOfResponse(t *testing.T) {
	for _, c := range []struct {
		head   string
		passes bool
	}{
		{"200 OK\r\n\r\n", true},
		{"200 OK\r\nContent-Length: 007\r\nContent-Length: 7\r\nconnection: Close\r\nSet-Cookie: a\r\nX: y\r\nSet-Cookie: b\r\n\r\n", true},
		{"200 OK\r\nKeep-Alive: timeout=5\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", true},
		{"304 Not Modified\r\nEtag: x\r\nContent-Length: 9\r\n\r\n", true},
		{"200 OK\r\nConnection: x, close\r\nX: y\r\n\r\n", false},
		{"200 OK\r\nTrailer: X\r\nTransfer-Encoding: chunked\r\n\r\n", false},
		{"200 OK\r\nUpgrade: h2c\r\n\r\n", false},
		{"200 OK\r\nHttp2-Settings: x\r\n\r\n", false},
		{"200 OK\r\nX: a\x01b\r\n\r\n", false}, // the tunnel makes blanks of such
		{"426 Upgrade Required\r\nUpgrade: x\r\n\r\n", false},
		{"101 Switching Protocols\r\n\r\n", false},
	} {
		h := new(responseHead)
		err := h.parse("HTTP/1.1 " + c.head)
		if err == nil {
			_, err = h.frame("GET")
		}
		if err != nil {
			t.Fatalf("%q: %v", c.head, err)
		}
		if ok := checkFields(t, h); ok != c.passes {
			t.Errorf("%q: it passes without a map: %v, want %v", c.head, ok, c.passes)
		}
	}
}
