package tunnel

import (
	"fmt"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"

	"github.com/harp-tunnel/harp/messages"
)

// handleRequest opens a stream at the agent and starts its handler. Only a stream number of 0 ends the link.
func (s *Session) handleRequest(h messages.Header, payload []byte) error {
	if h.Stream == 0 {
		return fmt.Errorf("%w: %s on stream 0", ErrProtocol, h.Type)
	}
	if s.isEdge() {
		return s.cancelUnknown(h.Stream, messages.CancelProtocol, "the agent's side opens no streams")
	}
	if fresh, old := s.claim(h.Stream); old != nil {
		old.cancel(messages.CancelProtocol, "stream number used twice")
		return nil
	} else if !fresh {
		return s.cancelUnknown(h.Stream, messages.CancelProtocol, "stream number out of order")
	}
	if h.Type == messages.TypeTLSRequest {
		return s.acceptTLS(h, payload)
	}
	if len(payload) > maxHead(h.Type) {
		return s.cancelUnknown(h.Stream, messages.CancelTooLarge, h.Type.String()+" is too large")
	}
	head, err := messages.ParseHTTPRequest(string(payload))
	if err != nil {
		return s.cancelUnknown(h.Stream, messages.CancelProtocol, err.Error())
	}
	handler := s.config.Handler(head.Registration)
	if handler == nil {
		return s.cancelUnknown(h.Stream, messages.CancelRefused, "no such registration")
	}
	kind := messages.TypeBody
	if h.Type == messages.TypeWSRequest {
		kind = messages.TypeWSMessage
	}
	x := &service{handler: handler, head: head, flags: h.Flags}
	x.init(s, h.Stream, kind)
	x.inEnded = h.Flags&messages.FlagEnd != 0
	x.handling = &x.ctx
	if !s.employ(x) {
		return s.cancelUnknown(h.Stream, messages.CancelRefused, "draining, or too many streams")
	}
	return nil
}

// claim notes that the peer opened stream id, and reports whether its number is above all before. If it is not, the
// stream that has this number now is returned, if any.
func (s *Session) claim(id uint32) (fresh bool, old *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id <= s.lastID {
		return false, s.streams[id]
	}
	s.lastID = id
	s.newest.Store(id)
	return true, nil
}

// accept registers a stream that the peer opened, and its handler, and reports whether there was room. A handler whose
// stream was cancelled takes room until it returns: else opening and cancelling would start any number of them.
func (s *Session) accept(st *stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acceptLocked(st)
}

func (s *Session) acceptLocked(st *stream) bool {
	if s.draining || max(len(s.streams), s.running) >= s.config.MaxStreams {
		return false
	}
	s.streams[st.id] = st
	s.out.streams.Store(int32(len(s.streams)))
	s.running++
	return true
}

// served notes that a handler has returned.
func (s *Session) served() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running--
}

// A service is a request at the agent: its stream, and what its handler works with. All of it is one allocation.
type service struct {
	stream
	handler http.Handler
	head    messages.HTTPRequest
	flags   messages.Flags // of the head
	ctx     requestContext
	w       responseWriter
	body    requestBody
}

func (x *service) run() {
	defer x.session.served()
	defer x.ctx.end()
	x.serve()
}

// serve runs the handler, and ends the stream as the handler did.
func (x *service) serve() {
	st, w := &x.stream, &x.w
	*w = responseWriter{st: st, method: x.head.Method}
	r := x.request()
	fields := x.fieldsHandler()
	if fields == nil {
		if err := x.complete(r); err != nil {
			st.cancel(messages.CancelProtocol, err.Error())
			return
		}
	}
	returned := false
	defer func() {
		v := recover()
		switch {
		case v != nil:
			st.panicked(w, v)
		case !returned: // by runtime.Goexit
			w.abort()
		case !w.hijacked:
			w.finish()
		}
	}()
	if fields != nil {
		fields.ServeFields(w, r, x.head.Fields)
	} else {
		x.handler.ServeHTTP(w, r)
	}
	returned = true
}

// panicked ends the stream of a handler that panicked; http.ErrAbortHandler is how a handler breaks off on purpose.
func (st *stream) panicked(w *responseWriter, v any) {
	if v == http.ErrAbortHandler {
		w.abort()
		return
	}
	st.session.config.Logger.Error("handler panicked", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	st.cancel(messages.CancelInternal, "the service failed")
	w.drop()
}

// request builds what the handler gets, but for what complete adds.
func (x *service) request() *http.Request {
	head := &x.head
	x.w.r = (&http.Request{
		Method: head.Method, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Host: head.Authority,
		RemoteAddr: head.Visitor, RequestURI: head.Target, Body: http.NoBody,
	}).WithContext(&x.ctx)
	return x.w.r
}

// complete adds the URL, the header and the body; the error is that of a target that is none.
func (x *service) complete(r *http.Request) (err error) {
	w := &x.w
	if r.URL, err = parseTarget(r.Method, r.RequestURI); err != nil {
		return err
	}
	r.Header = decodeHeader(x.head.Fields)
	if x.kind == messages.TypeWSMessage || x.flags&messages.FlagEnd != 0 {
		return nil
	}
	r.ContentLength = contentLength(r.Header)
	x.body = requestBody{w: w, st: &x.stream}
	r.Body = &x.body
	w.mayContinue = expectsContinue(r.Header)
	for _, list := range r.Header["Trailer"] {
		if r.Trailer == nil {
			r.Trailer = make(http.Header)
		}
		for name := range strings.SplitSeq(list, ",") {
			r.Trailer[http.CanonicalHeaderKey(strings.TrimSpace(name))] = nil
		}
	}
	delete(r.Header, "Trailer")
	return nil
}

// parseTarget reads a request target as net/http's server does.
func parseTarget(method, target string) (*url.URL, error) {
	if method == http.MethodConnect && !strings.HasPrefix(target, "/") {
		return &url.URL{Host: target}, nil
	}
	return url.ParseRequestURI(target)
}
