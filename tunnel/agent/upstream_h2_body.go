package agent

import (
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
)

// An h2RequestBody lends a visitor's request body to net/http's client, which may read and close it from its own
// goroutines even after it has returned the response: after finish it can do no harm.
type h2RequestBody struct {
	v       *forwardVisitor
	trailer http.Header // filled at the end of the body

	closed  atomic.Bool
	ended   atomic.Bool // it was read to its end
	reading sync.Mutex  // held while the visitor's body is read; guards the fields below
	err     error       // why it could not be read to its end
}

func (b *h2RequestBody) Read(p []byte) (int, error) {
	b.reading.Lock()
	defer b.reading.Unlock()
	if b.closed.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := b.v.r.Body.Read(p)
	switch {
	case err == io.EOF:
		b.ended.Store(true)
		for name, values := range b.v.r.Trailer {
			if validTrailer(name) && !slices.ContainsFunc(values, func(v string) bool { return !validFieldValue(v) }) {
				b.trailer[name] = values
			}
		}
	case err != nil && !b.closed.Load():
		b.err = err
	}
	return n, err
}

// Close ends a pending Read. A body that nobody has read yet is left alone, to be sent in another way.
func (b *h2RequestBody) Close() error {
	if b.closed.Swap(true) {
		return nil
	}
	if b.reading.TryLock() {
		defer b.reading.Unlock()
		return nil // nobody reads now, nor will
	}
	b.v.stopReading()
	return nil
}

// finish closes the body and waits until nobody reads it. It returns why the body could not be read, if so.
func (b *h2RequestBody) finish() error {
	b.Close()
	b.reading.Lock()
	defer b.reading.Unlock()
	return b.err
}
