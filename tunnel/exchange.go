package tunnel

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// An exchange is a request at the edge: its stream, its response and the body of that. All of it is one allocation.
type exchange struct {
	stream
	ctx context.Context
	res http.Response

	release func() bool   // stops watching ctx; nil while nobody has to, because awaitHead does or all has come
	proceed chan struct{} // closed when the request body may go: unless it is withheld, at once; nil without a body
	goAhead sync.Once     // closes proceed
}

// watch has the end of ctx cancel the exchange from now on.
func (x *exchange) watch() {
	if x.release == nil {
		x.release = context.AfterFunc(x.ctx, func() { _ = x.giveUp() })
	}
}

// unwatch ends that.
func (x *exchange) unwatch() {
	if x.release != nil {
		x.release()
	}
}

func (x *exchange) letBodyGo() {
	if x.proceed != nil {
		x.goAhead.Do(func() { close(x.proceed) })
	}
}

// giveUp cancels the exchange because ctx has ended, and returns why.
func (x *exchange) giveUp() error {
	cause := context.Cause(x.ctx)
	x.cancel(messages.CancelAborted, cause.Error())
	return cause
}

// awaitHead waits for the final head, and passes interim ones on.
func (x *exchange) awaitHead(w Watcher) error {
	var timer *time.Timer
	var late <-chan time.Time
	if w != nil {
		timer = time.NewTimer(w.Patience())
		defer timer.Stop()
		late = timer.C
	}
	for {
		x.mu.Lock()
		interims, final, err := x.interims, x.finalHead, x.inErr
		x.interims, x.interimBytes = nil, 0
		wake := x.awaitReadLocked()
		x.mu.Unlock()
		for _, head := range interims {
			if err := x.passInterim(w, head); err != nil {
				return err
			}
		}
		switch {
		case final:
			return nil
		case err != nil:
			return x.lost(err)
		}
		select {
		case <-wake:
		case <-x.ctx.Done():
			return x.giveUp()
		case <-late:
			left := w.Patience()
			if left <= 0 {
				x.cancel(messages.CancelAborted, ErrTimeout.Error())
				return ErrTimeout
			}
			timer.Reset(left)
		}
	}
}

func (x *exchange) passInterim(w Watcher, head messages.HTTPResponse) error {
	if w != nil {
		if err := w.Interim(head.Status, decodeHeader(head.Fields)); err != nil {
			x.cancel(messages.CancelAborted, "visitor is gone")
			return err
		}
	}
	if head.Status == http.StatusContinue {
		x.letBodyGo()
	}
	return nil
}

// lost is the error of an exchange that ended with err before its head came.
func (x *exchange) lost(err error) error {
	if !errors.Is(err, ErrClosed) {
		return err
	}
	<-x.session.out.written // until then the request may still go out
	if !x.session.out.begun(x.batch) {
		err = errors.Join(errUnsent, err)
	}
	return err
}

// response is what the caller gets when the head is there.
func (x *exchange) response(req *http.Request) *http.Response {
	res := &x.res
	*res = http.Response{
		StatusCode: x.head.Status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: decodeHeader(x.head.Fields), Request: req,
	}
	res.ContentLength = contentLength(res.Header)
	if res.StatusCode == http.StatusSwitchingProtocols {
		x.watch()
		c := newUpgradedConn(&x.stream)
		c.release = x.release
		res.Body = c
		return res
	}
	x.mu.Lock()
	whole := x.inEnded && x.inErr == nil
	short := whole && x.in.size <= chunkSize && x.trailers == ""
	empty := short && x.in.size == 0
	x.mu.Unlock()
	if !short { // what is there and fits in one write needs no watch
		x.watch()
	}
	if empty {
		x.finish()
		res.Body = http.NoBody
		return res
	}
	res.Body = (*responseBody)(x)
	return res
}

// finish ends an exchange whose response is complete.
func (x *exchange) finish() {
	x.unwatch()
	x.stopSending(errEnded)
}

// responseBody is the body of an exchange's response.
type responseBody exchange

func (b *responseBody) exchange() *exchange { return (*exchange)(b) }

// Read lets a request body go that was withheld: the response head has been passed on now, and whoever lends the body
// does not answer that with 100 any more.
func (b *responseBody) Read(p []byte) (int, error) {
	b.exchange().letBodyGo()
	n, err := b.read(p, nil)
	if err != nil {
		b.ended(err)
	}
	return n, err
}

// WriteTo writes each piece to w as it comes, without a copy.
func (b *responseBody) WriteTo(w io.Writer) (total int64, err error) {
	b.exchange().letBodyGo()
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
	if err != io.EOF {
		return
	}
	b.mu.Lock()
	trailers := b.trailers
	b.mu.Unlock()
	if trailers != "" {
		b.res.Trailer = decodeHeader(trailers)
	}
	b.exchange().finish()
}

// Pending reports whether the next Read would return at once, with bytes or with the end.
func (b *responseBody) Pending() bool {
	more, ended := b.buffered()
	return more || ended
}

// Close gives up what was not read; the agent is told. After the end it does nothing.
func (b *responseBody) Close() error {
	b.exchange().unwatch()
	b.cancel(messages.CancelAborted, "visitor is gone")
	return nil
}
