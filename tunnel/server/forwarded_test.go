package server

import (
	"crypto/tls"
	"maps"
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

var testProxies = trustedProxies{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}

func TestTrustedProxies(t *testing.T) {
	for addr, want := range map[string]bool{"10.1.2.3": true, "::ffff:10.1.2.3": true, "11.0.0.1": false,
		"fd00::1": true, "fd00::1%eth0": true, "fe80::1": false} {
		if got := testProxies.trusts(netip.MustParseAddr(addr)); got != want {
			t.Errorf("trusts(%s) = %v, want %v", addr, got, want)
		}
	}
	if testProxies.trusts(netip.Addr{}) || trustedProxies(nil).trusts(netip.MustParseAddr("10.0.0.1")) {
		t.Error("an unknown address was trusted, or anybody was without proxies")
	}
}

func TestVisitorAddress(t *testing.T) {
	const proxy = "10.0.0.1:999"
	tests := []struct {
		why, remote string
		header      http.Header
		want        string
	}{
		{"untrusted", "192.0.2.1:5", http.Header{"X-Forwarded-For": {"1.1.1.1"}, "Forwarded": {"for=1.1.1.1"}}, "192.0.2.1"},
		{"mapped", "[::ffff:192.0.2.1]:5", nil, "192.0.2.1"},
		{"zone", "[fe80::1%eth0]:5", nil, "fe80::1"},
		{"no address", "@", nil, "invalid IP"},
		{"trusted without fields", proxy, nil, "10.0.0.1"},
		{"one", proxy, http.Header{"X-Forwarded-For": {"192.0.2.7"}}, "192.0.2.7"},
		{"spoofed on the left", proxy, http.Header{"X-Forwarded-For": {"1.1.1.1, 192.0.2.7"}}, "192.0.2.7"},
		{"past other proxies", proxy, http.Header{"X-Forwarded-For": {"1.1.1.1,192.0.2.7 , 10.9.9.9", "fd00::5"}}, "192.0.2.7"},
		{"all trusted", proxy, http.Header{"X-Forwarded-For": {"10.0.0.3, 10.0.0.2"}}, "10.0.0.3"},
		{"malformed stops", proxy, http.Header{"X-Forwarded-For": {"192.0.2.7, bogus, 10.0.0.2"}}, "10.0.0.2"},
		{"malformed at once", proxy, http.Header{"X-Forwarded-For": {"192.0.2.7, 1.2.3"}}, "10.0.0.1"},
		{"empty elements", proxy, http.Header{"X-Forwarded-For": {"192.0.2.7, ,", ""}}, "192.0.2.7"},
		{"with port", proxy, http.Header{"X-Forwarded-For": {"192.0.2.7:1234"}}, "192.0.2.7"},
		{"IPv6 with port", proxy, http.Header{"X-Forwarded-For": {"[2001:db8::1]:1234"}}, "2001:db8::1"},
		{"bare IPv6", proxy, http.Header{"X-Forwarded-For": {"2001:db8::1"}}, "2001:db8::1"},
		{"X-Forwarded-For first", proxy, http.Header{"X-Forwarded-For": {"192.0.2.7"}, "Forwarded": {"for=192.0.2.8"}}, "192.0.2.7"},
		{"Forwarded", proxy, http.Header{"Forwarded": {`for=192.0.2.9;proto=http;by=203.0.113.43`}}, "192.0.2.9"},
		{"Forwarded IPv6", proxy, http.Header{"Forwarded": {`For="[2001:db8::9]:4711"`}}, "2001:db8::9"},
		{"Forwarded chain", proxy, http.Header{"Forwarded": {`for=1.1.1.1, for=192.0.2.9`, `for="10.0.0.7:_p", for="[fd00::1]"`}}, "192.0.2.9"},
		{"Forwarded obfuscated", proxy, http.Header{"Forwarded": {`for=192.0.2.9, for=_hidden`}}, "10.0.0.1"},
		{"Forwarded unknown", proxy, http.Header{"Forwarded": {`for=192.0.2.9, for=unknown, for=10.0.0.8`}}, "10.0.0.8"},
		{"Forwarded without for", proxy, http.Header{"Forwarded": {`for=192.0.2.9, proto=https`}}, "10.0.0.1"},
		{"quoted separators", proxy, http.Header{"Forwarded": {`for=1.1.1.1, for=192.0.2.9;x="a\",;b, for=6.6.6.6"`}}, "192.0.2.9"},
		{"open quote", proxy, http.Header{"Forwarded": {`for="6.6.6.6, for=192.0.2.9`}}, "10.0.0.1"},
		{"Forwarded junk", proxy, http.Header{"Forwarded": {`192.0.2.9`}}, "10.0.0.1"},
	}
	for _, tt := range tests {
		r := &http.Request{RemoteAddr: tt.remote, Header: tt.header}
		if addr, _, _, _ := testProxies.visitor(r); addr.String() != tt.want {
			t.Errorf("%s: visitor is %v, want %s", tt.why, addr, tt.want)
		}
	}
}

func TestVisitorSchemeAndHost(t *testing.T) {
	tests := []struct {
		why, remote  string
		tls          bool
		header       http.Header
		scheme, host string
		trusted      bool
	}{
		{"plain", "192.0.2.1:1", false, nil, "http", "own.example", false},
		{"TLS", "192.0.2.1:1", true, nil, "https", "own.example", false},
		{"untrusted claims", "192.0.2.1:1", false, http.Header{"X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"x"},
			"Forwarded": {"proto=https;host=x"}}, "http", "own.example", false},
		{"trusted", "10.0.0.1:1", false, http.Header{"X-Forwarded-Proto": {"HTTPS"}, "X-Forwarded-Host": {"a.example:8443"}},
			"https", "a.example:8443", true},
		{"last element", "10.0.0.1:1", false, http.Header{"X-Forwarded-Proto": {"http, https"}, "X-Forwarded-Host": {"evil", "x, a.example"}},
			"https", "a.example", true},
		{"other scheme, bad host", "10.0.0.1:1", true, http.Header{"X-Forwarded-Proto": {"gopher"}, "X-Forwarded-Host": {"a/b@c"}},
			"https", "own.example", true},
		{"plain before a TLS hop", "10.0.0.1:1", true, http.Header{"X-Forwarded-Proto": {"http"}}, "http", "own.example", true},
		{"Forwarded", "10.0.0.1:1", false, http.Header{"Forwarded": {`for=6.6.6.6;host=evil, for=192.0.2.1;host="a.example:1";proto=https, for=10.0.0.2;proto=http`}},
			"https", "a.example:1", true},
		{"Forwarded is not mixed in", "10.0.0.1:1", false, http.Header{"X-Forwarded-For": {"192.0.2.1"}, "Forwarded": {`proto=https;host=evil`}},
			"http", "own.example", true},
	}
	for _, tt := range tests {
		r := &http.Request{RemoteAddr: tt.remote, Header: tt.header, Host: "own.example"}
		if tt.tls {
			r.TLS = &tls.ConnectionState{}
		}
		_, scheme, host, trusted := testProxies.visitor(r)
		if scheme != tt.scheme || host != tt.host || trusted != tt.trusted {
			t.Errorf("%s: got %s://%s trusted %v, want %s://%s trusted %v", tt.why, scheme, host, trusted, tt.scheme, tt.host, tt.trusted)
		}
	}
}

// forward runs visitor and setForwarded on a request with these fields, as the proxy does.
func forward(remote, host string, header http.Header) http.Header {
	r := &http.Request{RemoteAddr: remote, Host: host, Header: header}
	out := header.Clone()
	addr, scheme, host, trusted := testProxies.visitor(r)
	setForwarded(out, r, addr, scheme, host, trusted)
	return out
}

func wantFields(t *testing.T, why string, got http.Header, want map[string]string) {
	t.Helper()
	flat := map[string]string{}
	for name, values := range got {
		flat[name] = strings.Join(values, " | ")
	}
	if !maps.Equal(flat, want) {
		t.Errorf("%s:\n got %v\nwant %v", why, flat, want)
	}
}

func TestSetForwarded(t *testing.T) {
	claims := http.Header{
		"X-Forwarded-For": {"1.1.1.1", "2.2.2.2"}, "X-Forwarded-Host": {"x"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Port": {"1"},
		"X-Forwarded-Prefix": {"/p"}, "X-Forwarded-": {"e"}, "Forwarded": {"for=1.1.1.1"}, "X-Real-Ip": {"1.1.1.1"},
		"X_forwarded_for": {"1.1.1.1"}, "X_real-Ip": {"1"}, "x-FORWARDED-user": {"root"}, "Harp-Tunnel": {"x"},
		"Harp-Request-Timeout": {"1s"}, "Harp_error": {"x"},
		"X-Forward": {"kept"}, "Harpoon": {"kept"}, "X-Real-Ips": {"kept"}, "Forwarded-By": {"kept"}, "H": {"kept"},
	}
	wantFields(t, "a visitor's claims go", forward("192.0.2.1:5", "a.example", claims), map[string]string{
		"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Host": "a.example", "X-Forwarded-Proto": "http", "X-Real-Ip": "192.0.2.1",
		"Forwarded": "for=192.0.2.1;host=a.example;proto=http",
		"X-Forward": "kept", "Harpoon": "kept", "X-Real-Ips": "kept", "Forwarded-By": "kept", "H": "kept",
	})
	wantFields(t, "a proxy's claims stay, its Harp-* and underscores go",
		forward("10.0.0.1:5", "a.example", http.Header{"X-Forwarded-For": {"1.1.1.1", "192.0.2.1, 10.0.0.2"}, "X-Forwarded-Proto": {"https"},
			"X-Forwarded-Prefix": {"/p"}, "Forwarded": {"for=6.6.6.6"}, "X-Real-Ip": {"6.6.6.6"}, "Harp-Tunnel": {"x"}, "X_forwarded_for": {"6.6.6.6"}}),
		map[string]string{"X-Forwarded-For": "1.1.1.1, 192.0.2.1, 10.0.0.2, 10.0.0.1", "X-Forwarded-Host": "a.example",
			"X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/p", "X-Real-Ip": "192.0.2.1",
			"Forwarded": "for=192.0.2.1;host=a.example;proto=https"})
	wantFields(t, "a proxy with Forwarded alone", forward("10.0.0.1:5", "a.example", http.Header{"Forwarded": {"for=192.0.2.1;proto=https"}}),
		map[string]string{"X-Forwarded-For": "192.0.2.1, 10.0.0.1", "X-Forwarded-Host": "a.example", "X-Forwarded-Proto": "https",
			"X-Real-Ip": "192.0.2.1", "Forwarded": "for=192.0.2.1;host=a.example;proto=https"})
	wantFields(t, "IPv6 and a port are quoted", forward("[2001:db8::1]:5", "a.example:8080", http.Header{}),
		map[string]string{"X-Forwarded-For": "2001:db8::1", "X-Forwarded-Host": "a.example:8080", "X-Forwarded-Proto": "http",
			"X-Real-Ip": "2001:db8::1", "Forwarded": `for="[2001:db8::1]";host="a.example:8080";proto=http`})
	wantFields(t, "no address and no host", forward("@", "", http.Header{"X-Real-Ip": {"1"}, "X-Forwarded-Host": {"x"}}),
		map[string]string{"X-Forwarded-For": "unknown", "X-Forwarded-Proto": "http", "Forwarded": "for=unknown;proto=http"})
	wantFields(t, "a host that could end the field is not repeated", forward("192.0.2.1:5", "a\r\nb", http.Header{}),
		map[string]string{"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "http", "X-Real-Ip": "192.0.2.1",
			"Forwarded": "for=192.0.2.1;proto=http"})
}

func TestSetForwardedValuesAreApart(t *testing.T) {
	h := forward("192.0.2.1:5", "a.example", http.Header{})
	h.Add("X-Forwarded-For", "x")
	if got := h.Get("X-Forwarded-Proto"); got != "http" {
		t.Errorf("adding to one field changed another: %q", got)
	}
}

// visitorHeader is what a browser sends, and two claims.
func visitorHeader() http.Header {
	return http.Header{"Accept": {"*/*"}, "Accept-Encoding": {"gzip"}, "Accept-Language": {"en"}, "Cookie": {"a=b"},
		"Dnt": {"1"}, "Priority": {"u=1"}, "Referer": {"x"}, "Sec-Fetch-Dest": {"document"}, "Sec-Fetch-Mode": {"navigate"},
		"Sec-Fetch-Site": {"none"}, "User-Agent": {"x"}, "X-Requested-With": {"x"}, "X-Forwarded-For": {"1.1.1.1"}, "X-Real-Ip": {"1.1.1.1"}}
}

func TestSetForwardedAllocations(t *testing.T) {
	for _, remote := range []string{"192.0.2.1:5", "[2001:db8::1]:5"} {
		r := &http.Request{RemoteAddr: remote, Host: "a.example", Header: visitorHeader()}
		out := r.Header.Clone()
		n := testing.AllocsPerRun(100, func() {
			addr, scheme, host, trusted := testProxies.visitor(r)
			setForwarded(out, r, addr, scheme, host, trusted)
		})
		if n > 2 {
			t.Errorf("%v allocations for %s, want 2: one string, one array of values", n, remote)
		}
	}
}

func BenchmarkSetForwarded(b *testing.B) {
	r := &http.Request{RemoteAddr: "192.0.2.1:5", Host: "4rsan3rocgnkjns3qjukyhz4bzuvbrav2dhykeyrbmnjick424lq.tunnels.example.com", Header: visitorHeader()}
	out := r.Header.Clone()
	b.ReportAllocs()
	for b.Loop() {
		addr, scheme, host, trusted := testProxies.visitor(r)
		setForwarded(out, r, addr, scheme, host, trusted)
	}
}

func FuzzForwarded(f *testing.F) {
	for _, s := range []string{`for=192.0.2.43, for="[2001:db8:cafe::17]:4711"`, `for=_x;host="a\"b";proto=https`, `for="`, `;,=`} {
		f.Add(s, s, "a.example")
	}
	f.Fuzz(func(t *testing.T, forwarded, forwardedFor, host string) {
		for _, h := range []http.Header{{"Forwarded": {forwarded}}, {"X-Forwarded-For": {forwardedFor}, "X-Forwarded-Host": {host}}} {
			r := &http.Request{RemoteAddr: "10.0.0.1:5", Host: host, Header: h}
			addr, scheme, got, trusted := testProxies.visitor(r)
			if !addr.IsValid() || scheme != "http" && scheme != "https" || got != host && !validForwardedHost(got) || !trusted {
				t.Fatalf("visitor of %v: %v %q %q %v", h, addr, scheme, got, trusted)
			}
			setForwarded(h, r, addr, scheme, got, trusted)
			elements, ok := parseForwarded(h.Get("Forwarded"))
			if !ok || len(elements) != 1 || elements[0].host != h.Get("X-Forwarded-Host") || elements[0].proto != scheme {
				t.Fatalf("what was written is read as %v, %v: %s", elements, ok, h.Get("Forwarded"))
			}
			if back, ok := parseNode(elements[0].node); !ok || back != addr {
				t.Fatalf("%v was written, %v read", addr, back)
			}
		}
	})
}
