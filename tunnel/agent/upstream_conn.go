package agent

import (
	"crypto/tls"
	"net"
	"sync/atomic"
	"time"
)

// keptOutbox is the largest buffer for heads that a connection keeps, in bytes.
const keptOutbox = 16 << 10

// errStale says that the upstream ended an idle connection, or sent something unasked. Nothing was written.
var errStale error = brokenError("ended an idle connection", nil)

// An upstreamConn is one HTTP/1.1 connection to an upstream. One request at a time owns it.
type upstreamConn struct {
	conn net.Conn // what HTTP is spoken over: raw, or TLS on it
	raw  net.Conn // the socket

	in   upstreamInbox
	out  []byte // the request head; then the fields of the answer, as they go over the link
	head responseHead
	used bool // it has carried a request before

	socket     *upstreamSocket
	restsSince time.Time // set by the pool
	restLimit  time.Duration
	kill       func()      // ends the connection at once; kept, because making it anew would allocate
	abrupt     atomic.Bool // kill must not look like a proper end
}

// newUpstreamConn returns a connection over conn, which it closes.
func newUpstreamConn(conn net.Conn, buffers *upstreamBuffers) *upstreamConn {
	c := &upstreamConn{conn: conn, raw: conn}
	if t, ok := conn.(*tls.Conn); ok {
		c.raw = t.NetConn()
	}
	c.in.src = conn
	c.in.lent.from = buffers
	c.socket = newUpstreamSocket(c.raw)
	c.kill = func() {
		if c.abrupt.Load() {
			resetConn(c.raw)
			return
		}
		c.raw.Close()
	}
	return c
}

// ask writes a whole request, which is c.out, and may read the beginning of the answer as well. The error is errStale or
// nil: if writing or reading fails in another way, the next read tells. sent is how many bytes were written.
func (c *upstreamConn) ask() (sent int, err error) {
	if c.used && c.conn == c.raw && c.socket.asks() {
		if sent, err = c.in.ask(c.socket, c.out); err != nil || sent == len(c.out) {
			return sent, err
		}
	} else if c.stale() {
		return 0, errStale
	}
	n, _ := c.conn.Write(c.out[sent:])
	return sent + n, nil
}

// stale reports whether c has rested and can no longer be used.
func (c *upstreamConn) stale() bool { return c.used && !c.socket.alive() }

// rest gives back what only a request needs. Nothing that was received may be left.
func (c *upstreamConn) rest() {
	c.used = true
	c.in.release()
	c.head.reset()
	if cap(c.out) > keptOutbox {
		c.out = nil
	}
}

// close ends the connection in good order.
func (c *upstreamConn) close() {
	c.conn.Close()
}

// resetConn ends a connection so that the peer cannot take it for a proper end. Where there is no such thing, as on
// a unix socket, it closes it.
func resetConn(c net.Conn) {
	switch c := c.(type) {
	case interface{ Reset() error }: // a connection through the tunnel
		c.Reset()
		return
	case *tls.Conn:
		resetConn(c.NetConn())
		return
	case interface{ SetLinger(sec int) error }:
		c.SetLinger(0)
	}
	c.Close()
}
