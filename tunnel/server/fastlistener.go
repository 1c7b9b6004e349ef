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
	// handTimeout is how long a connection waits for an http.Server that stops to take it.
	handTimeout = 5 * time.Second
)

// Serve is web.Serve(l), but common requests are answered without net/http, in half the CPU time: GET with a head of at most
// 4 KiB, for a tunnel, by visitors who are no trusted proxy, where the answer is there soon and has at most 32 KiB. Any other
// request goes to net/http, and so does all that comes on its connection after it.
//
// web.Handler must be s, or pass tunnels' requests on to s as they are: it does not see those that are answered without it.
// Serve sets web.ConnContext, around the one that is there. Of web's settings IdleTimeout and ReadHeaderTimeout hold here, too.
// Shutdown and Close of web end Serve.
func (s *Server) Serve(web *http.Server, l net.Listener) error {
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
		if fast, ok := c.(*fastConn); ok {
			ctx = context.WithValue(ctx, fastConnKey{}, fast)
		}
		return ctx
	}
	f.running.Go(f.acceptAll) // ends when the listener closes
	go func() {               // ends when the listener is closed and its connections have been handed over or ended
		f.running.Wait()
		close(f.gone)
	}()
	go f.sweep() // ends then, too
	err := web.Serve(f)
	_ = f.Close()
	<-f.gone
	return err
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
	closing     chan struct{}  // closed by Close
	gone        chan struct{}  // closed when all of running has ended
	running     sync.WaitGroup // acceptAll, and a goroutine for each of conns

	mu    sync.Mutex // guards conns and the closing of closing; taken before fastConn.mu
	conns map[*fastConn]struct{}
}

type accepted struct {
	conn net.Conn
	err  error
}

// Accept returns the next connection that is handed over. After Close there may still be some.
func (f *fastListener) Accept() (net.Conn, error) {
	select {
	case a := <-f.handed:
		return a.conn, a.err
	case <-f.gone:
		return nil, net.ErrClosed
	}
}

// Close accepts no more connections. Those that are idle end; a request under way is handed over.
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

// hand has Accept return c and err.
func (f *fastListener) hand(c net.Conn, err error) {
	a := accepted{c, err}
	select {
	case f.handed <- a:
		return
	case <-f.closing:
	}
	select {
	case f.handed <- a:
	case <-time.After(handTimeout):
		if err == nil {
			_ = c.Close()
		}
	}
}

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
