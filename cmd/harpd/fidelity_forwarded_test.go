package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// claims are what a visitor may say of himself and must not be believed.
var claims = []string{
	"X-Forwarded-For: 203.0.113.9", "X-Forwarded-For: 203.0.113.10", "x-forwarded-proto: https", "X-Forwarded-Host: bank.example",
	"X-Forwarded-Port: 443", "X-Forwarded-Prefix: /admin", "X-Forwarded-User: root", "X-Forwarded-Server: x",
	"Forwarded: for=203.0.113.9;proto=https;host=bank.example", "X-Real-IP: 203.0.113.9",
	"Harp-Visitor: 203.0.113.9", "harp-anything: 203.0.113.9", "Harp-Error: forged", "X_Forwarded_For: 203.0.113.9", "X-Own: kept",
}

// TestForwardedFields wants the visitor's claims gone and the edge's own words in their place.
func TestForwardedFields(t *testing.T) {
	t.Parallel()
	for scheme, opts := range map[string][]option{"http": nil, "https": {withTLS()}} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			r := recordUpstream(t, nil)
			tn := publish(t, r.Target, opts...)
			tn.needsTunnel(t)
			tn.dial(t, "http/1.1").do("GET", "/x", claims...)
			m := r.next(t)
			for _, f := range m.Fields {
				if strings.Contains(f.Value, "203.0.113.") || strings.Contains(f.Value, "bank.example") || strings.HasPrefix(strings.ToLower(f.Name), "harp-") {
					t.Errorf("the upstream saw %s: %q: anybody can say that", f.Name, f.Value)
				}
			}
			for name, want := range map[string]string{
				"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": scheme, "X-Forwarded-Host": tn.Host, "X-Own": "kept",
			} {
				if got := m.values(name); !slices.Equal(got, []string{want}) {
					t.Errorf("the upstream saw %s %q, want %q once", name, got, want)
				}
			}
			for _, name := range []string{"X-Forwarded-User", "X-Forwarded-Prefix", "X-Forwarded-Server"} {
				if m.has(name) {
					t.Errorf("the upstream saw %s %q, which programs take for a login or a base path", name, m.get(name))
				}
			}
			if v := m.values("X-Real-IP"); len(v) > 1 || len(v) == 1 && v[0] != "127.0.0.1" {
				t.Errorf("the upstream saw X-Real-IP %q, want 127.0.0.1 or none", v)
			}
		})
	}
}

// TestForwardedFromTrustedProxy wants a trusted proxy believed, and another one not.
func TestForwardedFromTrustedProxy(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		trusted string
		believe bool
	}{
		"trusted":       {"127.0.0.0/8", true},
		"somebody else": {"10.0.0.0/8", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := recordUpstream(t, nil)
			tn := publish(t, r.Target, withConfig(func(c *config) {
				c.TrustedProxy = []netip.Prefix{netip.MustParsePrefix(tt.trusted)}
			}))
			tn.needsTunnel(t)
			tn.dial(t).do("GET", "/x", "X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https", "X-Forwarded-Host: shop.example", "Harp-Anything: 1")
			m := r.next(t)
			first, _, _ := strings.Cut(m.get("X-Forwarded-For"), ",")
			if got := first == "203.0.113.9"; got != tt.believe {
				t.Errorf("the upstream saw X-Forwarded-For %q; kept is %v, want %v", m.values("X-Forwarded-For"), got, tt.believe)
			}
			if got := m.get("X-Forwarded-Proto") == "https"; got != tt.believe {
				t.Errorf("the upstream saw X-Forwarded-Proto %q; kept is %v, want %v", m.get("X-Forwarded-Proto"), got, tt.believe)
			}
			if got := m.get("X-Forwarded-Host") == "shop.example"; got != tt.believe {
				t.Errorf("the upstream saw X-Forwarded-Host %q; kept is %v, want %v", m.get("X-Forwarded-Host"), got, tt.believe)
			}
			if m.has("Harp-Anything") {
				t.Errorf("the upstream saw Harp-Anything: no proxy has to say that")
			}
		})
	}
}

// TestRequestID wants one id on every answer, the same that the upstream saw.
func TestRequestID(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, nil)
	tn := publish(t, r.Target)
	tn.needsTunnel(t)
	c := tn.dial(t)
	ids := map[string]bool{}
	for range 3 {
		m := c.do("GET", "/x")
		v := m.values("X-Request-ID")
		if len(v) != 1 || v[0] == "" || ids[v[0]] {
			t.Errorf("X-Request-ID is %q, want one that was not there before", v)
			continue
		}
		ids[v[0]] = true
		if got := r.next(t).values("X-Request-ID"); !slices.Equal(got, v) {
			t.Errorf("the upstream saw X-Request-ID %q, the visitor %q: nobody could match their logs", got, v)
		}
	}
	for name, request := range map[string]string{
		"no such tunnel": "GET /x HTTP/1.1\r\nHost: nobody." + testDomain + "\r\n\r\n",
		"CONNECT":        "CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n",
		"too large":      c.request("POST", "/x", "Content-Length: 99999999"),
	} {
		c := tn.dial(t)
		c.send(request)
		if m := c.final("GET"); len(m.values("X-Request-ID")) != 1 {
			t.Errorf("%s: %q carries X-Request-ID %q, want one: it is what people quote when they ask for help", name, m.Line, m.values("X-Request-ID"))
		}
	}

	r = recordUpstream(t, func(message) string {
		return "HTTP/1.1 200 OK\r\nX-Request-ID: upstream\r\nContent-Length: 2\r\n\r\nok"
	})
	if m := publish(t, r.Target).dial(t).do("GET", "/x"); len(m.values("X-Request-ID")) != 1 {
		t.Errorf("X-Request-ID is %q when the upstream sends one too, want one", m.values("X-Request-ID"))
	}
}
