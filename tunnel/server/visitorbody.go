package server

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

const (
	// maxKept is how many bytes of a request body are kept while it may have to be sent to another agent.
	maxKept = 64 << 10
	// linger is how long this end waits for a peer that has nothing more to say.
	linger = time.Second
	// refusedLinger is how long a visitor who was refused may take to send the body: net/http reads it before it
	// answers.
	refusedLinger = 3 * time.Second
	// restLinger is how long the rest of a body may take, and maxRest its length in bytes, to save the connection of a
	// visitor who was answered early.
	restLinger = 50 * time.Millisecond
	maxRest    = 64 << 10
)

var errTooLarge = errors.New("request body is over the limit")

// A visitorBody is a visitor's request body on its way into the tunnel. It counts, holds it to the limit, and can
// begin again as long as it remembers everything that was read. One goroutine at a time reads it.
type visitorBody struct {
	visit *visit
	out   *http.Request // gets the trailers
	done  chan struct{} // closed when the borrower has finished with the body

	finished bool

	mu    sync.Mutex // guards the fields below
	total int64      // bytes read from the visitor
	moved time.Time  // when something was last read
	err   error      // why reading has ended; io.EOF at the end
	kept  []byte     // what was read so far, if keep
	again []byte     // the part of kept that is to be read again
	keep  bool
	lent  bool // done is not closed
}

func newVisitorBody(v *visit) *visitorBody { return &visitorBody{visit: v, moved: v.began} }

// lend gets the body ready to be sent with out. keep says that it may have to be sent once more.
func (b *visitorBody) lend(out *http.Request, keep bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.out, b.done, b.lent = out, make(chan struct{}), true
	b.keep = keep && b.total == int64(len(b.kept))
	b.again = b.kept
}

// rewind reports whether the body can be sent once more from its beginning. It waits a moment for the borrower.
func (b *visitorBody) rewind() bool {
	select {
	case <-b.done:
	case <-time.After(linger):
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.keep && b.total == int64(len(b.kept)) && (b.err == nil || b.err == io.EOF)
}

func (b *visitorBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	if len(b.again) > 0 {
		n := copy(p, b.again)
		b.again = b.again[n:]
		b.mu.Unlock()
		return n, nil
	}
	err := b.err
	b.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n, err := b.visit.r.Body.Read(p)
	b.visit.server.metrics.bytes(int64(n), 0)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.total += int64(n)
	b.moved = time.Now()
	if limit := b.visit.server.options.MaxBody; limit > 0 && b.total > limit {
		b.err = errTooLarge
		return 0, errTooLarge
	}
	if b.keep && b.total <= maxKept {
		b.kept = append(b.kept, p[:n]...)
	} else {
		b.kept, b.keep = nil, false
	}
	if b.err = err; err == io.EOF {
		b.out.Trailer = trailersFrom(b.visit.r) // complete only now
	}
	return n, err
}

// trailersFrom returns the trailers of a visitor's request that an agent may get: values are there after the body's end.
func trailersFrom(r *http.Request) http.Header {
	var t http.Header
	for name, values := range r.Trailer {
		if !mayTrail(name) || isClaim(name) {
			continue
		}
		if t == nil {
			t = make(http.Header, len(r.Trailer))
		}
		t[name] = values
	}
	return t
}

// Close is the borrower's word that it reads no more.
func (b *visitorBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lent {
		b.lent = false
		close(b.done)
	}
	return nil
}

// finish takes the body back before the handler returns: net/http allows no read after that. It may be called again.
// When the answer came before the body's end, what is left of the body is thrown away if it is short and comes at once.
// If not it takes an HTTP/1 connection with it, since its bytes must not be read as another request; net/http sends the
// end of the answer first and waits a moment, for to close on unread bytes resets.
func (b *visitorBody) finish() {
	if b.finished {
		return
	}
	b.finished = true
	if b.visit.r.ProtoMajor != 1 {
		if b.reading() {
			_ = b.visit.rc.SetReadDeadline(time.Now()) // ends the borrower's Read
		}
		<-b.done
		return
	}
	if b.reading() {
		_ = b.visit.rc.SetReadDeadline(time.Now().Add(restLinger))
	}
	<-b.done
	if b.reading() {
		_, _ = io.CopyN(io.Discard, b, maxRest)
	}
	b.mu.Lock()
	whole := b.err == io.EOF
	b.mu.Unlock()
	if whole {
		_ = b.visit.rc.SetReadDeadline(time.Time{})
		return
	}
	closeAfterAnswer(b.visit.w)
}

// reading reports whether there may be more of the body to read.
func (b *visitorBody) reading() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err == nil
}

// closeAfterAnswer makes net/http close the connection after the answer, even if that has begun. Without full duplex
// it does so by itself when a body is not read to its end.
func closeAfterAnswer(w http.ResponseWriter) {
	for {
		u, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			break
		}
		w = u.Unwrap()
	}
	// A body over the limit of a MaxBytesReader is what makes net/http do it.
	_, _ = http.MaxBytesReader(w, io.NopCloser(strings.NewReader("x")), 0).Read(make([]byte, 1))
}

// tooLarge reports whether the body was cut off at the limit.
func (b *visitorBody) tooLarge() bool { return b.broken() == errTooLarge }

// broken returns why the body ended early, nil if it did not.
func (b *visitorBody) broken() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == io.EOF {
		return nil
	}
	return b.err
}

func (b *visitorBody) lastMove() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.moved
}
