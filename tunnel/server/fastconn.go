package server

import (
	"crypto/tls"
	"net"
	"sync"
	"time"

	"github.com/harp-tunnel/harp/tunnel"
)

const (
	// maxFastHead is how many bytes of a request head are read here.
	maxFastHead = 4 << 10
	// fastGather is how long an answer of which a part is there may take to be whole.
	fastGather = 5 * time.Millisecond
	// fastPatience is how long an answer may take to come.
	fastPatience = time.Second
)

// past is a deadline that ends what waits.
var past = time.Unix(1, 0)

// fastBuffers are for a request that is answered and the next one, which may come before run knows that.
var fastBuffers = sync.Pool{New: func() any { return new([2 * maxFastHead]byte) }}

// A fastConn is a visitor's connection to a fastListener. One goroutine reads it, at all times, so that it sees the visitor
// leave; whoever brings the answer writes that. When something is not as simple as that, the connection is handed over, with
// all that was read of it and not answered; a request that was sent already stays sent, and net/http's handler takes it over.
type fastConn struct {
	net.Conn
	listener *fastListener
	tls      *tls.ConnectionState // nil without TLS
	try      *tunnel.TryWriter    // nil with TLS
	remote   string               // ip:port
	trusted  bool                 // it is a proxy that may say who the visitor is
	sent     chan struct{}        // holds a token when fastSends may have ended

	// Until it is handed over these are run's, and then net/http's.
	buf    *[2 * maxFastHead]byte // nil when Read has returned what was read before
	held   int                    // bytes of buf in use
	taken  int                    // bytes of these that Read has returned
	claims fastClaims             // of the last request

	mu     sync.Mutex // guards the fields below; taken after fastListener.mu, before the stream's
	state  fastState
	since  time.Time // when the state began
	served bool      // a request has come
	late   bool      // there is a deadline for writes
	visit  fastVisit // of which the answer was not written
}

type fastState int

const (
	fastIdle   fastState = iota // a request may come
	fastAwaits                  // an answer may
	fastSends                   // an answer is being written by a goroutine
	fastLeaves                  // run is to hand the connection over
	fastEnds                    // run is to close it, unless a request has come
	fastBroken                  // an answer was cut off: run is to close it
)

// A fastVisit is a request that was sent, or one that is handed over unsent: then only paid counts.
type fastVisit struct {
	pending *tunnel.Pending // nil for none
	host    string          // its Host
	target  string          // its request target
	paid    paid
	id      string // X-Request-Id
	to      *registration
	began   time.Time
	hurried bool // it is handed over after fastGather
}

// newFastConn returns nil for a connection that net/http has to serve: HTTP/2, and one whose handshake is to come.
func newFastConn(f *fastListener, conn net.Conn) *fastConn {
	if conn == nil {
		return nil
	}
	c := &fastConn{
		Conn: conn, listener: f, remote: conn.RemoteAddr().String(), sent: make(chan struct{}, 1), since: time.Now(),
		try: tunnel.NewTryWriter(conn),
	}
	if t, ok := conn.(*tls.Conn); ok {
		state := t.ConnectionState()
		c.tls = &state
		if p := state.NegotiatedProtocol; !state.HandshakeComplete || p != "" && p != "http/1.1" {
			return nil
		}
	}
	addr := addrOf(c.remote)
	if c.tls == nil && c.try == nil || !addr.IsValid() {
		return nil
	}
	c.trusted = f.server.proxies.trusts(addr)
	c.buf = fastBuffers.Get().(*[2 * maxFastHead]byte)
	return c
}

// run reads requests until the connection ends or is handed over.
func (c *fastConn) run() {
	for {
		n, err := c.Conn.Read(c.buf[c.held:])
		switch state := c.woken(n > 0); {
		case state == fastLeaves:
			c.leave(n)
			return
		case state == fastEnds || state == fastBroken || err != nil:
			c.end()
			return
		}
		c.held = copy(c.buf[:], c.buf[c.held:c.held+n]) // what is before has been answered
		if !c.serve() {
			c.handOver()
			return
		}
	}
}

// leave hands the connection over with the n bytes that were read last, and with the request before unless that was answered.
func (c *fastConn) leave(n int) {
	c.mu.Lock()
	answered := c.visit.pending == nil
	c.mu.Unlock()
	if answered {
		n = copy(c.buf[:], c.buf[c.held:c.held+n])
		c.held = 0
	}
	c.held += n
	c.handOver()
}

// woken returns the state after a Read, and after an answer that is being written. Whoever sends a request before the answer to
// the one before wants more than is done here.
func (c *fastConn) woken(more bool) fastState {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.state == fastSends {
		c.mu.Unlock()
		<-c.sent
		c.mu.Lock()
	}
	if more && (c.state == fastAwaits || c.state == fastEnds) {
		c.state = fastLeaves
	}
	return c.state
}

// serve sends the request that was read, and reports false if it is not for here.
func (c *fastConn) serve() bool {
	s := c.listener.server
	scratch := scratchPool.Get().(*[]byte)
	defer scratchPool.Put(scratch)
	q, ok := c.parse((*scratch)[:0])
	if !ok {
		return false
	}
	*scratch = q.fields
	serving, _ := s.routes.lookup(q.label, q.head.Target)
	if len(serving) == 0 || !c.pay(q.label) {
		return false
	}
	to := inTurn(serving)[0]
	q.head.Registration = to.id
	v := fastVisit{
		pending: new(tunnel.Pending), host: q.head.Authority, target: q.head.Target, paid: paidAll,
		id: q.id, to: to, began: time.Now(),
	}
	if !c.begin(v) {
		c.notSent(paidAll)
		return false
	}
	s.metrics.stream(1)
	if err := to.link.session.Send(v.pending, &q.head, q.fields, c); err != nil {
		s.metrics.stream(-1)
		c.notSent(paidAll)
		return false
	}
	to.link.requests.Add(1)
	return true
}

// pay counts a request for a tunnel against the visitor's rate and the tunnel's, and reports false if one is used up.
func (c *fastConn) pay(label string) bool {
	s := c.listener.server
	if !s.visits.allow(visitorKey(c.claims.addr)) {
		return false
	}
	if !s.hosts.allow(label) {
		c.notSent(paidVisitor)
		return false
	}
	return true
}

// notSent notes what a request that is handed over unsent has been counted against.
func (c *fastConn) notSent(so paid) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.visit = fastVisit{paid: so}
}

// begin notes that v is about to be sent. It reports false if the connection is to end, or to be handed over, by now.
func (c *fastConn) begin(v fastVisit) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != fastIdle {
		return false
	}
	c.state, c.visit, c.since, c.served = fastAwaits, v, v.began, true
	return true
}

// Ready writes the answer, if it is a simple one. It is the tunnel's word that something of it has come.
func (c *fastConn) Ready() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != fastAwaits || c.visit.pending == nil { // nil if the visitor has left, or nothing was sent
		return
	}
	switch progress, head, size := c.visit.pending.Look(); progress {
	case tunnel.PartAnswer:
		c.hurryLocked()
	case tunnel.OtherAnswer:
		c.rouseLocked(fastLeaves)
	case tunnel.WholeAnswer:
		c.answerLocked(head, size)
	}
}

// rouseLocked has run do what the state says.
func (c *fastConn) rouseLocked(state fastState) {
	c.state = state
	_ = c.Conn.SetReadDeadline(past)
}

// hurryLocked has the connection handed over unless the rest of the answer comes at once.
func (c *fastConn) hurryLocked() {
	if c.visit.hurried {
		return
	}
	c.visit.hurried = true
	late := c.visit.pending
	time.AfterFunc(fastGather, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.state == fastAwaits && c.visit.pending == late {
			c.rouseLocked(fastLeaves)
		}
	})
}

// expire ends a connection whose visitor has been idle for too long, and hands over one whose answer takes long.
func (c *fastConn) expire(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	limit := c.listener.idle
	if !c.served {
		limit = c.listener.first
	}
	switch age := now.Sub(c.since); {
	case c.state == fastIdle && limit > 0 && age > limit:
		c.rouseLocked(fastEnds)
	case c.state == fastAwaits && age > fastPatience:
		c.rouseLocked(fastLeaves)
	case c.state == fastSends && age > stall:
		c.late = true
		_ = c.Conn.SetWriteDeadline(past)
	}
}

// stop ends an idle connection; one that is not is handed over.
func (c *fastConn) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.state {
	case fastIdle:
		c.rouseLocked(fastEnds)
	case fastAwaits:
		c.rouseLocked(fastLeaves)
	case fastSends:
		_ = c.Conn.SetWriteDeadline(time.Now().Add(lastTimeout))
	}
}
