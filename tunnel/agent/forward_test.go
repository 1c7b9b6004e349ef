package agent

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/harp-tunnel/harp/messages"
)

// peerTimeout is how long a scripted peer waits for anything, so that a test that hangs says where.
const peerTimeout = 5 * time.Second

// checkForwardLeaks makes the test fail if goroutines that it started outlive it and its cleanups.
func checkForwardLeaks(t *testing.T) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
}

func newTestForwarder(t testing.TB, target string, o ForwardOptions) *Forwarder {
	t.Helper()
	f, err := Forward(target, o)
	if err != nil {
		t.Fatalf("Forward(%q): %v", target, err)
	}
	t.Cleanup(f.Close)
	return f
}

// A peer is one end of a connection, played by a test.
type peer struct {
	net.Conn
	t testing.TB
	r *bufio.Reader
}

func newPeer(t testing.TB, c net.Conn) *peer {
	c.SetDeadline(time.Now().Add(peerTimeout))
	return &peer{Conn: c, t: t, r: bufio.NewReader(c)}
}

func dialPeer(t testing.TB, addr string) *peer {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return newPeer(t, c)
}

func (p *peer) send(s string) {
	p.t.Helper()
	if _, err := io.WriteString(p.Conn, s); err != nil {
		p.t.Errorf("sending %.60q: %v", s, err)
	}
}

// head reads up to and with an empty line.
func (p *peer) head() string {
	p.t.Helper()
	var b strings.Builder
	for {
		line, err := p.r.ReadString('\n')
		b.WriteString(line)
		if err != nil {
			p.t.Errorf("reading a head after %q: %v", b.String(), err)
			return b.String()
		}
		if line == "\r\n" {
			return b.String()
		}
	}
}

// want reads len(s) bytes and compares.
func (p *peer) want(s string) {
	p.t.Helper()
	buf := make([]byte, len(s))
	n, err := io.ReadFull(p.r, buf)
	if err != nil || string(buf) != s {
		p.t.Errorf("read %q (%v), want %q", buf[:n], err, s)
	}
}

// rest reads to the end, and returns how it ended: nil for a clean end.
func (p *peer) rest() (string, error) {
	b, err := io.ReadAll(p.r)
	return string(b), err
}

// reset closes the connection with a reset.
func (p *peer) reset() { resetConn(p.Conn) }

// playUpstream listens, and runs script for each connection, n counting from 0; the connection is closed after it.
// All scripts have returned when the test ends.
func playUpstream(t testing.TB, script func(n int, p *peer)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { // ends when l closes
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { // ends with the script
				defer c.Close()
				script(n, newPeer(t, c))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

// serveForward puts a Forwarder behind net/http's server.
func serveForward(t testing.TB, target string, o ForwardOptions) (addr string) {
	t.Helper()
	f := newTestForwarder(t, target, o)
	s := httptest.NewServer(f)
	s.Config.ErrorLog = nil
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// A tunnelWriter records what the tunnel's ResponseWriter would be told.
type tunnelWriter struct {
	mu      sync.Mutex
	header  http.Header
	events  []string      // "103 ...", "200", "body ...", "flush", in order
	status  int           // of the final head
	sent    http.Header   // the fields at that moment
	body    bytes.Buffer  // all that was written
	flushed chan struct{} // gets a token at each Flush that follows new bytes; nil does not
	code    messages.CancelCode
	reason  string
	failed  bool
	dead    bool // Write fails
}

func newTunnelWriter() *tunnelWriter {
	return &tunnelWriter{header: make(http.Header), flushed: make(chan struct{}, 1000)}
}

func (w *tunnelWriter) Header() http.Header { return w.header }

func (w *tunnelWriter) WriteHeader(status int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b bytes.Buffer
	w.header.Write(&b)
	if status >= 200 || status == 101 {
		w.status, w.sent = status, w.header.Clone()
	}
	w.events = append(w.events, strings.TrimRight(http.StatusText(status)+"\n"+b.String(), "\r\n"))
}

func (w *tunnelWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dead {
		return 0, errors.New("the visitor is gone")
	}
	w.events = append(w.events, "body "+string(p))
	return w.body.Write(p)
}

func (w *tunnelWriter) Flush() {
	w.mu.Lock()
	w.events = append(w.events, "flush")
	w.mu.Unlock()
	w.flushed <- struct{}{}
}

func (w *tunnelWriter) Fail(code messages.CancelCode, reason string) {
	w.code, w.reason, w.failed = code, reason, true
}

// trailers returns what was set with http.TrailerPrefix.
func (w *tunnelWriter) trailers() http.Header {
	t := make(http.Header)
	for name, values := range w.header {
		if rest, ok := strings.CutPrefix(name, http.TrailerPrefix); ok {
			t[rest] = values
		}
	}
	return t
}

// serve runs the handler, and reports whether it broke off with http.ErrAbortHandler.
func (w *tunnelWriter) serve(h http.Handler, r *http.Request) (aborted bool) {
	defer func() {
		if v := recover(); v == http.ErrAbortHandler {
			aborted = true
		} else if v != nil {
			panic(v)
		}
	}()
	h.ServeHTTP(w, r)
	return false
}

// request makes what the tunnel hands to a handler; body nil means none, and length -1 chunked.
func request(t testing.TB, method, target string, body io.Reader, length int64) *http.Request {
	t.Helper()
	r := httptest.NewRequest(method, "/", nil).WithContext(t.Context())
	r.RequestURI, r.Host = target, "visitor.example"
	r.Body, r.ContentLength = http.NoBody, 0
	if body != nil {
		r.Body, r.ContentLength = io.NopCloser(body), length
	}
	return r
}

// isReset reports whether a read ended with a reset rather than a clean end.
func isReset(err error) bool {
	return err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrDeadlineExceeded)
}

// discardLog is for servers that log what a test does to them.
func discardLog() *log.Logger { return log.New(io.Discard, "", 0) }
