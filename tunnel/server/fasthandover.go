package server

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"syscall"
	"time"
)

// handOver gives the connection to net/http.
func (c *fastConn) handOver() {
	c.mu.Lock()
	c.state = fastLeaves
	_ = c.Conn.SetReadDeadline(time.Time{})
	c.mu.Unlock()
	if c.tls != nil {
		c.listener.hand(fastTLSConn{c}, nil)
		return
	}
	c.listener.hand(c, nil)
}

// takeVisit returns the request that was sent before the connection was handed over, once; its pending is nil if there is none.
func (c *fastConn) takeVisit() fastVisit {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.visit
	c.visit = fastVisit{}
	return v
}

// end closes a connection that was not handed over.
func (c *fastConn) end() {
	_ = c.Close()
	fastBuffers.Put(c.buf)
}

// Close gives up a request that nobody has taken over.
func (c *fastConn) Close() error {
	c.listener.server.giveUp(c.takeVisit())
	return c.Conn.Close()
}

// giveUp cancels a request that was sent, if one was: nobody is there for the answer.
func (s *Server) giveUp(v fastVisit) {
	if v.pending == nil {
		return
	}
	v.pending.Cancel()
	s.metrics.request(499, time.Since(v.began).Seconds())
	s.metrics.stream(-1)
}

// is reports whether v was sent, and is r: what else stood before the handler may have answered it.
func (v fastVisit) is(r *http.Request) bool {
	return v.pending != nil && r.Method == http.MethodGet && r.RequestURI == v.target && r.Host == v.host
}

// Read returns what run has read and not answered, and then what comes. It is for net/http.
func (c *fastConn) Read(p []byte) (int, error) {
	if c.buf == nil {
		return c.Conn.Read(p)
	}
	n := copy(p, c.buf[c.taken:c.held])
	if c.taken += n; c.taken == c.held {
		fastBuffers.Put(c.buf)
		c.buf = nil
	}
	return n, nil
}

// NetConn returns the connection below, which whoever reads has to leave alone.
func (c *fastConn) NetConn() net.Conn { return c.Conn }

// SyscallConn is the socket's, for who writes to it.
func (c *fastConn) SyscallConn() (syscall.RawConn, error) {
	if s, ok := c.Conn.(syscall.Conn); ok {
		return s.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// CloseWrite ends what is sent to the visitor.
func (c *fastConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// A fastTLSConn is a fastConn that was handed over, and tells net/http of its TLS.
type fastTLSConn struct{ *fastConn }

// ConnectionState is tls.Conn's.
func (c fastTLSConn) ConnectionState() tls.ConnectionState { return *c.tls }
