package agent

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/harp-tunnel/harp/messages"
)

// sentHead returns the head of r as an upstream would see it, its field lines sorted.
func sentHead(t *testing.T, f *Forwarder, r *http.Request) string {
	t.Helper()
	return sentFields(t, f, r, "")
}

// sentFields is sentHead of a request that has more fields.
func sentFields(t *testing.T, f *Forwarder, r *http.Request, fields messages.Fields) string {
	t.Helper()
	q, err := f.plan(r)
	if err != nil {
		t.Fatalf("%s %s: %v", r.Method, r.RequestURI, err)
	}
	b, ok := f.appendRequestHead(nil, &forwardVisitor{r: r, plan: q, fields: fields})
	if !ok {
		t.Fatalf("%s %s: refused", r.Method, r.RequestURI)
	}
	head, ok := strings.CutSuffix(string(b), "\r\n\r\n")
	if !ok {
		t.Fatalf("head %q has no end", b)
	}
	lines := strings.Split(head, "\r\n")
	slices.Sort(lines[1:])
	return strings.Join(lines, "\n")
}

func TestRequestHead(t *testing.T) {
	plain := ForwardOptions{}
	for _, c := range []struct {
		why    string
		o      ForwardOptions
		method string
		header http.Header
		body   string // "" none, "sized", "chunked"
		want   string
	}{
		{"nothing is made up", plain, "GET", http.Header{}, "", "GET /t HTTP/1.1\nHost: visitor.example"},
		{"methods are the upstream's to know", plain, "X-PATCH", http.Header{}, "", "X-PATCH /t HTTP/1.1\nHost: visitor.example"},
		{"repeated fields stay apart", plain, "GET", http.Header{"A": {"1", "2, 3", ""}}, "",
			"GET /t HTTP/1.1\nA: \nA: 1\nA: 2, 3\nHost: visitor.example"},
		{"a length of 0 that was sent is sent", plain, "POST", http.Header{"Content-Length": {"0"}}, "",
			"POST /t HTTP/1.1\nContent-Length: 0\nHost: visitor.example"},
		{"a length of 0 is not made up", plain, "POST", http.Header{}, "", "POST /t HTTP/1.1\nHost: visitor.example"},
		{"sized", plain, "PUT", http.Header{"Content-Length": {"999"}}, "sized",
			"PUT /t HTTP/1.1\nContent-Length: 5\nHost: visitor.example"},
		{"chunked", plain, "GET", http.Header{}, "chunked", "GET /t HTTP/1.1\nHost: visitor.example\nTransfer-Encoding: chunked"},
		{"hop-by-hop", plain, "GET", http.Header{
			"Connection": {"keep-alive, x-mine"}, "X-Mine": {"1"}, "Keep-Alive": {"1"}, "Proxy-Connection": {"1"},
			"Transfer-Encoding": {"chunked"}, "Upgrade": {"websocket"}, "Http2-Settings": {"AA"}, "Te": {"gzip"}, "X-Theirs": {"1"},
		}, "", "GET /t HTTP/1.1\nHost: visitor.example\nX-Theirs: 1"},
		{"trailers are welcome", plain, "GET", http.Header{"Te": {"gzip;q=0, trailers"}}, "",
			"GET /t HTTP/1.1\nConnection: TE\nHost: visitor.example\nTE: trailers"},
		{"upgrade", plain, "GET", http.Header{"Connection": {"keep-alive, Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Key": {"k"}}, "",
			"GET /t HTTP/1.1\nConnection: Upgrade\nHost: visitor.example\nSec-Websocket-Key: k\nUpgrade: websocket"},
		{"h2c is not passed on", plain, "GET", http.Header{"Connection": {"Upgrade, HTTP2-Settings"}, "Upgrade": {"h2c"}, "Http2-Settings": {"AA"}}, "",
			"GET /t HTTP/1.1\nHost: visitor.example"},
		{"but what came with it is", plain, "GET", http.Header{"Connection": {"upgrade"}, "Upgrade": {"H2C, foo/1"}}, "",
			"GET /t HTTP/1.1\nConnection: Upgrade\nHost: visitor.example\nUpgrade: foo/1"},
		{"expect without a body is a field", plain, "GET", http.Header{"Expect": {"100-continue"}}, "",
			"GET /t HTTP/1.1\nExpect: 100-continue\nHost: visitor.example"},
		{"added fields replace", ForwardOptions{HeaderAdd: http.Header{"authorization": {"Bearer x"}, "B": {"1", "2"}}}, "GET",
			http.Header{"Authorization": {"Basic y"}, "C": {"3"}}, "",
			"GET /t HTTP/1.1\nAuthorization: Bearer x\nB: 1\nB: 2\nC: 3\nHost: visitor.example"},
		{"host rewritten", ForwardOptions{HostHeader: "rewrite"}, "GET", http.Header{}, "", "GET /t HTTP/1.1\nHost: up.lan:81"},
		{"host preserved", ForwardOptions{HostHeader: "preserve"}, "GET", http.Header{}, "", "GET /t HTTP/1.1\nHost: visitor.example"},
		{"host given", ForwardOptions{HostHeader: "app.local"}, "GET", http.Header{}, "", "GET /t HTTP/1.1\nHost: app.local"},
	} {
		f := newTestForwarder(t, "up.lan:81", c.o)
		r := request(t, c.method, "/t", nil, 0)
		switch c.body {
		case "sized":
			r = request(t, c.method, "/t", strings.NewReader("12345"), 5)
		case "chunked":
			r = request(t, c.method, "/t", strings.NewReader("12345"), -1)
		}
		r.Header = c.header
		if got := sentHead(t, f, r); got != c.want {
			t.Errorf("%s: sent\n%s\nwant\n%s", c.why, got, c.want)
		}
	}
	f := newTestForwarder(t, "up.lan:81", plain)
	r := request(t, "POST", "/t", strings.NewReader("1"), -1)
	r.Trailer = http.Header{"X-Sum": nil, "Content-Length": nil}
	if got := sentHead(t, f, r); !strings.Contains(got, "\nTrailer: X-Sum\n") {
		t.Errorf("announced trailers: sent\n%s", got)
	}
	r = request(t, "GET", "/t", nil, 0)
	r.Host = ""
	if got := sentHead(t, f, r); got != "GET /t HTTP/1.1\nHost: up.lan:81" {
		t.Errorf("a request without Host, as HTTP/1.0 has them: sent\n%s\nwant the target's", got)
	}
}

// TestRequestNotSendable hands over what no upstream could read back as it was.
func TestRequestNotSendable(t *testing.T) {
	for why, change := range map[string]func(*http.Request){
		"space in target":       func(r *http.Request) { r.RequestURI = "/a b" },
		"line break in target":  func(r *http.Request) { r.RequestURI = "/a\r\nX: y" },
		"line break in method":  func(r *http.Request) { r.Method = "GET / HTTP/1.1\r\n" },
		"line break in host":    func(r *http.Request) { r.Host = "a\r\nb" },
		"line break in value":   func(r *http.Request) { r.Header["A"] = []string{"1\r\nB: 2"} },
		"bare CR in value":      func(r *http.Request) { r.Header["A"] = []string{"1\rB: 2"} },
		"NUL in value":          func(r *http.Request) { r.Header["A"] = []string{"1\x00"} },
		"space in name":         func(r *http.Request) { r.Header["Transfer-Encoding "] = []string{"chunked"} },
		"colon in name":         func(r *http.Request) { r.Header["A:B"] = []string{"1"} },
		"empty name":            func(r *http.Request) { r.Header[""] = []string{"1"} },
		"line break in upgrade": func(r *http.Request) { r.Header = http.Header{"Connection": {"upgrade"}, "Upgrade": {"a\r\nb"}} },
		"connect":               func(r *http.Request) { r.Method, r.RequestURI = "CONNECT", "a:443" },
	} {
		t.Run(why, func(t *testing.T) {
			checkForwardLeaks(t)
			addr := playUpstream(t, func(int, *peer) {})
			f := newTestForwarder(t, addr, ForwardOptions{})
			r := request(t, "GET", "/", nil, 0)
			r.Header = http.Header{}
			change(r)
			w := newTunnelWriter()
			w.serve(f, r)
			if !w.failed || w.code != messages.CancelProtocol && w.code != messages.CancelUnsupported {
				t.Errorf("%s: failed %v with %v %q, want a failure of the request", why, w.failed, w.code, w.reason)
			}
		})
	}
}
