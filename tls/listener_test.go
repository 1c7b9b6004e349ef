package tls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// listenFor serves "hello" over HTTP for localhost and its names; raw.localhost is passed on and echoed.
func listenFor(t *testing.T, change func(*ListenerOptions)) (l *Listener, addr string, client *tls.Config) {
	t.Helper()
	ca, err := OpenInternalCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := ListenerOptions{Config: ca.TLSConfig("localhost"), Route: func(name string) Route {
		switch name {
		case "raw.localhost":
			return Route{Pass: func(conn net.Conn) { defer conn.Close(); _, _ = io.Copy(conn, conn) }}
		case "":
			return Route{}
		}
		return Route{Serve: name == "localhost" || strings.HasSuffix(name, ".localhost")}
	}}
	if change != nil {
		change(&o)
	}
	l = NewListener(inner, o)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	s := &http.Server{Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto+" "+r.TLS.ServerName)
	})}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		_ = s.Close()
		<-served
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		l.Shutdown(ctx)
	})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.RootPEM())
	return l, inner.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "a.localhost"}
}

func get(t *testing.T, addr string, config *tls.Config, h2 bool) string {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: config.Clone(), ForceAttemptHTTP2: h2, DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}}
	defer tr.CloseIdleConnections()
	res, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Get("https://" + config.ServerName)
	if err != nil {
		t.Errorf("get: %v", err)
		return ""
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return string(b)
}

func TestListenerServesHTTP(t *testing.T) {
	t.Parallel()
	_, addr, client := listenFor(t, nil)
	if got := get(t, addr, client, true); got != "HTTP/2.0 a.localhost" {
		t.Errorf("got %q", got)
	}
	if got := get(t, addr, client, false); got != "HTTP/1.1 a.localhost" {
		t.Errorf("got %q", got)
	}
}

// slowly is a connection whose writes are cut into single bytes.
type slowly struct{ net.Conn }

func (c slowly) Write(b []byte) (int, error) {
	for i := range b {
		if _, err := c.Conn.Write(b[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(b), nil
}

func TestHelloByteByByte(t *testing.T) {
	t.Parallel()
	_, addr, config := listenFor(t, nil)
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.(*net.TCPConn).SetNoDelay(true)
	if err := tls.Client(slowly{conn}, config).Handshake(); err != nil {
		t.Errorf("a hello in single bytes: %v", err)
	}
}

// TestPass: what a client sends for another's name arrives as it is, and so does each side's end.
func TestPass(t *testing.T) {
	t.Parallel()
	_, addr, config := listenFor(t, nil)
	config = config.Clone()
	config.ServerName = "raw.localhost"
	hello := record(t, config)
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	sent := string(hello) + strings.Repeat("anything", 10_000)
	go func() {
		_, _ = io.WriteString(conn, sent)
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	if got, err := io.ReadAll(conn); err != nil || string(got) != sent {
		t.Errorf("%d of %d bytes came back, %v", len(got), len(sent), err)
	}
}

func TestAlerts(t *testing.T) {
	t.Parallel()
	l, addr, config := listenFor(t, nil)
	for _, name := range []string{"", "other.example"} {
		c := config.Clone()
		c.ServerName, c.InsecureSkipVerify = name, true
		_, err := tls.Dial("tcp", addr, c)
		if err == nil || err.Error() != "remote error: tls: unrecognized name" {
			t.Errorf("%q: %v, want the alert unrecognized_name", name, err)
		}
	}
	for send, want := range map[string]string{
		"GET / HTTP/1.1\r\n\r\n":       "HTTP/1.0 400 Bad Request",
		"\x16\x03\x01\x00\x00":         alert(50),
		"\x00\x01\x02garbage":          "",
		strings.Repeat("\x16\x03", 99): alert(50),
	} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(conn, send)
		got, _ := io.ReadAll(conn)
		conn.Close()
		if !strings.HasPrefix(string(got), want) || want == "" && len(got) > 0 {
			t.Errorf("%q is answered by %q, want %q", send, got, want)
		}
	}
	if s := l.Stats(); s.Refused != 2 || s.Failed != 4 {
		t.Errorf("%+v", s)
	}
}

// TestHandshakeDeadline: it counts from the beginning, however the bytes trickle.
func TestHandshakeDeadline(t *testing.T) {
	t.Parallel()
	_, addr, config := listenFor(t, func(o *ListenerOptions) { o.HandshakeTimeout = 300 * time.Millisecond })
	hello := record(t, config)
	for _, whole := range []bool{false, true} { // also a client who says nothing after its hello
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _ = io.Copy(io.Discard, conn)
		}()
		if whole {
			_, _ = conn.Write(hello)
		}
		for i := 0; ; i++ {
			select {
			case <-ended:
			case <-time.After(20 * time.Millisecond):
				if !whole && i < len(hello) {
					_, _ = conn.Write(hello[i : i+1])
				}
				if i < 300 {
					continue
				}
				t.Errorf("whole %v: it was held for 6 s", whole)
			}
			break
		}
	}
}

// TestHandshakeWaitsForCertificate: it ends by the deadline, or when the connection has to give way, though the connection
// has nothing to do with what it waits for.
func TestHandshakeWaitsForCertificate(t *testing.T) {
	t.Parallel()
	for why, change := range map[string]func(*ListenerOptions){
		"the deadline": func(o *ListenerOptions) { o.HandshakeTimeout = 100 * time.Millisecond },
		"another came": func(o *ListenerOptions) { o.HandshakeTimeout, o.MaxHalfOpen = time.Minute, 1 },
	} {
		waits, ended := make(chan struct{}, 1), make(chan struct{}, 1)
		_, addr, config := listenFor(t, func(o *ListenerOptions) {
			change(o)
			o.Config = serverConfig(func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
				waits <- struct{}{}
				<-hello.Context().Done()
				ended <- struct{}{}
				return nil, context.Cause(hello.Context())
			})
		})
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = conn.Write(record(t, config))
		<-waits
		other, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			t.Errorf("%s: the handshake goes on", why)
		}
	}
}

// TestHalfOpen: a crowd that says nothing keeps out nobody and takes little memory.
func TestHalfOpen(t *testing.T) {
	crowd := 10_000
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil && limit.Cur < 22_000 {
		crowd = int(limit.Cur)/2 - 1000 // both ends are in this process
		t.Logf("only %d connections: the limit on files is %d; see ulimit -n", crowd, limit.Cur)
	}
	l, addr, config := listenFor(t, func(o *ListenerOptions) { o.HandshakeTimeout = time.Minute })
	before := heap()
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range crowd {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte{22, 3, 1})
		conns = append(conns, conn)
	}
	began := time.Now()
	if got := get(t, addr, config, true); got != "HTTP/2.0 a.localhost" {
		t.Errorf("got %q", got)
	}
	took := time.Since(began)
	after := heap()
	t.Logf("%d half-open connections: %d gave way, %.1f MiB more in use, a visitor took %v", crowd, l.Stats().Evicted, float64(after-before)/(1<<20), took)
	if took > 5*time.Second {
		t.Errorf("a visitor waited %v", took)
	}
	if crowd > maxHalfOpen && l.Stats().Evicted == 0 {
		t.Error("none gave way")
	}
	if after > before+128<<20 {
		t.Errorf("memory grew by %d MiB", (after-before)>>20)
	}
}

// heap is the memory in use, with stacks, in bytes.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// A listener whose inner one is out of files goes on.
func TestAcceptFails(t *testing.T) {
	t.Parallel()
	inner := &failing{err: make(chan error, 2), closed: make(chan struct{})}
	l := NewListener(inner, ListenerOptions{Config: &tls.Config{}, Route: func(string) Route { return Route{} }})
	inner.err <- &net.OpError{Op: "accept", Err: syscall.EMFILE}
	inner.err <- errors.New("broken")
	if _, err := l.Accept(); err == nil || err.Error() != "broken" {
		t.Errorf("got %v, want the second error: the first is passing", err)
	}
	_ = l.Close()
	l.Shutdown(context.Background())
}

type failing struct {
	net.Listener
	err    chan error
	closed chan struct{}
}

func (f *failing) Accept() (net.Conn, error) {
	select {
	case err := <-f.err:
		return nil, err
	case <-f.closed:
		return nil, net.ErrClosed
	}
}

func (f *failing) Close() error { close(f.closed); return nil }
