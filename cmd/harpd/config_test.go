package main

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
)

// runWith runs the command line args with an edge that only remembers its configuration. It returns what the edge and
// the dev system were given, nil if they were not reached, and what was printed to stderr.
func runWith(args ...string) (edge *config, dev *devConfig, stderr string) {
	var out, errs bytes.Buffer
	cmd := newCommand(
		func(_ context.Context, cfg config) error { edge = &cfg; return nil },
		func(_ context.Context, cfg devConfig) error { dev = &cfg; return nil })
	cli.Main(cmd, "HARPD_", args, &out, &errs)
	return edge, dev, errs.String()
}

func TestConfigDefaults(t *testing.T) {
	got, _, stderr := runWith("--domain", "Tunnels.Example.COM.", "--tls", "off")
	if got == nil {
		t.Fatal(stderr)
	}
	want := config{
		Domain: "tunnels.example.com", HTTP: ":80", HTTPS: ":443", TLS: "off", Admin: "127.0.0.1:9090",
		MaxBody: 512_000, RequestTimeout: 30 * time.Second, PingInterval: 10 * time.Second,
		RateLimit: 100, RateBurst: 500, VisitorRateBurst: 500, MaxStreams: 1000,
		RouteHost: true, LogLevel: "info", LogFormat: "text",
	}
	checkSame(t, *got, want)
}

func TestConfigEverything(t *testing.T) {
	keys := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(keys, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HARPD_TRUSTED_PROXY", "10.1.2.3/8, 127.0.0.1,fd00::/8")
	got, _, stderr := runWith("--domain", "bücher.example", "--http", "127.0.0.1:81", "--https", "[::1]:444", "--tls", "files",
		"--cert", "c.pem", "--cert-key", "k.pem", "--data-dir", "/d", "--max_body", "0", "--request-timeout", "1m",
		"--ping-interval", "5s", "--rate-limit", "0", "--rate-burst", "1", "--visitor-rate-limit", "2.5",
		"--visitor-rate-burst", "7", "--max-streams", "9", "--authorized-keys", keys, "--audience", "one,two", "--audience", "three",
		"--route", "path,header", "--admin", "off", "--log-level", "debug", "--log-format", "json")
	if got == nil {
		t.Fatal(stderr)
	}
	want := config{
		Domain: "xn--bcher-kva.example", HTTP: "127.0.0.1:81", HTTPS: "[::1]:444", TLS: "files", Cert: "c.pem", CertKey: "k.pem",
		Admin: "off", RequestTimeout: time.Minute, PingInterval: 5 * time.Second, RateBurst: 1,
		VisitorRateLimit: 2.5, VisitorRateBurst: 7, MaxStreams: 9, AuthorizedKeys: keys, Audience: []string{"one", "two", "three"},
		TrustedProxy: []netip.Prefix{
			netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("fd00::/8"),
		},
		RoutePath: true, RouteHeader: true, LogLevel: "debug", LogFormat: "json",
	}
	if got.DataDir != "/d" {
		t.Errorf("DataDir %q, want /d", got.DataDir)
	}
	checkSame(t, *got, want)
}

// checkSame compares all that does not depend on who runs the test.
func checkSame(t *testing.T, got, want config) {
	t.Helper()
	if !slices.Equal(got.Audience, want.Audience) {
		t.Errorf("Audience %q, want %q", got.Audience, want.Audience)
	}
	if !slices.Equal(got.TrustedProxy, want.TrustedProxy) {
		t.Errorf("TrustedProxy %v, want %v", got.TrustedProxy, want.TrustedProxy)
	}
	if got.Domain != want.Domain || got.HTTP != want.HTTP || got.HTTPS != want.HTTPS || got.Admin != want.Admin {
		t.Errorf("addresses %q %q %q %q, want %q %q %q %q", got.Domain, got.HTTP, got.HTTPS, got.Admin,
			want.Domain, want.HTTP, want.HTTPS, want.Admin)
	}
	if got.TLS != want.TLS || got.Cert != want.Cert || got.CertKey != want.CertKey || got.AuthorizedKeys != want.AuthorizedKeys {
		t.Errorf("files %q %q %q %q, want %q %q %q %q", got.TLS, got.Cert, got.CertKey, got.AuthorizedKeys,
			want.TLS, want.Cert, want.CertKey, want.AuthorizedKeys)
	}
	if got.MaxBody != want.MaxBody || got.MaxStreams != want.MaxStreams ||
		got.RequestTimeout != want.RequestTimeout || got.PingInterval != want.PingInterval {
		t.Errorf("limits %d %d %v %v, want %d %d %v %v", got.MaxBody, got.MaxStreams, got.RequestTimeout, got.PingInterval,
			want.MaxBody, want.MaxStreams, want.RequestTimeout, want.PingInterval)
	}
	if got.RateLimit != want.RateLimit || got.RateBurst != want.RateBurst ||
		got.VisitorRateLimit != want.VisitorRateLimit || got.VisitorRateBurst != want.VisitorRateBurst {
		t.Errorf("rates %v %d %v %d, want %v %d %v %d", got.RateLimit, got.RateBurst, got.VisitorRateLimit, got.VisitorRateBurst,
			want.RateLimit, want.RateBurst, want.VisitorRateLimit, want.VisitorRateBurst)
	}
	if got.RouteHost != want.RouteHost || got.RoutePath != want.RoutePath || got.RouteHeader != want.RouteHeader {
		t.Errorf("routes %v %v %v, want %v %v %v", got.RouteHost, got.RoutePath, got.RouteHeader,
			want.RouteHost, want.RoutePath, want.RouteHeader)
	}
	if got.LogLevel != want.LogLevel || got.LogFormat != want.LogFormat {
		t.Errorf("log %q %q, want %q %q", got.LogLevel, got.LogFormat, want.LogLevel, want.LogFormat)
	}
}

func TestDevConfig(t *testing.T) {
	t.Setenv("HARPD_LOG_LEVEL", "debug")
	_, got, stderr := runWith("dev", "3000", "--key", "k.jwk", "--max-body", "1mb")
	if got == nil {
		t.Fatal(stderr)
	}
	if got.Target != "3000" || got.KeyFile != "k.jwk" || got.MaxBody != 1<<20 || got.LogLevel != "debug" {
		t.Errorf("target %q key %q max-body %d log-level %q, want 3000 k.jwk 1048576 debug", got.Target, got.KeyFile, got.MaxBody, got.LogLevel)
	}
	if got.Domain != "localhost" || got.HTTP != "127.0.0.1:8080" || got.TLS != "off" || got.Admin != "off" || !got.RouteHost {
		t.Errorf("%q %q %q %q %v, want localhost 127.0.0.1:8080 off off true", got.Domain, got.HTTP, got.TLS, got.Admin, got.RouteHost)
	}
}

// TestDevHTTPS: --https can stand alone, and takes an address in either spelling.
func TestDevHTTPS(t *testing.T) {
	for _, test := range []struct {
		args          []string
		https, target string
	}{
		{[]string{"dev"}, "off", ""},
		{[]string{"dev", "--https"}, "127.0.0.1:8443", ""},
		{[]string{"dev", "--https", "3000"}, "127.0.0.1:8443", "3000"},
		{[]string{"dev", "3000", "--https"}, "127.0.0.1:8443", "3000"},
		{[]string{"dev", "--https", "http://192.168.1.20:8123"}, "127.0.0.1:8443", "http://192.168.1.20:8123"},
		{[]string{"dev", "--https", "127.0.0.1:12443"}, "127.0.0.1:12443", ""},
		{[]string{"dev", "--https", "127.0.0.1:12443", "3000"}, "127.0.0.1:12443", "3000"},
		{[]string{"dev", "3000", "--https", ":12443"}, ":12443", "3000"},
		{[]string{"--log-level", "debug", "dev", "192.168.1.20:8123", "--https", "[::1]:12443"}, "[::1]:12443", "192.168.1.20:8123"},
		{[]string{"dev", "192.168.1.20:8123", "--https"}, "127.0.0.1:8443", "192.168.1.20:8123"},
		{[]string{"dev", "--https=:12443", "192.168.1.20:8123"}, ":12443", "192.168.1.20:8123"},
		{[]string{"dev", "--https", "--", "192.168.1.20:8123"}, "127.0.0.1:8443", "192.168.1.20:8123"},
		{[]string{"dev", "--https", "off"}, "off", ""},
	} {
		_, got, stderr := runWith(append(test.args, "--data-dir=d", "--key=k")...)
		if slices.Contains(test.args, "--") { // what follows it is no flag
			_, got, stderr = runWith(append([]string{"dev", "--data-dir=d", "--key=k"}, test.args[1:]...)...)
		}
		if got == nil || got.HTTPS != test.https || got.Target != test.target {
			t.Errorf("%q: %+v, want HTTPS at %q and the target %q: %s", test.args, got, test.https, test.target, stderr)
		}
	}
}

func TestConfigRefused(t *testing.T) {
	domain := []string{"--domain", "x.example", "--tls", "off"}
	auto := []string{"--domain", "x.example"}
	tests := []struct {
		args []string
		want string // begins stderr after "harpd: "; a hint must follow
	}{
		{nil, "--domain is missing"},
		{[]string{"--domain", "https://x.example/a"}, `--domain "https://x.example/a" is a URL, not a name` + "\nhint: harpd --domain x.example\n"},
		{[]string{"--domain", "x.example:443"}, `--domain "x.example:443" has a port`},
		{[]string{"--domain", "10.0.0.1"}, `--domain "10.0.0.1" is an address, which has no names below it`},
		{[]string{"--domain", "x_y.example"}, `--domain "x_y.example" is not a domain name`},
		{[]string{"--domain", "a..example"}, `--domain "a..example" is not a domain name`},
		{[]string{"--domain", strings.Repeat("a.", 101) + "de"}, `--domain "` + strings.Repeat("a.", 101) + `de" is too long`},
		{[]string{"--domain", "10.0.0.1", "--route", "path"}, "--tls auto gets certificates for names, and --domain 10.0.0.1 is an address"},
		{[]string{"--domain", "*.x.example"}, `--domain "*.x.example" is a wildcard` + "\nhint: harpd --domain x.example;"},
		{[]string{"--domain", "com"}, "--tls auto gets certificates for names on the internet, and --domain com is nobody's own"},
		{[]string{"--domain", "co.uk"}, "--tls auto gets certificates for names on the internet, and --domain co.uk is nobody's own"},
		{[]string{"--domain", "localhost"}, "--tls auto gets certificates for names on the internet, and --domain localhost is nobody's own"},
		{append(auto, "--resolver", "foo"), `--resolver "foo" is not the address of a DNS server`},
		{append(auto, "--acme-ca", "letsencrpyt"), `--acme-ca "letsencrpyt" is neither a known name nor an https URL`},
		{append(auto, "--acme-dns", "exec"), "--acme-dns exec needs a program"},
		{append(auto, "--acme-dns", "route53"), `--acme-dns "route53" is not known`},
		{append(auto, "--acme-dns", "rfc2136"), "--acme-dns rfc2136 needs --rfc2136-server and --rfc2136-key-file"},
		{append(auto, "--dns", "53"), `--dns "53" is not an address`},
		{append(auto, "--public-ip", "x"), `--public-ip "x": not an address`},
		{append(auto, "--hsts", "-1s"), "--hsts must be 0 (no rule) or more"},
		{[]string{"--domain", "x.example", "--tls", "files", "--cert", "c.pem"}, "--tls files needs both --cert and --cert-key"},
		{append(domain, "--cert", "c.pem"), "--cert and --cert-key are of no use with --tls off"},
		{append(domain, "--http", "80"), `--http "80" is not an address` + "\nhint: --http :80 for all addresses"},
		{append(domain, "--http", ":http"), `--http ":http" is not an address`},
		{append(domain, "--http", "::1:80"), `--http "::1:80" is not an address`},
		{append(domain, "--admin", ":70000"), `--admin ":70000" is not an address`},
		{append(domain, "--tls", "files", "--cert", "c", "--cert-key", "k", "--https", ":80"), "--http and --https are both :80"},
		{append(domain, "--trusted-proxy", "10.0.0.0/33"), `--trusted-proxy "10.0.0.0/33": neither an address nor a CIDR`},
		{append(domain, "--route", "hots"), `--route "hots": not one of host, path, header` + "\nhint: did you mean host?"},
		{append(domain, "--route", ","), "--route is empty"},
		{append(domain, "--request-timeout", "0"), "--request-timeout must be more than 0"},
		{append(domain, "--rate-limit", "-1"), "--rate-limit must be 0 (no limit) or more"},
		{append(domain, "--rate-burst", "0"), "--rate-burst must be 1 or more"},
		{append(domain, "--max-streams", "0"), "--max-streams must be 1 or more"},
		{[]string{"3000"}, `unexpected argument "3000"` + "\nhint: harpd dev 3000\n"},
		{[]string{"--version"}, "unknown flag --version\nhint: harpd version\n"},
		{[]string{"t.example.com"}, `unexpected argument "t.example.com"` + "\nhint: harpd --domain t.example.com\n"},
		{[]string{"check", "t.example.com"}, `unexpected argument "t.example.com"` + "\nhint: harpd check --domain t.example.com\n"},
		{[]string{"dve"}, `unknown command "dve"` + "\nhint: harpd dev\n"},
		{[]string{"dev", "1", "2"}, `unexpected argument "2" after the target "1"`},
	}
	for _, test := range tests {
		edge, dev, stderr := runWith(test.args...)
		if !strings.HasPrefix(stderr, "harpd: "+test.want) {
			t.Errorf("%q: stderr %q, want harpd: %s", test.args, stderr, test.want)
		}
		if lines := strings.Split(stderr, "\n"); len(lines) != 3 || !strings.HasPrefix(lines[1], "hint: ") {
			t.Errorf("%q: stderr %q, want one line and one hint", test.args, stderr)
		}
		if edge != nil || dev != nil {
			t.Errorf("%q: was run all the same", test.args)
		}
	}
}

func TestAddressIsADomainWithoutHostRoutes(t *testing.T) {
	got, _, stderr := runWith("--domain", "10.0.0.1", "--tls", "off", "--route", "path")
	if got == nil || got.Domain != "10.0.0.1" {
		t.Errorf("refused, but with one path for each tunnel no name is needed: %s", stderr)
	}
}
