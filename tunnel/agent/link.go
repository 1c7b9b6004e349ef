package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

const (
	dialTimeout     = 20 * time.Second
	registerTimeout = 15 * time.Second
	// moveTimeout is how long requests on a link that the edge wants to end may still run.
	moveTimeout = time.Hour
	// maxMoved is how many such links are kept beside the one in use. An edge that asks for more loses the oldest.
	maxMoved = 8
	// maxShown is how many characters of the edge's words are shown. DNS records that an edge asks for fit in whole.
	maxShown = 2500

	codeHTTP    = "http"
	codeRevoked = "revoked"
)

var (
	// errMoveOn is why an agent leaves a link that the edge wants to end.
	errMoveOn = errors.New("the server asks to connect again")

	errTooManyMoves = errors.New("the server has moved this agent too often")
)

// A link is one connection to the edge, with the services registered on it.
type link struct {
	agent      *Agent
	session    *tunnel.Session
	registered chan struct{} // closed when every service has its name
	disconnect chan error    // gets errMoveOn, ErrReplaced or a *RefusedError, at most once

	mu       sync.Mutex // guards the fields below
	waiting  []Service  // requests that were not answered yet, in their order
	services map[uint32]Service
	kept     []Service // what the next link is to ask for; not changed in place

	life      context.Context        // ends with the session; set before that runs
	tls       map[uint32]*tlsService // by registration
	tlsClosed bool                   // no more are to come

	told sync.Mutex // held while the program is told; guards the fields below
	up   bool       // OnRegister was called
	down bool       // OnDisconnect was called, or would have been
}

// connect dials the edge and registers the services. ctx bounds that; work is the life of the link. The link is nil if
// there was none; with an error it has been ended.
func (a *Agent) connect(ctx, work context.Context, services []Service) (*link, error) {
	var trust *tls.Config
	if a.options.TLSConfig != nil {
		var err error
		if trust, err = a.options.TLSConfig(); err != nil {
			return nil, err
		}
	}
	dial, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, challenge, err := a.dial(dial, a.url, tunnel.DialOptions{TLS: trust, Proxy: true})
	if err != nil {
		if dial.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("the server did not answer in %v", dialTimeout)
		}
		return nil, asRefusal(err)
	}
	l := &link{
		agent: a, registered: make(chan struct{}), disconnect: make(chan error, 1),
		waiting: services, kept: services, services: make(map[uint32]Service),
	}
	config := tunnel.Config{
		Handler: l.handler, PingInterval: a.options.PingInterval, MaxStreams: a.options.MaxStreams,
		OnText: l.handleText, OnDisconnect: l.handleDisconnect, Logger: a.log,
	}
	if a.tlsEnd != nil {
		config.TLSHandler = l.takeTLS
	}
	l.session = tunnel.NewSession(conn, config)
	for _, s := range services {
		text, err := a.request(s, challenge)
		if err == nil {
			err = l.session.SendText(text)
		}
		if err != nil {
			_ = conn.Close()
			return nil, err
		}
	}
	life, end := context.WithCancel(work)
	l.life = life
	a.links.Go(func() { // ends with the link
		defer l.closeTLS()
		defer end()
		_ = l.session.Run(work)
	})
	return l, l.awaitRegistration(ctx)
}

// asRefusal makes an answer that trying again does not cure a *RefusedError: an error of the client, or a redirect for
// good, which is not followed because the signed audience is the host that the person named.
func asRefusal(err error) error {
	var refused *tunnel.RefusedError
	if !errors.As(err, &refused) {
		return err
	}
	switch status := refused.Status; {
	case status == http.StatusTooManyRequests:
		return err
	case status == http.StatusMovedPermanently, status == http.StatusPermanentRedirect, status >= 400 && status < 500:
		return &RefusedError{Code: codeHTTP, Reason: printable(refused.Error()), answer: refused}
	}
	return err
}

// request is the signed RegistrationRequest for s.
func (a *Agent) request(s Service, challenge string) ([]byte, error) {
	jws, err := a.options.Key.Sign(identity.Registration{
		Audience: a.audience, Challenge: challenge, Session: s.Session, Path: s.Path, Mode: s.Mode, Instance: a.instance,
		Hostnames: s.Hostnames, EndToEnd: a.tlsEnd != nil,
	})
	if err != nil {
		return nil, err
	}
	return messages.EncodeRegistrationRequest(messages.RegistrationRequest{JWS: jws})
}

// awaitRegistration waits until every service has its name. On an error the link has been ended.
func (l *link) awaitRegistration(ctx context.Context) (err error) {
	timer := time.NewTimer(registerTimeout)
	defer timer.Stop()
	select {
	case <-l.registered:
		return nil
	case err = <-l.disconnect:
		l.tell(err) // for serve, should the names be there
	case <-l.session.Ended():
		err = l.cause()
	case <-timer.C:
		err = errors.New("the server did not answer the registration")
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	select {
	case <-l.registered: // before that happened, which serve will find
		return nil
	default:
	}
	l.session.Close(err)
	if ctx.Err() == nil {
		l.lost(err)
	}
	return err
}

// cause is why a link has ended: the reason that the edge gave, else the session's.
func (l *link) cause() error {
	select {
	case err := <-l.disconnect:
		l.tell(err) // it stays the reason
		return err
	default:
		return l.session.Err()
	}
}

// handleText takes the answer to the oldest request that has none.
func (l *link) handleText(text []byte) error {
	answer, err := messages.ParseRegistrationResponse(text)
	if err != nil {
		return fmt.Errorf("%w: %w", tunnel.ErrProtocol, err)
	}
	if !isPrintable(answer.Hostname) || !isPrintable(answer.URL) {
		return fmt.Errorf("%w: a name that cannot be printed", tunnel.ErrProtocol)
	}
	service, last, err := l.take(answer)
	if err != nil {
		return err
	}
	r := Registration{Session: service.Session, Path: service.Path, Hostname: answer.Hostname, URL: answer.URL}
	if answer.Limits != nil {
		r.Limits = *answer.Limits
	}
	l.grantTLS(answer.Registration, answer.Hostname, service)
	l.announce(r, service.Hostnames)
	if last {
		close(l.registered)
	}
	return nil
}

// take puts the service that the answer is about in use, and reports whether it was the last to be answered.
func (l *link) take(answer messages.RegistrationResponse) (s Service, last bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == 0 {
		return s, false, fmt.Errorf("%w: a registration response too many", tunnel.ErrProtocol)
	}
	if answer.Error != nil {
		err := refusal(answer.Error)
		l.tell(err)
		return s, false, err
	}
	if _, taken := l.services[answer.Registration]; taken {
		return s, false, fmt.Errorf("%w: registration %d given twice", tunnel.ErrProtocol, answer.Registration)
	}
	s, l.waiting = l.waiting[0], l.waiting[1:]
	l.services[answer.Registration] = s
	return s, len(l.waiting) == 0, nil
}

// refusal is the edge's refusal as Run returns it, or tries again after it.
func refusal(e *messages.RegistrationError) error {
	if e.Retry {
		return fmt.Errorf("the server refused for now: %s", printable(e.Message))
	}
	return &RefusedError{Code: printable(e.Code), Reason: printable(e.Message)}
}

// isFinal reports whether err ends the agent. An HTTP refusal does so only before the first link: later it is taken
// for a server that is being worked on.
func isFinal(err error, connected bool) bool {
	var refused *RefusedError
	if errors.As(err, &refused) {
		return refused.Code != codeHTTP || !connected
	}
	return false
}

// announce tells the program of a name, and the log also of the hostnames of one's own that came with it, unless the program
// was told that the link is lost.
func (l *link) announce(r Registration, hostnames []string) {
	l.told.Lock()
	defer l.told.Unlock()
	if l.down {
		return
	}
	l.up = true
	facts := []any{"url", r.URL}
	if len(hostnames) > 0 {
		facts = append(facts, "domains", strings.Join(hostnames, ","))
	}
	l.agent.log.Info("registered", facts...)
	if l.agent.options.OnRegister != nil {
		l.agent.options.OnRegister(r)
	}
}

// lost tells the program that the names are gone, if it was told of any. It is called once.
func (l *link) lost(reason error) {
	l.told.Lock()
	defer l.told.Unlock()
	l.down = true
	if l.up && l.agent.options.OnDisconnect != nil {
		l.agent.options.OnDisconnect(reason)
	}
}

// handler returns the handler of a registration; nil, so that the edge is refused, if there is none or TLS ends here: then
// requests that the edge could read are none of its visitors'.
func (l *link) handler(registration uint32) http.Handler {
	if l.agent.tlsEnd != nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.services[registration].Handler
}

func (l *link) handleDisconnect(d messages.Disconnect) {
	reason := errMoveOn
	switch d.Code {
	case messages.DisconnectReplaced:
		reason = ErrReplaced
	case messages.DisconnectRevoked:
		reason = &RefusedError{Code: codeRevoked, Reason: printable(d.Reason)}
	}
	if d.Registration == 0 || l.drop(d.Registration, reason) {
		l.tell(reason)
	}
}

// drop takes a registration out of service and reports whether the link is to end for it: because the edge wants to be
// asked again, or because nothing is left. What is replaced or revoked is not asked for again.
func (l *link) drop(registration uint32, reason error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.services[registration]
	if !ok {
		return false
	}
	delete(l.services, registration)
	if e := l.tls[registration]; e != nil {
		e.stop()
	}
	if errors.Is(reason, errMoveOn) {
		return true
	}
	l.kept = slices.DeleteFunc(slices.Clone(l.kept), func(k Service) bool { return k.Session == s.Session && k.Path == s.Path })
	if len(l.kept) == 0 {
		return true
	}
	l.agent.log.Warn("a service is out of use", "session", s.Session, "path", s.Path, "reason", reason)
	return false
}

// remaining is what the next link is to ask for.
func (l *link) remaining() []Service {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.kept
}

func (l *link) tell(err error) {
	select {
	case l.disconnect <- err:
	default: // the first reason counts
	}
}

// serve keeps the link until it ends, the edge wants it to end, or ctx does, and returns why. Running requests finish
// unless the link is dead; when the edge moves, they do so beside the next link.
func (a *Agent) serve(ctx context.Context, l *link) (err error) {
	select {
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-l.session.Ended():
		err = l.cause()
	case err = <-l.disconnect:
	}
	if ctx.Err() == nil {
		l.lost(err)
	}
	l.session.Disconnect(messages.Disconnect{Code: messages.DisconnectLeaving})
	if n := l.session.Streams(); n > 0 {
		a.log.Info("open requests may finish", "requests", n)
	}
	if errors.Is(err, errMoveOn) {
		a.moveFrom(ctx, l)
	} else {
		l.drain(a.options.DrainTimeout)
	}
	return err
}

// moveFrom lets the requests on l finish beside the next link, until ctx ends and then for DrainTimeout.
func (a *Agent) moveFrom(ctx context.Context, l *link) {
	a.moved = slices.DeleteFunc(a.moved, func(old *link) bool { return old.session.Err() != nil })
	if len(a.moved) == maxMoved {
		a.moved[0].session.Close(errTooManyMoves)
		a.moved = a.moved[1:]
	}
	a.moved = append(a.moved, l)
	a.moves.Go(func() { // ends with the last request on l, or DrainTimeout after ctx
		patience, cancel := context.WithTimeout(ctx, moveTimeout)
		defer cancel()
		l.restTLS(patience)
		_ = l.session.Drain(patience)
		if ctx.Err() != nil {
			l.drain(a.options.DrainTimeout)
		}
		l.session.Close(tunnel.ErrClosed)
	})
}

// drain waits for the running requests, then ends the link.
func (l *link) drain(limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), max(limit, 0))
	defer cancel()
	l.restTLS(ctx)
	_ = l.session.Drain(ctx)
	l.session.Close(tunnel.ErrClosed)
}

// isPrintable reports whether s, from the edge, can be shown as it is and stays one word.
func isPrintable(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c == ' ' || !unicode.IsPrint(c) })
}

// printable is s, the edge's words, as they may be shown: in one line, without what steers a terminal.
func printable(s string) string {
	n := 0
	return strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) || n == maxShown {
			return -1
		}
		n++
		return c
	}, s)
}
