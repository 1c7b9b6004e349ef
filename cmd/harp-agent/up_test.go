package main

import (
	"context"
	"net/http/httptest"
	"os"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/harp-tunnel/harp/tunnel/server"
)

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
