package server

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

const (
	// proofTimeout bounds the proof of all hostnames of one registration.
	proofTimeout = 8 * time.Second
	// hostnameMemory is how long a hostname is remembered after its last registration has gone.
	hostnameMemory = 24 * time.Hour
	// proofRate and proofBurst bound the proofs a second for one address of agents, and how many may come at once: each
	// makes this server ask the DNS for names of the agent's choice.
	proofRate, proofBurst = 1, 100
)

// hostnames are the names of their own that agents serve, beside those below the domain.
type hostnames struct {
	any atomic.Bool // whether there was ever one: most edges have none

	mu     sync.RWMutex
	owners map[string]*owner // by hostname; those that nobody serves now are at most maxRemembered
	idle   int               // how many nobody serves now
}

// An owner is the label that a hostname was last proven for.
type owner struct {
	label   string
	serving map[*registration]struct{}
	left    time.Time // when the last of serving went
}

func newHostnames() *hostnames { return &hostnames{owners: make(map[string]*owner)} }

// lookup returns the label that serves a hostname, or has served it a short while ago.
func (h *hostnames) lookup(hostname string) (label string, ok bool) {
	if !h.any.Load() {
		return "", false
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	o := h.owners[hostname]
	if o == nil || len(o.serving) == 0 && time.Since(o.left) > hostnameMemory {
		return "", false
	}
	return o.label, true
}

// claim gives r's hostnames, which are proven, to r's label. Another label that had one has lost the proof since.
func (h *hostnames) claim(r *registration) {
	if len(r.hostnames) == 0 {
		return
	}
	h.any.Store(true)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, name := range r.hostnames {
		o := h.owners[name]
		if o != nil && len(o.serving) == 0 {
			h.idle--
		}
		if o == nil || o.label != r.label {
			o = &owner{label: r.label, serving: make(map[*registration]struct{})}
			h.owners[name] = o
		}
		o.serving[r] = struct{}{}
	}
}

// release takes r out; its hostnames are remembered for a while.
func (h *hostnames) release(r *registration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, name := range r.hostnames {
		o := h.owners[name]
		if o == nil {
			continue
		}
		if _, ok := o.serving[r]; !ok {
			continue
		}
		delete(o.serving, r)
		if len(o.serving) == 0 {
			o.left = time.Now()
			h.idle++
		}
	}
	if h.idle > maxRemembered {
		h.forgetLocked()
	}
}

// forgetLocked drops what is remembered too long, or any tenth if that is not enough.
func (h *hostnames) forgetLocked() {
	for name, o := range h.owners {
		if len(o.serving) == 0 && (time.Since(o.left) > hostnameMemory || h.idle > maxRemembered*9/10) {
			delete(h.owners, name)
			h.idle--
		}
	}
}

// ServesHostname reports whether an agent has proven the hostname, which is in lower case and not below Domain, and
// serves it now or did within the last day, with TLS that ends here. It is what decides whether to get a certificate for
// a name.
func (s *Server) ServesHostname(hostname string) bool {
	label, ok := s.names.lookup(hostname)
	if !ok {
		return false
	}
	_, passed := s.routes.endToEnd(label)
	return !passed
}

// LabelOf returns the label that a hostname of its own was proven for, now or within the last day.
func (s *Server) LabelOf(hostname string) (label string, ok bool) { return s.names.lookup(hostname) }

// prove checks each hostname that r asks for.
func (l *link) prove(ctx context.Context, r *registration) *messages.RegistrationError {
	if len(r.hostnames) == 0 {
		return nil
	}
	o := l.server.options
	if o.ProveHostname == nil || o.NoHostRoute {
		return refuse(messages.RefuseUnsupported, "this server does not serve hostnames of your own", false)
	}
	for _, name := range r.hostnames {
		if l.server.owns(name) {
			return refuse(messages.RefuseHostname, name+" is a name of this server", false)
		}
		if !l.server.proofs.allow(visitorKey(l.visitor)) {
			return refuse(messages.RefuseLimit, "too many hostnames are to be looked up: try again in a minute", true)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	errs := make([]error, len(r.hostnames))
	var wg sync.WaitGroup
	for i, name := range r.hostnames {
		wg.Go(func() { errs[i] = o.ProveHostname(ctx, r.thumbprint.String(), r.label, name) }) // ends with ctx
	}
	wg.Wait()
	return refuseUnproven(errs)
}

// refuseUnproven is the refusal for the first of errs that will not pass by itself, or else for the first; nil if all are.
func refuseUnproven(errs []error) (refusal *messages.RegistrationError) {
	for _, err := range errs {
		if err == nil {
			continue
		}
		var passing interface{ Temporary() bool }
		retry := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) ||
			errors.As(err, &passing) && passing.Temporary()
		if refusal == nil || refusal.Retry && !retry {
			refusal = refuse(messages.RefuseHostname, cleanReason(err.Error()), retry)
		}
	}
	return refusal
}

// owns reports whether a name is the server's own or one of a tunnel below its domain.
func (s *Server) owns(name string) bool {
	if name == s.options.Domain || strings.HasSuffix(name, "."+s.options.Domain) {
		return true
	}
	return slices.ContainsFunc(s.options.Audiences, func(a string) bool { return audienceName(a) == name })
}
