package tunnel

import (
	"cmp"
	"net"
	"sync"
	"syscall"
)

// batchSize is how many bytes of a batch are gathered before they are written, in bytes.
const batchSize = 128 << 10

var batchPool = sync.Pool{New: func() any { return new([batchSize]byte) }}

// A batchConn gathers the writes between begin and flush. The WebSocket library writes a message in pieces
// of 4 KiB, each a system call: gathered, the link carries three times as much.
type batchConn struct {
	net.Conn
	mu  sync.Mutex
	buf *[batchSize]byte // nil outside a batch
	n   int              // bytes of buf in use
	off int              // bytes of these that are written

	raw   syscall.RawConn       // nil if who writes must wait, as with TLS
	once  func(fd uintptr) bool // writeOnce
	tried error                 // what writeOnce met
}

func newBatchConn(c net.Conn) *batchConn {
	b := &batchConn{Conn: c}
	if s, ok := c.(syscall.Conn); ok {
		b.raw, _ = s.SyscallConn()
		b.once = b.writeOnce
	}
	return b
}

func (c *batchConn) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.buf == nil {
		c.buf = batchPool.Get().(*[batchSize]byte)
	}
}

// flush writes what was gathered and ends the batch.
func (c *batchConn) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.drainLocked()
	c.endLocked()
	return err
}

// tryFlush is flush for who must not wait: what the connection does not take at once stays, and the batch goes on.
func (c *batchConn) tryFlush() (all bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.raw == nil {
		return false, nil
	}
	if err := c.raw.Write(c.once); err != nil || c.tried != nil {
		return false, cmp.Or(err, c.tried)
	}
	if c.off < c.n {
		return false, nil
	}
	c.n, c.off = 0, 0
	c.endLocked()
	return true, nil
}

func (c *batchConn) endLocked() {
	batchPool.Put(c.buf)
	c.buf = nil
}

func (c *batchConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.buf == nil {
		return c.Conn.Write(p)
	}
	if len(p) > batchSize-c.n {
		if err := c.drainLocked(); err != nil {
			return 0, err
		}
		if len(p) >= batchSize {
			return c.Conn.Write(p)
		}
	}
	c.n += copy(c.buf[c.n:], p)
	return len(p), nil
}

func (c *batchConn) drainLocked() error {
	if c.n == c.off {
		return nil
	}
	_, err := c.Conn.Write(c.buf[c.off:c.n])
	c.n, c.off = 0, 0
	return err
}
