package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
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

// RoundTrip sends a visitor's request over the link to one of its registrations, and waits for the response head.
// It is http.RoundTripper with these differences: the request target is req.RequestURI byte for byte, req.RemoteAddr
// is the visitor's address, req.URL is not used but for its scheme, and req.Header goes as it is, hop-by-hop fields
// included. Interim responses come by httptrace.ClientTrace.Got1xxResponse, trailers in Response.Trailer after the
// body's end. With an Upgrade field and without a body, the answer may be 101, whose Body is an *UpgradedConn.
//
// req.Body is read by a goroutine that ends, and then closes it, when the body has been sent, the response is complete
// or given up, or ctx ends; whoever lends the body unblocks its Read then. Cancelling the context aborts the exchange.
//
// Errors to branch on: Unprocessed(err) means that another link may be tried; a *CancelError is the agent's; with
// ErrClosed the link died; with ErrProtocol the agent broke the protocol on this stream; messages.ErrTooLong means that
// the head has too many bytes or fields; else the context's cause.
func (s *Session) RoundTrip(registration uint32, req *http.Request) (*http.Response, error) {
	hasBody := req.Body != nil && req.Body != http.NoBody
	st, err := s.open(registration, req, hasBody)
	if err != nil {
		if hasBody {
			_ = req.Body.Close()
		}
		return nil, err
	}
	ctx := req.Context()
	x := &exchange{stream: st, proceed: make(chan struct{})}
	x.release = context.AfterFunc(ctx, func() { st.cancel(messages.CancelAborted, context.Cause(ctx).Error()) })
	if hasBody {
		if !expectsContinue(req.Header) {
			x.letBodyGo()
		}
		go x.sendBody(req) // ends when the body has, or the stream, or the lender of the body ends it
	}
	res, err := x.awaitHead(req)
	if err != nil {
		x.release()
		x.shut(err, true)
		if ctx.Err() != nil && errors.Is(err, errCancelled) {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	return res, nil
}

// Unprocessed reports whether err, from RoundTrip, means that the agent did nothing with the request.
func Unprocessed(err error) bool {
	var c *CancelError
	if errors.As(err, &c) {
		return c.Code == messages.CancelRefused
	}
	return errors.Is(err, errUnsent) || errors.Is(err, ErrBusy) || errors.Is(err, ErrDraining)
}

var errUnsent = errors.New("tunnel: request was not sent")

// open sends the request head on a new stream.
func (s *Session) open(registration uint32, req *http.Request, hasBody bool) (*stream, error) {
	kind, carrier := messages.TypeHTTPRequest, messages.TypeBody
	if !hasBody && req.Header["Upgrade"] != nil {
		kind, carrier = messages.TypeWSRequest, messages.TypeWSMessage
	}
	if fieldCount(req.Header) > messages.MaxFields {
		return nil, fmt.Errorf("%w: more than %d header fields", messages.ErrTooLong, messages.MaxFields)
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
	st := newStream(s, 0, carrier)
	st.outEnded = flags == messages.FlagEnd
	err := s.begin(req.Context(), st, func(b []byte) ([]byte, error) {
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
	if err != nil {
		return nil, err
	}
	return st, nil
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
	s.streams[st.id] = st
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
	case interim && (len(st.heads) >= maxInterim || st.headBytes+len(head.Fields) > maxInterimBytes):
		err = errors.New("too many interim responses")
	case head.Status == http.StatusSwitchingProtocols && st.kind != messages.TypeWSMessage:
		err = errors.New("101 to a request without Upgrade")
	}
	if err != nil {
		st.mu.Unlock()
		st.cancel(messages.CancelProtocol, err.Error())
		return
	}
	st.heads = append(st.heads, head)
	st.headBytes += len(head.Fields)
	st.finalHead = !interim
	st.mu.Unlock()
	if h.Flags&messages.FlagEnd != 0 {
		st.receive(nil, true)
		return
	}
	wake(st.readWake)
}

// isInterim reports whether another response head follows one with this status (RFC 9110, section 15.2).
func isInterim(status int) bool { return status < 200 && status != http.StatusSwitchingProtocols }

// An exchange is what the edge keeps of a request until its response is read.
type exchange struct {
	*stream
	release func() bool   // stops watching the request's context
	proceed chan struct{} // closed when the request body may go: unless it is withheld, at once
	once    sync.Once     // closes proceed
}

func (x *exchange) letBodyGo() { x.once.Do(func() { close(x.proceed) }) }

// awaitHead passes interim responses on and returns the final one.
func (x *exchange) awaitHead(req *http.Request) (*http.Response, error) {
	for {
		x.mu.Lock()
		if len(x.heads) > 0 {
			head := x.heads[0]
			x.heads = x.heads[1:]
			x.headBytes -= len(head.Fields)
			x.mu.Unlock()
			if !isInterim(head.Status) {
				return x.response(req, head), nil
			}
			if t := httptrace.ContextClientTrace(req.Context()); t != nil && t.Got1xxResponse != nil {
				if err := t.Got1xxResponse(head.Status, textproto.MIMEHeader(decodeHeader(head.Fields))); err != nil {
					x.cancel(messages.CancelAborted, "visitor is gone")
					return nil, err
				}
			}
			if head.Status == http.StatusContinue {
				x.letBodyGo()
			}
			continue
		}
		err := x.inErr
		x.mu.Unlock()
		if err != nil {
			if errors.Is(err, ErrClosed) {
				<-x.session.written // until then the head may still go out
				if !x.session.out.begun(x.batch) {
					err = errors.Join(errUnsent, err)
				}
			}
			return nil, err
		}
		<-x.readWake
	}
}

func (x *exchange) response(req *http.Request, head messages.HTTPResponse) *http.Response {
	res := &http.Response{
		StatusCode: head.Status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: decodeHeader(head.Fields), Request: req,
	}
	res.ContentLength = contentLength(res.Header)
	if head.Status == http.StatusSwitchingProtocols {
		c := newUpgradedConn(x.stream)
		c.release = x.release
		res.Body = c
		return res
	}
	x.mu.Lock()
	empty := x.inEnded && x.inErr == nil && x.in.size == 0 && x.trailers == ""
	x.mu.Unlock()
	if empty {
		x.finish()
		res.Body = http.NoBody
		return res
	}
	res.Body = &responseBody{exchange: x, res: res}
	return res
}

// finish ends an exchange whose response is complete.
func (x *exchange) finish() {
	x.release()
	x.stopSending(errEnded)
}

// sendBody sends the request body, then its trailers, and closes it.
func (x *exchange) sendBody(req *http.Request) {
	defer req.Body.Close()
	if !x.mayProceed() {
		return
	}
	c := chunkPool.Get().(*chunk)
	defer releaseChunk(c)
	for {
		n, err := req.Body.Read(c.b[:])
		if n > 0 {
			if _, err := x.write(c.b[:n], nil); err != nil {
				return
			}
		}
		if err == io.EOF {
			_ = x.endWith(req.Trailer)
			return
		}
		if err != nil {
			x.cancel(messages.CancelAborted, "the request body broke off")
			return
		}
	}
}

// mayProceed waits for the agent to want the body, and reports whether it can still be sent.
func (x *exchange) mayProceed() bool {
	if !isClosed(x.proceed) {
		t := time.NewTimer(continueTimeout)
		defer t.Stop()
		select {
		case <-x.proceed:
		case <-t.C:
		case <-x.quit:
		}
	}
	return !isClosed(x.quit)
}

// endWith ends the body with trailers, or without if there are none. A stream of an Upgrade request has none, even if
// the answer was another than 101.
func (st *stream) endWith(trailers http.Header) error {
	if len(trailers) == 0 || st.kind != messages.TypeBody {
		return st.endBody()
	}
	b, err := messages.Finish(appendHeader(messages.AppendTrailers(buffer(nil), st.id, ""), trailers), 0)
	defer releaseBuffer(b)
	if err != nil || len(b) > messages.HeaderLen+maxTrailers || fieldCount(trailers) > messages.MaxFields {
		st.cancel(messages.CancelTooLarge, "the trailers are too large")
		return messages.ErrTooLong
	}
	return st.end(func() error { return st.session.out.trailers(st.quit, b) })
}

func expectsContinue(h http.Header) bool {
	v := h["Expect"]
	return len(v) > 0 && strings.EqualFold(v[0], "100-continue")
}

// responseBody is the body of a response at the edge.
type responseBody struct {
	*exchange
	res *http.Response
}

// Read lets a request body go that was withheld: the response head has been passed on now, and whoever lends the body
// does not answer that with 100 any more.
func (b *responseBody) Read(p []byte) (int, error) {
	b.letBodyGo()
	n, err := b.read(p, nil)
	if err != nil {
		b.ended(err)
	}
	return n, err
}

// WriteTo writes each piece to w as it comes, without a copy.
func (b *responseBody) WriteTo(w io.Writer) (total int64, err error) {
	b.letBodyGo()
	for {
		c, err := b.next()
		if err != nil {
			if b.ended(err); err == io.EOF {
				err = nil
			}
			return total, err
		}
		n, err := w.Write(c.b[c.r:c.w])
		size := c.w - c.r
		releaseChunk(c)
		total += int64(n)
		if err == nil && n < size {
			err = io.ErrShortWrite
		}
		if err != nil {
			return total, err
		}
		b.consumed(size)
	}
}

func (b *responseBody) ended(err error) {
	if err == io.EOF {
		b.mu.Lock()
		trailers := b.trailers
		b.mu.Unlock()
		if trailers != "" {
			b.res.Trailer = decodeHeader(trailers)
		}
		b.finish()
	}
}

// Pending reports whether the next Read would return at once, with bytes or with the end.
func (b *responseBody) Pending() bool {
	more, ended := b.buffered()
	return more || ended
}

// Close gives up what was not read; the agent is told. After the end it does nothing.
func (b *responseBody) Close() error {
	b.release()
	b.cancel(messages.CancelAborted, "visitor is gone")
	return nil
}
