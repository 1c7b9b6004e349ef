package agent

import (
	"net/http"
	"sync/atomic"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// A forwardVisitor is the side of a request that came in: a ResponseWriter and what else it can do.
type forwardVisitor struct {
	w        http.ResponseWriter
	r        *http.Request
	fields   messages.Fields                 // more header fields, to be sent on as they are
	plan     forwardPlan                     // how it goes upstream
	flusher  interface{ FlushError() error } // set by the first flush, as is plain
	plain    http.Flusher
	headSent bool        // the final head was passed on
	stopped  atomic.Bool // stopReading was called, which cancels the context of a request at net/http's server
	left     atomic.Bool // the context had ended before that
}

// capability returns what w, or what it unwraps to, can do besides writing a response.
func capability[T any](w http.ResponseWriter) (T, bool) {
	for {
		if t, ok := w.(T); ok {
			return t, true
		}
		u, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			var none T
			return none, false
		}
		w = u.Unwrap()
	}
}

// writeHead passes a final head on. The fields are in v.w.Header() already. bodyOpen says that the request body has
// not ended, and so may never be read to its end.
func (v *forwardVisitor) writeHead(status int, bodyOpen bool) {
	h := v.w.Header()
	if bodyOpen {
		v.closeAfter()
	}
	// A field that the upstream did not send must not be made up by net/http's server.
	for _, name := range [...]string{"Content-Type", "Date"} {
		if _, ok := h[name]; !ok {
			h[name] = nil
		}
	}
	v.headSent = true
	v.w.WriteHeader(status)
}

// writeInterim passes a 1xx response on whose fields set puts in place, and removes them again.
func (v *forwardVisitor) writeInterim(status int, set func(http.Header)) {
	h := v.w.Header()
	before := h.Clone()
	set(h)
	v.w.WriteHeader(status)
	clear(h)
	for name, values := range before {
		h[name] = values
	}
}

// write passes a piece of the body on; it need not go out before flush.
func (v *forwardVisitor) write(piece []byte) error {
	_, err := v.w.Write(piece)
	return err
}

// flush sends what was written.
func (v *forwardVisitor) flush() error {
	if v.flusher == nil && v.plain == nil {
		var ok bool
		if v.flusher, ok = capability[interface{ FlushError() error }](v.w); !ok {
			v.plain, _ = capability[http.Flusher](v.w)
		}
	}
	if v.flusher != nil {
		return v.flusher.FlushError()
	}
	if v.plain != nil {
		v.plain.Flush()
	}
	return nil
}

// setTrailer hands a trailer over, to be sent when the handler returns.
func (v *forwardVisitor) setTrailer(name string, values ...string) {
	if validTrailer(name) {
		h, key := v.w.Header(), http.TrailerPrefix+name
		h[key] = append(h[key], values...)
	}
}

// enableFullDuplex lets net/http's server read a request on while the response is being written.
func (v *forwardVisitor) enableFullDuplex() {
	if d, ok := capability[interface{ EnableFullDuplex() error }](v.w); ok {
		d.EnableFullDuplex()
	}
}

// gone reports whether the request's context has ended of itself.
func (v *forwardVisitor) gone() bool {
	return v.left.Load() || !v.stopped.Load() && v.r.Context().Err() != nil
}

// readDeadliner is how a Read of the request body can be ended at net/http's server, whose Close waits for it.
type readDeadliner interface{ SetReadDeadline(time.Time) error }

// stopReading ends a pending Read of the request body, and all after it.
func (v *forwardVisitor) stopReading() {
	if v.gone() {
		v.left.Store(true)
	}
	v.stopped.Store(true)
	if d, ok := capability[readDeadliner](v.w); ok && d.SetReadDeadline(time.Unix(1, 0)) == nil {
		return
	}
	v.r.Body.Close()
}

// closeAfter makes net/http's HTTP/1 server close the connection after the response. After stopReading it would not,
// and would take the rest of the body for the next request.
func (v *forwardVisitor) closeAfter() {
	if _, ok := capability[readDeadliner](v.w); ok && v.r.ProtoMajor == 1 {
		v.w.Header()["Connection"] = []string{"close"}
	}
}
