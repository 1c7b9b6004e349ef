package tunnel

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// writeBuffer is how many body bytes a handler may write, without Flush, before they are sent.
const writeBuffer = 4 << 10

// sniffLen is how many bytes of a body say what it is, in http.DetectContentType.
const sniffLen = 512

// A responseWriter is what a handler at the agent answers with. It behaves as net/http's does: it implements
// http.Flusher and http.Hijacker, and what http.ResponseController looks for.
type responseWriter struct {
	st       *stream
	r        *http.Request
	method   string
	header   http.Header // nil until somebody asks
	status   int         // 0 until WriteHeader
	fields   []byte      // the response's header fields, encoded when WriteHeader was called
	length   int64       // declared Content-Length, -1 if none
	written  int64       // body bytes taken
	pending  []byte      // body bytes taken and not yet sent
	headSent bool
	broken   error // why a part of the body could not be sent; what follows it is not sent either
	hijacked bool
	declared []string // names of trailers that the head announced
	sniff    bool     // the head has no Content-Type and wants one
	expired  deadline // of writes

	interim     sync.Mutex // held while an interim head is sent, so that none comes after the final one
	mayContinue bool       // the visitor waits for 100 Continue; guarded by interim
}

func (w *responseWriter) Header() http.Header {
	if w.header == nil {
		w.header = make(http.Header)
	}
	return w.header
}

// WriteHeader sends an interim response at once, and holds a final one back until there is something to go with it.
func (w *responseWriter) WriteHeader(status int) {
	switch {
	case w.status != 0 || w.hijacked:
		return
	case status < 100 || status > 999:
		panic(fmt.Sprintf("tunnel: invalid status code %d", status)) // as net/http does: the handler is wrong
	case isInterim(status):
		w.sendInterim(status)
		return
	}
	w.neverContinue()
	w.status = status
	w.length = contentLength(w.header)
	w.fields = appendResponseHeader(buffer(nil), w.header, status)
	for _, list := range w.header["Trailer"] {
		for name := range strings.SplitSeq(list, ",") {
			w.declared = append(w.declared, textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name)))
		}
	}
	_, typed := w.header["Content-Type"]
	w.sniff = !typed && w.header["Content-Encoding"] == nil && bodyAllowed(status)
	if status == http.StatusSwitchingProtocols {
		_ = w.flushHead(0, false)
	}
}

// WriteFields is FieldsWriter's.
func (w *responseWriter) WriteFields(status int, length int64, fields []byte) bool {
	if w.status != 0 || w.hijacked || len(w.header) > 0 {
		return false
	}
	w.neverContinue()
	w.status, w.length = status, length
	w.fields = append(buffer(nil), fields...)
	return true
}

// sendInterim sends an interim head with the header as it is.
func (w *responseWriter) sendInterim(status int) {
	w.interim.Lock()
	defer w.interim.Unlock()
	if status == http.StatusContinue {
		w.mayContinue = false
	}
	_ = w.sendHead(status, appendResponseHeader(nil, w.header, status), 0, false)
}

// askForBody sends 100 Continue if the visitor still waits for it.
func (w *responseWriter) askForBody() {
	w.interim.Lock()
	defer w.interim.Unlock()
	if w.mayContinue {
		w.mayContinue = false
		_ = w.sendHead(http.StatusContinue, nil, 0, false)
	}
}

// neverContinue notes that the final head is about to be sent.
func (w *responseWriter) neverContinue() {
	w.interim.Lock()
	defer w.interim.Unlock()
	w.mayContinue = false
}

// appendResponseHeader appends the fields of h that may travel: no hop-by-hop ones, unless this is a 101, no trailers,
// and a length only if it is one and the head is final.
func appendResponseHeader(b []byte, h http.Header, status int) []byte {
	named := ConnectionNames(h)
	for name, values := range h {
		switch {
		case strings.HasPrefix(name, http.TrailerPrefix):
		case status == http.StatusUpgradeRequired && name == "Upgrade": // RFC 9110, section 15.5.22
			b = appendValues(b, name, values)
		case status != http.StatusSwitchingProtocols && IsHopByHop(name, named):
		case name == "Content-Length" && (isInterim(status) || contentLength(h) < 0):
		default:
			b = appendValues(b, name, values)
		}
	}
	return b
}

func (w *responseWriter) Write(p []byte) (int, error) {
	if w.hijacked {
		return 0, http.ErrHijacked
	}
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if !bodyAllowed(w.status) {
		return 0, http.ErrBodyNotAllowed
	}
	if w.length >= 0 && w.written+int64(len(p)) > w.length {
		return 0, http.ErrContentLength
	}
	w.written += int64(len(p))
	if w.method == http.MethodHead {
		if w.sniff { // it has the type that GET would have
			w.pending = append(buffer(w.pending), p[:min(len(p), sniffLen)]...)
		}
		if len(w.pending) >= sniffLen {
			w.sniffType(nil)
		}
		return len(p), w.st.sendError()
	}
	if len(w.pending)+len(p) <= writeBuffer {
		w.pending = append(buffer(w.pending), p...)
		return len(p), nil
	}
	if err := w.flush(p); err != nil {
		return 0, err
	}
	return w.send(p)
}

// send sends the next piece of the body.
func (w *responseWriter) send(p []byte) (n int, err error) {
	if w.broken == nil {
		n, w.broken = w.st.write(p, w.expired.wait())
	}
	return n, w.sent(w.broken)
}

// sent sees to it that a head that was held back for the body goes out, whatever came of that.
func (w *responseWriter) sent(err error) error {
	if err != nil {
		w.st.session.out.flush()
	}
	return err
}

// flush sends the head and what is pending. next is what follows, for the sniffer.
func (w *responseWriter) flush(next []byte) error {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if !w.headSent {
		w.sniffType(next)
		if err := w.flushHead(0, len(w.pending)+len(next) > 0); err != nil {
			return err
		}
	}
	if len(w.pending) == 0 {
		return w.sent(w.st.sendError())
	}
	_, err := w.send(w.pending)
	w.pending = w.pending[:0]
	return err
}

func (w *responseWriter) sniffType(next []byte) {
	sample := w.pending
	if len(sample) < sniffLen {
		sample = append(sample[:len(sample):len(sample)], next[:min(len(next), sniffLen)]...)
	}
	if w.sniff && len(sample) > 0 {
		w.fields = messages.AppendField(w.fields, "Content-Type", http.DetectContentType(sample))
	}
	w.sniff = false
	if w.method == http.MethodHead {
		w.pending = w.pending[:0]
	}
}

// flushHead sends the final head; with more, some of the body comes at once.
func (w *responseWriter) flushHead(flags messages.Flags, more bool) error {
	w.headSent = true
	err := w.sendHead(w.status, w.fields, flags, more)
	releaseBuffer(w.fields)
	w.fields = nil
	return err
}

func (w *responseWriter) sendHead(status int, fields []byte, flags messages.Flags, more bool) error {
	return w.sendHeadWith(status, fields, flags, more, nil)
}

// sendHeadWith is sendHead, and with the head goes the whole body, if that is not nil: there must be credit for it.
func (w *responseWriter) sendHeadWith(status int, fields []byte, flags messages.Flags, more bool, whole []byte) error {
	kind := messages.TypeHTTPResponse
	if w.st.kind == messages.TypeWSMessage {
		kind = messages.TypeWSResponse
	}
	if err := w.st.sendError(); err != nil {
		return err // what comes after a cancel in the stream must not go before it in the outbox
	}
	head := messages.HTTPResponse{Status: status}
	_, err := w.st.session.out.head(w.st.quits, more, func(b []byte) ([]byte, error) {
		if len(fields)+2 > maxResponseHead {
			return b, messages.ErrTooLong
		}
		start := len(b)
		b = messages.BeginHTTPResponse(b, kind, flags, w.st.id, &head)
		b, err := messages.Finish(append(b, fields...), start)
		if whole != nil && err == nil {
			b = messages.AppendBody(b, w.st.kind, messages.FlagEnd, w.st.id, whole)
		}
		return b, err
	})
	switch {
	case errors.Is(err, errGivenUp):
		return w.st.sendError()
	case errors.Is(err, messages.ErrTooLong):
		w.st.cancel(messages.CancelTooLarge, "the response head is too large")
	}
	return err
}

// Flush sends what was written so far.
func (w *responseWriter) Flush() { _ = w.FlushError() }

// FlushError is Flush that reports errors, for http.ResponseController.
func (w *responseWriter) FlushError() error {
	if w.hijacked {
		return http.ErrHijacked
	}
	return w.flush(nil)
}

// EnableFullDuplex does nothing: requests can always be read after the response has begun.
func (w *responseWriter) EnableFullDuplex() error { return nil }

// SetWriteDeadline makes writes fail after t; the zero time means never.
func (w *responseWriter) SetWriteDeadline(t time.Time) error {
	w.expired.set(t)
	return nil
}

// Fail ends an exchange whose head was not sent with an error that the edge explains to the visitor. After
// the head, it breaks the response off. reason is for people; code is one of the Cancel constants.
func (w *responseWriter) Fail(code messages.CancelCode, reason string) {
	if w.headSent {
		code = messages.CancelAborted
	}
	w.status, w.headSent = http.StatusBadGateway, true
	w.st.cancel(code, reason)
}

// abort breaks the response off where it is: what was written arrives, an end does not.
func (w *responseWriter) abort() {
	if w.hijacked {
		return
	}
	if w.headSent {
		_ = w.flush(nil)
	}
	w.st.cancel(messages.CancelAborted, "the service broke off")
	w.drop()
}

// finish ends the response after the handler has returned.
func (w *responseWriter) finish() {
	defer w.drop()
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	bodyless := w.method == http.MethodHead || !bodyAllowed(w.status)
	if w.broken != nil || w.length >= 0 && w.written < w.length && !bodyless {
		w.abort() // a short body must not look complete
		return
	}
	trailers := w.trailers()
	if !w.headSent {
		w.sniffType(nil)
		if w.length < 0 && len(trailers) == 0 && bodyAllowed(w.status) && (w.method != http.MethodHead || w.written > 0) &&
			w.declared == nil {
			w.fields = messages.AppendField(w.fields, "Content-Length", strconv.FormatInt(w.written, 10))
		}
		if len(w.pending) == 0 && len(trailers) == 0 || bodyless {
			w.finishEmpty()
			return
		}
	}
	if bodyless {
		trailers = nil
	}
	if w.end(trailers) != nil {
		w.abort()
		return
	}
	w.st.leave()
}

// end sends what is left of a response with a body.
func (w *responseWriter) end(trailers http.Header) error {
	if len(w.pending) == 0 || len(trailers) > 0 {
		if err := w.flush(nil); err != nil {
			return err
		}
		_ = w.st.endWith(trailers)
		return nil
	}
	if !w.headSent {
		if len(w.pending) <= soonPiece && !isClosed(w.expired.wait()) && w.st.tryReserve(len(w.pending)) {
			return w.sendWhole()
		}
		if err := w.flushHead(0, true); err != nil {
			return err
		}
	}
	return w.sent(w.st.writeLast(w.pending, w.expired.wait()))
}

// sendWhole sends the head and a short body together, for which credit has been taken: in two parts, another sender's write
// may take the first without the second. That is 3 % of the CPU time of both ends for a small request.
func (w *responseWriter) sendWhole() error {
	w.headSent = true
	err := w.sendHeadWith(w.status, w.fields, 0, false, w.pending)
	if err == nil {
		w.st.markEnded()
	}
	return err
}

// finishEmpty sends a head that is the whole response.
func (w *responseWriter) finishEmpty() {
	if w.flushHead(messages.FlagEnd, false) == nil {
		w.st.markEnded()
	}
	w.st.leave()
}

// trailers returns the trailer fields that the handler has set: announced ones, and those with http.TrailerPrefix.
func (w *responseWriter) trailers() http.Header {
	var t http.Header
	add := func(name string, values []string) {
		if len(values) == 0 {
			return
		}
		if t == nil {
			t = make(http.Header)
		}
		t[name] = values
	}
	for _, name := range w.declared {
		add(name, w.header[name])
	}
	for name, values := range w.header {
		if rest, ok := strings.CutPrefix(name, http.TrailerPrefix); ok {
			add(textproto.CanonicalMIMEHeaderKey(rest), values)
		}
	}
	return t
}

func (w *responseWriter) drop() {
	releaseBuffer(w.pending)
	releaseBuffer(w.fields)
	w.pending, w.fields = nil, nil
	w.expired.set(time.Time{})
}

// Hijack takes the connection over, as net/http's does: either after WriteHeader(101), or before any head, which the
// caller then writes itself. The caller must close the connection; the request body can no longer be read.
func (w *responseWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if w.hijacked {
		return nil, nil, http.ErrHijacked
	}
	if w.status != 0 && w.status != http.StatusSwitchingProtocols {
		return nil, nil, errors.New("tunnel: hijack after the response has begun")
	}
	w.hijacked = true
	c := newUpgradedConn(w.st)
	c.remote = w.r.RemoteAddr
	if !w.headSent {
		c.head = &rawHead{w: w}
	}
	return c, bufio.NewReadWriter(bufio.NewReader(c), bufio.NewWriter(c)), nil
}
