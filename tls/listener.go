package tls

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	handshakeTime  = 10 * time.Second
	maxHalfOpen    = 4096
	acceptPause    = 5 * time.Millisecond // after the system refused a connection; doubles
	maxAcceptPause = time.Second
	alertTime      = time.Second // for the last words to a client that is refused
)

// A Route says what becomes of a connection.
type Route struct {
	// Pass takes the raw connection, with all that the client sent, and closes it. It runs in a goroutine of its own, which
	// the listener's Close waits for.
	Pass func(net.Conn)
	// Serve says that TLS ends here. If it is false and Pass is nil, the client gets the alert unrecognized_name.
	Serve bool
}

// ListenerOptions say what a Listener does with connections.
type ListenerOptions struct {
	// Config ends TLS. It is used as it is.
	Config *tls.Config
	// Route is asked for the server name that a client wants, in lower case, empty for none. It must not wait.
	Route func(serverName string) Route
	// HandshakeTimeout bounds the time until the handshake is done; zero means 10 s.
	HandshakeTimeout time.Duration
	// MaxHalfOpen is how many connections may be within their handshake at once; then the oldest gives way. Zero means
	// 4096.
	MaxHalfOpen int
	Logger      *slog.Logger // nil discards
}

// Stats counts what became of connections since the start.
type Stats struct {
	Refused uint64 // for a name that is not served
	Failed  uint64 // in the handshake, or before
	Evicted uint64 // half-open ones that gave way
}

// A Listener looks at the first message of each connection, and ends TLS itself or passes the connection on by the name
// that the client wants. Accept returns a *tls.Conn whose handshake is done.
type Listener struct {
	inner   net.Listener
	options ListenerOptions
	ready   chan net.Conn
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	failure error // why the inner listener ended; to be read once ready is closed

	refused, failed, evicted atomic.Uint64

	mu       sync.Mutex
	halfOpen map[*pending]struct{}
	oldest   *pending // of a list, in order of arrival
	newest   *pending
	passed   map[net.Conn]struct{}
}

// A pending is a connection within its handshake.
type pending struct {
	conn       net.Conn
	giveUp     context.CancelFunc // ends its handshake, also where that waits for a certificate and not for conn
	prev, next *pending
}

// NewListener wraps inner. Close closes it and everything that was not accepted or was passed on.
func NewListener(inner net.Listener, o ListenerOptions) *Listener {
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = handshakeTime
	}
	if o.MaxHalfOpen == 0 {
		o.MaxHalfOpen = maxHalfOpen
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Listener{
		inner: inner, options: o, ready: make(chan net.Conn),
		halfOpen: make(map[*pending]struct{}), passed: make(map[net.Conn]struct{}),
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.wg.Go(l.acceptAll) // ends with Close, or when inner breaks
	return l
}

// Stats returns the counts so far.
func (l *Listener) Stats() Stats {
	return Stats{Refused: l.refused.Load(), Failed: l.failed.Load(), Evicted: l.evicted.Load()}
}

// Addr is the address that inner listens on.
func (l *Listener) Addr() net.Addr { return l.inner.Addr() }

// Accept returns the next connection whose handshake is done.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.ready:
		return conn, nil
	case <-l.ctx.Done():
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.failure != nil {
			return nil, l.failure
		}
		return nil, net.ErrClosed
	}
}

// Close ends the listener at once, but for connections that were passed on: see Shutdown.
func (l *Listener) Close() error {
	l.cancel()
	err := l.inner.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	for p := range l.halfOpen {
		_ = p.conn.Close()
	}
	return err
}

// Shutdown waits until all goroutines have ended. When ctx ends it closes the connections that were passed on. It is
// called after Close.
func (l *Listener) Shutdown(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		for conn := range l.passed {
			_ = conn.Close()
		}
	})
	defer stop()
	l.wg.Wait()
}

func (l *Listener) acceptAll() {
	pause := time.Duration(0)
	for {
		conn, err := l.inner.Accept()
		if err == nil {
			pause = 0
			ctx, p := l.begin(conn)
			l.wg.Go(func() { l.serve(ctx, p) }) // ends by the deadline, with Close, or with what it was passed to
			continue
		}
		var temporary interface{ Temporary() bool } // such as too many open files
		if l.ctx.Err() != nil || !errors.As(err, &temporary) || !temporary.Temporary() {
			l.mu.Lock()
			l.failure = err
			l.mu.Unlock()
			l.cancel()
			return
		}
		pause = min(max(2*pause, acceptPause), maxAcceptPause)
		l.options.Logger.Warn("a connection was not accepted", "reason", err, "again", pause)
		select {
		case <-time.After(pause):
		case <-l.ctx.Done():
		}
	}
}

// begin notes a half-open connection; ctx ends with its time, or when it is not half-open any more. If they are too many
// the oldest gives way, so that a crowd of clients who say nothing keeps out nobody.
func (l *Listener) begin(conn net.Conn) (ctx context.Context, p *pending) {
	p = &pending{conn: conn}
	ctx, p.giveUp = context.WithTimeout(l.ctx, l.options.HandshakeTimeout)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.halfOpen) >= l.options.MaxHalfOpen {
		l.evicted.Add(1)
		_ = l.oldest.conn.Close()
		l.removeLocked(l.oldest)
	}
	l.halfOpen[p] = struct{}{}
	p.prev = l.newest
	if l.newest != nil {
		l.newest.next = p
	} else {
		l.oldest = p
	}
	l.newest = p
	return ctx, p
}

func (l *Listener) end(p *pending) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.removeLocked(p)
}

func (l *Listener) removeLocked(p *pending) {
	if _, ok := l.halfOpen[p]; !ok {
		return
	}
	delete(l.halfOpen, p)
	p.giveUp()
	if p.prev != nil {
		p.prev.next = p.next
	} else {
		l.oldest = p.next
	}
	if p.next != nil {
		p.next.prev = p.prev
	} else {
		l.newest = p.prev
	}
	p.prev, p.next = nil, nil
}

// serve carries one connection through its handshake.
func (l *Listener) serve(ctx context.Context, p *pending) {
	defer l.end(p)
	_ = p.conn.SetDeadline(time.Now().Add(l.options.HandshakeTimeout))
	hello, first, err := readClientHello(p.conn)
	if err != nil {
		l.failed.Add(1)
		l.reject(p.conn, err, first)
		return
	}
	conn := &peeked{Conn: p.conn, first: first}
	route := l.options.Route(hello.serverName)
	switch {
	case route.Pass != nil:
		l.end(p)
		l.pass(conn, route.Pass)
	case route.Serve:
		l.finish(ctx, conn)
	default:
		l.refused.Add(1)
		l.reject(p.conn, errUnknownName, nil)
	}
}

// pass hands the raw connection on.
func (l *Listener) pass(conn *peeked, to func(net.Conn)) {
	l.mu.Lock()
	if l.ctx.Err() != nil {
		l.mu.Unlock()
		_ = conn.Close()
		return
	}
	l.passed[conn] = struct{}{}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.passed, conn)
	}()
	_ = conn.SetDeadline(time.Time{})
	to(conn)
}

// finish makes the handshake and hands the connection to Accept.
func (l *Listener) finish(ctx context.Context, conn *peeked) {
	c := tls.Server(conn, l.options.Config)
	if err := c.HandshakeContext(ctx); err != nil {
		l.failed.Add(1)
		l.options.Logger.Debug("handshake failed", "from", conn.RemoteAddr(), "error", err)
		_ = conn.Close()
		return
	}
	_ = conn.SetDeadline(time.Time{})
	select {
	case l.ready <- c:
	case <-l.ctx.Done():
		_ = conn.Close()
	}
}
