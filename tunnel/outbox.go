package tunnel

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

const (
	// turn is how many body bytes one stream may add before the others had theirs.
	turn = 32 << 10
	// bodyBatch is how many body bytes are gathered for one write to the link.
	bodyBatch = batchSize - 4<<10
	// soonPiece is how many bytes of a body may go before those of others, if they are its first: a small request beside
	// eight downloads takes 28 ms instead of 66 over a link of 10 MiB/s.
	soonPiece = 4 << 10
	// headBatch is how many bytes of heads are gathered before further heads wait.
	headBatch = 256 << 10
	// maxUrgent bounds heads and control together: a peer that keeps asking and never reads has to go.
	maxUrgent = 4 << 20
	// maxTexts bounds the text messages that wait to be sent.
	maxTexts = 64
	// maxMessage is the size in bytes of the largest message on a link.
	maxMessage = messages.MaxPayload + messages.HeaderLen
)

var errStalledPeer = errors.New("tunnel: peer does not read what it asks for")

// An outbox gathers messages from many streams for a link, to which one goroutine at a time writes: what has come
// together while a batch was on its way is the next batch. Heads and control go first, with a body's first few bytes:
// a short answer does not wait for downloads. Bodies take turns.
type outbox struct {
	conn    Conn
	end     func(error)   // ends the link, of which a write failed or the peer does not read
	written chan struct{} // closed when nothing more is written: after close, or a write that failed
	start   time.Time
	sent    atomic.Int64 // when something was last written, in nanoseconds after start
	streams atomic.Int32 // open on the link: those who may add

	mu      sync.Mutex    // guards the fields below; taken before Session.mu; never held across I/O
	writing bool          // somebody writes, and comes back for what is gathered; nobody may before begin
	texts   [][]byte      // text messages, at most maxTexts
	urgent  []byte        // heads and control
	body    []byte        // bodies, at most bodyBatch bytes but for ends and cancels
	waiting []*offer      // bodies that found no room, in the order of their turns
	room    chan struct{} // closed when a batch is taken; nil until somebody waits
	current uint64        // number of the batch that is being gathered; the one before it is being written, or was
	err     error         // why nothing more is taken
}

// An offer is a body that waits for its turn. Its bytes belong to the caller until done is closed.
type offer struct {
	st   *stream
	p    []byte
	end  bool          // p ends the body
	done chan struct{} // closed when all of p was taken, or none of it will be
}

// newOutbox returns an outbox that gathers, and writes nothing to conn before begin.
func newOutbox(conn Conn, end func(error)) *outbox {
	return &outbox{conn: conn, end: end, written: make(chan struct{}), start: time.Now(), writing: true, current: 1}
}

// control appends a small message that must not wait: credit, cancel, ping. It may be called by the reader of the link.
func (o *outbox) control(encode func(b []byte) []byte) error { return o.add(&o.urgent, encode) }

// trail appends a small message that comes after the stream's body and must not wait.
func (o *outbox) trail(encode func(b []byte) []byte) error { return o.add(&o.body, encode) }

// add appends to queue, one of the outbox's own. A message that finds no room would be missed for ever, so it ends the
// link.
func (o *outbox) add(queue *[]byte, encode func(b []byte) []byte) error {
	o.mu.Lock()
	if o.err != nil {
		o.mu.Unlock()
		return o.err
	}
	if len(*queue) > maxUrgent {
		o.mu.Unlock()
		o.end(errStalledPeer)
		return errStalledPeer
	}
	*queue = encode(buffer(*queue))
	o.unlockAndWrite(false)
	return nil
}

// head appends a head, after waiting for room if many are queued, and returns the number of the batch that it is part of.
// It gives up with errGivenUp when the channel that quits returns is closed; it is asked for only if there is no room.
// With more, the caller adds to the body at once, or calls flush; until then the head may wait.
func (o *outbox) head(quits func() <-chan struct{}, more bool, encode func(b []byte) ([]byte, error)) (uint64, error) {
	if err := o.lockWithRoom(quits, &o.urgent, headBatch); err != nil {
		return 0, err
	}
	b, err := encode(buffer(o.urgent))
	o.urgent = b
	current := o.current
	if more && err == nil {
		o.mu.Unlock()
	} else {
		o.unlockAndWrite(true)
	}
	return current, err
}

// lockWithRoom waits until queue, one of the outbox's own, has at most limit bytes. Without an error, mu is held.
func (o *outbox) lockWithRoom(quits func() <-chan struct{}, queue *[]byte, limit int) error {
	for {
		o.mu.Lock()
		if o.err != nil {
			o.mu.Unlock()
			return o.err
		}
		if len(*queue) <= limit {
			return nil
		}
		if o.room == nil {
			o.room = make(chan struct{})
		}
		room := o.room
		o.mu.Unlock()
		select {
		case <-room:
		case <-quits():
			return errGivenUp
		}
	}
}

var errGivenUp = errors.New("tunnel: given up while waiting for the link")

// offer adds p to the stream's body, of which it is the last piece if end, waiting for its turns if the link is busy. It
// returns how many bytes were taken: all of them, or an error says why not, which is errGivenUp if the stream ended or
// expired was closed.
func (o *outbox) offer(st *stream, p []byte, end bool, expired <-chan struct{}) (taken int, err error) {
	size := len(p)
	o.mu.Lock()
	if o.err != nil {
		o.mu.Unlock()
		return 0, o.err
	}
	if !st.offered && size <= soonPiece && len(o.urgent) <= headBatch {
		o.urgent = appendPiece(buffer(o.urgent), st, p, end)
		p = nil
	}
	st.offered = true
	for len(o.waiting) == 0 && len(p) > 0 {
		n := min(len(p), turn)
		if len(o.body) > 0 && len(o.body)+n > bodyBatch {
			break
		}
		o.appendBodyLocked(st, p[:n], end && n == len(p))
		p = p[n:]
	}
	if len(p) == 0 {
		o.unlockAndWrite(true)
		return size, nil
	}
	w := &offer{st: st, p: p, end: end, done: make(chan struct{})}
	o.waiting = append(o.waiting, w)
	o.unlockAndWrite(false)
	select {
	case <-w.done:
	case <-st.quits():
	case <-expired:
	}
	err = o.withdraw(w)
	return size - len(w.p), err
}

func (o *outbox) appendBodyLocked(st *stream, p []byte, end bool) {
	o.body = appendPiece(buffer(o.body), st, p, end)
}

func appendPiece(b []byte, st *stream, p []byte, end bool) []byte {
	var flags messages.Flags
	if end {
		flags = messages.FlagEnd
	}
	return messages.AppendBody(b, st.kind, flags, st.id, p)
}

// withdraw takes w back. When it returns nobody reads w's bytes any more. The error says why not all were taken.
func (o *outbox) withdraw(w *offer) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if i := slices.Index(o.waiting, w); i >= 0 {
		o.waiting = slices.Delete(o.waiting, i, i+1)
	}
	if len(w.p) == 0 {
		return nil
	}
	if o.err != nil {
		return o.err
	}
	return errGivenUp
}

// trailers appends a message of trailers, which come after the stream's body, after waiting for room. It gives up with
// errGivenUp when the stream has quit.
func (o *outbox) trailers(st *stream, message []byte) error {
	if err := o.lockWithRoom(st.quits, &o.body, 2*bodyBatch); err != nil {
		return err
	}
	o.body = append(buffer(o.body), message...)
	o.unlockAndWrite(true)
	return nil
}

// text appends a text message, which the outbox keeps.
func (o *outbox) text(text []byte) error {
	o.mu.Lock()
	if o.err != nil {
		o.mu.Unlock()
		return o.err
	}
	if len(o.texts) == maxTexts {
		o.mu.Unlock()
		return errStalledPeer
	}
	o.texts = append(o.texts, text)
	o.unlockAndWrite(false)
	return nil
}

// makeRoomLocked lets those try again that wait for room.
func (o *outbox) makeRoomLocked() {
	if o.room != nil {
		close(o.room)
		o.room = nil
	}
}

// serveWaitingLocked gives each waiting body its turn, round and round, until the batch is full.
func (o *outbox) serveWaitingLocked() {
	for len(o.waiting) > 0 {
		w := o.waiting[0]
		n := min(len(w.p), turn)
		if len(o.body) > 0 && len(o.body)+n > bodyBatch {
			return
		}
		o.appendBodyLocked(w.st, w.p[:n], w.end && n == len(w.p))
		w.p = w.p[n:]
		copy(o.waiting, o.waiting[1:])
		if o.waiting = o.waiting[:len(o.waiting)-1]; len(w.p) > 0 {
			o.waiting = append(o.waiting, w)
		} else {
			close(w.done)
		}
	}
}

// close lets nothing more in. What has been gathered can still be taken.
func (o *outbox) close(err error) {
	o.mu.Lock()
	if o.err == nil {
		o.err = err
		for _, w := range o.waiting {
			close(w.done)
		}
		o.waiting = nil
		o.makeRoomLocked()
	}
	if !o.writing {
		o.finishLocked()
	}
	o.mu.Unlock()
}

// begun reports whether the writing of the given batch has begun.
func (o *outbox) begun(number uint64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.current > number
}
