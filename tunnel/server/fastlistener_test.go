package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A fastEdge is an edge that has a second socket, whose connections Serve takes.
type fastEdge struct {
	*edge           // whose own socket is net/http's alone
	front     *edge // visitors come to Serve
	web       *http.Server
	handed    atomic.Int32 // connections that web was given
	served    chan error   // gets what Serve returned
	intercept atomic.Pointer[interceptor]
	secure    atomic.Pointer[tls.Config] // of connections that are accepted from now on; nil for none
}

// An interceptor sees what happens to the connections that are accepted while it is in force.
type interceptor struct {
	read func(p []byte)     // after a Read that got p, before it returns
	past chan struct{}      // gets a token when a Read is interrupted
	rest chan struct{}      // gets a token when a Write begins that may wait
	dial func(*net.TCPConn) // when it is accepted; may be nil
}

// newFastEdge starts an edge; change, which may be nil, is for its http.Server.
func newFastEdge(t testing.TB, o Options, change func(*http.Server)) *fastEdge {
	t.Helper()
	f := &fastEdge{edge: newEdge(t, o), served: make(chan error, 1)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.front = &edge{t: t, addr: l.Addr().String()}
	f.web = &http.Server{
		Handler: f.Server, DisableGeneralOptionsHandler: true, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				f.handed.Add(1)
			}
		},
	}
	if change != nil {
		change(f.web)
	}
	go func() { f.served <- f.Serve(f.web, &interceptedListener{l, f}) }() // ends with web
	t.Cleanup(func() {
		_ = f.web.Close()
		select {
		case err := <-f.served:
			if !errors.Is(err, http.ErrServerClosed) {
				t.Errorf("Serve returned %v", err)
			}
		case <-time.After(lastTimeout + patience):
			t.Error("Serve does not end")
		}
	})
	return f
}

// interceptedListener gives connections to the fastEdge's interceptor to see.
type interceptedListener struct {
	net.Listener
	f *fastEdge
}

func (l *interceptedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	by := l.f.intercept.Load()
	if config := l.f.secure.Load(); config != nil && err == nil {
		t := tls.Server(c, config)
		_ = t.Handshake()
		return t, nil
	}
	if err != nil || by == nil {
		return c, err
	}
	if by.dial != nil {
		by.dial(c.(*net.TCPConn))
	}
	return &interceptedConn{c.(*net.TCPConn), by}, nil
}

type interceptedConn struct {
	*net.TCPConn
	by *interceptor
}

func (c *interceptedConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if n > 0 && c.by.read != nil {
		c.by.read(p[:n])
	}
	return n, err
}

func (c *interceptedConn) Write(p []byte) (int, error) {
	select {
	case c.by.rest <- struct{}{}:
	default:
	}
	return c.TCPConn.Write(p)
}

func (c *interceptedConn) SetReadDeadline(t time.Time) error {
	err := c.TCPConn.SetReadDeadline(t)
	if !t.IsZero() && t.Before(time.Now()) {
		select {
		case c.by.past <- struct{}{}:
		default:
		}
	}
	return err
}

// wantHanded checks how many connections net/http has been given.
func (f *fastEdge) wantHanded(why string, want int32) {
	f.t.Helper()
	if got := f.handed.Load(); got != want {
		f.t.Errorf("%s: net/http was given %d connections, want %d", why, got, want)
	}
}

// wantQuiet waits until no request is under way.
func (f *fastEdge) wantQuiet() {
	f.t.Helper()
	eventually(f.t, "no request is under way", func() bool { return f.metric("harp_streams") == 0 })
}

// answer reads a response to a GET.
func (v *visitor) answer() answer {
	v.t.Helper()
	return v.answerTo(http.MethodGet)
}

func (v *visitor) answerTo(method string) answer {
	v.t.Helper()
	res, err := http.ReadResponse(v.r, &http.Request{Method: method})
	if err != nil {
		v.t.Errorf("read a response: %v", err)
		return answer{Response: &http.Response{Header: http.Header{}}, err: err}
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return answer{res, string(b), err}
}

// gets sends a GET and reads the answer. Fields are lines that end with \n.
func (v *visitor) gets(host, target, fields string) answer {
	v.t.Helper()
	v.says("GET "+target+" HTTP/1.1\nHost: "+host+"\n"+fields+"\n", "")
	return v.answer()
}

// echoing answers with the request target.
func echoing(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.RequestURI) }

func TestServeKeepsWhatIsSimple(t *testing.T) {
	f := newFastEdge(t, Options{}, nil)
	_, host := f.publish(echoing)
	v := f.front.visit()
	for range 20 {
		f.wantBody("a simple GET", v.gets(host, "/x?y", "Cookie: a=b\nAccept: */*\n"), 200, "/x?y")
	}
	f.wantHanded("20 simple requests", 0)
	f.wantBody("POST", func() answer {
		v.says("POST /p HTTP/1.1\nHost: "+host+"\nContent-Length: 1\n\n", "x")
		return v.answer()
	}(), 200, "/p")
	f.wantBody("after that", v.gets(host, "/after", ""), 200, "/after")
	f.wantHanded("one that is not, and one after it", 1)
	f.wantQuiet()
	if n := f.metric("harp_requests_total{code=200}"); n != 22 {
		t.Errorf("%v requests counted, want 22", n)
	}
}

// A request that comes just as its connection is given up must not have net/http read the one before once more: that one's
// answer would be taken for the new one's.
func TestRequestAtTheLastMomentIsNotMixedUp(t *testing.T) {
	t.Parallel()
	f := newFastEdge(t, Options{}, func(web *http.Server) { web.IdleTimeout = time.Millisecond })
	var ran [2]atomic.Int32
	_, host := f.publish(func(w http.ResponseWriter, r *http.Request) {
		ran[r.RequestURI[1]-'0'].Add(1)
		echoing(w, r)
	})
	by := &interceptor{past: make(chan struct{}, 10)}
	reads := 0
	by.read = func([]byte) {
		if reads++; reads == 2 {
			<-by.past // the connection has been idle for too long
		}
	}
	f.intercept.Store(by)
	v := f.front.visit()
	f.wantBody("the first", v.gets(host, "/0", ""), 200, "/0")
	f.wantBody("the second", v.gets(host, "/1", ""), 200, "/1")
	if a, b := ran[0].Load(), ran[1].Load(); a != 1 || b != 1 {
		t.Errorf("the first ran %d times, and the second %d", a, b)
	}
}

// A request that has been read when the server ends is answered, be it the connection's first one or not.
func TestRequestThatWasReadIsAnswered(t *testing.T) {
	for _, before := range []int{0, 1} {
		f := newFastEdge(t, Options{}, nil)
		_, host := f.publish(echoing)
		by := &interceptor{past: make(chan struct{}, 10)}
		v := f.front.visit
		reads := 0
		stopped := make(chan error, 1)
		by.read = func([]byte) {
			if reads++; reads != before+1 {
				return
			}
			f.routes.mu.Lock() // run comes as far as that
			go func() {        // ends with the connection
				time.Sleep(50 * time.Millisecond)
				go func() { stopped <- f.web.Shutdown(context.Background()) }() // ends with the connection
				eventually(t, "the connection is to end", func() bool { return len(by.past) > 0 })
				f.routes.mu.Unlock()
			}()
		}
		f.intercept.Store(by)
		c := v()
		for range before {
			f.wantBody("the one before", c.gets(host, "/0", ""), 200, "/0")
		}
		f.wantBody("the one that was read", c.gets(host, "/1", ""), 200, "/1")
		if err := receive(t, "Shutdown", stopped); err != nil {
			t.Error(err)
		}
		f.wantQuiet()
	}
}

// Serve ends when the requests under way have been answered, whoever would have answered them.
func TestServeLetsRequestsFinish(t *testing.T) {
	shutdown := func(web *http.Server) error { return web.Shutdown(context.Background()) }
	for _, test := range []struct {
		why    string
		stop   func(*http.Server) error
		before time.Duration // between the request and the end
		size   int
	}{
		{"Shutdown", shutdown, 0, 10}, {"Close", (*http.Server).Close, 0, 10}, {"a long answer", shutdown, 0, 100_000},
		{"a late answer", shutdown, fastPatience + 2*sweepEvery, 10},
	} {
		t.Run(test.why, func(t *testing.T) {
			t.Parallel()
			f := newFastEdge(t, Options{}, nil)
			release := make(chan struct{})
			body := strings.Repeat("x", test.size)
			var ran atomic.Int32
			_, host := f.publish(func(w http.ResponseWriter, r *http.Request) {
				if r.RequestURI == "/wait" {
					ran.Add(1)
					await(r, release)
				}
				io.WriteString(w, body)
			})
			idle, fresh, under := f.front.visit(), f.front.visit(), f.front.visit()
			f.wantBody("before", idle.gets(host, "/x", ""), 200, body)
			under.says("GET /wait HTTP/1.1\nHost: "+host+"\n\n", "")
			eventually(t, "one is under way", func() bool { return ran.Load() == 1 })
			if test.before > 0 {
				time.Sleep(test.before)
			}
			stopped := make(chan error, 1)
			go func() { stopped <- test.stop(f.web) }() // ends with the request
			for _, v := range []*visitor{idle, fresh} {
				if rest, err := v.rest(); rest != "" || err != nil {
					t.Errorf("a connection without a request got %q, %v", rest, err)
				}
			}
			time.Sleep(50 * time.Millisecond)
			if len(f.served) > 0 && len(stopped) > 0 {
				t.Error("nobody waits for the request")
			}
			close(release)
			f.wantBody("the one under way", under.answer(), 200, body)
			if err := receive(t, "the end", stopped); err != nil {
				t.Error(err)
			}
			f.served <- receive(t, "Serve to end", f.served)
			f.wantQuiet()
			if n := ran.Load(); n != 1 {
				t.Errorf("it ran %d times", n)
			}
			if _, err := net.Dial("tcp", f.front.addr); err == nil {
				t.Error("connections are still accepted")
			}
		})
	}
}

// A visitor who takes nothing of an answer holds Shutdown and Close up for no longer than they have.
func TestShutdownDoesNotWaitForWhoDoesNotRead(t *testing.T) {
	t.Parallel()
	f := newFastEdge(t, Options{}, nil)
	body := string(make([]byte, 30_000))
	_, host := f.publish(saying(body))
	f.intercept.Store(&interceptor{rest: make(chan struct{}, 1), dial: func(c *net.TCPConn) { _ = c.SetWriteBuffer(4 << 10) }})
	d := net.Dialer{Timeout: patience}
	c, err := d.Dial("tcp", f.front.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.(*net.TCPConn).SetReadBuffer(4 << 10)
	by := f.intercept.Load()
	for stuck := false; !stuck; {
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		select {
		case <-by.rest: // of an answer is to be written
			stuck = true
		case <-time.After(50 * time.Millisecond):
		}
	}
	f.wantHanded("a visitor who does not read", 0)
	f.wantBody("another visitor meanwhile", f.front.visit().gets(host, "/", ""), 200, body)
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_ = f.web.Shutdown(ctx)
	_ = f.web.Close()
	if took := time.Since(start); took > lastTimeout/2 {
		t.Errorf("the end took %v", took)
	}
	select {
	case err := <-f.served:
		f.served <- err
	case <-time.After(lastTimeout + 2*time.Second):
		t.Errorf("Serve has not ended after %v", time.Since(start))
	}
}

// A handler before the edge answers a request that was sent already: its answer is nobody's.
func TestHandlerBeforeTheEdge(t *testing.T) {
	t.Parallel()
	var f *fastEdge
	f = newFastEdge(t, Options{}, func(web *http.Server) {
		web.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/late" {
				io.WriteString(w, "not for the edge")
				return
			}
			f.Server.ServeHTTP(w, r)
		})
	})
	_, host := f.publish(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/late" {
			<-r.Context().Done()
		}
		io.WriteString(w, r.RequestURI)
	})
	v := f.front.visit()
	f.wantBody("a late answer", v.gets(host, "/late", ""), 200, "not for the edge")
	f.wantBody("the next request", v.gets(host, "/next", ""), 200, "/next")
	f.wantQuiet()
}

// A visitor who does not read holds the end up for a moment only when no link is left.
func TestShutdownEndsServe(t *testing.T) {
	t.Parallel()
	f := newFastEdge(t, Options{}, nil)
	body := string(make([]byte, 30_000))
	_, host := f.publish(saying(body))
	by := &interceptor{rest: make(chan struct{}, 1), dial: func(c *net.TCPConn) { _ = c.SetWriteBuffer(4 << 10) }}
	f.intercept.Store(by)
	v := f.front.visit()
	_ = v.Conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	for stuck := false; !stuck; {
		v.says("GET / HTTP/1.1\nHost: "+host+"\n\n", "")
		select {
		case <-by.rest:
			stuck = true
		case <-time.After(50 * time.Millisecond):
		}
	}
	_ = f.web.Close()
	_ = f.Shutdown(t.Context())
	select {
	case err := <-f.served:
		f.served <- err
	case <-time.After(lastTimeout / 2):
		t.Error("Serve has not ended after Shutdown")
	}
}

func TestServeTimeouts(t *testing.T) {
	t.Parallel()
	f := newFastEdge(t, Options{}, func(web *http.Server) {
		web.IdleTimeout, web.ReadHeaderTimeout = 1500*time.Millisecond, 2500*time.Millisecond
	})
	_, host := f.publish(echoing)
	for _, test := range []struct {
		why         string
		says        string
		least, most time.Duration
	}{
		{"nothing is said", "", 2400 * time.Millisecond, patience},
		{"nothing more is said", "GET / HTTP/1.1\nHost: " + host + "\n\n", 1400 * time.Millisecond, patience},
		{"a part of a head", "GET / HTTP/1.1\n", 2400 * time.Millisecond, patience},
	} {
		t.Run(test.why, func(t *testing.T) {
			t.Parallel()
			v := f.front.visit()
			start := time.Now()
			v.says(test.says, "")
			_, _ = bufio.NewReader(v).WriteTo(io.Discard)
			if took := time.Since(start); took < test.least || took > test.most {
				t.Errorf("%s: the connection ended after %v", test.why, took)
			}
		})
	}
}
