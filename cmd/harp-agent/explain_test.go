package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
	"github.com/harp-tunnel/harp/tunnel/agent"
)

func TestExitCodes(t *testing.T) {
	key, err := identity.Generate()
	if err != nil {
		t.Fatal(err)
	}
	a := adviser{edge: edgeURL{scheme: "https", host: "x.example"}, key: key}
	end := a
	end.endToEnd = true
	unreachable := func(cause error) error { return fmt.Errorf("%w: %w", agent.ErrUnreachable, cause) }
	for _, test := range []struct {
		a    adviser
		err  error
		code int
		hint string // contained in the hint
	}{
		{a, &agent.RefusedError{Code: messages.RefuseNotAuthorized, Reason: "no"}, codeRefused, key.Public().Thumbprint().String()},
		{a, &agent.RefusedError{Code: messages.RefuseAudience, Reason: "no"}, codeRefused, "--audience x.example"},
		{a, &agent.RefusedError{Code: messages.RefuseLimit, Reason: "no"}, codeRefused, "later"},
		{a, &agent.RefusedError{Code: messages.RefuseHostname, Reason: "no"}, codeRefused, "if a record is named"},
		{a, &agent.RefusedError{Code: messages.RefuseUnsupported, Reason: "no"}, codeRefused, "leave out what it cannot do"},
		{end, &agent.RefusedError{Code: messages.RefuseUnsupported, Reason: "no"}, codeRefused, "--end-to-end needs"},
		{a, fmt.Errorf("serve: %w", agent.ErrReplaced), codeRefused, "--mode share"},
		{a, unreachable(errors.New("something else")), codeUnreachable, "--server"},
		{a, unreachable(&net.DNSError{Name: "x.example", IsNotFound: true}), codeUnreachable, "the DNS knows no x.example"},
		{a, unreachable(syscall.ECONNREFUSED), codeUnreachable, "nothing listens there"},
		{a, unreachable(tunnel.ErrNotHARP), codeUnreachable, "is https://x.example a harpd?"},
		{a, unreachable(&tls.CertificateVerificationError{Err: errors.New("unknown")}), codeUnreachable, "--ca-file"},
		{a, unreachable(&tls.CertificateVerificationError{Err: x509.HostnameError{Certificate: &x509.Certificate{}}}), codeUnreachable, "that the certificate is for"},
		{a, unreachable(&net.OpError{Op: "remote error", Err: errors.New("tls: unrecognized name")}), codeUnreachable, "its own domain"},
	} {
		shown, ok := errors.AsType[*cli.Error](test.a.explain(test.err))
		if !ok || shown.Code != test.code || !strings.Contains(shown.Hint, test.hint) {
			t.Errorf("%v: %+v, want exit code %d and %q in the hint", test.err, shown, test.code, test.hint)
		}
	}
	if err := a.explain(nil); err != nil {
		t.Errorf("a drained agent ends with %v", err)
	}
	if hint := a.noLink(errors.New("the server refused for now: the DNS is slow")); hint != "" {
		t.Errorf("the hint %q is for what the server says itself", hint)
	}
}

// TestAnswerHint: who dials plain HTTP at a server of HTTPS is told the URL to write, and never another host's.
func TestAnswerHint(t *testing.T) {
	plain := adviser{edge: edgeURL{scheme: "http", host: "x.example", port: "8080"}}
	secure := adviser{edge: edgeURL{scheme: "https", host: "x.example"}}
	for _, test := range []struct {
		a        adviser
		status   int
		location string
		want     string
	}{
		{plain, 308, "https://x.example/.well-known/harp/connect", "it speaks HTTPS: --server https://x.example"},
		{plain, 301, "https://X.example:8443/", "it speaks HTTPS: --server https://x.example:8443"},
		{plain, 308, "https://evil.example/", "is http://x.example:8080 a harpd? check --server"},
		{plain, 308, "http://x.example/", "is http://x.example:8080 a harpd? check --server"},
		{plain, 308, "https://x.example:port/", "is http://x.example:8080 a harpd? check --server"},
		{plain, 400, "", "if that port speaks HTTPS: --server https://x.example:8080"},
		{plain, 404, "", "is http://x.example:8080 a harpd? check --server"},
		{secure, 400, "", "is https://x.example a harpd? check --server"},
	} {
		if got := test.a.answer(&tunnel.RefusedError{Status: test.status, Location: test.location}); got != test.want {
			t.Errorf("%d to %q: %q, want %q", test.status, test.location, got, test.want)
		}
	}
}

// TestHintWhileWaiting: an agent that waits for its edge says what may be wrong, once, and goes on.
func TestHintWhileWaiting(t *testing.T) {
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	defer secure.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	for _, test := range []struct{ server, want string }{
		{secure.URL, "--ca-file FILE"},
		{strings.Replace(plain.URL, "http", "https", 1), "it speaks plain HTTP there: --server " + plain.URL},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		said := &untilTwice{cancel: cancel}
		cfg := upConfig{config: config{Server: test.server, KeyFile: filepath.Join(t.TempDir(), "id.jwk"), LogLevel: "warn"}, Wait: true, Inspect: "off"}
		if err := run(ctx, cfg, io.Discard, said); err != nil {
			t.Errorf("%s: the agent ended with %v, want that it goes on", test.server, err)
		}
		cancel()
		text := said.String()
		if strings.Count(text, test.want) != 1 || strings.Contains(text, "WebSocket") {
			t.Errorf("%s: the log says\n%swant the hint %q, once, and nothing of the library", test.server, text, test.want)
		}
	}
}

// An untilTwice is a log that calls cancel with its second failure.
type untilTwice struct {
	cancel context.CancelFunc
	mu     sync.Mutex // guards the field below
	text   bytes.Buffer
}

func (u *untilTwice) Write(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.text.Write(p)
	if strings.Count(u.text.String(), "no link") == 2 {
		u.cancel()
	}
	return len(p), nil
}

func (u *untilTwice) String() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.text.String()
}

// TestDistrusted: a certificate of one's own that visitors will not trust is noticed.
func TestDistrusted(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writePair(t, cert, key, 1, time.Now())
	c := endConfig{EndToEnd: true, TLSCert: cert, TLSKey: key}
	if err := c.distrusted("app.example.org", time.Now()); err == nil || !strings.Contains(err.Error(), "is not for app.example.org") {
		t.Errorf("a certificate without names: %v", err)
	}
	if err := c.distrusted("1.example.org", time.Now()); err != nil {
		t.Errorf("a certificate for the name: %v", err)
	}
	if err := c.distrusted("1.example.org", time.Now().Add(48*time.Hour)); err == nil || !strings.Contains(err.Error(), "expired on") {
		t.Errorf("a certificate that has expired: %v", err)
	}
	if err := (endConfig{EndToEnd: true}).distrusted("app.example.org", time.Now()); err != nil {
		t.Errorf("certificates by ACME: %v", err)
	}
	for _, test := range []struct {
		domains []string
		want    string // in the log
	}{
		{nil, "is not for l.x.example"}, {[]string{"app.example.org"}, "is not for app.example.org"}, {[]string{"1.example.org"}, ""},
	} {
		var out, said bytes.Buffer
		opts := agent.Options{Logger: cli.NewLogger(&said, "info", "text")}
		report(&opts, upConfig{endConfig: c, Domains: test.domains}, nil, &out)
		opts.OnRegister(agent.Registration{Hostname: "l.x.example", URL: "https://l.x.example"})
		opts.OnRegister(agent.Registration{Hostname: "l.x.example", URL: "https://l.x.example"}) // after a lost link
		if got := said.String(); strings.Count(got, "visitors will not trust") != min(len(test.want), 1) || !strings.Contains(got, test.want) {
			t.Errorf("with --domain %q the log says %q, want %q once", test.domains, got, test.want)
		}
		if out.String() != "https://l.x.example\n" {
			t.Errorf("stdout has %q, want the URL alone", out.String())
		}
	}
}
