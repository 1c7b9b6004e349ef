package tunnel

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// continueTimeout is how long a body is withheld after Expect: 100-continue (RFC 9110, section 10.1.1).
const continueTimeout = time.Second

const (
	maxInterim      = 16        // interim responses that may wait to be passed on
	maxInterimBytes = 64 << 10  // and how many bytes they may have together
	maxRequestHead  = 256 << 10 // bytes of a request head
	maxResponseHead = 128 << 10 // bytes of a final response head
	maxTrailers     = 64 << 10  // bytes
)

// ErrTimeout is what Exchange returns when the watcher had no more patience.
var ErrTimeout = errors.New("tunnel: no answer in time")

// A Watcher follows a request until its final response head is there. The goroutine that called Exchange calls it.
type Watcher interface {
	// Patience is how long to wait for the head from now on; when that is over it is asked again. Zero or less ends the
	// exchange with ErrTimeout.
	Patience() time.Duration
	// Interim gets each interim response. An error ends the exchange, which returns it.
	Interim(status int, h http.Header) error
}

// RoundTrip is Exchange with the request's context, and httptrace.ClientTrace.Got1xxResponse for interim responses.
func (s *Session) RoundTrip(registration uint32, req *http.Request) (*http.Response, error) {
	var w Watcher
	if t := httptrace.ContextClientTrace(req.Context()); t != nil && t.Got1xxResponse != nil {
		w = tracer{t}
	}
	return s.Exchange(req.Context(), registration, req, w)
}

type tracer struct{ trace *httptrace.ClientTrace }

func (t tracer) Patience() time.Duration { return math.MaxInt64 }

func (t tracer) Interim(status int, h http.Header) error {
	return t.trace.Got1xxResponse(status, textproto.MIMEHeader(h))
}

// Exchange sends a visitor's request over the link to one of its registrations, and waits for the response head.
// It is http.RoundTripper with these differences: the request target is req.RequestURI byte for byte, req.RemoteAddr
// is the visitor's address, req.URL is not used but for its scheme, and req.Header goes as it is, hop-by-hop fields
// included; trailers come in Response.Trailer after the body's end. With an Upgrade field and without a body, the answer
// may be 101, whose Body is an *UpgradedConn.
//
// ctx, not the request's own, ends the exchange, also while the response body is being read. The caller closes that. w
// may be nil: then interim responses are dropped, and ctx alone ends the wait.
//
// req.Body is read by a goroutine that ends, and then closes it, when the body has been sent, the response is complete
// or given up, or ctx ends; whoever lends the body unblocks its Read then.
//
// Errors to branch on: Unprocessed(err) means that another link may be tried; a *CancelError is the agent's; with
// ErrClosed the link died; with ErrProtocol the agent broke the protocol on this stream; messages.ErrTooLong means that
// the head has too many bytes or fields; ErrTimeout; else the context's cause or the watcher's error.
func (s *Session) Exchange(ctx context.Context, registration uint32, req *http.Request, w Watcher) (*http.Response, error) {
	hasBody := req.Body != nil && req.Body != http.NoBody
	x := &exchange{ctx: ctx}
	if err := s.open(x, registration, req, hasBody); err != nil {
		if hasBody {
			_ = req.Body.Close()
		}
		return nil, err
	}
	if hasBody {
		x.watch()
		x.proceed = make(chan struct{})
		if !expectsContinue(req.Header) {
			x.letBodyGo()
		}
		go x.sendBody(req) // ends when the body has, or the stream, or the lender of the body ends it
	}
	return x.await(req, w)
}

// await waits for the response head.
func (x *exchange) await(req *http.Request, w Watcher) (*http.Response, error) {
	if err := x.awaitHead(w); err != nil {
		x.unwatch()
		x.shut(err, true)
		if x.ctx.Err() != nil && errors.Is(err, errCancelled) {
			err = context.Cause(x.ctx)
		}
		return nil, err
	}
	return x.response(req), nil
}

// Unprocessed reports whether err, from Exchange or RoundTrip, means that the agent did nothing with the request.
func Unprocessed(err error) bool {
	var c *CancelError
	if errors.As(err, &c) {
		return c.Code == messages.CancelRefused
	}
	return errors.Is(err, errUnsent) || errors.Is(err, ErrBusy) || errors.Is(err, ErrDraining)
}

var errUnsent = errors.New("tunnel: request was not sent")

// open sends the request head on a new stream.
func (s *Session) open(x *exchange, registration uint32, req *http.Request, hasBody bool) error {
	kind, carrier := messages.TypeHTTPRequest, messages.TypeBody
	if !hasBody && req.Header["Upgrade"] != nil {
		kind, carrier = messages.TypeWSRequest, messages.TypeWSMessage
	}
	if fieldCount(req.Header) > messages.MaxFields {
		return fmt.Errorf("%w: more than %d header fields", messages.ErrTooLong, messages.MaxFields)
	}
	scheme := "http"
	if req.TLS != nil || req.URL != nil && req.URL.Scheme == "https" {
		scheme = "https"
	}
	head := messages.HTTPRequest{
		Registration: registration, Method: req.Method, Scheme: scheme, Authority: req.Host,
		Target: req.RequestURI, Visitor: req.RemoteAddr,
	}
	var flags messages.Flags
	if !hasBody && carrier == messages.TypeBody {
		flags = messages.FlagEnd
	}
	st := &x.stream
	st.init(s, 0, carrier)
	st.outEnded = flags == messages.FlagEnd
	return s.begin(x.ctx, st, func(b []byte) ([]byte, error) {
		start := len(b)
		b = messages.BeginHTTPRequest(b, kind, flags, st.id, &head)
		b = appendHeader(b, req.Header)
		for name := range req.Trailer {
			b = messages.AppendField(b, "Trailer", name)
		}
		if n := len(b) - start - messages.HeaderLen; n > maxRequestHead {
			return b[:start], fmt.Errorf("%w: %d bytes", messages.ErrTooLong, n)
		}
		return messages.Finish(b, start)
	})
}

var errExhausted = errors.New("tunnel: stream numbers are used up")

// admit gives st its number. It is called while the head is being written, so that numbers go out in order.
func (s *Session) admit(st *stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.draining:
		return ErrDraining
	case len(s.streams) >= s.config.MaxStreams:
		return ErrBusy
	case s.lastID == math.MaxUint32:
		return errExhausted
	}
	s.lastID++
	st.id = s.lastID
	s.newest.Store(st.id)
	s.streams[st.id] = st
	s.out.streams.Store(int32(len(s.streams)))
	return nil
}

// handleResponse takes a response head from the reader of the link.
func (s *Session) handleResponse(st *stream, h messages.Header, payload string) {
	head, err := messages.ParseHTTPResponse(payload)
	st.mu.Lock()
	interim := isInterim(head.Status)
	switch {
	case err != nil:
	case s.config.Handler != nil:
		err = errors.New("a response to the edge's side of a stream")
	case st.finalHead, interim && h.Flags&messages.FlagEnd != 0:
		err = errors.New("a second response head, or an interim one that ends")
	case h.Type == messages.TypeWSResponse != (st.kind == messages.TypeWSMessage):
		err = errors.New(h.Type.String() + " on this kind of stream")
	case interim && (len(st.interims) >= maxInterim || st.interimBytes+len(head.Fields) > maxInterimBytes):
		err = errors.New("too many interim responses")
	case head.Status == http.StatusSwitchingProtocols && st.kind != messages.TypeWSMessage:
		err = errors.New("101 to a request without Upgrade")
	}
	if err != nil {
		st.mu.Unlock()
		st.cancel(messages.CancelProtocol, err.Error())
		return
	}
	if interim {
		st.interims = append(st.interims, head)
		st.interimBytes += len(head.Fields)
	} else {
		st.head, st.finalHead = head, true
	}
	st.mu.Unlock()
	if h.Flags&messages.FlagEnd != 0 {
		st.receive(nil, true)
		return
	}
	s.wakeLater(st)
}

// isInterim reports whether another response head follows one with this status (RFC 9110, section 15.2).
func isInterim(status int) bool { return status < 200 && status != http.StatusSwitchingProtocols }
