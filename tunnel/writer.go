package tunnel

import (
	"fmt"
	"runtime"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// inlineBatch is the largest batch in bytes that whoever added to it writes himself, without a goroutine. A single request
// takes 9 % less time so; and a writer that waited on each idle link would take 6 KB.
const inlineBatch = 16 << 10

// A tryConn is a Conn that can be written to by who must not wait.
type tryConn interface {
	Conn
	// TryBinary is WriteBinary for at most inlineBatch bytes, but keeps what the connection does not take at once; then all
	// is false, and Flush the next call.
	TryBinary(parts ...[]byte) (all bool, err error)
	// Flush writes what TryBinary has kept.
	Flush() error
}

// begin lets what has been gathered be written, and what will be.
func (o *outbox) begin() {
	o.sent.Store(int64(time.Since(o.start)))
	go o.write() // ends when nothing is left
}

// flush has what has been gathered written.
func (o *outbox) flush() {
	o.mu.Lock()
	o.unlockAndWrite(true)
}

// unlockAndWrite unlocks mu, under which something was added, and has it written: by who is writing already, or else by a
// goroutine. self says that the caller may write instead: he is not the reader of the link.
func (o *outbox) unlockAndWrite(self bool) {
	idle := !o.writing
	o.writing = true
	o.mu.Unlock()
	switch c, ok := o.conn.(tryConn); {
	case !idle:
	case self && ok:
		o.writeNow(c)
	default:
		go o.write() // ends when nothing is left
	}
}

// write writes batches until nothing is left. The caller has set writing. Before each it lets others run who may be about to
// add: without, each of many requests takes 18 % more CPU time.
func (o *outbox) write() {
	for {
		runtime.Gosched()
		b, ok := o.take()
		if !ok {
			return
		}
		if err := b.send(o.conn); err != nil {
			o.fail(err)
			return
		}
		o.sent.Store(int64(time.Since(o.start)))
	}
}

// writeNow writes one small batch without waiting. The rest is for a goroutine, and so is a large batch. Others are let run
// before, as in write, but not for a single request, which would take 4 % longer.
func (o *outbox) writeNow(c tryConn) {
	if o.streams.Load() > 1 {
		runtime.Gosched()
	}
	o.mu.Lock()
	if len(o.texts) > 0 || len(o.urgent)+len(o.body) > inlineBatch {
		o.mu.Unlock()
		go o.write() // ends when nothing is left
		return
	}
	b, ok := o.takeLocked()
	o.mu.Unlock()
	if !ok {
		return
	}
	all, err := c.TryBinary(b.urgent, b.body)
	releaseBuffer(b.urgent)
	releaseBuffer(b.body)
	switch {
	case err != nil:
		o.fail(err)
		return
	case !all:
		go o.flushAndWrite(c) // ends when nothing is left
		return
	}
	o.sent.Store(int64(time.Since(o.start)))
	o.mu.Lock()
	if o.idleLocked() {
		o.mu.Unlock()
		return
	}
	o.mu.Unlock()
	go o.write() // ends when nothing is left
}

// flushAndWrite ends a write that was begun, and goes on with write.
func (o *outbox) flushAndWrite(c tryConn) {
	if err := c.Flush(); err != nil {
		o.fail(err)
		return
	}
	o.sent.Store(int64(time.Since(o.start)))
	o.write()
}

// fail ends the link, to which nothing more is written.
func (o *outbox) fail(err error) {
	o.end(fmt.Errorf("tunnel: write to link: %w", err))
	o.mu.Lock()
	o.finishLocked()
	o.mu.Unlock()
}

func (o *outbox) finishLocked() {
	if !isClosed(o.written) {
		close(o.written)
	}
}

// A batch is what goes to the link at once, in the order of its fields.
type batch struct {
	texts        [][]byte
	urgent, body []byte
}

// take returns the next batch, which is the caller's until it is released; ok is false if there is none, and then the
// caller writes no more.
func (o *outbox) take() (b batch, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.takeLocked()
}

func (o *outbox) takeLocked() (b batch, ok bool) {
	if o.idleLocked() {
		return batch{}, false
	}
	b = batch{o.texts, o.urgent, o.body}
	o.texts, o.urgent, o.body = nil, nil, nil
	o.current++
	o.serveWaitingLocked()
	o.makeRoomLocked()
	return b, true
}

// idleLocked reports whether nothing is left to write, of which it takes note.
func (o *outbox) idleLocked() bool {
	if len(o.texts)+len(o.urgent)+len(o.body) > 0 {
		return false
	}
	o.writing = false
	if o.err != nil {
		o.finishLocked()
	}
	return true
}

// send writes the batch to c, in messages of at most maxMessage bytes, and releases it.
func (b batch) send(c Conn) error {
	for _, text := range b.texts {
		if err := c.WriteText(text); err != nil {
			return err
		}
	}
	if len(b.urgent)+len(b.body) == 0 {
		return nil
	}
	err := writeParts(c, b.urgent, b.body)
	releaseBuffer(b.urgent)
	releaseBuffer(b.body)
	return err
}

func writeParts(c Conn, urgent, body []byte) error {
	if len(urgent) <= maxMessage && len(body) <= maxMessage {
		return c.WriteBinary(urgent, body)
	}
	for _, p := range [2][]byte{urgent, body} {
		for len(p) > 0 {
			n, err := cut(p)
			if err != nil {
				return err
			}
			if err := c.WriteBinary(p[:n]); err != nil {
				return err
			}
			p = p[n:]
		}
	}
	return nil
}

// cut returns how many bytes of b, at a message's end, fit in one message of the link.
func cut(b []byte) (int, error) {
	n := 0
	for rest := b; len(rest) > 0; {
		var err error
		if _, _, rest, err = messages.Next(rest); err != nil {
			return 0, fmt.Errorf("tunnel: BUG: outbox holds a %w", err)
		}
		if end := len(b) - len(rest); end > maxMessage {
			break
		} else {
			n = end
		}
	}
	return n, nil
}
