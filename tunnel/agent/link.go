package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

const (
	dialTimeout     = 20 * time.Second
	registerTimeout = 15 * time.Second
)

// errMoveOn is why an agent leaves a link that the edge wants to end.
var errMoveOn = errors.New("the server asks to connect again")

// A link is one connection to the edge, with the services registered on it.
type link struct {
	agent      *Agent
	session    *tunnel.Session
	registered chan struct{} // closed when every service has its name
	disconnect chan error    // gets errMoveOn, ErrReplaced or a *RefusedError, at most once

	mu       sync.Mutex // guards the fields below
	waiting  []Service  // requests that were not answered yet, in their order
	handlers map[uint32]http.Handler
}

// connect dials the edge and registers every service. ctx bounds that; work is the life of the link.
func (a *Agent) connect(ctx, work context.Context) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var config *tls.Config
	if a.options.TLSConfig != nil {
		var err error
		if config, err = a.options.TLSConfig(); err != nil {
			return nil, err
		}
	}
	conn, challenge, err := tunnel.Dial(ctx, a.url, tunnel.DialOptions{TLS: config, Proxy: true})
	var refused *tunnel.RefusedError
	if errors.As(err, &refused) && refused.Status >= 400 && refused.Status < 500 && refused.Status != http.StatusTooManyRequests {
		return nil, &RefusedError{Code: codeHTTP, Reason: refused.Error()}
	}
	if err != nil {
		return nil, err
	}
	l := &link{
		agent: a, registered: make(chan struct{}), disconnect: make(chan error, 1),
		waiting: a.options.Services, handlers: make(map[uint32]http.Handler),
	}
	l.session = tunnel.NewSession(conn, tunnel.Config{
		Handler: l.handler, PingInterval: a.options.PingInterval,
		OnText: l.handleText, OnDisconnect: l.handleDisconnect, Logger: a.log,
	})
	for _, s := range a.options.Services {
		text, err := a.request(s, challenge)
		if err == nil {
			err = l.session.SendText(text)
		}
		if err != nil {
			_ = conn.Close()
			return nil, err
		}
	}
	a.links.Go(func() { _ = l.session.Run(work) }) // ends with the link
	return l, l.awaitRegistration(ctx)
}

// request is the signed RegistrationRequest for s.
func (a *Agent) request(s Service, challenge string) ([]byte, error) {
	jws, err := a.options.Key.Sign(identity.Registration{
		Audience: a.audience, Challenge: challenge, Session: s.Session, Path: s.Path, Mode: s.Mode, Instance: a.instance,
	})
	if err != nil {
		return nil, fmt.Errorf("sign registration: %w", err)
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
	case <-l.session.Ended():
		select {
		case err = <-l.disconnect: // the reason, if the edge gave one
		default:
			err = l.session.Err()
		}
	case <-timer.C:
		err = errors.New("the server did not answer the registration")
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	l.session.Close(err)
	return err
}

// handleText takes the answer to the oldest request that has none.
func (l *link) handleText(text []byte) error {
	answer, err := messages.ParseRegistrationResponse(text)
	if err != nil {
		return fmt.Errorf("%w: %w", tunnel.ErrProtocol, err)
	}
	l.mu.Lock()
	if len(l.waiting) == 0 {
		l.mu.Unlock()
		return fmt.Errorf("%w: a registration response too many", tunnel.ErrProtocol)
	}
	service := l.waiting[0]
	if answer.Error != nil {
		l.mu.Unlock()
		err := refusal(answer.Error)
		l.tell(err)
		return err
	}
	l.waiting = l.waiting[1:]
	l.handlers[answer.Registration] = service.Handler
	last := len(l.waiting) == 0
	l.mu.Unlock()
	r := Registration{Session: service.Session, Path: service.Path, Hostname: answer.Hostname, URL: answer.URL}
	if answer.Limits != nil {
		r.Limits = *answer.Limits
	}
	l.agent.log.Info("registered", "url", r.URL)
	if l.agent.options.OnRegister != nil {
		l.agent.options.OnRegister(r)
	}
	if last {
		close(l.registered)
	}
	return nil
}

// refusal is the edge's refusal as Run returns it, or tries again after it.
func refusal(e *messages.RegistrationError) error {
	if e.Retry {
		return fmt.Errorf("the server refused for now: %s", e.Message)
	}
	return &RefusedError{Code: e.Code, Reason: e.Message}
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

const codeHTTP = "http"

func (l *link) handler(registration uint32) http.Handler {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.handlers[registration]
}

func (l *link) handleDisconnect(d messages.Disconnect) {
	switch d.Code {
	case messages.DisconnectReplaced:
		if l.forget(d.Registration) {
			l.tell(ErrReplaced)
		}
	case messages.DisconnectRevoked:
		l.tell(&RefusedError{Code: "revoked", Reason: d.Reason})
	default:
		l.tell(errMoveOn)
	}
}

// forget takes a registration, or with 0 all of them, out of service, and reports whether none is left.
func (l *link) forget(registration uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.handlers, registration)
	return registration == 0 || len(l.handlers) == 0
}

func (l *link) tell(err error) {
	select {
	case l.disconnect <- err:
	default: // the first reason counts
	}
}

// serve keeps the link until it ends, the edge wants it to end, or ctx does. Running requests finish unless the link is
// dead; when the edge moves, they do so beside the next link.
func (a *Agent) serve(ctx context.Context, l *link) (err error) {
	leaving := messages.Disconnect{Code: messages.DisconnectLeaving}
	select {
	case <-ctx.Done():
		l.session.Disconnect(leaving)
		l.drain(a.options.DrainTimeout)
		return nil
	case <-l.session.Ended():
		select {
		case err = <-l.disconnect:
		default:
			err = l.session.Err()
		}
	case err = <-l.disconnect:
		if errors.Is(err, errMoveOn) {
			a.links.Go(func() { l.drain(moveTimeout) }) // ends with the old link's last request
		} else {
			l.session.Disconnect(leaving)
			l.drain(a.options.DrainTimeout)
		}
	}
	if a.options.OnDisconnect != nil {
		a.options.OnDisconnect(err)
	}
	return err
}

// moveTimeout is how long requests on a link that the edge wants to end may still run.
const moveTimeout = time.Hour

// drain waits for the running requests, then ends the link.
func (l *link) drain(limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), max(limit, 0))
	defer cancel()
	_ = l.session.Drain(ctx)
	l.session.Close(tunnel.ErrClosed)
}
