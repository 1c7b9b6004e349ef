package server

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
)

// register grants the registration that text asks for and answers it, or returns the refusal. ctx is the link's.
func (l *link) register(ctx context.Context, text []byte) *messages.RegistrationError {
	refusal := l.tryRegister(ctx, text)
	result := registeredOK
	if refusal != nil {
		result = refusal.Code
		l.server.log.Info("registration refused", "from", l.visitor, "code", refusal.Code, "reason", refusal.Message)
	}
	l.server.metrics.registrationResult(result)
	return refusal
}

func (l *link) tryRegister(ctx context.Context, text []byte) *messages.RegistrationError {
	r, refusal := l.verify(text)
	if refusal != nil {
		return refusal
	}
	if refusal := l.prove(ctx, r); refusal != nil {
		return refusal
	}
	s := l.server
	l.mu.Lock()
	if refusal := l.admitLocked(r); refusal != nil {
		l.mu.Unlock()
		return refusal
	}
	l.lastID++
	r.id = l.lastID
	s.names.claim(r) // before anybody can find r, take its place and release them
	replaced, err := s.routes.add(r, func() error { return l.answer(r) })
	if err == nil {
		l.registrations = append(l.registrations, r)
	}
	l.mu.Unlock()
	if err != nil {
		s.names.release(r)
		return refuse(messages.RefuseLimit, err.Error(), true)
	}
	s.metrics.registration(1)
	s.log.Info("registered", "hostname", r.label+"."+s.options.Domain, "path", r.path, "mode", r.mode, "end_to_end", r.endToEnd,
		"hostnames", r.hostnames, "identity", r.thumbprint.String(), "from", l.visitor)
	if s.options.OnHostname != nil && !r.endToEnd { // else the edge would hold a key for the name
		for _, name := range r.hostnames {
			s.options.OnHostname(name)
		}
	}
	for _, old := range replaced {
		s.metrics.registration(-1)
		s.names.release(old)
		old.link.drop(old, messages.DisconnectReplaced, errReplaced)
	}
	return nil
}

// admitLocked checks what may have changed since r was verified, and whether there is room.
func (l *link) admitLocked(r *registration) *messages.RegistrationError {
	s := l.server
	switch {
	case l.gone, s.stopping():
		return refuse(messages.RefuseDraining, "this link is about to end", true)
	case !s.keys.allowed(r.thumbprint): // revoke, which locks the link too, may have passed it already
		return l.unauthorized(r.thumbprint)
	case len(l.registrations) >= maxRegistrations:
		s.metrics.limit(limitRegistrations)
		return refuse(messages.RefuseLimit, "this link has as many registrations as it may", false)
	}
	return nil
}

// verify checks a request in the order of PROTOCOL.md: form, signature, challenge, audience, authority.
func (l *link) verify(text []byte) (*registration, *messages.RegistrationError) {
	s := l.server
	request, err := messages.ParseRegistrationRequest(text)
	if err != nil {
		return nil, refuse(messages.RefuseMalformed, err.Error(), false)
	}
	key, claim, err := identity.Verify(request.JWS)
	switch {
	case errors.Is(err, identity.ErrSignature):
		return nil, refuse(messages.RefuseSignature, err.Error(), false)
	case err != nil:
		return nil, refuse(messages.RefuseMalformed, err.Error(), false)
	case !claim.HasChallenge(l.challenge):
		return nil, refuse(messages.RefuseChallenge, "the challenge was not the one of this connection", true)
	case !l.hears(claim.Audience):
		return nil, refuse(messages.RefuseAudience, "signed for "+quoteName(claim.Audience)+", and this server is "+s.options.Domain, false)
	case !s.keys.allowed(key.Thumbprint()):
		return nil, l.unauthorized(key.Thumbprint())
	case claim.EndToEnd && (!s.options.PassTLS || s.options.NoHostRoute):
		return nil, refuse(messages.RefuseUnsupported, "this server does not pass TLS through", false)
	}
	path, _ := identity.CleanPath(claim.Path) // Verify has checked it
	if claim.EndToEnd && path != "" {
		return nil, refuse(messages.RefuseMalformed, "a service that ends TLS itself cannot have a path: the edge does not see paths", false)
	}
	mode := claim.Mode
	if mode == "" {
		mode = identity.ModeTakeover
	}
	return &registration{
		link: l, label: key.Thumbprint().Label(claim.Session), path: path, session: claim.Session,
		mode: mode, instance: claim.Instance, thumbprint: key.Thumbprint(), since: time.Now(),
		hostnames: claim.Hostnames, endToEnd: claim.EndToEnd,
	}, nil
}

func (l *link) unauthorized(t identity.Thumbprint) *messages.RegistrationError {
	return refuse(messages.RefuseNotAuthorized, "the operator of "+l.server.options.Domain+" has not authorized the key "+t.String(), false)
}

func refuse(code, message string, retry bool) *messages.RegistrationError {
	return &messages.RegistrationError{Code: code, Message: message, Retry: retry}
}

// hears reports whether an agent may have meant this server by the name.
func (l *link) hears(audience string) bool {
	name := audienceName(audience)
	if name == audienceName(l.server.options.Domain) {
		return true
	}
	for _, a := range l.server.options.Audiences {
		if name == audienceName(a) {
			return true
		}
	}
	if !l.loopback {
		return false
	}
	addr, err := netip.ParseAddr(name)
	return name == "localhost" || strings.HasSuffix(name, ".localhost") || err == nil && addr.IsLoopback()
}

// audienceName is a host in the one form in which it is compared: an address without brackets, or a canonical name.
func audienceName(host string) string {
	if addr, err := netip.ParseAddr(host); err == nil { // also one without the brackets that a port asks for
		return addr.String()
	}
	host = canonicalHost(host)
	if addr, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return addr.String()
	}
	return host
}

// answer queues the response that grants r.
func (l *link) answer(r *registration) error {
	o := l.server.options
	limits := messages.Limits{
		MaxBody: max(o.MaxBody, 0), MaxStreams: o.MaxStreams,
		RequestTimeout: messages.Duration(o.RequestTimeout), PingInterval: messages.Duration(o.PingInterval),
	}
	hostname := r.label + "." + o.Domain
	url := l.scheme + "://" + hostname + l.port + r.path
	switch {
	case o.NoHostRoute && o.RouteByPath:
		url = l.scheme + "://" + o.Domain + l.port + "/t/" + r.label + r.path
	case o.NoHostRoute:
		url = l.scheme + "://" + o.Domain + l.port + r.path // with Harp-Tunnel: <label>
	}
	text, err := messages.EncodeRegistrationResponse(messages.RegistrationResponse{
		Registration: r.id, Hostname: hostname, URL: url, Limits: &limits,
	})
	if err != nil {
		return err
	}
	return l.session.SendText(text)
}

// quoteName shows a name from the network to a person.
func quoteName(s string) string { return `"` + cleanReason(s) + `"` }
