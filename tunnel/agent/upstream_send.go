package agent

import (
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

const (
	// expectTimeout is how long an upstream may keep silent about an Expect before the body is sent all the same
	// (RFC 9110 section 10.1.1).
	expectTimeout = time.Second

	// lastWriteTimeout bounds the wait for the write that ended a request body when its answer is there already.
	lastWriteTimeout = 50 * time.Millisecond

	chunkBefore = len("8000\r\n")      // room in front of a chunk's data
	chunkAfter  = len("\r\n0\r\n\r\n") // and behind it
)

// A bodySender copies one request's body to the upstream while the response is being read.
type bodySender struct {
	c       *upstreamConn
	v       *forwardVisitor
	chunked bool
	lent    lentBuffer

	gate     chan bool     // whether to begin; nil means at once
	done     chan struct{} // closed when run has returned; whole and readErr are set before
	final    atomic.Bool   // the bytes that end the body are being written, or were
	stopping atomic.Bool   // what Read returns from now on is our own doing

	whole   bool  // all of the body was sent
	readErr error // why the body could not be read to its end
}

func newBodySender(c *upstreamConn, v *forwardVisitor) *bodySender {
	s := &bodySender{c: c, v: v, chunked: v.plan.body == bodyChunked, done: make(chan struct{})}
	s.lent.from = c.in.lent.from
	if v.plan.expect {
		s.gate = make(chan bool, 1)
	}
	return s
}

// answer lets a body that waits for 100 go, or tells it never to; once it has begun this does nothing.
func (s *bodySender) answer(begin bool) {
	select {
	case s.gate <- begin:
	default:
	}
}

func (s *bodySender) run() {
	defer close(s.done)
	defer s.lent.release()
	if !s.mayBegin() {
		return
	}
	send := s.sendSized
	if s.chunked {
		send = s.sendChunked
	}
	readErr, writeErr := send()
	if readErr != nil && !s.stopping.Load() {
		s.readErr = readErr
		s.c.kill() // the upstream must not take what it has for a whole request
	}
	s.whole = readErr == nil && writeErr == nil
}

func (s *bodySender) mayBegin() bool {
	if s.gate == nil {
		return true
	}
	t := time.NewTimer(expectTimeout)
	defer t.Stop()
	select {
	case begin := <-s.gate:
		return begin
	case <-t.C:
		return true
	}
}

// sendSized sends as many bytes as the head has announced. A writeErr is not this end's to report: an upstream that
// has answered may stop reading, and one that broke fails the read of its answer too.
func (s *bodySender) sendSized() (readErr, writeErr error) {
	last := 0
	for remain := s.v.r.ContentLength; remain > 0; {
		buf := s.lent.next(last)
		if int64(len(buf)) > remain {
			buf = buf[:remain]
		}
		n, err := s.v.r.Body.Read(buf)
		if last = n; n == len(buf) {
			last = smallBuffer
		}
		if remain -= int64(n); n > 0 {
			s.final.Store(remain == 0)
			if _, err := s.c.conn.Write(buf[:n]); err != nil {
				return nil, err
			}
		}
		if err != nil && remain > 0 {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err, nil
		}
	}
	return nil, nil
}

// sendChunked sends each piece as a chunk as soon as it is read, and the trailers.
func (s *bodySender) sendChunked() (readErr, writeErr error) {
	last := 0
	for {
		buf := s.lent.next(last)
		room := buf[chunkBefore : len(buf)-chunkAfter]
		n, err := s.v.r.Body.Read(room)
		if last = n; n == len(room) {
			last = smallBuffer
		}
		out := buf[chunkBefore:chunkBefore]
		if n > 0 {
			out = frameChunk(buf, n)
		}
		if err == io.EOF {
			out = append(out, "0\r\n"...)
			out = appendTrailers(out, s.v.r.Trailer)
			out = append(out, "\r\n"...)
			s.final.Store(true)
		}
		if len(out) > 0 {
			if _, err := s.c.conn.Write(out); err != nil {
				return nil, err
			}
		}
		switch err {
		case nil:
		case io.EOF:
			return nil, nil
		default:
			return err, nil
		}
	}
}

// frameChunk makes a chunk of the n bytes at buf[chunkBefore:], in place.
func frameChunk(buf []byte, n int) []byte {
	var size [chunkBefore]byte
	line := append(strconv.AppendInt(size[:0], int64(n), 16), "\r\n"...)
	start := chunkBefore - len(line)
	copy(buf[start:], line)
	return append(buf[start:chunkBefore+n], "\r\n"...)
}

func appendTrailers(b []byte, trailer http.Header) []byte {
	for name, values := range trailer {
		if !validTrailer(name) {
			continue
		}
		for _, value := range values {
			if validFieldValue(value) {
				b = appendField(b, name, value)
			}
		}
	}
	return b
}

// finish ends the sender if it has not ended, and waits for it. It reports whether the whole body was sent. complete
// says that the response has ended, and so that what was not sent is not wanted; else the connection must be dead.
func (s *bodySender) finish(complete bool) bool {
	s.answer(false)
	if complete && s.final.Load() {
		// The upstream answered what it read; the write that brought it has merely not returned yet.
		t := time.NewTimer(lastWriteTimeout)
		select {
		case <-s.done:
		case <-t.C:
		}
		t.Stop()
	}
	select {
	case <-s.done:
	default:
		s.stopping.Store(true)
		s.c.kill()
		s.v.stopReading()
		<-s.done
	}
	return s.whole
}
