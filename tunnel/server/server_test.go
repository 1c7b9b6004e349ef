package server

import (
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

// aLabel is the name of the key in RFC 8037, appendix A.
const aLabel = "4rsan3rocgnkjns3qjukyhz4bzuvbrav2dhykeyrbmnjick424lq"

func TestOptions(t *testing.T) {
	o := Options{Domain: "Tunnels.Example.COM.:8443"}.withDefaults()
	if o.Domain != "tunnels.example.com" || o.MaxBody != 512_000 || o.RequestTimeout != 30*time.Second || o.PingInterval != 10*time.Second ||
		o.RateLimit != 100 || o.RateBurst != 500 || o.MaxStreams != tunnel.DefaultMaxStreams || o.VisitorRateLimit != 0 {
		t.Errorf("defaults: %+v", o)
	}
	o = Options{Domain: "a.test", MaxBody: -1, RateLimit: -1, RateBurst: 3, RequestTimeout: time.Second, MaxStreams: 5}.withDefaults()
	if o.MaxBody != -1 || o.RateLimit != -1 || o.RateBurst != 3 || o.RequestTimeout != time.Second || o.MaxStreams != 5 {
		t.Errorf("what was set was changed: %+v", o)
	}
	taken := prometheus.NewRegistry()
	taken.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "harp_links", Help: "x"}))
	for why, o := range map[string]Options{
		"no domain":       {},
		"no file of keys": {Domain: "a.test", AuthorizedKeys: filepath.Join(t.TempDir(), "none")},
		"metrics taken":   {Domain: "a.test", Metrics: taken},
	} {
		if s, err := New(o); err == nil || s != nil {
			t.Errorf("%s: %v, %v", why, s, err)
		}
	}
}

func TestNewWarnsThatAnyoneMayRegister(t *testing.T) {
	book := &logBook{}
	if _, err := New(Options{Domain: "a.test", Logger: slog.New(slog.NewTextHandler(book, nil))}); err != nil {
		t.Fatal(err)
	}
	if !book.has("ANYONE MAY REGISTER") || !book.has("level=WARN") {
		t.Errorf("the log says nothing: %s", book.text.String())
	}
}

func TestResolve(t *testing.T) {
	const l = aLabel
	host, path, header := Options{}, Options{NoHostRoute: true, RouteByPath: true}, Options{RouteByHeader: true}
	for _, test := range []struct {
		why            string
		o              Options
		host, target   string
		field          string // Harp-Tunnel, several parted by commas
		label, forward string // where it goes, and the target that the agent gets
		prefix         string
		apex           bool
	}{
		{"a tunnel", host, l + ".tunnels.test", "/a?b", "", l, "/a?b", "", false},
		{"with a port", host, l + ".tunnels.test:8080", "/", "", l, "/", "", false},
		{"with a last dot", host, l + ".tunnels.test.", "/", "", l, "/", "", false},
		{"with both", host, l + ".tunnels.test.:80", "/", "", l, "/", "", false},
		{"in upper case", host, strings.ToUpper(l) + ".TUNNELS.test", "/", "", l, "/", "", false},
		{"byte for byte", host, l + ".tunnels.test", "//a/../%2F;x?&&", "", l, "//a/../%2F;x?&&", "", false},
		{"the server itself", host, l + ".tunnels.test", "*", "", l, "*", "", false},
		{"absolute form", host, l + ".tunnels.test", "http://other.test/a?b", "", l, "/a?b", "", false},
		{"absolute form without a path", host, l + ".tunnels.test", "http://other.test", "", l, "/", "", false},
		{"absolute form with a query alone", host, l + ".tunnels.test", "http://other.test?a/b", "", l, "/?a/b", "", false},
		{"the apex", host, "tunnels.test", "/", "", "", "", "", true},
		{"another domain", host, "example.com", "/", "", "", "", "", true},
		{"an address", host, "192.0.2.1", "/", "", "", "", "", true},
		{"an IPv6 address", host, "[2001:db8::1]:80", "/", "", "", "", "", true},
		{"no host", host, "", "/", "", "", "", "", true},
		{"no label", host, "www.tunnels.test", "/", "", "", "", "", true},
		{"a label that is too short", host, l[1:] + ".tunnels.test", "/", "", "", "", "", true},
		{"a label of 52 wrong characters", host, strings.Repeat("1", 52) + ".tunnels.test", "/", "", "", "", "", true},
		{"a label with unused bits", host, l[:51] + "b.tunnels.test", "/", "", "", "", "", true},
		{"a name below a label", host, "x." + l + ".tunnels.test", "/", "", "", "", "", true},
		{"a dot before the domain", host, ".tunnels.test", "/", "", "", "", "", true},
		{"a domain that only ends alike", host, l + "tunnels.test", "/", "", "", "", "", true},
		{"a label of another domain", host, l + ".example.com", "/", "", "", "", "", true},
		{"two last dots", host, l + ".tunnels.test..", "/", "", "", "", "", true},
		{"path route is off", host, "tunnels.test", "/t/" + l + "/x", "", "", "", "", true},
		{"header route is off", host, "tunnels.test", "/", l, "", "", "", true},
		{"host route is off", path, l + ".tunnels.test", "/", "", "", "", "", true},
		{"by path", path, "tunnels.test:80", "/t/" + l + "/a//b?c", "", l, "/a//b?c", "/t/" + l, false},
		{"by path, nothing behind it", path, "tunnels.test", "/t/" + l, "", l, "/", "/t/" + l, false},
		{"by path, a slash behind it", path, "tunnels.test", "/t/" + l + "/", "", l, "/", "/t/" + l, false},
		{"by path, a query behind it", path, "tunnels.test", "/t/" + l + "?a/b", "", l, "/?a/b", "/t/" + l, false},
		{"by path, in absolute form", path, "tunnels.test", "http://tunnels.test/t/" + l + "/a", "", l, "/a", "/t/" + l, false},
		{"by path, no label", path, "tunnels.test", "/t/www/a", "", "", "", "", true},
		{"by path, upper case", path, "tunnels.test", "/t/" + strings.ToUpper(l), "", "", "", "", true},
		{"by path, with something after the label", path, "tunnels.test", "/t/" + l + ";x/", "", "", "", "", true},
		{"by path, another prefix", path, "tunnels.test", "/T/" + l + "/", "", "", "", "", true},
		{"by path, on another host", path, "example.com", "/t/" + l + "/", "", "", "", "", true},
		{"by header", header, "tunnels.test", "/a", l, l, "/a", "", false},
		{"by header, on another host", header, "example.com", "/a", l, "", "", "", true},
		{"by header, on a tunnel's host", header, l + ".tunnels.test", "/a", strings.Repeat("a", 52), l, "/a", "", false},
		{"by header, twice", header, "tunnels.test", "/a", l + "," + l, "", "", "", true},
		{"by header, no label", header, "tunnels.test", "/a", "www", "", "", "", true},
	} {
		test.o.Domain = testDomain
		s := &Server{options: test.o.withDefaults(), names: newHostnames()}
		r := &http.Request{ProtoMajor: 1, Host: test.host, RequestURI: test.target, Header: http.Header{}}
		if test.field != "" {
			r.Header["Harp-Tunnel"] = strings.Split(test.field, ",")
		}
		to, apex := s.resolve(r)
		if want := (destination{test.label, test.forward, test.prefix}); to != want || apex != test.apex {
			t.Errorf("%s: %+v, apex %v; want %+v, %v", test.why, to, apex, want, test.apex)
		}
	}
}

func TestOriginForm(t *testing.T) {
	for _, test := range [][2]string{
		{"/", "/"}, {"*", "*"}, {"/http://x", "/http://x"}, {"//x/y", "//x/y"}, {"http://a", "/"}, {"http://a/", "/"}, {"https://a:1/b?c", "/b?c"},
		{"http://a?b", "/?b"}, {"http://user@a/b", "/b"}, {"http://a?b://c/d", "/?b://c/d"},
	} {
		if got := originForm("GET", test[0]); got != test[1] {
			t.Errorf("%q becomes %q, want %q", test[0], got, test[1])
		}
	}
	if got := originForm("OPTIONS", "http://a:80"); got != "*" {
		t.Errorf("OPTIONS of a whole server becomes %q, want * (RFC 9112, section 3.2.4)", got)
	}
	for _, target := range []string{"a", "urn:x", "a:80", "http:/a", "http:///a", "?", "", "http:a"} {
		if got := originForm("GET", target); strings.HasPrefix(got, "/") {
			t.Errorf("%q becomes %q, though it names no authority", target, got)
		}
	}
}

func TestWhichHostsAgentsMayConnectTo(t *testing.T) {
	e := newEdge(t, Options{})
	key := newKey(t)
	own := key.Public().Thumbprint().Label("") + "." + testDomain
	connect := func(host string) string {
		v := e.visit()
		v.says("GET "+messages.ConnectPath+" HTTP/1.1\nHost: "+host+"\nUpgrade: websocket\nConnection: Upgrade\nSec-WebSocket-Version: 13\n"+
			"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\nSec-WebSocket-Protocol: harp.v1\n\n", "")
		status, fields := v.head()
		if len(field(fields, messages.ChallengeField)) > 0 {
			return "a link"
		}
		return status
	}
	for _, host := range []string{testDomain, testDomain + ":8080", "TUNNELS.test.", "example.com", "127.0.0.1", "[::1]:99", "www." + testDomain, "x.y.z", "localhost"} {
		if got := connect(host); got != "a link" {
			t.Errorf("%s: %s", host, got)
		}
	}
	if got := connect(own); got != "HTTP/1.1 404 Not Found" {
		t.Errorf("the host of a tunnel that is not there: %s", got)
	}
	e.publishAs(key, identity.Registration{}, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(418) })
	if got := connect(own); got != "HTTP/1.1 418 I'm a teapot" {
		t.Errorf("below a tunnel's host the path is the upstream's: %s", got)
	}
	if got := connect(aLabel + "." + testDomain); got != "HTTP/1.1 404 Not Found" {
		t.Errorf("the host of a tunnel that never was: %s", got)
	}
}

func TestRoutingByHostAndPath(t *testing.T) {
	e := newEdge(t, Options{})
	key := newKey(t)
	agents := map[string]*agent{}
	var host string
	for _, path := range []string{"", "/api", "/api/v1"} { // each on its own link
		agents[path], host = e.publishAs(key, identity.Registration{Path: path}, func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, path+" got "+r.RequestURI)
		})
	}
	for target, want := range map[string]string{
		"/": "", "/?x=/api": "", "/apix": "", "/Api": "", "//api": "", "/api%2Fv1": "", "/x/../api": "",
		"/api": "/api", "/api?x": "/api", "/api/": "/api", "/api/v1x": "/api", "/api/v2": "/api", "/api/%76%31": "/api",
		"/api/v1": "/api/v1", "/api/v1/": "/api/v1", "/api/v1?": "/api/v1", "/api/v1/x": "/api/v1",
	} {
		v := e.visit()
		v.says("GET "+target+" HTTP/1.1\nHost: "+strings.ToUpper(host)+".:99\nConnection: close\n\n", "")
		v.head()
		if body, err := v.rest(); body != want+" got "+target || err != nil {
			t.Errorf("%s: %q, %v; want it to go to %q", target, body, err, want)
		}
	}
	_ = agents["/api/v1"].conn.Close()
	eventually(t, "the longest is gone", func() bool { return e.metric("harp_registrations") == 2 })
	e.wantBody("the next longest serves", e.get(host, "/api/v1/x"), 200, "/api got /api/v1/x")
	_ = agents[""].conn.Close()
	eventually(t, "the shortest is gone", func() bool { return e.metric("harp_registrations") == 1 })
	e.wantError("outside of the only path", e.get(host, "/"), noTunnelError())
	_ = agents["/api"].conn.Close()
	eventually(t, "all are gone", func() bool { return e.metric("harp_registrations") == 0 })
	e.wantError("an agent that was here", e.get(host, "/"), agentAwayError())
	got := e.get(host, "/")
	if got.Header.Get("Retry-After") == "" || got.Header.Get("X-Request-Id") == "" {
		t.Errorf("fields of a 503: %v", got.Header)
	}
	e.wantError("one that never was", e.get(aLabel+"."+testDomain, "/"), noTunnelError())
	e.wantError("the apex", e.get(testDomain, "/"), noTunnelError())
}

func TestRoutingByPathAndHeader(t *testing.T) {
	e := newEdge(t, Options{RouteByPath: true, RouteByHeader: true, NoHostRoute: true})
	a, host := e.publish(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.RequestURI+" below "+strings.Join(r.Header["X-Forwarded-Prefix"], "|")+" "+r.Host+r.Header.Get("Harp-Tunnel"))
	})
	label, _, _ := strings.Cut(host, ".")
	e.wantBody("by path", e.get(testDomain, "/t/"+label+"/a?b", "X-Forwarded-Prefix", "/evil"), 200, "/a?b below /t/"+label+" "+testDomain)
	e.wantBody("by path, at its root", e.get(testDomain, "/t/"+label), 200, "/ below /t/"+label+" "+testDomain)
	e.wantBody("by header", e.get(testDomain, "/a?b", "Harp-Tunnel", label, "X-Forwarded-Prefix", "/evil"), 200, "/a?b below  "+testDomain)
	e.wantBody("by both: the header is nearer", e.get(testDomain, "/t/"+label+"/a", "Harp-Tunnel", label), 200, "/t/"+label+"/a below  "+testDomain)
	e.wantError("by host, which is off", e.get(host, "/"), noTunnelError())
	e.wantError("by header on another host", e.get("other.test", "/", "Harp-Tunnel", label), noTunnelError())
	e.wantError("a tunnel that never was", e.get(testDomain, "/t/"+aLabel+"/"), noTunnelError())
	if got := e.dial(a.key, nil).register(identity.Registration{Session: "x"}).Hostname; !strings.HasSuffix(got, "."+testDomain) {
		t.Errorf("hostname %s", got)
	}
	e.publishAs(a.key, identity.Registration{Path: "/api"}, saying("api"))
	e.wantBody("a path below a path", e.get(testDomain, "/t/"+label+"/api/x"), 200, "api")
}

func TestTargetsThatCanBeReadTwoWays(t *testing.T) {
	e := newEdge(t, Options{})
	_, host := e.publish(saying("passed"))
	for _, line := range []string{"GET urn:x HTTP/1.1", "GET http:/x HTTP/1.1", "GET http:///x HTTP/1.1", "GET x HTTP/1.1", "GET http:x HTTP/1.1"} {
		v := e.visit()
		v.says(line+"\nHost: "+host+"\n\n", "")
		if status, _ := v.head(); !strings.HasPrefix(status, "HTTP/1.1 400") && !strings.HasPrefix(status, "HTTP/1.1 404") {
			t.Errorf("%s: %s", line, status)
		}
	}
	v := e.visit()
	v.says("CONNECT "+host+":443 HTTP/1.1\nHost: "+host+"\n\n", "")
	if status, fields := v.head(); !strings.HasPrefix(status, "HTTP/1.1 405") || field(fields, "Harp-Error")[0] != "method-not-allowed" {
		t.Errorf("CONNECT: %s %q", status, fields)
	}
}
