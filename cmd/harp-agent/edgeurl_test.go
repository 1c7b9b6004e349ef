package main

import (
	"errors"
	"testing"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
)

func TestParseEdge(t *testing.T) {
	tests := []struct {
		typed, edge string
		tunnel      string // URL of the tunnel labelled l
	}{
		{"tunnels.example.com", "https://tunnels.example.com", "https://l.tunnels.example.com"},
		{"Tunnels.Example.com.", "https://tunnels.example.com", "https://l.tunnels.example.com"},
		{"https://tunnels.example.com/", "https://tunnels.example.com", "https://l.tunnels.example.com"},
		{"https://tunnels.example.com:443", "https://tunnels.example.com", "https://l.tunnels.example.com"},
		{"tunnels.example.com:8443", "https://tunnels.example.com:8443", "https://l.tunnels.example.com:8443"},
		{"http://localhost:8080", "http://localhost:8080", "http://l.localhost:8080"},
		{"wss://x.example", "https://x.example", "https://l.x.example"},
		{"ws://x.example:80", "http://x.example", "http://l.x.example"},
		{"bücher.example", "https://xn--bcher-kva.example", "https://l.xn--bcher-kva.example"},
		{"http://127.0.0.1:8080", "http://127.0.0.1:8080", ""},
		{"http://[::1]:8080", "http://[::1]:8080", ""},
	}
	for _, test := range tests {
		e, err := parseEdge("server", test.typed)
		if err != nil {
			t.Errorf("%q: %v", test.typed, err)
			continue
		}
		if e.String() != test.edge || e.tunnelURL("l") != test.tunnel {
			t.Errorf("%q is %s with the tunnel %q, want %s with %q", test.typed, e, e.tunnelURL("l"), test.edge, test.tunnel)
		}
	}
	if e, err := parseEdge("server", ""); e.known() || err != nil || e.tunnelURL("l") != "" {
		t.Errorf("nothing gave %v, %v; want an edge that is not known", e, err)
	}
}

// TestParseEdgeHints: the hint is what was meant, as far as that can be known.
func TestParseEdgeHints(t *testing.T) {
	for typed, want := range map[string]string{
		"https:/localhost:12100":   "write --server https://localhost:12100",
		"http//localhost":          "write --server http://localhost",
		"https:x.example/":         "write --server https://x.example/",
		"http://127.0.0.1:121000":  "write --server http://127.0.0.1, or that with :PORT",
		"https://x.example:0":      "write --server https://x.example, or that with :PORT",
		"https://x.example/a":      "write --server https://x.example",
		"https-tunnels.example/a/": "write --server https://https-tunnels.example",
	} {
		_, err := parseEdge("server", typed)
		if shown, ok := errors.AsType[*cli.Error](err); !ok || shown.Hint != want {
			t.Errorf("%q: %+v, want the hint %q", typed, shown, want)
		}
	}
}

func TestParseEdgeRefuses(t *testing.T) {
	for _, typed := range []string{
		"ftp://x.example", "https://", "https://x.example/path", "https://x.example?q", "https://u:p@x.example",
		"https://x.example:port", "two words", "a..b", "x_y.example", "https://x.example#f",
	} {
		e, err := parseEdge("server", typed)
		if err == nil {
			t.Errorf("%q was taken as %s", typed, e)
			continue
		}
		if shown, ok := errors.AsType[*cli.Error](err); !ok || shown.Hint == "" {
			t.Errorf("%q: %v without a hint", typed, err)
		}
	}
}
