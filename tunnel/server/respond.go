package server

import (
	"errors"
	"io"
	"net/http"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/harp-tunnel/harp/tunnel"
)

const (
	// stall is how long a visitor may take nothing of an answer before it is broken off.
	stall = 2 * time.Minute
	// stallEvery is how often the deadline for that is set anew.
	stallEvery = 30 * time.Second
	// resetDelay is how long what was sent before a reset has to get to the visitor: a reset overtakes it.
	resetDelay = 100 * time.Millisecond
	// unwatched is how many bytes of an answer go out before the first deadline: they fit the kernel's buffers.
	unwatched = 64 << 10
)

var errResponseTooLarge = errors.New("response body is over the limit")

// unfit says why a response cannot be passed on, nil if it can.
func (v *visit) unfit(res *http.Response) *visitorError {
	limit := v.server.options.MaxBody
	switch {
	case res.StatusCode == http.StatusSwitchingProtocols:
		return nil
	case res.ContentLength < 0 && res.Header["Content-Length"] != nil:
		e := upstreamBrokeError("its Content-Length is no length") // RFC 9112, section 6.3
		return &e
	case limit > 0 && res.ContentLength > limit && !v.bodyless(res):
		v.server.metrics.limit(limitMaxBody)
		e := responseTooLargeError(limit)
		return &e
	}
	return nil
}

// respond passes a response on. A body that breaks off breaks the visitor's transfer: it never ends cleanly.
func (v *visit) respond(res *http.Response) {
	v.writeHead(res)
	bodyless := v.bodyless(res)
	if res.Body == http.NoBody {
		if res.ContentLength > 0 && !bodyless {
			v.breakOff(io.ErrUnexpectedEOF)
		}
		return
	}
	out := &visitorWriter{visit: v, body: res.Body.(pendingBody), limit: v.server.options.MaxBody, length: res.ContentLength}
	if out.length < 0 && !bodyless || !out.body.Pending() {
		// The head does not wait for a body that is not there yet; and an unknown length stays unknown: net/http would
		// count a short body and drop its trailers.
		_ = v.rc.Flush()
	}
	_, err := out.body.WriteTo(out)
	if err == nil && out.length >= 0 && out.total < out.length && !bodyless {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		v.breakOff(err)
	}
	v.writeTrailers(res)
	if out.watched {
		_ = v.rc.SetWriteDeadline(time.Time{})
	}
}

// bodyless reports whether a response has no body, whatever its length says (RFC 9110, section 6.4.1).
func (v *visit) bodyless(res *http.Response) bool {
	return v.r.Method == http.MethodHead || res.StatusCode == http.StatusNoContent || res.StatusCode == http.StatusNotModified
}

// pendingBody is what a link's response body can do beyond io.ReadCloser.
type pendingBody interface {
	io.WriterTo
	// Pending reports whether the next piece, or the end, is already there.
	Pending() bool
}

// writeHead hands the response's head to net/http, which adds nothing but a Date where there is none (RFC 9110,
// section 6.6.1).
func (v *visit) writeHead(res *http.Response) {
	header := v.w.Header()
	named := tunnel.ConnectionNames(res.Header)
	for name, values := range res.Header {
		if !tunnel.IsHopByHop(name, named) && !isHarpField(name) {
			header[name] = values
		}
	}
	if res.StatusCode == http.StatusUpgradeRequired && v.r.ProtoMajor == 1 && res.Header["Upgrade"] != nil {
		header["Upgrade"], header["Connection"] = res.Header["Upgrade"], []string{"Upgrade"} // RFC 9110, section 15.5.22
	}
	if header["Content-Type"] == nil {
		header["Content-Type"] = nil // net/http guesses one unless the key is there
	}
	v.w.WriteHeader(res.StatusCode)
}

// writeTrailers hands the response's trailers to net/http.
func (v *visit) writeTrailers(res *http.Response) {
	header := v.w.Header()
	if res.Header["Trailer"] != nil {
		clear(header) // else fields of the head that have an announced name would be sent once more
	}
	for name, values := range res.Trailer {
		if mayTrail(name) && !isHarpField(name) {
			header[http.TrailerPrefix+name] = values
		}
	}
}

// mayTrail reports whether a field, in canonical form, may stand in trailers: none that says where a message ends, who
// gets it or how it is to be read (RFC 9110, section 6.5.1).
func mayTrail(name string) bool {
	return httpguts.ValidTrailerHeader(name) && !tunnel.IsHopByHop(name, nil)
}

// isHarpField reports whether a field is one of the edge's own, which no upstream may send in its name.
func isHarpField(name string) bool { return hasNamePrefix(name, "harp-") }

// breakOff ends the visitor's transfer so that it cannot be taken for complete, after what has come so far.
func (v *visit) breakOff(err error) {
	if errors.Is(err, errResponseTooLarge) {
		v.server.metrics.limit(limitMaxBody)
	}
	v.server.log.Info("response broken off", "id", v.w.Header()["X-Request-Id"], "host", v.r.Host, "target", v.r.RequestURI, "reason", err)
	_ = v.rc.Flush()
	if !v.r.ProtoAtLeast(1, 1) {
		v.reset()
	}
	panic(http.ErrAbortHandler)
}

// reset resets the connection of an HTTP/1.0 visitor, who would take its end for the end of the body.
func (v *visit) reset() {
	conn, _, err := v.rc.Hijack()
	if err != nil {
		return
	}
	select {
	case <-time.After(resetDelay):
	case <-v.r.Context().Done():
	}
	hangUp(conn)
}

// A visitorWriter writes the pieces of a response body to the visitor, and flushes whenever nothing more is there yet.
type visitorWriter struct {
	visit   *visit
	body    pendingBody
	limit   int64 // bytes; zero or less for none
	length  int64 // declared, -1 for unknown
	total   int64 // bytes written
	due     time.Time
	watched bool
}

func (w *visitorWriter) Write(p []byte) (int, error) {
	w.total += int64(len(p))
	if w.limit > 0 && w.total > w.limit {
		return 0, errResponseTooLarge
	}
	if w.length >= 0 && w.total > w.length {
		return 0, http.ErrContentLength
	}
	if w.total > unwatched {
		w.watch()
	}
	n, err := w.visit.w.Write(p)
	w.visit.server.metrics.bytes(0, int64(n))
	if err == nil && !w.body.Pending() {
		err = w.visit.rc.Flush()
	}
	return n, err
}

// watch sets the deadline by which the visitor must have taken something.
func (w *visitorWriter) watch() {
	if now := time.Now(); now.After(w.due) {
		w.watched, w.due = true, now.Add(stallEvery)
		_ = w.visit.rc.SetWriteDeadline(now.Add(stall))
	}
}
