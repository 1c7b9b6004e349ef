package dns

import (
	"container/list"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// maxTCP is how many TCP connections may be open at once, and maxTCPNet how many of one network (/24, /56).
	maxTCP    = 512
	maxTCPNet = 64
	// tcpWrite bounds one answer to a peer that does not read.
	tcpWrite = 5 * time.Second
	// acceptPause is the pause after a failed Accept, such as for want of file descriptors.
	acceptPause = 50 * time.Millisecond
)

// bounded is a listener with at most so many connections open. One that is too many takes the place of the oldest, of its
// own network or of all: a query over TCP is short, so the oldest is one that idles or stalls, and who asks is served.
type bounded struct {
	net.Listener
	closed chan struct{} // closed by Close

	once sync.Once // closes closed

	mu    sync.Mutex            // guards the fields below
	conns *list.List            // of *boundedConn, the oldest first
	nets  map[netip.Prefix]uint // connections of each network; none for zero
}

func newBounded(l net.Listener) *bounded {
	return &bounded{Listener: l, closed: make(chan struct{}), conns: list.New(), nets: make(map[netip.Prefix]uint)}
}

func (b *bounded) Accept() (net.Conn, error) {
	inner, err := b.Listener.Accept()
	if err != nil {
		if !errors.Is(err, net.ErrClosed) {
			b.pause() // the caller asks again at once
		}
		return nil, err
	}
	c := &boundedConn{Conn: inner, owner: b, net: netOf(clientAddr(inner.RemoteAddr()))}
	if oldest := b.add(c); oldest != nil {
		_ = oldest.Close()
	}
	return c, nil
}

// Close stops Accept; connections stay open.
func (b *bounded) Close() error {
	b.once.Do(func() { close(b.closed) })
	return b.Listener.Close()
}

func (b *bounded) pause() {
	timer := time.NewTimer(acceptPause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-b.closed:
	}
}

// add keeps c and returns the connection that has to give way to it, nil if none.
func (b *bounded) add(c *boundedConn) (oldest *boundedConn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.nets[c.net] >= maxTCPNet || b.conns.Len() >= maxTCP {
		crowded := b.nets[c.net] >= maxTCPNet
		for e := b.conns.Front(); e != nil && oldest == nil; e = e.Next() {
			if o := e.Value.(*boundedConn); !crowded || o.net == c.net {
				oldest = o
			}
		}
		b.removeLocked(oldest)
	}
	c.place = b.conns.PushBack(c)
	b.nets[c.net]++
	return oldest
}

// removeLocked forgets c; once more does nothing.
func (b *bounded) removeLocked(c *boundedConn) {
	if c.place == nil {
		return
	}
	b.conns.Remove(c.place)
	c.place = nil
	if b.nets[c.net]--; b.nets[c.net] == 0 {
		delete(b.nets, c.net)
	}
}

type boundedConn struct {
	net.Conn
	owner *bounded
	net   netip.Prefix
	place *list.Element // in owner.conns, guarded by owner.mu; nil when it has left
}

// Write gives up after tcpWrite: the library sets no deadline, and a peer that does not read would stay for ever.
func (c *boundedConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(tcpWrite)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	if err != nil {
		_ = c.Close() // half an answer is none; what comes next must not be read as its rest
	}
	return n, err
}

func (c *boundedConn) Close() error {
	c.owner.mu.Lock()
	c.owner.removeLocked(c)
	c.owner.mu.Unlock()
	return c.Conn.Close()
}
