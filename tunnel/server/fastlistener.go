package server

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// sweepEvery is how often a fastListener looks for connections that wait for too long.
	sweepEvery = time.Second
	// lastTimeout is how long requests may go on, and visitors may take for an answer, when the listener has closed.
	lastTimeout = 15 * time.Second
)

// Serve is web.Serve(l), but common requests are answered without net/http, in half the CPU time: GET with a head of at most
// 4 KiB, for a tunnel, by HTTP/1.1, where the answer is there soon and has at most 32 KiB. Any other request goes to net/http,
// and so does all that comes on its connection after it. If l makes *tls.Conn, their handshake must be done, or net/http makes it
// and serves them.
//
// web.Handler must be s, or pass each request for a tunnel on to s as it is: it does not see those that are answered without it,
// and of others it is called when they are under way. Serve sets web.ConnContext, around the one that is there, so each listener
// needs a web of its own. Of web's settings IdleTimeout and ReadHeaderTimeout hold here, too, but zero means no limit; ReadTimeout
// and WriteTimeout do not. Answers are written to the socket of a connection that has SyscallConn, past its Write.
// With a RequestTimeout below 3 s all goes to net/http.
// Shutdown and Close of web end Serve, but not the requests under way: Serve returns when these have been answered, at most
// 15 s later, and a second after Server.Shutdown has returned.
func (s *Server) Serve(web *http.Server, l net.Listener) error {
	if s.options.RequestTimeout < fastPatience+2*sweepEvery {
		return web.Serve(l) // by the time that a late answer is handed over, it would be later than that
	}
	f := &fastListener{
		Listener: l, server: s, idle: web.IdleTimeout, first: web.ReadHeaderTimeout,
		handed: make(chan accepted), closing: make(chan struct{}), gone: make(chan struct{}),
		conns: make(map[*fastConn]struct{}),
	}
	inner := web.ConnContext
	web.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if inner != nil {
			ctx = inner(ctx, c)
		}
		switch c := c.(type) {
		case *fastConn:
			ctx = context.WithValue(ctx, fastConnKey{}, c)
		case fastTLSConn:
			ctx = context.WithValue(ctx, fastConnKey{}, c.fastConn)
		}
		return ctx
	}
	f.last = &http.Server{
		Handler: web.Handler, ConnContext: web.ConnContext, BaseContext: web.BaseContext, ErrorLog: web.ErrorLog,
		DisableGeneralOptionsHandler: web.DisableGeneralOptionsHandler, ReadHeaderTimeout: web.ReadHeaderTimeout,
		MaxHeaderBytes: web.MaxHeaderBytes,
		ConnState: func(_ net.Conn, state http.ConnState) { // Shutdown does not tell, it drops what was not begun
			switch state {
			case http.StateNew:
				f.running.Add(1)
			case http.StateClosed, http.StateHijacked:
				f.running.Done()
			}
		},
	}
	f.last.SetKeepAlivesEnabled(false)
	f.running.Go(f.acceptAll) // ends when the listener closes
	go func() {               // ends when the listener is closed and its connections have ended, or been handed over to web
		f.running.Wait()
		close(f.gone)
	}()
	var sweeping sync.WaitGroup
	sweeping.Go(f.sweep) // ends then, too
	err := web.Serve(f)
	_ = f.Close()
	f.await()
	sweeping.Wait()
	return err
}

// await waits until nothing is left of a listener that was closed, and cuts off what takes too long.
func (f *fastListener) await() {
	limit, ended := time.After(lastTimeout), f.server.ended
	for {
		select {
		case <-f.gone:
			return
		case <-ended: // no more answers come, but some may be on their way to visitors
			limit, ended = time.After(linger), nil
		case <-limit:
			_ = f.last.Close()
			f.mu.Lock()
			for c := range f.conns {
				_ = c.Conn.Close()
			}
			f.mu.Unlock()
			<-f.gone
			return
		}
	}
}

// fastConnKey is the key of a request's *fastConn in its context, if it came over one.
type fastConnKey struct{}

// A fastListener serves the connections of a listener by itself for as long as it can, and hands them over then: to an
// http.Server, which accepts them.
type fastListener struct {
	net.Listener
	server      *Server
	idle, first time.Duration  // how long a visitor may wait with the next request, and with the first; zero for no limit
	handed      chan accepted  // never closed
	last        *http.Server   // takes what is handed over after Close: the one that stops drops requests that it has not begun
	closing     chan struct{}  // closed by Close
	gone        chan struct{}  // closed when all of running has ended
	running     sync.WaitGroup // acceptAll, one or two goroutines for each of conns, and the connections of last

	mu    sync.Mutex // guards conns and the closing of closing; taken before fastConn.mu
	conns map[*fastConn]struct{}
}

// accepted is what a listener's Accept returned.
type accepted struct {
	conn net.Conn
	err  error
}

// Accept returns the next connection that is handed over.
func (f *fastListener) Accept() (net.Conn, error) {
	if f.closed() {
		return nil, net.ErrClosed
	}
	select {
	case a := <-f.handed:
		return a.conn, a.err
	case <-f.closing:
		return nil, net.ErrClosed
	}
}

// Close accepts no more connections. Those that are idle end; a request under way is handed over, to last.
func (f *fastListener) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed() {
		return net.ErrClosed
	}
	close(f.closing)
	for c := range f.conns {
		c.stop()
	}
	return f.Listener.Close()
}

func (f *fastListener) closed() bool {
	select {
	case <-f.closing:
		return true
	default:
		return false
	}
}

func (f *fastListener) acceptAll() {
	for {
		c, err := f.Listener.Accept()
		if f.closed() {
			if err == nil {
				_ = c.Close()
			}
			return
		}
		fast := newFastConn(f, c)
		if err != nil || fast == nil {
			f.hand(c, err)
			continue
		}
		f.keep(fast)
	}
}

// hand has Accept return c and err. After Close it gives c to last, and closes it if that has ended, too.
func (f *fastListener) hand(c net.Conn, err error) {
	if !f.closed() {
		select {
		case f.handed <- accepted{c, err}:
			return
		case <-f.closing:
		}
	}
	if err != nil {
		return
	}
	only := &onlyConn{Listener: f.Listener, conn: c}
	_ = f.last.Serve(only) // returns when it has c
	if only.conn != nil {
		_ = only.conn.Close()
	}
}

// An onlyConn is a listener that accepts one connection.
type onlyConn struct {
	net.Listener
	conn net.Conn
}

func (l *onlyConn) Accept() (c net.Conn, err error) {
	if c, l.conn = l.conn, nil; c == nil {
		return nil, net.ErrClosed
	}
	return c, nil
}

// Close does nothing.
func (l *onlyConn) Close() error { return nil }

// keep serves c.
func (f *fastListener) keep(c *fastConn) {
	f.mu.Lock()
	f.conns[c] = struct{}{}
	if f.closed() {
		c.stop()
	}
	f.mu.Unlock()
	f.running.Go(func() { // ends when the connection ends, or is handed over, as it must be when the listener closes
		c.run()
		f.mu.Lock()
		delete(f.conns, c)
		f.mu.Unlock()
	})
}

// sweep ends connections that have been idle for too long, and hands those over whose answer takes long.
func (f *fastListener) sweep() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			f.mu.Lock()
			for c := range f.conns {
				c.expire(now)
			}
			f.mu.Unlock()
		case <-f.gone:
			return
		}
	}
}
