// Package server is HARP's edge: an http.Handler that accepts the links of agents and sends visitors' requests
// through them.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

// The defaults of Options.
const (
	DefaultMaxBody        = 500 << 10
	DefaultRequestTimeout = 30 * time.Second
	DefaultRateLimit      = 100
	DefaultRateBurst      = 500
	DefaultPassIdle       = time.Hour
)

const (
	maxPendingLinks  = 1024             // links that have not registered yet
	registerTimeout  = 10 * time.Second // for a link's first registration
	maxRegistrations = 64               // in force on one link
	maxRequestHead   = 128 << 10        // bytes of a visitor's request head
	replacedGrace    = time.Minute      // for the running streams of a link that has lost its last registration
)

// Options say how a Server behaves.
type Options struct {
	// Domain is the name below which tunnels get theirs: <label>.<Domain>. Required; a port is not part of it.
	Domain string
	// Audiences are further hosts for which agents may sign. Domain is always one, and on loopback
	// connections so are loopback names.
	Audiences []string
	// MaxBody bounds each request body, response body and WebSocket message, in bytes. Zero means 512,000, negative no limit.
	MaxBody int64
	// RequestTimeout is how long a visitor waits for a response head while nothing of the request body moves.
	// Zero means 30 s.
	RequestTimeout time.Duration
	// PingInterval is the silence after which a link is pinged; after twice as long it is dropped. Zero means 10 s.
	PingInterval time.Duration
	// RateLimit and RateBurst bound the requests a second to one hostname, and how many may come at once.
	// Zero means 100 and 500; a negative RateLimit means no limit.
	RateLimit float64
	RateBurst int
	// VisitorRateLimit and VisitorRateBurst are the same for one visitor's address (IPv6: its /64). Zero means no limit.
	VisitorRateLimit float64
	VisitorRateBurst int
	// MaxStreams is how many requests may be open at once on one link. Zero means 1000.
	MaxStreams int
	// AuthorizedKeys is a file with the keys that may register; empty means anyone may. Run follows its changes.
	AuthorizedKeys string
	// Open says that anyone may register and that this is meant; without it, and without AuthorizedKeys, New warns.
	Open bool
	// ProveHostname returns nil if the holder of a key may serve a hostname of its own, which is in lower case: it leads to
	// the label, which is computed from the key. An error is told to the agent, which tries again if it has a method
	// Temporary that says so. It is asked at each registration, from many goroutines, and ends with ctx, after 8 s at most. Nil
	// refuses all hostnames, as does NoHostRoute.
	ProveHostname func(ctx context.Context, thumbprint, label, hostname string) error
	// OnHostname is called when a registration with a proven hostname, whose TLS ends here, was granted. It must not wait.
	// Nil does nothing.
	OnHostname func(hostname string)
	// PassTLS says that whoever accepts visitors' TLS connections asks PassThrough for each, so that agents may end TLS
	// themselves.
	PassTLS bool
	// PassIdle is how long a connection whose TLS ends at the agent may be silent in both directions. Zero means 1 h, negative
	// no limit.
	PassIdle time.Duration
	// HSTS is how long browsers must use HTTPS for a name from which they had an answer over TLS (RFC 6797), in whole seconds.
	// Zero and less mean no rule. A service's own rule stands.
	HSTS time.Duration
	// TrustedProxies are the networks whose forwarded fields are believed.
	TrustedProxies []netip.Prefix
	// NoHostRoute turns routing by hostname off. RouteByPath also serves https://<Domain>/t/<label>/…, RouteByHeader
	// requests to Domain that have Harp-Tunnel: <label>.
	NoHostRoute, RouteByPath, RouteByHeader bool
	// Metrics is where the Prometheus metrics go; nil means a registry of the server's own.
	Metrics *prometheus.Registry
	// Logger gets what an operator wants to know; nil discards.
	Logger *slog.Logger
}

// A Server is an edge. It is an http.Handler for any mux; see ServeHTTP for what it asks of the http.Server.
type Server struct {
	options Options // with its defaults; not changed
	log     *slog.Logger
	proxies trustedProxies
	hsts    string // the rule; empty for none
	keys    *authorizedKeys
	metrics *metrics
	hosts   *limiterSet[string]     // by label
	visits  *limiterSet[netip.Addr] // by visitor
	proofs  *limiterSet[netip.Addr] // by agent
	routes  *registry
	names   *hostnames
	started time.Time
	ended   chan struct{} // closed when Shutdown has ended all links

	mu       sync.Mutex // guards the fields below
	links    map[*link]struct{}
	pending  int // links that have not registered
	closing  bool
	hasEnded bool           // ended is closed
	running  sync.WaitGroup // the links' goroutines
}

// New checks the options and returns a Server. The error is for the operator: it names what is wrong.
func New(o Options) (*Server, error) {
	o = o.withDefaults()
	if o.Domain == "" {
		return nil, errors.New("server: no domain")
	}
	keys, err := newAuthorizedKeys(o.AuthorizedKeys, o.Logger)
	if err != nil {
		return nil, err
	}
	m, err := newMetrics(o.Metrics)
	if err != nil {
		return nil, fmt.Errorf("server: register metrics: %w", err)
	}
	if o.AuthorizedKeys == "" && !o.Open {
		o.Logger.Warn("ANYONE MAY REGISTER A TUNNEL HERE: there is no --authorized-keys to name those who may")
	}
	return &Server{
		options: o, log: o.Logger, proxies: o.TrustedProxies, hsts: hstsRule(o.HSTS), keys: keys, metrics: m,
		hosts:   newLimiterSet[string](o.RateLimit, o.RateBurst, 0),
		visits:  newLimiterSet[netip.Addr](o.VisitorRateLimit, o.VisitorRateBurst, 0),
		proofs:  newLimiterSet[netip.Addr](proofRate, proofBurst, 0),
		routes:  newRegistry(),
		names:   newHostnames(),
		started: time.Now(),
		ended:   make(chan struct{}),
		links:   make(map[*link]struct{}),
	}, nil
}

func (o Options) withDefaults() Options {
	o.Domain = canonicalHost(o.Domain)
	if o.MaxBody == 0 {
		o.MaxBody = DefaultMaxBody
	}
	if o.RequestTimeout <= 0 {
		o.RequestTimeout = DefaultRequestTimeout
	}
	if o.PingInterval <= 0 {
		o.PingInterval = tunnel.DefaultPingInterval
	}
	if o.RateLimit == 0 {
		o.RateLimit = DefaultRateLimit
	}
	if o.RateBurst <= 0 {
		o.RateBurst = DefaultRateBurst
	}
	if o.MaxStreams <= 0 {
		o.MaxStreams = tunnel.DefaultMaxStreams
	}
	if o.PassIdle == 0 {
		o.PassIdle = DefaultPassIdle
	}
	if o.Metrics == nil {
		o.Metrics = prometheus.NewRegistry()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Run follows the file of authorized keys until ctx ends. A server without one needs no Run.
func (s *Server) Run(ctx context.Context) { s.keys.watch(ctx, s.revoke) }

// ServeHTTP serves visitors, and agents at /.well-known/harp/connect on every host that is not a tunnel's. For full
// fidelity the http.Server wants DisableGeneralOptionsHandler (or OPTIONS * does not get here), no ReadTimeout and no
// WriteTimeout (they cut streams), and Protocols with HTTP/2 for gRPC. Behind an http.ServeMux, paths get cleaned: mount
// the Server as the handler itself where targets must arrive byte for byte.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var sent fastVisit
	if c, ok := r.Context().Value(fastConnKey{}).(*fastConn); ok {
		switch sent = c.takeVisit(); {
		case sent.is(r):
			s.takeOver(w, r, sent)
			return
		case sent.pending != nil:
			s.giveUp(sent)
			sent = fastVisit{}
		}
	}
	id := requestID(r)
	s.mark(w.Header(), r, id)
	to, apex := s.resolve(r)
	switch {
	case apex && r.URL.Path == messages.ConnectPath:
		hurry(w, r)
		s.serveLink(w, r)
	case to.label == "":
		s.metrics.status(http.StatusNotFound).Inc()
		s.refuse(w, r, noTunnelError())
	default:
		s.serveVisitor(w, r, to, id, sent.paid)
	}
}

// strictTransport is the name of the field that tells browsers to use HTTPS from now on.
const strictTransport = "Strict-Transport-Security"

func hstsRule(life time.Duration) string {
	if life <= 0 {
		return ""
	}
	return fmt.Sprintf("max-age=%d", int(life/time.Second))
}

// mark sets the fields of an answer that are the edge's own, unless the service has them, too.
func (s *Server) mark(h http.Header, r *http.Request, id string) {
	h["X-Request-Id"] = []string{id}
	if s.hsts != "" && r.TLS != nil {
		h[strictTransport] = []string{s.hsts}
	}
}

// refuse answers a visitor in place of an upstream. The request's body has not been touched.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, e visitorError) {
	hurry(w, r)
	s.answer(w, r, e)
}

// answer writes e, counts it and logs it.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, e visitorError) {
	s.metrics.failure(e.Code)
	s.log.Debug("visitor refused", "id", w.Header()["X-Request-Id"], "code", e.Code, "method", r.Method, "host", r.Host,
		"target", r.RequestURI, "from", r.RemoteAddr)
	writeError(w, r, e)
}

// hurry bounds the time that a visitor who is refused may take for the body.
func hurry(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(refusedLinger))
	}
}

// A destination is where a request wants to go.
type destination struct {
	label  string
	target string // request target for the upstream
	prefix string // what was taken off the visitor's request target, for X-Forwarded-Prefix
}

// resolve finds the label that r names. apex says that the host is no tunnel's, so that agents may connect to it.
func (s *Server) resolve(r *http.Request) (to destination, apex bool) {
	to.target = r.RequestURI
	if r.ProtoMajor == 1 {
		to.target = originForm(r.Method, r.RequestURI)
	}
	host := canonicalHost(r.Host)
	if to.label = s.labelOf(host); to.label != "" {
		return to, false
	}
	if host != s.options.Domain {
		return destination{}, true
	}
	if s.options.RouteByHeader {
		if v := r.Header["Harp-Tunnel"]; len(v) == 1 && identity.ValidLabel(v[0]) {
			to.label = v[0]
			return to, false
		}
	}
	if s.options.RouteByPath {
		if rest, ok := strings.CutPrefix(to.target, "/t/"); ok {
			end := strings.IndexAny(rest, "/?")
			if end < 0 {
				end = len(rest)
			}
			if identity.ValidLabel(rest[:end]) {
				to.label, to.prefix = rest[:end], "/t/"+rest[:end]
				if to.target = rest[end:]; !strings.HasPrefix(to.target, "/") {
					to.target = "/" + to.target
				}
				return to, false
			}
		}
	}
	return destination{}, true
}

// labelOf returns the label that a host, in canonical form, stands for; empty if it is no tunnel's.
func (s *Server) labelOf(host string) string {
	name, ok := strings.CutSuffix(host, s.options.Domain)
	switch {
	case ok && name == "":
		return ""
	case !ok || !strings.HasSuffix(name, "."):
		label, _ := s.names.lookup(host)
		return label
	}
	if name = name[:len(name)-1]; s.options.NoHostRoute || !identity.ValidLabel(name) {
		return ""
	}
	return name
}

// originForm is target without scheme and authority, which only a proxy needs (RFC 9112, sections 3.2.2 and 3.2.4).
func originForm(method, target string) string {
	if strings.HasPrefix(target, "/") || target == "*" {
		return target
	}
	_, rest, ok := strings.Cut(target, "://")
	if !ok || strings.HasPrefix(rest, "/") { // no authority
		return target
	}
	if i := strings.IndexAny(rest, "/?"); i < 0 && method == http.MethodOptions {
		return "*"
	} else if i < 0 {
		return "/"
	} else if rest[i] == '?' {
		return "/" + rest[i:]
	} else {
		return rest[i:]
	}
}

// canonicalHost is a Host field in lower case, without port and last dot. It allocates only for upper case.
func canonicalHost(host string) string {
	return strings.ToLower(strings.TrimSuffix(hostWithoutPort(host), "."))
}

func hostWithoutPort(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && strings.IndexByte(host[i:], ']') < 0 {
		return host[:i]
	}
	return host
}

// Shutdown tells every agent to connect elsewhere, lets running requests finish until ctx ends, and closes all links.
// It returns nil if all of them finished.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closing = true
	links := make([]*link, 0, len(s.links))
	for l := range s.links {
		links = append(links, l)
	}
	s.mu.Unlock()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	for _, l := range links {
		wg.Go(func() { // ends with ctx
			l.session.Disconnect(messages.Disconnect{Code: messages.DisconnectDraining, Reason: "the server restarts"})
			if err := l.session.Drain(ctx); err != nil && ctx.Err() != nil {
				mu.Lock()
				first = errors.Join(first, err)
				mu.Unlock()
			}
			l.end(errShutdown)
		})
	}
	wg.Wait()
	s.running.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hasEnded {
		return first
	}
	s.hasEnded = true
	close(s.ended)
	return first
}

// stopping reports whether Shutdown has begun.
func (s *Server) stopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

var errShutdown = errors.New("the server stops")
