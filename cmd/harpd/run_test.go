package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
)

func TestPortInUse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := config{Domain: testDomain, TLS: "off", HTTP: l.Addr().String(), Admin: "off", RouteHost: true}
	err = run(context.Background(), cfg, func(listenAddrs) { t.Error("it says that it listens") })
	var e *cli.Error
	if !errors.As(err, &e) || !strings.Contains(err.Error(), "--http "+cfg.HTTP) || !strings.Contains(e.Hint, "another program") {
		t.Errorf("got %v, want an error that names the flag, and a hint", err)
	}
}

func TestRedirect(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ host, target, want string }{
		{"a.test", "/", "https://a.test:8443/"},
		{"a.test:8080", "/x%2F%61?b;%zz", "https://a.test:8443/x%2F%61?b;%zz"},
		{"[::1]:8080", "//x", "https://[::1]:8443//x"},
		{"[::1]", "/", "https://[::1]:8443/"},
	} {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.Host, r.RequestURI = test.host, test.target
		w := httptest.NewRecorder()
		redirectToHTTPS(&net.TCPAddr{Port: 8443}).ServeHTTP(w, r)
		if got := w.Header().Get("Location"); got != test.want || w.Code != http.StatusPermanentRedirect {
			t.Errorf("%s%s goes to %q with %d, want %q", test.host, test.target, got, w.Code, test.want)
		}
	}
	r := httptest.NewRequest(http.MethodOptions, "/", nil)
	r.RequestURI = "*"
	w := httptest.NewRecorder()
	redirectToHTTPS(&net.TCPAddr{Port: 443}).ServeHTTP(w, r)
	if w.Code != http.StatusBadRequest {
		t.Errorf("OPTIONS * got %d, want 400: it has no place to go to", w.Code)
	}
}
