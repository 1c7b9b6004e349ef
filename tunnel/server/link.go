package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

var (
	errLeft     = errors.New("the agent left")
	errRevoked  = errors.New("the key is no longer authorized")
	errLate     = errors.New("it did not register in time")
	errReplaced = errors.New("another agent has taken its names")
)

// A link is one agent's connection, from its first message on.
type link struct {
	server    *Server
	session   *tunnel.Session
	conn      tunnel.Conn
	challenge string
	visitor   netip.Addr // the agent's address
	loopback  bool       // the connection comes from this machine
	scheme    string     // by which the agent came
	port      string     // to which it came, with its colon; empty for the scheme's own
	since     time.Time
	requests  atomic.Uint64 // carried so far

	mu            sync.Mutex // guards the fields below; taken before Server.mu and registry.mu
	registrations []*registration
	lastID        uint32
	gone          bool                    // no more registrations
	left          bool                    // the agent has said that it goes
	asked         [][]byte                // registration requests that have no answer yet, in their order
	stop          context.CancelCauseFunc // ends the work on a registration request; nil while there is none

	registering sync.WaitGroup // the goroutine that answers them
}

// served orders links by how much they have carried.
func (l *link) served(o *link) int {
	a, b := l.requests.Load(), o.requests.Load()
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// serveLink accepts an agent's WebSocket. The link lives on after this has returned.
func (s *Server) serveLink(w http.ResponseWriter, r *http.Request) {
	if !s.admit() {
		s.metrics.limit(limitPendingLinks)
		w.Header().Set("Retry-After", "5")
		http.Error(w, "this server stops, or too many agents are connecting: try again later", http.StatusServiceUnavailable)
		return
	}
	addr, scheme, _, _ := s.proxies.visitor(r)
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails (crypto/rand)
	challenge := base64.RawURLEncoding.EncodeToString(raw[:])
	conn, err := tunnel.Accept(w, r, challenge)
	if err != nil {
		s.settle()
		s.running.Done()
		s.log.Debug("link refused", "from", addr, "error", err)
		return
	}
	if r.Header.Get("X-Forwarded-Proto") == "https" {
		scheme = "https" // a claim, but it only goes into the URL that this agent is told
	}
	l := &link{
		server: s, conn: conn, challenge: challenge, visitor: addr, loopback: addr.IsLoopback(),
		scheme: scheme, port: portOf(r.Host, scheme), since: time.Now(),
	}
	l.session = tunnel.NewSession(conn, tunnel.Config{
		MaxStreams: s.options.MaxStreams, PingInterval: s.options.PingInterval,
		OnText: l.handleText, OnDisconnect: l.handleDisconnect, Logger: s.log,
	})
	ctx, stop := context.WithCancelCause(context.Background())
	l.stop = stop
	s.remember(l)
	go l.open(ctx) // ends with the first registration request
}

// admit counts a link that is about to be accepted, unless there are too many or the server stops.
func (s *Server) admit() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing || s.pending >= maxPendingLinks {
		return false
	}
	s.pending++
	s.running.Add(1)
	return true
}

// remember lets Shutdown find the link; if that has begun, the link ends at once.
func (s *Server) remember(l *link) {
	s.mu.Lock()
	s.links[l] = struct{}{}
	closing := s.closing
	s.mu.Unlock()
	if closing {
		l.end(errShutdown)
	}
}

// forget is the last that a link does.
func (s *Server) forget(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.links, l)
	s.running.Done()
}

// settle counts a link as no longer pending.
func (s *Server) settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending--
}

// open handles the first message and lets the link live on in the session's own goroutines: this one's stack has grown, and
// an idle link is to be small. ctx is l.stop's.
func (l *link) open(ctx context.Context) {
	s := l.server
	late := time.AfterFunc(registerTimeout, func() { l.end(errLate) })
	keep := context.AfterFunc(ctx, func() { _ = l.conn.Close() })
	err := l.begin(ctx, late)
	late.Stop()
	keep()
	l.mu.Lock()
	l.stop(nil)
	l.stop = nil
	l.mu.Unlock()
	s.settle()
	if err != nil {
		s.log.Debug("link ended before it registered", "from", l.visitor, "error", err)
		_ = l.conn.Close()
		l.leave()
		s.forget(l)
		return
	}
	s.metrics.link(1)
	s.log.Info("link up", "from", l.visitor)
	l.session.Start(l.down)
}

// down is called when the session has ended, with the reason.
func (l *link) down(reason error) {
	s := l.server
	l.leave()
	l.end(nil)
	l.registering.Wait()
	s.metrics.link(-1)
	if l.hasLeft() {
		reason = errLeft
	}
	s.log.Info("link down", "from", l.visitor, "after", time.Since(l.since).Round(time.Second), "reason", reason)
	s.forget(l)
}

// end ends the link for the given reason, nil for tunnel.ErrClosed. Only the first counts.
func (l *link) end(reason error) {
	l.session.Close(reason)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stop != nil {
		l.stop(reason)
	}
}

func (l *link) hasLeft() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.left
}

// begin handles the first message, which must be a registration request that is granted. late ends the link.
func (l *link) begin(ctx context.Context, late *time.Timer) error {
	text, r, err := l.conn.NextMessage()
	if err != nil {
		return err
	}
	raw, err := io.ReadAll(io.LimitReader(r, messages.MaxText+1))
	if err != nil {
		return err
	}
	if !text {
		raw = nil
	}
	late.Reset(registerTimeout) // from here on it is the edge that takes time, for a proof
	refusal := l.register(ctx, raw)
	if refusal == nil {
		return nil
	}
	answer, err := messages.EncodeRegistrationResponse(messages.RegistrationResponse{Error: refusal})
	if err == nil {
		err = l.conn.WriteText(answer)
	}
	if err != nil {
		return fmt.Errorf("refuse (%s): %w", refusal.Code, err)
	}
	return fmt.Errorf("refused (%s): %w", refusal.Code, refusal)
}

// handleText takes a further registration request. They are answered in their order, outside the reader, which must not
// wait for a proof.
func (l *link) handleText(text []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.asked) > maxRegistrations {
		return fmt.Errorf("%w: too many registration requests at once", tunnel.ErrProtocol)
	}
	l.asked = append(l.asked, bytes.Clone(text))
	if len(l.asked) == 1 {
		ctx, stop := context.WithCancelCause(context.Background())
		l.stop = stop
		l.registering.Go(func() { l.registerAsked(ctx) }) // ends when all are answered, or with the link
	}
	return nil
}

// registerAsked answers the requests that have come. A refusal does not end the link.
func (l *link) registerAsked(ctx context.Context) {
	for text := l.nextAsked(false); text != nil; text = l.nextAsked(true) {
		refusal := l.register(ctx, text)
		if refusal == nil {
			continue
		}
		answer, err := messages.EncodeRegistrationResponse(messages.RegistrationResponse{Error: refusal})
		if err == nil {
			err = l.session.SendText(answer)
		}
		if err != nil {
			l.end(err)
		}
	}
}

// nextAsked is the oldest request that has no answer, after the one that has one now, if done; nil if there is none.
func (l *link) nextAsked(done bool) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if done {
		l.asked = l.asked[1:]
	}
	if len(l.asked) == 0 {
		l.stop(nil)
		l.asked, l.stop = nil, nil
		return nil
	}
	return l.asked[0]
}

// handleDisconnect takes the agent's word that it leaves, or gives one name up.
func (l *link) handleDisconnect(d messages.Disconnect) {
	if d.Registration == 0 {
		l.mu.Lock()
		l.left = true
		l.mu.Unlock()
		l.leave()
		return
	}
	l.mu.Lock()
	r := l.removeLocked(d.Registration)
	l.mu.Unlock()
	l.server.unregister(r)
}

// removeLocked returns the registration of that number, which the link has no more; nil if it had none.
func (l *link) removeLocked(id uint32) *registration {
	i := slices.IndexFunc(l.registrations, func(r *registration) bool { return r.id == id })
	if i < 0 {
		return nil
	}
	r := l.registrations[i]
	l.registrations = slices.Delete(l.registrations, i, i+1)
	return r
}

// leave takes all of the link's registrations out of service, for good.
func (l *link) leave() {
	l.mu.Lock()
	all := l.registrations
	l.registrations, l.gone = nil, true
	l.mu.Unlock()
	for _, r := range all {
		l.server.unregister(r)
	}
}

func (s *Server) unregister(r *registration) {
	if r != nil && s.routes.remove(r) {
		s.names.release(r)
		s.metrics.registration(-1)
		s.log.Info("unregistered", "hostname", r.label+"."+s.options.Domain, "path", r.path)
	}
}

// drop tells the agent that a registration, already out of the registry, is over, and ends a link that has none left.
func (l *link) drop(r *registration, code messages.DisconnectCode, cause error) {
	l.mu.Lock()
	l.removeLocked(r.id)
	last := len(l.registrations) == 0 && !l.gone
	l.mu.Unlock()
	l.session.Disconnect(messages.Disconnect{Code: code, Registration: r.id, Reason: cause.Error()})
	if last {
		time.AfterFunc(replacedGrace, func() { l.endIfIdle(cause) })
	}
}

// endIfIdle ends a link that still has no registration.
func (l *link) endIfIdle(cause error) {
	l.mu.Lock()
	idle := len(l.registrations) == 0
	l.mu.Unlock()
	if idle {
		l.end(cause)
	}
}

// revoke cuts the links of keys that are no longer authorized.
func (s *Server) revoke() {
	s.mu.Lock()
	links := make([]*link, 0, len(s.links))
	for l := range s.links {
		links = append(links, l)
	}
	s.mu.Unlock()
	for _, l := range links {
		if l.revoked() {
			s.log.Warn("link cut: its key is no longer authorized", "from", l.visitor)
			l.leave()
			l.session.Disconnect(messages.Disconnect{Code: messages.DisconnectRevoked, Reason: errRevoked.Error()})
			l.end(errRevoked)
		}
	}
}

func (l *link) revoked() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.registrations {
		if !l.server.keys.allowed(r.thumbprint) {
			return true
		}
	}
	return false
}

// portOf is the port of a Host field with its colon, empty if it is the scheme's own.
func portOf(host, scheme string) string {
	port := host[len(hostWithoutPort(host)):]
	if scheme == "https" && port == ":443" || scheme == "http" && port == ":80" {
		return ""
	}
	return port
}
