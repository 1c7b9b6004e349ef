package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/tunnel/agent"
)

// maxDials is how many agents of one process connect at once: a server takes a bounded number that have not registered.
const maxDials = 32

// linksPart holds idle links, each of an agent of its own.
func linksPart(f *flag.FlagSet) func(context.Context, io.Writer) error {
	server := f.String("server", "", "the edge, as a URL")
	roots := f.String("roots", "", "file with the certificates to trust there")
	count := f.Int("count", 0, "how many")
	return func(ctx context.Context, out io.Writer) error {
		options := agent.Options{Server: *server}
		if *roots != "" {
			trust, err := trustFile(*roots)
			if err != nil {
				return err
			}
			options.TLSConfig = func() (*tls.Config, error) { return trust, nil }
		}
		return holdLinks(ctx, options, *count, func() { fmt.Fprintln(out, "ready") })
	}
}

// holdLinks makes count links with the server and certificates of options, calls ready when all are registered, and keeps
// them until ctx ends. An agent that fails is an error.
func holdLinks(ctx context.Context, options agent.Options, count int, ready func()) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	dials := make(chan struct{}, maxDials)
	var wg, registering sync.WaitGroup
	defer wg.Wait()
	defer fail(nil) // before the wait
	for range count {
		select {
		case dials <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		registering.Add(1)
		done := sync.OnceFunc(func() {
			<-dials
			registering.Done()
		})
		a, err := idleAgent(options, done, fail)
		if err != nil {
			return err
		}
		wg.Go(func() { // ends with ctx
			defer done()
			if err := a.Run(ctx); err != nil {
				fail(err)
			}
		})
	}
	registering.Wait()
	if ctx.Err() == nil {
		ready()
	}
	<-ctx.Done()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// idleAgent returns an agent with a key of its own that calls registered when it has its name, and fail if it loses its
// link.
func idleAgent(options agent.Options, registered func(), fail func(error)) (*agent.Agent, error) {
	var err error
	if options.Key, err = identity.Generate(); err != nil {
		return nil, err
	}
	options.Services = []agent.Service{{Handler: http.NotFoundHandler()}}
	options.ExitOnFailure = true
	options.DrainTimeout = -1
	options.OnRegister = func(agent.Registration) { registered() }
	options.OnDisconnect = func(err error) { fail(fmt.Errorf("a link was lost: %w", err)) }
	return agent.New(options)
}
