package tunnel

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"
)

// A pair is two real sessions on the two ends of one link.
type pair struct {
	t           *testing.T
	edge, agent *Session
}

// newPair connects two sessions in memory, which may be in a bubble of synctest.
func newPair(t *testing.T, h http.Handler) *pair {
	t.Helper()
	a, b := newMemLink(4)
	return runPair(t, a, b, Config{}, Config{Handler: func(uint32) http.Handler { return h }})
}

// newLoopbackPair connects two sessions by a WebSocket on the loopback interface.
func newLoopbackPair(t testing.TB, h http.Handler) (edge, agent *Session) {
	t.Helper()
	a, b := loopback(t)
	return run(t, NewSession(a, Config{})), run(t, NewSession(b, Config{Handler: func(uint32) http.Handler { return h }}))
}

// loopback returns the two ends of a WebSocket: the server's, which is the edge's, and the client's.
func loopback(t testing.TB) (server, client Conn) {
	t.Helper()
	accepted := make(chan Conn, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := Accept(w, r, "challenge")
		if err != nil {
			t.Errorf("accept: %v", err)
		}
		accepted <- conn
	}))
	t.Cleanup(srv.Close)
	client, challenge, err := Dial(context.Background(), "ws"+strings.TrimPrefix(srv.URL, "http"), DialOptions{})
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	if challenge != "challenge" {
		t.Errorf("challenge %q, want what the server sent", challenge)
	}
	return <-accepted, client
}

func runPair(t *testing.T, a, b Conn, edge, agent Config) *pair {
	t.Helper()
	return &pair{t: t, edge: run(t, NewSession(a, edge)), agent: run(t, NewSession(b, agent))}
}

// run runs s until the test ends, and then wants nothing to be left of it.
func run(t testing.TB, s *Session) *Session {
	t.Helper()
	go func() { _ = s.Run(context.Background()) }() // ends with the test
	t.Cleanup(func() {
		s.Close(ErrClosed)
		<-s.Done()
		if n := s.Streams(); n != 0 {
			t.Errorf("%d streams are left after the end of the link", n)
		}
		if n := s.grown.Load(); n != 0 {
			t.Errorf("windows have %d bytes of the budget after the end of the link", n)
		}
	})
	return s
}

// do makes a request through the tunnel and wants a response.
func (p *pair) do(req *http.Request) *http.Response {
	p.t.Helper()
	res, err := p.edge.RoundTrip(1, req)
	if err != nil {
		p.t.Fatalf("%s %s: %v", req.Method, req.RequestURI, err)
	}
	return res
}

// get makes a request and returns the whole body of its response.
func (p *pair) get(req *http.Request) (*http.Response, string) {
	p.t.Helper()
	res := p.do(req)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		p.t.Fatalf("%s %s: read body: %v", req.Method, req.RequestURI, err)
	}
	return res, string(b)
}

// wantGoroutines waits for the goroutines of what has ended to go.
func wantGoroutines(t testing.TB, most int) {
	t.Helper()
	var n int
	for range 200 {
		if n = runtime.NumGoroutine(); n <= most {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines are left, want %d", n, most)
}
