package tunnel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"github.com/harp-tunnel/harp/messages"
)

// A CancelError is the peer's word that a stream ended early.
type CancelError struct {
	Code   messages.CancelCode
	Reason string // the peer's own words: not to be trusted
}

func (e *CancelError) Error() string {
	if e.Reason == "" {
		return "tunnel: stream cancelled by peer: " + e.Code.String()
	}
	return fmt.Sprintf("tunnel: stream cancelled by peer: %s: %s", e.Code, e.Reason)
}

// errCancelled is what a stream's own end gets after it cancelled the stream.
var errCancelled = errors.New("tunnel: stream was cancelled here")

// errEnded is what a writer gets after it ended its body.
var errEnded = errors.New("tunnel: write after the end")

// A stream is one request and its response, or one upgraded connection. One goroutine at a time may read it and
// one may write it; the reader of the link delivers to it and never waits.
type stream struct {
	session *Session
	id      uint32
	kind    messages.Type // what its bytes travel in: Body or WSMessage
	batch   uint64        // of the outbox that holds the request head; set before it is awaited (edge)
	offered bool          // a piece of the body was given to the outbox, by whose mu it is guarded

	mu sync.Mutex // guards the fields below; taken after Session.mu; not held while calling the outbox

	// receiving
	interims     []messages.HTTPResponse // interim response heads that have come and were not taken (edge)
	interimBytes int                     // of interims
	head         messages.HTTPResponse   // the final response head, once finalHead (edge)
	finalHead    bool
	in           byteQueue
	recv         recvWindow
	inEnded      bool            // the peer has sent its last byte
	trailers     messages.Fields // valid once inEnded
	inErr        error           // why receiving ended early; readers get it after the bytes before it
	readWake     chan struct{}   // holds a token when something above changed; nil until somebody waits
	awaiter      Awaiter         // called when something above changed; nil if nobody is (edge)

	// sending
	credit    int64         // bytes that may be sent
	outEnded  bool          // our last byte was sent
	outErr    error         // why sending ended early
	writeWake chan struct{} // holds a token when there is more credit; nil until somebody waits
	quit      chan struct{} // closed when nothing more can be sent: the stream was cancelled or the link died; nil until somebody waits
	quitted   bool          // quit is closed, or would be

	handling *requestContext // of the handler (agent); ends when both halves are ended early
	removed  bool            // no longer in Session.streams; guarded by Session.mu
}

func newStream(s *Session, id uint32, kind messages.Type) *stream {
	st := new(stream)
	st.init(s, id, kind)
	return st
}

func (st *stream) init(s *Session, id uint32, kind messages.Type) {
	st.session, st.id, st.kind = s, id, kind
	st.recv = newRecvWindow()
	st.credit = DefaultStreamWindow
}

// wake puts a token into c, which may be nil: then nobody waits.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// awaitReadLocked returns the channel that gets a token when something of the receiving half changes.
func (st *stream) awaitReadLocked() <-chan struct{} {
	if st.readWake == nil {
		st.readWake = make(chan struct{}, 1)
	}
	return st.readWake
}

// wakeReader tells who reads the stream, or waits for its answer, that something has changed.
func (st *stream) wakeReader() {
	st.mu.Lock()
	c, a := st.readWake, st.awaiter
	st.mu.Unlock()
	wake(c)
	if a != nil {
		a.Ready()
	}
}

// quits returns a channel that is closed when nothing more can be sent.
func (st *stream) quits() <-chan struct{} {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.quitsLocked()
}

func (st *stream) quitsLocked() <-chan struct{} {
	if st.quit == nil {
		if st.quit = make(chan struct{}); st.quitted {
			close(st.quit)
		}
	}
	return st.quit
}

// read waits for bytes, the end (io.EOF), an early end, or expired to be closed (then os.ErrDeadlineExceeded).
func (st *stream) read(p []byte, expired <-chan struct{}) (int, error) {
	for {
		if isClosed(expired) {
			return 0, os.ErrDeadlineExceeded
		}
		st.mu.Lock()
		if n := st.in.read(p); n > 0 || len(p) == 0 {
			grant, over := st.consumedLocked(n), st.overLocked()
			st.mu.Unlock()
			st.settle(grant, over)
			return n, nil
		}
		if err := st.inEndLocked(); err != nil {
			st.mu.Unlock()
			return 0, err
		}
		wake := st.awaitReadLocked()
		st.mu.Unlock()
		select {
		case <-wake:
		case <-expired:
			return 0, os.ErrDeadlineExceeded
		}
	}
}

// inEndLocked is why there is nothing more to read when everything that came was: nil if more may come.
func (st *stream) inEndLocked() error {
	if st.inErr == nil && st.inEnded {
		return io.EOF
	}
	return st.inErr
}

// next waits for a piece of the body and hands it over without a copy. The caller releases the chunk and then
// calls consumed with its length.
func (st *stream) next() (*chunk, error) {
	for {
		st.mu.Lock()
		if c := st.in.take(); c != nil {
			st.mu.Unlock()
			return c, nil
		}
		if err := st.inEndLocked(); err != nil {
			st.mu.Unlock()
			return nil, err
		}
		wake := st.awaitReadLocked()
		st.mu.Unlock()
		<-wake
	}
}

// consumed notes that n bytes from next have been used.
func (st *stream) consumed(n int) {
	st.mu.Lock()
	grant, over := st.consumedLocked(n), st.overLocked()
	st.mu.Unlock()
	st.settle(grant, over)
}

// settle does what reading made due, outside the lock.
func (st *stream) settle(grant uint32, over bool) {
	if grant > 0 {
		_ = st.session.out.control(func(b []byte) []byte { return messages.AppendCredit(b, st.id, grant) })
	}
	if over {
		st.session.remove(st)
	}
}

// buffered reports whether bytes are waiting to be read, and whether no more will come.
func (st *stream) buffered() (more, ended bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.in.size > 0, st.inDoneLocked()
}

// receive takes the bytes of a Body or WSMessage from the reader of the link.
func (st *stream) receive(p []byte, end bool) {
	st.mu.Lock()
	switch {
	case st.inErr != nil: // given up here; what was on its way is dropped
		st.mu.Unlock()
		return
	case st.session.isEdge() && !st.finalHead:
		st.mu.Unlock()
		st.cancel(messages.CancelProtocol, "data before the response head")
		return
	case st.inEnded:
		st.mu.Unlock()
		st.cancel(messages.CancelProtocol, "data after the end")
		return
	case int64(len(p)) > st.recv.left:
		st.mu.Unlock()
		st.cancel(messages.CancelFlow, "more data than credit")
		return
	}
	st.receivedLocked(len(p))
	st.in.write(p)
	st.inEnded = end
	over := st.overLocked()
	st.mu.Unlock()
	st.session.wakeLater(st)
	st.settle(0, over)
}

// receiveTrailers takes the trailers, which end the body.
func (st *stream) receiveTrailers(f messages.Fields) {
	st.mu.Lock()
	if st.inErr == nil && !st.inEnded {
		st.trailers = f
	}
	st.mu.Unlock()
	st.receive(nil, true)
}

// receiveCredit takes the peer's permission to send n more bytes.
func (st *stream) receiveCredit(n uint32) {
	st.mu.Lock()
	if st.credit+int64(n) > maxCredit {
		st.mu.Unlock()
		st.cancel(messages.CancelFlow, "credit overflow")
		return
	}
	st.credit += int64(n)
	writer := st.writeWake
	st.mu.Unlock()
	wake(writer)
}

// write sends p as the stream's next bytes, waiting for credit and for its turns, or for expired to be closed (then
// os.ErrDeadlineExceeded). It returns how many bytes are on their way.
func (st *stream) write(p []byte, expired <-chan struct{}) (n int, err error) {
	return st.send(p, false, expired)
}

// writeLast is write for the last bytes of the body, at least one: the end is part of their message.
func (st *stream) writeLast(p []byte, expired <-chan struct{}) error {
	_, err := st.send(p, true, expired)
	if err == nil {
		st.markEnded()
	}
	return err
}

func (st *stream) send(p []byte, end bool, expired <-chan struct{}) (n int, err error) {
	for n < len(p) {
		granted, err := st.reserve(len(p)-n, expired)
		if err != nil {
			return n, err
		}
		taken, err := st.session.out.offer(st, p[n:n+granted], end && n+granted == len(p), expired)
		n += taken
		if err == errGivenUp {
			err = st.refund(granted - taken)
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// refund puts credit back for n bytes that were not sent, and returns why they were not.
func (st *stream) refund(n int) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.credit += int64(n)
	if err := st.sendErrorLocked(); err != nil {
		return err
	}
	return os.ErrDeadlineExceeded
}

// reserve waits for credit and takes up to n bytes of it.
func (st *stream) reserve(n int, expired <-chan struct{}) (int, error) {
	for {
		if isClosed(expired) {
			return 0, os.ErrDeadlineExceeded
		}
		st.mu.Lock()
		if err := st.sendErrorLocked(); err != nil {
			st.mu.Unlock()
			return 0, err
		}
		if st.credit > 0 {
			n = int(min(int64(n), st.credit))
			st.credit -= int64(n)
			st.mu.Unlock()
			return n, nil
		}
		if st.writeWake == nil {
			st.writeWake = make(chan struct{}, 1)
		}
		wake, quit := st.writeWake, st.quitsLocked()
		st.mu.Unlock()
		select {
		case <-wake:
		case <-quit:
		case <-expired:
			return 0, os.ErrDeadlineExceeded
		}
	}
}

// tryReserve takes n bytes of credit if that can be had at once.
func (st *stream) tryReserve(n int) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.sendErrorLocked() != nil || st.credit < int64(n) {
		return false
	}
	st.credit -= int64(n)
	return true
}

func (st *stream) sendError() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.sendErrorLocked()
}

func (st *stream) sendErrorLocked() error {
	if st.outErr == nil && st.outEnded {
		return errEnded
	}
	return st.outErr
}

// end has send send the stream's last message. Once more, or after a cancel, it does nothing.
func (st *stream) end(send func() error) error {
	st.mu.Lock()
	done, err := st.outDoneLocked(), st.outErr
	st.mu.Unlock()
	if done {
		return err
	}
	err = send()
	st.markEnded()
	return err
}

// endBody sends an empty last Body or WSMessage.
func (st *stream) endBody() error {
	return st.end(func() error {
		return st.session.out.trail(func(b []byte) []byte {
			return messages.AppendBody(b, st.kind, messages.FlagEnd, st.id, nil)
		})
	})
}

// markEnded notes that this end has sent its last byte.
func (st *stream) markEnded() {
	st.mu.Lock()
	st.outEnded = true
	over := st.overLocked()
	st.mu.Unlock()
	st.settle(0, over)
}

// cancel ends the stream from this end, and tells the peer. What came and was not read is dropped. Whoever uses the
// stream here gets errCancelled, or an error that wraps ErrProtocol if it is the peer's fault.
func (st *stream) cancel(code messages.CancelCode, reason string) {
	err := errCancelled
	if code == messages.CancelProtocol || code == messages.CancelFlow {
		err = fmt.Errorf("%w: %s", ErrProtocol, reason)
	}
	if st.shut(err, true) {
		st.sendCancel(code, reason)
	}
}

func (st *stream) sendCancel(code messages.CancelCode, reason string) {
	kind := messages.TypeCancel
	if st.kind == messages.TypeWSMessage {
		kind = messages.TypeWSTeardown
	}
	_ = st.session.out.trail(func(b []byte) []byte {
		return messages.AppendCancel(b, kind, st.id, code, reason)
	})
}

// leave says that nothing more will be read, while what was sent may still arrive. After the peer's end it only drops
// what was not read.
func (st *stream) leave() {
	st.mu.Lock()
	open := !st.inDoneLocked()
	if st.inErr == nil {
		st.inErr = net.ErrClosed
	}
	st.in.clear()
	over := st.overLocked()
	st.mu.Unlock()
	st.wakeReader()
	if open {
		st.sendCancel(messages.CancelEnough, "")
	}
	st.settle(0, over)
}

// receiveCancel ends the stream by the peer's word. What came before stays readable.
func (st *stream) receiveCancel(code messages.CancelCode, reason string) {
	if code == messages.CancelEnough {
		st.stopSending(&CancelError{code, reason})
		return
	}
	st.shut(&CancelError{code, reason}, false)
}

// stopSending ends the sending half only.
func (st *stream) stopSending(err error) {
	st.mu.Lock()
	if st.outErr == nil && !st.outEnded {
		st.outErr = err
		st.quitLocked()
	}
	over := st.overLocked()
	st.mu.Unlock()
	st.settle(0, over)
}

// shut ends both halves with err, and reports whether either was still open. drop throws away what was not read.
func (st *stream) shut(err error, drop bool) bool {
	st.mu.Lock()
	open := !st.outDoneLocked() || !st.inDoneLocked()
	if !st.outDoneLocked() {
		st.outErr = err
	}
	if !st.inDoneLocked() || drop {
		st.inErr = err
	}
	if drop {
		st.in.clear()
	}
	st.quitLocked()
	if st.handling != nil {
		st.handling.end()
	}
	over := st.overLocked()
	st.mu.Unlock()
	st.wakeReader()
	st.settle(0, over)
	return open
}

func (st *stream) quitLocked() {
	if !st.quitted {
		st.quitted = true
		if st.quit != nil {
			close(st.quit)
		}
	}
}

func (st *stream) inDoneLocked() bool  { return st.inEnded || st.inErr != nil }
func (st *stream) outDoneLocked() bool { return st.outEnded || st.outErr != nil }

// overLocked reports whether both halves have ended and nothing is left to read.
func (st *stream) overLocked() bool {
	return st.inDoneLocked() && st.outDoneLocked() && st.in.size == 0
}
