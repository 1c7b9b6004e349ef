package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel/agent"
	"github.com/harp-tunnel/harp/tunnel/server"
)

func TestExitCodes(t *testing.T) {
	key, err := identity.Generate()
	if err != nil {
		t.Fatal(err)
	}
	edge := edgeURL{scheme: "https", host: "x.example"}
	tests := []struct {
		err  error
		code int
		hint string // contained in the hint
	}{
		{&agent.RefusedError{Code: messages.RefuseNotAuthorized, Reason: "no"}, codeRefused, key.Public().Thumbprint().String()},
		{&agent.RefusedError{Code: messages.RefuseAudience, Reason: "no"}, codeRefused, "--audience x.example"},
		{&agent.RefusedError{Code: messages.RefuseLimit, Reason: "no"}, codeRefused, "later"},
		{fmt.Errorf("serve: %w", agent.ErrReplaced), codeRefused, "--mode share"},
		{fmt.Errorf("%w: no such host", agent.ErrUnreachable), codeUnreachable, "--server"},
		{fmt.Errorf("%w: %w", agent.ErrUnreachable, &tls.CertificateVerificationError{Err: errors.New("unknown")}), codeUnreachable, "--ca-file"},
	}
	for _, test := range tests {
		shown, ok := errors.AsType[*cli.Error](explain(test.err, edge, key))
		if !ok || shown.Code != test.code || !strings.Contains(shown.Hint, test.hint) {
			t.Errorf("%v: %+v, want exit code %d and %q in the hint", test.err, shown, test.code, test.hint)
		}
	}
	if err := explain(nil, edge, key); err != nil {
		t.Errorf("a drained agent ends with %v", err)
	}
}

// patience bounds every wait of a script; nothing comes near it unless something is broken.
const patience = 20 * time.Second

// edge starts an edge for the script and puts its URL into $EDGE: edge DOMAIN [AUTHORIZED-KEYS].
func edge(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: edge DOMAIN [AUTHORIZED-KEYS]")
	}
	opts := server.Options{Domain: args[0]}
	if len(args) == 2 {
		opts.AuthorizedKeys = ts.MkAbs(args[1])
	}
	s, err := server.New(opts)
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	var wg sync.WaitGroup
	wg.Go(func() { s.Run(ctx) }) // ends with ctx
	listener := httptest.NewServer(s)
	ts.Defer(func() {
		if err := s.Shutdown(ctx); err != nil {
			ts.Logf("edge: %v", err)
		}
		cancel()
		listener.Close()
		wg.Wait()
	})
	ts.Setenv("EDGE", listener.URL)
}

// await waits until there is a file: await FILE.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: await FILE")
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		_, err := os.Stat(ts.MkAbs(args[0]))
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s: %v after %v", args[0], err, patience)
		}
	}
}
