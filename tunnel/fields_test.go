package tunnel

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/harp-tunnel/harp/messages"
)

// guarded has the methods of what it embeds, and a ServeHTTP of its own.
type guarded struct{ *fieldsEcho }

func (guarded) ServeHTTP(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }

// TestEmbeddedFieldsHandler: nobody comes past the ServeHTTP of a handler that embeds a FieldsHandler.
func TestEmbeddedFieldsHandler(t *testing.T) {
	p := newPair(t, guarded{new(fieldsEcho)})
	if res, _ := p.get(request("GET", "/", nil)); res.StatusCode != http.StatusForbidden {
		t.Errorf("the handler that is embedded answered %d, want the %d of the other", res.StatusCode, http.StatusForbidden)
	}
}

// fieldsEcho answers with what it got, and by which of its methods.
type fieldsEcho struct{}

func (*fieldsEcho) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "ServeHTTP %s %v", r.RequestURI, r.URL != nil && r.Header != nil)
}

func (*fieldsEcho) ServeFields(w http.ResponseWriter, r *http.Request, fields messages.Fields) {
	h := HeaderOf(fields)
	answer := fmt.Sprintf("ServeFields %s %s %v", r.RequestURI, h["X-Own"], r.URL == nil && r.Header == nil && r.Body == http.NoBody)
	if h["X-Header"] != nil {
		w.Header().Set("X-Header", "yes")
	}
	b := messages.AppendField(nil, "X-Fields", "yes")
	length := int64(-1)
	if h["X-Length"] != nil {
		length = int64(len(answer)) + 1
		b = messages.AppendField(b, "Content-Length", fmt.Sprint(length))
	}
	ok := w.(FieldsWriter).WriteFields(203, length, b)
	if again := w.(FieldsWriter).WriteFields(204, -1, nil); again {
		answer = "a second head was taken"
	}
	if ok {
		clear(b) // it is not kept
	}
	_, _ = io.WriteString(w, answer)
}

func (h *fieldsEcho) Self() http.Handler { return h }

func TestFieldsHandler(t *testing.T) {
	p := newPair(t, new(fieldsEcho))
	for _, c := range []struct{ method, target, header, want string }{
		{"GET", "/a?b=c", "X-Own: 1", "203 X-Fields ServeFields /a?b=c [1] true"},
		{"HEAD", "/a", "", "203 X-Fields "},
		{"DELETE", "//a//b", "", "203 X-Fields ServeFields //a//b [] true"},
		{"GET", "/%41", "", "200 ServeHTTP /%41 true"},
		{"OPTIONS", "*", "", "200 ServeHTTP * true"},
		{"POST", "/", "", "200 ServeHTTP / true"},
		{"GET", "/", "X-Header: 1", "200 X-Header ServeFields / [] true"},
		{"GET", "/", "X-Length: 1", "broken"}, // shorter than it said
	} {
		var body io.Reader
		if c.method == "POST" {
			body = strings.NewReader("body")
		}
		r := httptest.NewRequest(c.method, "http://example.com/", body)
		r.RequestURI = c.target
		if name, value, ok := strings.Cut(c.header, ": "); ok {
			r.Header.Set(name, value)
		}
		got := "broken"
		if res, err := p.edge.RoundTrip(1, r); err == nil {
			got = fmt.Sprint(res.StatusCode, " ")
			for _, name := range []string{"X-Fields", "X-Header"} {
				if res.Header.Get(name) != "" {
					got += name + " "
				}
			}
			b, _ := io.ReadAll(res.Body)
			res.Body.Close()
			got += string(b)
		}
		if got != c.want {
			t.Errorf("%s %s with %q: %q, want %q", c.method, c.target, c.header, got, c.want)
		}
	}
}

// FuzzFieldsTarget: the targets that go to ServeFields unparsed are none that ServeHTTP would not get.
func FuzzFieldsTarget(f *testing.F) {
	for _, target := range []string{"/", "/a?b", "//a", "/:80", "/a#b", "/?%zz", "/\x80", "/a:b@c", "/[::1", "*", "http://a/"} {
		f.Add(target)
	}
	f.Fuzz(func(t *testing.T, target string) {
		b := messages.BeginHTTPRequest(nil, messages.TypeHTTPRequest, 0, 1, &messages.HTTPRequest{Method: "GET", Scheme: "http", Target: target})
		head, err := messages.ParseHTTPRequest(string(b[messages.HeaderLen:]))
		if err != nil {
			return
		}
		x := &service{handler: new(fieldsEcho), head: head, flags: messages.FlagEnd}
		x.kind = messages.TypeBody
		if x.fieldsHandler() == nil {
			return
		}
		u, err := parseTarget(head.Method, head.Target)
		if err != nil {
			t.Fatalf("%q: %v", target, err)
		}
		if u.Host != "" || u.Scheme != "" || u.User != nil {
			t.Errorf("%q has an authority: %#v", target, u)
		}
	})
}
