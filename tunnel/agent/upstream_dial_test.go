package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// listenPair returns a port that is free on both loopback addresses.
func listenPair(t *testing.T) (four, six net.Listener, port string) {
	t.Helper()
	for range 20 {
		four, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(four.Addr().String())
		six, err := net.Listen("tcp", "[::1]:"+port)
		if err == nil {
			return four, six, port
		}
		four.Close()
	}
	t.Skip("no port is free on both 127.0.0.1 and ::1")
	return nil, nil, ""
}

// serveName answers every request with a name, until the listener closes.
func serveName(t *testing.T, l net.Listener, name string) *http.Server {
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, name) })}
	go s.Serve(l) // ends with Close
	t.Cleanup(func() { s.Close() })
	return s
}

func TestLocalhostIsBothAddresses(t *testing.T) {
	checkForwardLeaks(t)
	four, six, port := listenPair(t)
	six.Close()
	server := serveName(t, four, "four")
	f := newTestForwarder(t, port, ForwardOptions{})
	get := func() string {
		w := newTunnelWriter()
		w.serve(f, request(t, "GET", "/", nil, 0))
		return w.body.String() + w.reason
	}
	if got := get(); got != "four" {
		t.Errorf("only 127.0.0.1 listens: got %q", got)
	}
	server.Close()
	six, err := net.Listen("tcp", "[::1]:"+port)
	if err != nil {
		t.Skip(err)
	}
	server = serveName(t, six, "six")
	if got := get(); got != "six" || f.dialer.works.Load() != 1 {
		t.Errorf("only ::1 listens: got %q; remembered address %d, want 1", got, f.dialer.works.Load())
	}
	server.Close()
	if got, want := get(), "cannot connect to 127.0.0.1:"+port+" and [::1]:"+port+": connection refused"; got != want {
		t.Errorf("nobody listens: got %q, want %q", got, want)
	}
	if four, err = net.Listen("tcp", "127.0.0.1:"+port); err != nil {
		t.Skip(err)
	}
	serveName(t, four, "four")
	if got := get(); got != "four" {
		t.Errorf("127.0.0.1 listens again: got %q", got)
	}
}

func TestUnreachable(t *testing.T) {
	checkForwardLeaks(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := l.Addr().String()
	l.Close()
	deaf := playUpstream(t, func(_ int, p *peer) { p.rest() }) // takes the connection and makes no handshake
	short := ForwardOptions{DialTimeout: 50 * time.Millisecond}
	for _, c := range []struct {
		target string
		o      ForwardOptions
		want   string
	}{
		{refused, ForwardOptions{}, "cannot connect to " + refused + ": connection refused"},
		{"h2c://" + refused, ForwardOptions{}, "cannot connect to " + refused + ": connection refused"},
		{"https://" + refused, ForwardOptions{}, "cannot connect to " + refused + ": connection refused"},
		{"unix:/nowhere/x.sock", ForwardOptions{}, "cannot connect to /nowhere/x.sock: no such file or directory"},
		{"https://" + deaf, short, "cannot speak TLS with " + deaf + ": no answer in 50ms"},
	} {
		w := newTunnelWriter()
		w.serve(newTestForwarder(t, c.target, c.o), request(t, "POST", "/", strings.NewReader("x"), 1))
		if w.code != messages.CancelUnreachable || w.reason != c.want {
			t.Errorf("%s: failed with %v %q, want %v %q", c.target, w.code, w.reason, messages.CancelUnreachable, c.want)
		}
	}
	f := newTestForwarder(t, refused, ForwardOptions{})
	rec := httptest.NewRecorder()
	f.ServeHTTP(rec, request(t, "GET", "/", nil, 0))
	if rec.Code != 502 || rec.Body.String() != "cannot connect to "+refused+": connection refused\n" {
		t.Errorf("without a tunnel: %d %q", rec.Code, rec.Body.String())
	}
}

func TestDialIsCancelled(t *testing.T) {
	checkForwardLeaks(t)
	deaf := playUpstream(t, func(_ int, p *peer) { p.rest() })
	f := newTestForwarder(t, "https://"+deaf, ForwardOptions{})
	f.h2.refused.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	start := time.Now()
	if aborted := newTunnelWriter().serve(f, request(t, "GET", "/", nil, 0).WithContext(ctx)); !aborted {
		t.Error("want http.ErrAbortHandler")
	}
	if d := time.Since(start); d > 500*time.Millisecond {
		t.Errorf("took %v after the visitor left", d)
	}
}

func TestUnixUpstream(t *testing.T) {
	checkForwardLeaks(t)
	path := filepath.Join(t.TempDir(), "a.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Skip(err)
	}
	hosts := make(chan string, 4)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hosts <- r.Host
		io.Copy(w, r.Body)
	})}
	go s.Serve(l) // ends with Close
	t.Cleanup(func() { s.Close() })
	for target, o := range map[string]ForwardOptions{"visitor.example": {}, "localhost": {HostHeader: "rewrite"}} {
		f := newTestForwarder(t, "unix:"+path, o)
		for range 2 {
			w := newTunnelWriter()
			if w.serve(f, request(t, "POST", "/x", strings.NewReader("hello"), 5)); w.body.String() != "hello" {
				t.Errorf("got %q, %q", w.body.String(), w.reason)
			}
			if host := <-hosts; host != target {
				t.Errorf("Host %q, want %q", host, target)
			}
		}
		if n := len(f.pool.idle); n != 1 {
			t.Errorf("%d idle connections, want one that both requests used", n)
		}
	}
}

// TestTLSUpstream checks who is trusted, over HTTP/1.1.
func TestTLSUpstream(t *testing.T) {
	checkForwardLeaks(t)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) }))
	s.Config.ErrorLog = discardLog()
	s.StartTLS() // does not offer h2
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	get := func(o ForwardOptions) *tunnelWriter {
		f := newTestForwarder(t, s.URL, o)
		defer f.Close()
		w := newTunnelWriter()
		for range 3 {
			w = newTunnelWriter()
			w.serve(f, request(t, "GET", "/", nil, 0))
		}
		if n := len(f.pool.idle); w.status == 200 && n != 1 {
			t.Errorf("%d idle connections after three requests, want 1", n)
		}
		return w
	}
	if w := get(ForwardOptions{RootCAs: roots}); w.body.String() != "HTTP/1.1" {
		t.Errorf("with the right root: %q %q", w.body.String(), w.reason)
	}
	if w := get(ForwardOptions{InsecureSkipVerify: true}); w.body.String() != "HTTP/1.1" {
		t.Errorf("without verifying: %q %q", w.body.String(), w.reason)
	}
	if w := get(ForwardOptions{}); w.code != messages.CancelUnreachable || !strings.Contains(w.reason, "certificate") {
		t.Errorf("with an unknown root: %v %q", w.code, w.reason)
	}
}

func TestShortReason(t *testing.T) {
	for want, err := range map[string]error{
		"no such host": &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "x"}},
		"a":            &net.OpError{Op: "dial", Err: errors.New("a")},
		"b":            errors.New("b"),
	} {
		if got := shortReason(err); got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
}
