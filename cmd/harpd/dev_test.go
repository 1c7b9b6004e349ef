package main

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/tunnel/agent"
)

// A firstLine is a stdout that hands its first line on.
type firstLine chan string

func (f firstLine) Write(p []byte) (int, error) {
	select {
	case f <- strings.TrimSpace(string(p)):
	default:
	}
	return len(p), nil
}

// startDev runs harpd dev until the test ends and returns what it prints.
func startDev(t *testing.T, cfg devConfig) (printed string, ended <-chan error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	stdout, end := make(firstLine, 1), make(chan error, 1)
	done := make(chan struct{})
	go func() { // ends with ctx
		defer close(done)
		end <- dev(ctx, cfg, stdout)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	select {
	case printed = <-stdout:
	case err := <-end:
		t.Fatalf("harpd dev ended with %v", err)
	case <-time.After(patience):
		t.Fatal("harpd dev prints nothing")
	}
	return printed, end
}

// TestDevBesideAnAgent: a person's own agent, with the key that harpd dev uses, too, registers there beside the built-in one.
func TestDevBesideAnAgent(t *testing.T) {
	t.Parallel()
	cfg := devConfig{config: testConfig(t), KeyFile: filepath.Join(t.TempDir(), "id.jwk")}
	cfg.Domain, cfg.HTTP, cfg.HTTPS = "localhost", freeAddr(t), "off"
	printed, ended := startDev(t, cfg)
	key, err := identity.ReadKeyFile(cfg.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	label := key.Public().Thumbprint().Label(devSession)
	if want := "http://" + label + ".localhost"; !strings.HasPrefix(printed, want) {
		t.Errorf("harpd dev prints %s, want %s, which the key gives in each run", printed, want)
	}

	o := agentOptions(t, "http://"+cfg.HTTP, nil)
	registered := make(chan agent.Registration, 1)
	o.Key, o.OnRegister = key, func(r agent.Registration) { registered <- r }
	o.Services = []agent.Service{{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "own") })}}
	a, err := agent.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { // ends with ctx
		defer close(done)
		_ = a.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	await(t, registered, "the person's own agent", func(r agent.Registration) {
		u, err := url.Parse(r.URL)
		if err != nil {
			t.Fatal(err)
		}
		if res := plain(t, cfg.HTTP, u.Host); res.StatusCode != http.StatusOK {
			t.Errorf("the own service answers %s", res.Status)
		}
	})
	if res := plain(t, cfg.HTTP, strings.TrimPrefix(printed, "http://")); res.StatusCode != http.StatusOK {
		t.Errorf("the service of harpd dev answers %s once another agent has come", res.Status)
	}
	select {
	case err := <-ended:
		t.Errorf("harpd dev ended with %v", err)
	default:
	}
}
