package server

import (
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

// A visit is one visitor's request on its way through the edge. It is the tunnel.Watcher of its exchange.
type visit struct {
	server  *Server
	w       http.ResponseWriter
	rc      *http.ResponseController
	r       *http.Request
	to      destination
	addr    netip.Addr
	timeout time.Duration
	body    *visitorBody    // nil if the request has none
	pending *tunnel.Pending // the request, if it was sent to the first candidate already; else nil
	began   time.Time
	paid    paid
}

// paid is which rates a request has been counted against before net/http read it.
type paid int

const (
	paidNothing paid = iota
	paidVisitor      // the visitor's
	paidAll          // the tunnel's, too
)

// serveVisitor carries one request to its tunnel and the answer back.
func (s *Server) serveVisitor(w http.ResponseWriter, r *http.Request, to destination, id string, so paid) {
	addr, scheme, host, trusted := s.proxies.visitor(r)
	v := s.visit(w, r, to, addr)
	v.paid = so
	if e := v.admit(); e != nil {
		v.refuse(*e)
		return
	}
	if _, is := s.routes.endToEnd(to.label); is {
		v.redirectToAgent()
		return
	}
	serving, known := s.routes.lookup(to.label, to.target)
	if len(serving) == 0 {
		e := noTunnelError()
		if known {
			e = agentAwayError()
		}
		v.refuse(e)
		return
	}
	out := v.outbound(id, scheme, host, trusted)
	s.metrics.stream(1)
	defer s.metrics.stream(-1)
	v.carry(out, inTurn(serving))
}

// takeOver waits for the answer to a request that was sent before net/http read it.
func (s *Server) takeOver(w http.ResponseWriter, r *http.Request, sent fastVisit) {
	defer s.metrics.stream(-1)
	s.mark(w.Header(), r, sent.id)
	to, _ := s.resolve(r)
	addr, scheme, host, trusted := s.proxies.visitor(r)
	v := s.visit(w, r, to, addr)
	v.pending, v.began = sent.pending, sent.began
	candidates := []*registration{sent.to}
	serving, _ := s.routes.lookup(to.label, to.target)
	for _, other := range inTurn(serving) {
		if other != sent.to {
			candidates = append(candidates, other)
		}
	}
	v.carry(v.outbound(sent.id, scheme, host, trusted), candidates)
}

func (s *Server) visit(w http.ResponseWriter, r *http.Request, to destination, addr netip.Addr) *visit {
	return &visit{
		server: s, w: w, rc: http.NewResponseController(w), r: r, to: to, addr: addr,
		timeout: s.options.RequestTimeout, began: time.Now(),
	}
}

// admit checks the request against everything that can be known before it is sent.
func (v *visit) admit() *visitorError {
	s, r := v.server, v.r
	refused := func(e visitorError, limit string) *visitorError {
		if limit != "" {
			s.metrics.limit(limit)
		}
		return &e
	}
	switch {
	case r.Method == http.MethodConnect:
		return refused(connectRefusedError(), "")
	case !strings.HasPrefix(v.to.target, "/") && v.to.target != "*":
		return refused(badRequestError("the request target does not begin with a slash"), "")
	case !isClean(v.to.target) || !isClean(r.Host):
		return refused(badRequestError("the request target or the host has a blank or a control character"), "")
	case r.ContentLength == 0 && !isZero(r.Header["Content-Length"]): // HTTP/2 can say this
		return refused(badRequestError("Content-Length announces a body, and there is none"), "")
	case headBytes(r) > maxRequestHead:
		return refused(headTooLargeError(), limitHead)
	case v.paid < paidVisitor && !s.visits.allow(visitorKey(v.addr)):
		return refused(rateLimitedError(), limitVisitorRate)
	case v.paid < paidAll && !s.hosts.allow(v.to.label):
		return refused(rateLimitedError(), limitRate)
	case s.options.MaxBody > 0 && r.ContentLength > s.options.MaxBody:
		return refused(requestTooLargeError(s.options.MaxBody), limitMaxBody)
	}
	if wish := r.Header.Get("Harp-Request-Timeout"); wish != "" {
		d, err := time.ParseDuration(wish)
		if err != nil || d <= 0 {
			return refused(badRequestError("Harp-Request-Timeout is no duration such as 12s"), "")
		}
		v.timeout = min(v.timeout, d)
	}
	return nil
}

// headBytes is about how long the head of r was on the wire, in bytes.
func headBytes(r *http.Request) int {
	n := len(r.Method) + len(r.RequestURI) + len(r.Host)
	for name, values := range r.Header {
		for _, v := range values {
			n += len(name) + len(v) + len(": \r\n")
		}
	}
	return n
}

// isZero reports whether a Content-Length field is absent or zero.
func isZero(values []string) bool {
	return len(values) == 0 || strings.Trim(values[0], "0") == ""
}

// isClean reports whether s has neither blanks nor control characters: such could end a request line early.
func isClean(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// outbound builds the request as the agent is to get it. It shares nothing with r that it changes.
func (v *visit) outbound(id, scheme, host string, trusted bool) *http.Request {
	r := v.r
	h := make(http.Header, len(r.Header)+8)
	named := tunnel.ConnectionNames(r.Header)
	for name, values := range r.Header {
		if !tunnel.IsHopByHop(name, named) {
			h[name] = values
		}
	}
	setForwarded(h, r, v.addr, scheme, host, trusted)
	if v.to.prefix != "" {
		h["X-Forwarded-Prefix"] = []string{v.to.prefix}
	}
	h["X-Request-Id"] = []string{id}
	delete(h, "Te")
	if hasToken(r.Header["Te"], "trailers") {
		h["Te"] = []string{"trailers"} // gRPC asks for it
	}
	out := &http.Request{
		Method: r.Method, URL: &url.URL{Scheme: scheme}, Host: r.Host, RequestURI: v.to.target, Header: h,
		RemoteAddr: r.RemoteAddr, ContentLength: r.ContentLength, Trailer: trailersFrom(r),
	}
	if trusted {
		out.RemoteAddr = netip.AddrPortFrom(v.addr, 0).String()
	}
	if r.Body != nil && r.ContentLength != 0 {
		v.body = newVisitorBody(v)
		out.Body = v.body
		if r.ProtoMajor == 1 {
			_ = v.rc.EnableFullDuplex()
		}
	} else if token := upgradeToken(r); token != "" {
		h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{token}
	}
	return out
}

// upgradeToken is what the visitor wants to upgrade to, empty for nothing. Plain HTTP/2 is not passed on: the edge
// would not understand a byte of it.
func upgradeToken(r *http.Request) string {
	if r.ProtoMajor != 1 || r.ProtoMinor < 1 || !hasToken(r.Header["Connection"], "upgrade") {
		return ""
	}
	var tokens []string
	for _, list := range r.Header["Upgrade"] {
		for token := range strings.SplitSeq(list, ",") {
			if token = strings.TrimSpace(token); token != "" && !strings.EqualFold(token, "h2c") {
				tokens = append(tokens, token)
			}
		}
	}
	return strings.Join(tokens, ", ")
}

func hasToken(lists []string, token string) bool {
	for _, list := range lists {
		for t := range strings.SplitSeq(list, ",") {
			if t, _, _ = strings.Cut(t, ";"); strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}

// carry sends the request to the first candidate that takes it, and the answer to the visitor.
func (v *visit) carry(out *http.Request, candidates []*registration) {
	if v.body != nil {
		defer v.body.finish()
	}
	res, err := v.roundTrip(out, candidates)
	if err != nil {
		v.fail(err)
		return
	}
	defer res.Body.Close()
	if e := v.unfit(res); e != nil {
		v.refuse(*e)
		return
	}
	v.server.metrics.request(res.StatusCode, time.Since(v.began).Seconds())
	if res.StatusCode == http.StatusSwitchingProtocols {
		v.upgrade(res)
		return
	}
	v.respond(res)
}

// roundTrip tries the candidates in turn, for as long as it is certain that none has done anything with the request.
func (v *visit) roundTrip(out *http.Request, candidates []*registration) (res *http.Response, err error) {
	ctx := v.r.Context()
	busy := false // an agent that is no standby is there
	for i, c := range candidates {
		if busy && c.standby() {
			return nil, tunnel.ErrBusy
		}
		if v.body != nil {
			v.body.lend(out, i+1 < len(candidates))
		}
		if v.pending != nil && i == 0 {
			res, err = v.pending.Await(ctx, out, v)
		} else {
			c.link.requests.Add(1)
			res, err = c.link.session.Exchange(ctx, c.id, out, v)
		}
		if err == nil || errors.Is(err, tunnel.ErrTimeout) || ctx.Err() != nil {
			return res, err
		}
		busy = busy || errors.Is(err, tunnel.ErrBusy)
		if !tunnel.Unprocessed(err) && !(errors.Is(err, tunnel.ErrClosed) && v.repeatable()) {
			return nil, err
		}
		if v.body != nil && !v.body.rewind() {
			return nil, err
		}
	}
	return nil, err
}

// repeatable reports whether it does no harm to process the request twice (RFC 9110, section 9.2.1).
func (v *visit) repeatable() bool {
	switch v.r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return v.body == nil
	}
	return false
}

// Patience is how long the visitor still waits for the answer's head. Every piece of the request body that moves begins
// the time anew, so that a long upload over a slow line is no timeout.
func (v *visit) Patience() time.Duration {
	moved := v.began
	if v.body != nil {
		moved = v.body.lastMove()
	}
	return v.timeout - time.Since(moved)
}

// Interim passes an interim response on to the visitor.
func (v *visit) Interim(status int, h http.Header) error {
	if v.r.ProtoMajor == 1 && v.r.ProtoMinor == 0 {
		return nil // HTTP/1.0 has none (RFC 9110, section 15.2)
	}
	header := v.w.Header()
	id := header["X-Request-Id"][0]
	for name, values := range h {
		if !tunnel.IsHopByHop(name, nil) && !isClaim(name) {
			header[name] = values
		}
	}
	v.w.WriteHeader(status)
	clear(header)
	v.server.mark(header, v.r, id)
	return nil
}

// fail answers a request that got no response.
func (v *visit) fail(err error) {
	e := v.explain(err)
	if e == nil { // nobody is there to be told
		v.server.metrics.request(499, time.Since(v.began).Seconds())
		panic(http.ErrAbortHandler)
	}
	v.server.log.Debug("request failed", "label", v.to.label, "code", e.Code, "error", err)
	v.refuse(*e)
}

// refuse answers in place of the upstream.
func (v *visit) refuse(e visitorError) {
	v.server.metrics.request(e.Status, time.Since(v.began).Seconds())
	if v.body == nil {
		v.server.refuse(v.w, v.r, e)
		return
	}
	v.body.finish() // now, so that the head says so if the connection must go
	v.server.answer(v.w, v.r, e)
}

// explain says what err means to the visitor; nil if the visitor is gone.
func (v *visit) explain(err error) *visitorError {
	var e visitorError
	var cancelled *tunnel.CancelError
	switch {
	case v.body != nil && v.body.tooLarge():
		v.server.metrics.limit(limitMaxBody)
		e = requestTooLargeError(v.server.options.MaxBody)
	case errors.Is(err, tunnel.ErrTimeout):
		e = timeoutError(v.timeout)
	case v.r.Context().Err() != nil:
		return nil
	case v.body != nil && v.body.broken() != nil:
		e = badRequestError("the request body broke off")
	case errors.Is(err, tunnel.ErrBusy):
		v.server.metrics.limit(limitMaxStreams)
		e = busyError()
	case errors.Is(err, messages.ErrTooLong):
		v.server.metrics.limit(limitHead)
		e = headTooLargeError()
	case tunnel.Unprocessed(err):
		e = agentAwayError()
	case errors.As(err, &cancelled):
		e = explainCancel(cancelled, v.timeout)
	case errors.Is(err, tunnel.ErrClosed):
		e = linkLostError()
	default:
		e = upstreamBrokeError("")
	}
	return &e
}

func explainCancel(c *tunnel.CancelError, timeout time.Duration) visitorError {
	switch c.Code {
	case messages.CancelUnreachable:
		return upstreamUnreachableError(c.Reason)
	case messages.CancelTimeout:
		return timeoutError(timeout)
	}
	return upstreamBrokeError(c.Reason)
}
