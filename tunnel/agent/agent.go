// Package agent publishes services that nobody can dial: it keeps a link to an edge and feeds what comes to an
// upstream (Forward) or to any http.Handler, so that a Go program is on the internet with no listening port.
//
// New checks the options, Run does the work. A service's name follows from the key and the session alone: it is the same
// after every restart, and identity.Thumbprint.Label computes it without asking anybody.
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
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

var (
	// ErrUnreachable means that the edge could not be reached, with Options.ExitOnFailure.
	ErrUnreachable = errors.New("cannot reach the server")
	// ErrReplaced means that a newer agent took the name over. This one must not come back by itself.
	ErrReplaced = errors.New("a newer agent has taken the name over")
)

// A RefusedError is the edge's word that it does not want this agent. Trying again does not help.
type RefusedError struct {
	Code   string // one of the messages.Refuse constants or a newer code, "revoked", or "http" for an answer that is no link
	Reason string // the edge's own words, in one line of at most 2500 characters that can be printed

	answer *tunnel.RefusedError // with Code "http"
}

// Unwrap returns the answer that is no link, a *tunnel.RefusedError; nil if there was a link.
func (e *RefusedError) Unwrap() error {
	if e.answer == nil {
		return nil // and no nil of a type
	}
	return e.answer
}

func (e *RefusedError) Error() string {
	if e.Code == codeHTTP {
		return e.Reason // it says that these are the server's words
	}
	return "the server refused: " + e.Reason
}

// Options say what an Agent publishes, and where.
type Options struct {
	// Server is the edge: https://tunnels.example.com, or just the name, which means the same. A port may follow;
	// http:// is for loopback, and for an edge behind something else that ends TLS. HTTPS_PROXY, HTTP_PROXY and
	// NO_PROXY are obeyed, as http.ProxyFromEnvironment reads them. The name is looked up at each dial. Required.
	Server string
	// Key is the identity. Required.
	Key identity.Key
	// Services are published over one link: 1 to 64, with different (Session, Path). If the edge refuses one, the
	// others are not published either.
	Services []Service
	// EndToEnd makes this agent end visitors' TLS itself; nil leaves that to the edge.
	EndToEnd *EndToEnd
	// TLSConfig is called at each dial, so that certificates may change; nil, or a nil result, means the system's
	// roots. Its error counts as a failed dial.
	TLSConfig func() (*tls.Config, error)
	// ExitOnFailure makes Run return ErrUnreachable if the first connection fails; else it waits for the network.
	// Once connected, an agent always comes back.
	ExitOnFailure bool
	// PingInterval is the silence after which the edge may be expected to ping the link, and the agent does a tenth later;
	// after twice as long it is dialled anew. Zero or negative means 10 s.
	PingInterval time.Duration
	// MaxStreams is how many requests may be open at once; further ones are refused, and the edge tries another agent or
	// answers 503. Zero or negative means 4000: the limit that counts is the edge's, 1000 unless its operator says
	// otherwise.
	MaxStreams int
	// DrainTimeout is how long running requests may take when Run is to end. Zero means 15 s, negative no time at all.
	DrainTimeout time.Duration
	// Logger gets what a person wants to know; nil discards.
	Logger *slog.Logger
	// Hint returns what a person can do about a failure to get the first link, empty for nothing. It goes into the log with
	// the failure, unless it is the same as the last time. Nil gives no hints.
	Hint func(error) string
	// OnRegister is called each time a service has got its name, which is again after each reconnect.
	// OnDisconnect is called with the reason each time a link ends on which OnRegister was called, but not when Run
	// ends because its context does. No two calls happen at once. They must not block: the link waits for them.
	OnRegister   func(Registration)
	OnDisconnect func(error)
}

// A Service is one thing that is published.
type Service struct {
	// Session gives a further name under the same key; empty is the key's own. At most 64 bytes without spaces.
	Session string
	// Path is the prefix of the request path that is served, as identity.CleanPath allows; empty is all. The longest
	// prefix wins. It is not taken off the requests; see ForwardOptions.StripPath and http.StripPrefix.
	Path string
	// Mode says what becomes of several agents with one name: identity.ModeTakeover (also if empty), where the newest
	// sends the others away, ModeShare or ModeStandby.
	Mode string
	// Hostnames are names of your own, in lower case, under which the service is to be reached, too; at most 16. A CNAME of
	// each must lead to the service's name, or a TXT record at _harp.<name> hold its label; if not, the edge refuses the
	// registration and says which record is missing.
	Hostnames []string
	// Handler serves the requests: Forward's result, or any other. It is used as net/http's server would: from many
	// goroutines, with Flush, Hijack and trailers. Request.RequestURI is what the visitor sent, byte for byte, and
	// RemoteAddr is the visitor's address. The context of a request ends when the visitor leaves or the link is lost;
	// a handler should end then, for Run does not wait for those that do not.
	Handler http.Handler
}

// A Registration is the name that a service got.
type Registration struct {
	Session, Path string          // the Service's, Path in the form of identity.CleanPath
	Hostname, URL string          // the edge's word, checked to be printable; URL is where visitors go
	Limits        messages.Limits // what the edge holds this link to, as far as it says so
}

// An Agent publishes services for as long as Run runs.
type Agent struct {
	options  Options // with its defaults; not changed
	log      *slog.Logger
	url      string                                                                                   // of the link, ws:// or wss://
	audience string                                                                                   // what is signed: the host of url, without port
	instance string                                                                                   // random, so that the edge knows an agent that comes back
	dial     func(ctx context.Context, url string, o tunnel.DialOptions) (tunnel.Conn, string, error) // tunnel.Dial but in tests

	tlsEnd *tlsEnd // nil without EndToEnd

	links sync.WaitGroup // the links' sessions
	moves sync.WaitGroup // the draining of links that the edge wants to end
	moved []*link        // these links, oldest first, at most maxMoved; touched by Run only
}

// maxServices is how many registrations an edge has room for on one link (PROTOCOL.md, section 3.2).
const maxServices = 64

// New checks the options and returns an Agent, which does nothing until Run. The options are copied. The error says what
// is wrong with them, and never repeats a password.
func New(o Options) (*Agent, error) {
	u, err := serverURL(o.Server)
	if err != nil {
		return nil, err
	}
	if o.Key == (identity.Key{}) {
		return nil, errors.New("agent: no key")
	}
	audience := signedHost(u)
	if o.Services, err = checkServices(o.Services, audience); err != nil {
		return nil, err
	}
	if o.MaxStreams <= 0 {
		o.MaxStreams = 4 * tunnel.DefaultMaxStreams
	}
	if o.DrainTimeout == 0 {
		o.DrainTimeout = 15 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	end, err := newTLSEnd(o.EndToEnd, o.Services, o.Logger)
	if err != nil {
		return nil, err
	}
	var instance [8]byte
	_, _ = rand.Read(instance[:]) // never fails (crypto/rand)
	return &Agent{
		options: o, log: o.Logger, url: u.String(), audience: audience,
		instance: hex.EncodeToString(instance[:]), dial: tunnel.Dial, tlsEnd: end,
	}, nil
}

// serverURL is the URL of the link for what a person typed.
func serverURL(server string) (*url.URL, error) {
	if strings.Contains(server, "@") {
		return nil, errors.New("agent: the server's URL holds more than scheme, host and port")
	}
	text := server
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("agent: server %q is no URL such as https://tunnels.example.com", server)
	}
	if u.Host, err = asciiHost(u); err != nil {
		return nil, fmt.Errorf("agent: server %q: %w", server, err)
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return nil, fmt.Errorf("agent: server %q: the port must be 1 to 65535", server)
		}
	}
	switch u.Scheme {
	case "https", "wss":
		u.Scheme = "wss"
	case "http", "ws":
		u.Scheme = "ws"
	default:
		return nil, fmt.Errorf("agent: server %q: the scheme must be https or http", server)
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host, Path: messages.ConnectPath}, nil
}

// asciiHost is the host of u, with its port, in lower case and as net/http dials it: what is signed must be what is
// dialled.
func asciiHost(u *url.URL) (string, error) {
	host := strings.ToLower(u.Host)
	if strings.IndexFunc(host, func(c rune) bool { return c >= utf8.RuneSelf }) < 0 {
		return host, nil
	}
	host, err := idna.Lookup.ToASCII(u.Hostname())
	if err != nil {
		return "", err
	}
	if port := u.Port(); port != "" {
		host += ":" + port
	}
	return host, nil
}

// signedHost is the host of u as it goes into the audience (PROTOCOL.md, section 3.3).
func signedHost(u *url.URL) string {
	host := strings.TrimSuffix(u.Hostname(), ".")
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}

func checkServices(services []Service, audience string) ([]Service, error) {
	switch n := len(services); {
	case n == 0:
		return nil, errors.New("agent: no services")
	case n > maxServices:
		return nil, fmt.Errorf("agent: %d services, at most %d are allowed", n, maxServices)
	}
	seen := make(map[[2]string]bool)
	checked := make([]Service, len(services))
	for i, s := range services {
		if s.Handler == nil {
			return nil, fmt.Errorf("agent: service %q%s has no handler", s.Session, s.Path)
		}
		claim := identity.Registration{
			Audience: audience, Challenge: "-", Session: s.Session, Path: s.Path, Mode: s.Mode, Hostnames: s.Hostnames,
		}
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
// returns nil. Lost links are dialled anew for ever, after a random time below a bound that doubles up to 10 s. When the
// edge wants the agent to connect again, running requests finish beside the next link, for an hour. Call Run once.
//
// It returns early with a *RefusedError, with ErrReplaced, or, with ExitOnFailure, with an error that wraps
// ErrUnreachable. A server that answers with an HTTP error that trying again does not cure counts as a refusal before
// the first link; later it is taken for one that is being worked on. A service that is replaced or revoked while others
// are not is logged, and not asked for again; Run returns when it was the last.
func (a *Agent) Run(ctx context.Context) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	a.tlsEnd.live(work)
	moving, leave := context.WithCancel(ctx)
	defer a.wait()
	defer stop()
	defer a.moves.Wait()
	defer leave()
	var retry backoff
	said := "" // the last hint
	services := a.options.Services
	for connected := false; ; {
		l, err := a.connect(ctx, work, services)
		up := time.Now()
		if err == nil {
			connected = true
			err = a.serve(moving, l)
		}
		if l != nil {
			services = l.remaining()
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrReplaced), isFinal(err, connected):
			return err
		case !connected && a.options.ExitOnFailure:
			return fmt.Errorf("%w: %w", ErrUnreachable, err)
		}
		if time.Since(up) > steady {
			retry = backoff{}
			if errors.Is(err, errMoveOn) {
				a.log.Info("moving to a new link", "reason", err)
				continue
			}
		}
		wait := retry.next()
		said = a.sayNoLink(err, wait, said, connected)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// sayNoLink logs a failure, with a hint before the first link unless that was said the last time. It returns the hint.
func (a *Agent) sayNoLink(err error, wait time.Duration, said string, connected bool) (hint string) {
	if !connected && a.options.Hint != nil {
		hint = a.options.Hint(err)
	}
	facts := []any{"reason", err}
	if hint != "" && hint != said {
		facts = append(facts, "hint", hint)
	}
	a.log.Warn("no link", append(facts, "again in", wait.Round(time.Millisecond))...)
	return hint
}

// handlerGrace is how long Run waits for handlers whose requests are over. It is longer than a link waits for its last
// words to be sent.
const handlerGrace = 2 * time.Second

// wait waits for the links, whose handlers may be some that obey no context.
func (a *Agent) wait() {
	done := make(chan struct{})
	go func() { a.links.Wait(); close(done) }() // ends with the last handler
	select {
	case <-done:
	case <-time.After(handlerGrace):
		a.log.Warn("some handlers ignore that their request is over")
	}
}
