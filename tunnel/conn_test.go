package tunnel

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// A memConn is one end of a link in memory. It holds back a writer when its queue is full, as TCP does.
type memConn struct {
	in, out      chan memMessage
	here, beyond *closer
	rate         int           // bytes a second that come in; 0 is no limit
	delay        time.Duration // of what comes in
}

type memMessage struct {
	text bool
	b    []byte
	sent time.Time
}

// A closer is closed once.
type closer struct {
	once sync.Once
	c    chan struct{}
}

func (c *closer) close() { c.once.Do(func() { close(c.c) }) }

// newMemLink returns the two ends of a link on which up to queue messages are under way in each direction.
func newMemLink(queue int) (a, b *memConn) {
	ab, ba := make(chan memMessage, queue), make(chan memMessage, queue)
	ca, cb := &closer{c: make(chan struct{})}, &closer{c: make(chan struct{})}
	return &memConn{in: ba, out: ab, here: ca, beyond: cb}, &memConn{in: ab, out: ba, here: cb, beyond: ca}
}

func (c *memConn) NextMessage() (text bool, r io.Reader, err error) {
	var m memMessage
	select {
	case <-c.here.c:
		return false, nil, net.ErrClosed
	default:
	}
	select {
	case m = <-c.in:
	case <-c.here.c:
		return false, nil, net.ErrClosed
	case <-c.beyond.c:
		select {
		case m = <-c.in: // what was sent before the end still arrives
		default:
			return false, nil, io.EOF
		}
	}
	if c.delay > 0 {
		time.Sleep(time.Until(m.sent.Add(c.delay)))
	}
	if c.rate > 0 {
		return m.text, &slowReader{b: m.b, rate: c.rate}, nil
	}
	return m.text, bytes.NewReader(m.b), nil
}

// A slowReader gives rate bytes a second.
type slowReader struct {
	b    []byte
	rate int
}

func (r *slowReader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.b[:min(len(r.b), 1400)])
	time.Sleep(time.Duration(n) * time.Second / time.Duration(r.rate))
	r.b = r.b[n:]
	return n, nil
}

func (c *memConn) WriteBinary(parts ...[]byte) error {
	for _, p := range parts {
		if len(p) > maxMessage {
			return fmt.Errorf("message of %d bytes, at most %d are allowed", len(p), maxMessage)
		}
		if len(p) > 0 {
			if err := c.write(memMessage{b: slices.Clone(p)}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *memConn) WriteText(text []byte) error {
	return c.write(memMessage{text: true, b: slices.Clone(text)})
}

func (c *memConn) write(m memMessage) error {
	select {
	case <-c.here.c:
		return net.ErrClosed
	case <-c.beyond.c:
		return io.ErrClosedPipe
	default:
	}
	m.sent = time.Now()
	select {
	case c.out <- m:
		return nil
	case <-c.here.c:
		return net.ErrClosed
	case <-c.beyond.c:
		return io.ErrClosedPipe
	}
}

func (c *memConn) Close() error {
	c.here.close()
	return nil
}
