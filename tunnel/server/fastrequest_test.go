package server

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http/httpguts"

	"github.com/harp-tunnel/harp/messages"
)

// fuzzLabel is the label of a tunnel that nobody serves.
var fuzzLabel = strings.Repeat("a", 52)

// parsed is what parse makes of bytes that a visitor has sent.
func parsed(t testing.TB, s *Server, raw []byte) (fastRequest, bool) {
	t.Helper()
	c := &fastConn{
		listener: &fastListener{server: s}, remote: "192.0.2.7:1234", trusted: s.proxies.trusts(addrOf("192.0.2.7:1234")),
		buf: new([2 * maxFastHead]byte),
	}
	c.held = copy(c.buf[:], raw)
	return c.parse(nil)
}

// byName are the values of fields by their names.
func byName(fields messages.Fields) map[string][]string {
	m := map[string][]string{}
	for name, value := range fields.All() {
		m[name] = append(m[name], value)
	}
	return m
}

// FuzzFastRequest: what is served without net/http would be one request to net/http, too, and nothing else; and would go to the
// agent in the same form.
func FuzzFastRequest(f *testing.F) {
	host := fuzzLabel + "." + testDomain
	begin := "GET / HTTP/1.1\r\nHost: " + host + "\r\n"
	for _, seed := range []string{
		begin, begin + "Accept: */*\r\nCookie: a=b\r\ncookie: c=d\r\nX-Empty:\r\n", begin + "A: 1\r\n 2\r\n", begin + "A: 1\r\n\t2\r\n",
		begin + "A: 1\n", begin + "A : 1\r\n", begin + "Host: other\r\n", begin + "host: " + host + "\r\n", begin + ": 1\r\n",
		begin + "A: 1\rB: 2\r\n", begin + "A: \x00\r\n", begin + "A: \xff\r\n", begin + "A:\t1 \t\r\n", begin + "A\r\n",
		begin + "Transfer-Encoding: chunked\r\n", begin + "Content-Length: 0\r\n", begin + "Content-Length: 5\r\n\r\nhello",
		begin + "\r\n" + begin, begin + "\r\n\r\n", begin + "X_Forwarded_For: 6.6.6.6\r\nX-Forwarded-Prefix: /x\r\nX-Real-IP: 6.6.6.6\r\n",
		begin + "Forwarded: for=6.6.6.6\r\nforwarded_: x\r\n", begin + "x-forwarded-for: 6.6.6.6, [::1]:5\r\nX-FORWARDED-FOR: 7.7.7.7\r\n",
		begin + "X-Forwarded-Proto: https\r\nX-Forwarded-Host: other.example\r\nX-Forwarded-Port: 7\r\n",
		begin + "Forwarded: for=\"[2001:db8::1]:80\";proto=https;host=a.b, for=_x\r\n", begin + "Harp-Tunnel: x\r\n", begin + "HARP_Auth: x\r\n", begin + "TE: trailers\r\n",
		begin + "Expect: 100-continue\r\n", begin + "Connection: Upgrade\r\nUpgrade: websocket\r\n", begin + "Connection: keep-alive\r\n",
		begin + "Connection: keep-alive, X\r\nX: 1\r\n", begin + "Connection:\r\n", begin + "X-Request-Id: mine\r\n",
		begin + "X-Request-Id: mine\r\nx-request-id: mine\r\n", begin + "X-Request-Id:\r\n", begin + "Pragma: no-cache\r\n",
		begin + "Pragma: no-cache\r\nCache-Control: max-age=0\r\n", begin + "Trailer: X\r\n", begin + "Keep-Alive: 5\r\n",
		begin + strings.Repeat("A: 1\r\n", maxFastFields-1), begin + strings.Repeat("A: 1\r\n", maxFastFields),
		begin + "A: " + strings.Repeat("x", maxFastHead) + "\r\n", "GET / HTTP/1.0\r\nHost: " + host + "\r\n", "GET / HTTP/1.1\r\n",
		"GET /a/../b//c;d?e=%41&f=+#g HTTP/1.1\r\nHost: " + strings.ToUpper(host) + ".:8080\r\n", "GET /%zz HTTP/1.1\r\nHost: " + host + "\r\n",
		"GET /?%zz HTTP/1.1\r\nHost: " + host + "\r\n", "GET //" + host + "/ HTTP/1.1\r\nHost: " + host + "\r\n", "GET /% HTTP/1.1\r\nHost: " + host + "\r\n",
		"GET /" + ` "<>[\]^{|}` + "` HTTP/1.1\r\nHost: " + host + "\r\n", "GET /\"<>[\\]^{|}` HTTP/1.1\r\nHost: " + host + "\r\n",
		"GET http://" + host + "/ HTTP/1.1\r\nHost: " + host + "\r\n", "GET  / HTTP/1.1\r\nHost: " + host + "\r\n", "GET / HTTP/1.1 \r\nHost: " + host + "\r\n",
		"GET / x HTTP/1.1\r\nHost: " + host + "\r\n", "GET /\xc3\xa4 HTTP/1.1\r\nHost: " + host + "\r\n", "get / HTTP/1.1\r\nHost: " + host + "\r\n",
		"GET / HTTP/1.1\r\nHost: " + host + ":\r\n", "GET / HTTP/1.1\r\nHost: " + host + ":x:1\r\n", "GET / HTTP/1.1\r\nHost: u@" + host + "\r\n",
		"\r\nGET / HTTP/1.1\r\nHost: " + host + "\r\n", "HEAD / HTTP/1.1\r\nHost: " + host + "\r\n", "GET * HTTP/1.1\r\nHost: " + host + "\r\n",
	} {
		f.Add([]byte(seed + "\r\n"))
	}
	var edges []*Server // of which one takes the visitor for a trusted proxy
	for _, trusted := range [][]netip.Prefix{nil, {netip.MustParsePrefix("192.0.2.0/24")}} {
		s, err := New(Options{Domain: testDomain, RateLimit: -1, TrustedProxies: trusted})
		if err != nil {
			f.Fatal(err)
		}
		edges = append(edges, s)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, s := range edges {
			wantLikeNetHTTP(t, s, raw)
		}
	})
}

// wantLikeNetHTTP checks that what parse takes is taken by net/http, and that the same becomes of it.
func wantLikeNetHTTP(t *testing.T, s *Server, raw []byte) {
	q, ok := parsed(t, s, raw)
	if !ok {
		return
	}
	left := bufio.NewReader(bytes.NewReader(raw))
	r, err := http.ReadRequest(left)
	if err != nil {
		t.Fatalf("net/http refuses it: %v", err)
	}
	if rest, _ := io.ReadAll(left); len(rest) > 0 || r.ContentLength != 0 || r.Body != http.NoBody || r.Close || r.ProtoMajor != 1 || r.ProtoMinor != 1 {
		t.Fatalf("to net/http it is %+v, and %q is left", r, rest)
	}
	if !httpguts.ValidHostHeader(r.Host) {
		t.Fatalf("net/http refuses the host %q", r.Host)
	}
	r.RemoteAddr = "192.0.2.7:1234"
	wantSame(t, s, q, r)
}

// wantSame checks that q is what becomes of r.
func wantSame(t *testing.T, s *Server, q fastRequest, r *http.Request) {
	t.Helper()
	if own := r.Header["X-Request-Id"]; own != nil && requestID(r) != q.id {
		t.Errorf("the id is %q, want %q", q.id, own)
	}
	to, _ := s.resolve(r)
	addr, scheme, host, trusted := s.proxies.visitor(r)
	v := s.visit(nil, r, to, addr)
	if e := v.admit(); e != nil {
		t.Fatalf("it would be refused: %+v", e)
	}
	out := v.outbound(q.id, scheme, host, trusted)
	want := messages.HTTPRequest{Method: out.Method, Scheme: scheme, Authority: out.Host, Target: out.RequestURI, Visitor: out.RemoteAddr}
	if q.head != want || q.label != to.label {
		t.Errorf("for %q it is %+v, want %+v for %q", q.label, q.head, want, to.label)
	}
	got := byName(messages.Fields(q.fields))
	if out.Header["Pragma"] != nil && got["Cache-Control"] == nil {
		delete(out.Header, "Cache-Control") // net/http's own addition, which the visitor did not send
	}
	for name, values := range out.Header {
		if !slices.Equal(got[name], values) {
			t.Errorf("%s: %q, want %q", name, got[name], values)
		}
	}
	for name := range got {
		if out.Header[name] == nil {
			t.Errorf("%s: %q, and it should not be there", name, got[name])
		}
	}
	if out.Body != nil || out.Trailer != nil {
		t.Errorf("there would be a body or trailers: %+v", out)
	}
}

// The common form is served, and what is refused here for no reason but haste costs twice the CPU time.
func TestFastRequestTakesWhatIsCommon(t *testing.T) {
	s, err := New(Options{Domain: testDomain, RateLimit: -1})
	if err != nil {
		t.Fatal(err)
	}
	host := fuzzLabel + "." + testDomain
	for _, test := range []struct {
		why, head string
		want      bool
	}{
		{"wrk", "GET /x HTTP/1.1\nHost: " + host + "\n", true},
		{"curl", "GET /x?y=%20z HTTP/1.1\nHost: " + host + ":8080\nUser-Agent: curl/8.5.0\nAccept: */*\n", true},
		{"a browser", "GET / HTTP/1.1\nHost: " + host + "\nConnection: keep-alive\nPragma: no-cache\nCache-Control: no-cache\n" +
			"Upgrade-Insecure-Requests: 1\nAccept-Encoding: gzip, deflate\nCookie: a=b; c=d\nReferer: http://" + host + "/\n", true},
		{"claims", "GET / HTTP/1.1\nHost: " + host + "\nX-Forwarded-For: 6.6.6.6\n", true},
		{"as many fields as may be", "GET / HTTP/1.1\nHost: " + host + "\n" + strings.Repeat("A: 1\n", maxFastFields-1), true},
		{"one more", "GET / HTTP/1.1\nHost: " + host + "\n" + strings.Repeat("A: 1\n", maxFastFields), false},
		{"close", "GET / HTTP/1.1\nHost: " + host + "\nConnection: close\n", false},
		{"another domain", "GET / HTTP/1.1\nHost: example.com\n", false},
		{"the edge's own name", "GET / HTTP/1.1\nHost: " + testDomain + "\n", false},
		{"no host", "GET / HTTP/1.1\nAccept: */*\n", false},
	} {
		if _, ok := parsed(t, s, []byte(strings.ReplaceAll(test.head+"\n", "\n", "\r\n"))); ok != test.want {
			t.Errorf("%s: served is %v, want %v", test.why, ok, test.want)
		}
	}
}
