// Package agent publishes services that nobody can dial: it keeps a link to an edge and feeds what comes to an
// upstream or to any http.Handler.
package agent

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
)

var (
	// ErrUnreachable means that the edge could not be reached, with Options.ExitOnFailure.
	ErrUnreachable = errors.New("cannot reach the server")
	// ErrReplaced means that a newer agent took the name over. This one must not come back by itself.
	ErrReplaced = errors.New("a newer agent has taken the name over")
)

// A RefusedError is the edge's word that it does not want this agent. Trying again does not help.
type RefusedError struct {
	Code   string // one of the messages.Refuse constants, "revoked", or "http" for a server that is no edge
	Reason string // the edge's own words
}

func (e *RefusedError) Error() string { return "the server refused: " + e.Reason }

// Options say what an Agent publishes, and where.
type Options struct {
	// Server is the edge: https://tunnels.example.com, or just the name. Required.
	Server string
	// Key is the identity. Required.
	Key identity.Key
	// Services are published over one link; at least one, with different (Session, Path).
	Services []Service
	// TLSConfig is called at each dial, so that certificates may change; nil means the system's roots.
	TLSConfig func() (*tls.Config, error)
	// ExitOnFailure makes Run return ErrUnreachable if the first connection fails; else it waits for the network.
	// Once connected, an agent always comes back.
	ExitOnFailure bool
	// PingInterval is the silence after which the link is pinged; after twice as long it is dialled anew. Zero means 10 s.
	PingInterval time.Duration
	// DrainTimeout is how long running requests may take when Run is told to end. Zero means 15 s, negative none.
	DrainTimeout time.Duration
	// Logger gets what a person wants to know; nil discards.
	Logger *slog.Logger
	// OnRegister is called each time a service has got its name, OnDisconnect each time the link is lost.
	// They must not block.
	OnRegister   func(Registration)
	OnDisconnect func(error)
}

// A Service is one thing that is published.
type Service struct {
	Session string       // further name under the same key; empty for the key's own
	Path    string       // request path prefix; empty for all
	Mode    string       // identity.ModeTakeover (also if empty), ModeShare or ModeStandby
	Handler http.Handler // what serves it: Forward's result, or any other
}

// A Registration is the name that a service got.
type Registration struct {
	Session, Path string
	Hostname, URL string
	Limits        messages.Limits
}

// An Agent publishes services for as long as Run runs.
type Agent struct {
	options  Options // with its defaults; not changed
	log      *slog.Logger
	url      string // of the link, ws:// or wss://
	audience string
	instance string
	links    sync.WaitGroup
}

// New checks the options and returns an Agent, which does nothing until Run.
func New(o Options) (*Agent, error) {
	u, err := serverURL(o.Server)
	if err != nil {
		return nil, err
	}
	if o.Key == (identity.Key{}) {
		return nil, errors.New("agent: no key")
	}
	if o.Services, err = checkServices(o.Services); err != nil {
		return nil, err
	}
	if o.DrainTimeout == 0 {
		o.DrainTimeout = 15 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	var instance [8]byte
	_, _ = rand.Read(instance[:]) // never fails (crypto/rand)
	return &Agent{
		options: o, log: o.Logger, url: u.String(), audience: u.Hostname(),
		instance: hex.EncodeToString(instance[:]),
	}, nil
}

// serverURL is the URL of the link for what a person typed.
func serverURL(server string) (*url.URL, error) {
	text := server
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("agent: server %q is no URL such as https://tunnels.example.com", server)
	}
	switch u.Scheme {
	case "https", "wss":
		u.Scheme = "wss"
	case "http", "ws":
		u.Scheme = "ws"
	default:
		return nil, fmt.Errorf("agent: server %q: the scheme must be https or http", server)
	}
	u.Path = messages.ConnectPath
	return u, nil
}

func checkServices(services []Service) ([]Service, error) {
	if len(services) == 0 {
		return nil, errors.New("agent: no services")
	}
	seen := make(map[[2]string]bool)
	checked := make([]Service, len(services))
	for i, s := range services {
		if s.Handler == nil {
			return nil, fmt.Errorf("agent: service %q%s has no handler", s.Session, s.Path)
		}
		claim := identity.Registration{Audience: "-", Challenge: "-", Session: s.Session, Path: s.Path, Mode: s.Mode}
		if err := claim.Validate(); err != nil {
			return nil, fmt.Errorf("agent: %w", err)
		}
		s.Path, _ = identity.CleanPath(s.Path) // Validate has checked it
		name := [2]string{s.Session, s.Path}
		if seen[name] {
			return nil, fmt.Errorf("agent: two services for session %q and path %q", s.Session, s.Path)
		}
		seen[name], checked[i] = true, s
	}
	return checked, nil
}

// Run publishes the services until ctx ends. It then tells the edge, lets running requests finish for DrainTimeout, and
// returns nil. Lost links are dialled anew for ever. It returns early with a *RefusedError, ErrReplaced, or, with
// ExitOnFailure, an error that wraps ErrUnreachable.
func (a *Agent) Run(ctx context.Context) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer a.wait()
	defer stop()
	var retry backoff
	for connected := false; ; {
		began := time.Now()
		l, err := a.connect(ctx, work)
		if err == nil {
			connected = true
			err = a.serve(ctx, l)
			if time.Since(began) > steady {
				retry = backoff{}
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrReplaced), isFinal(err, connected):
			return err
		case !connected && a.options.ExitOnFailure:
			return fmt.Errorf("%w: %w", ErrUnreachable, err)
		case errors.Is(err, errMoveOn):
			retry = backoff{}
		}
		wait := retry.next()
		a.log.Warn("no link", "reason", err, "again in", wait.Round(time.Millisecond))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// wait waits for the links, whose handlers may be some that obey no context.
func (a *Agent) wait() {
	done := make(chan struct{})
	go func() { a.links.Wait(); close(done) }() // ends with the last handler
	select {
	case <-done:
	case <-time.After(time.Second):
		a.log.Warn("some handlers ignore that their request is over")
	}
}
