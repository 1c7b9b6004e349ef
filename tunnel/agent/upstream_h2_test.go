package agent

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// serveH2C runs an upstream that speaks HTTP/2 without TLS, and HTTP/1.1 as well.
func serveH2C(t *testing.T, h http.HandlerFunc) (addr string) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.DisableGeneralOptionsHandler = true
	s.Config.ErrorLog = discardLog()
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// seenRequest is a copy of what an upstream's handler got.
type seenRequest struct {
	proto, method, target, host string
	length                      int64
	header                      http.Header
}

func TestH2Requests(t *testing.T) {
	checkForwardLeaks(t)
	seen := make(chan seenRequest, 1)
	addr := serveH2C(t, func(w http.ResponseWriter, r *http.Request) {
		seen <- seenRequest{r.Proto, r.Method, r.RequestURI, r.Host, r.ContentLength, r.Header}
	})
	do := func(f *Forwarder, r *http.Request) seenRequest {
		w := newTunnelWriter()
		if w.serve(f, r); w.status != 200 {
			t.Fatalf("%s %s: status %d, %v %q", r.Method, r.RequestURI, w.status, w.code, w.reason)
		}
		return <-seen
	}
	f := newTestForwarder(t, "h2c://"+addr, ForwardOptions{})
	rewriting := newTestForwarder(t, "h2c://"+addr, ForwardOptions{HostHeader: "rewrite"})
	for _, target := range []string{
		"/", "/?", "/a%2Fb", "//", "//a//b?c", "//evil.example/x", "/a;b?c;d&%zz", "/Ünï?日本", "/\xff?\xfe", "/a/../b", "/a:b", "//a:b@c/d",
		"/%", "/http://x/y", "/" + strings.Repeat("long/", 1000),
	} {
		if strings.Contains(target, "%") && !strings.Contains(target, "%2F") && !strings.Contains(target, "?") {
			continue // this upstream, not the Forwarder, refuses it
		}
		if got := do(f, request(t, "GET", target, nil, 0)); got.target != target || got.host != "visitor.example" || got.proto != "HTTP/2.0" {
			t.Errorf("the upstream saw %s %q for host %q; want %q for the visitor's host over HTTP/2", got.proto, got.target, got.host, target)
		}
		if got := do(rewriting, request(t, "GET", target, nil, 0)); got.target != target || got.host != addr {
			t.Errorf("host rewritten: the upstream saw %q for host %q; want %q for %q", got.target, got.host, target, addr)
		}
	}
	if got := do(f, request(t, "OPTIONS", "*", nil, 0)); got.target != "*" {
		t.Errorf("OPTIONS *: the upstream saw %q", got.target)
	}

	r := request(t, "GET", "/", nil, 0)
	r.Header = http.Header{
		"A": {"1", "2"}, "Cookie": {"a=1; b=2"}, "Te": {"trailers"}, "Connection": {"x-mine"}, "X-Mine": {"1"}, "Keep-Alive": {"1"},
		"Authorization": {"visitor's"},
	}
	adding := newTestForwarder(t, "h2c://"+addr, ForwardOptions{HeaderAdd: http.Header{"Authorization": {"ours"}}})
	want := http.Header{"A": {"1", "2"}, "Cookie": {"a=1; b=2"}, "Te": {"trailers"}, "Authorization": {"ours"}}
	if got := do(adding, r); !reflect.DeepEqual(got.header, want) {
		t.Errorf("fields %q, want %q", got.header, want)
	}
	if len(r.Header["Authorization"]) != 1 || r.Header["Authorization"][0] != "visitor's" {
		t.Error("the visitor's own header was changed")
	}
	if got := do(f, request(t, "PUT", "/", strings.NewReader("hello"), 5)); got.length != 5 {
		t.Errorf("a sized body came with length %d, want 5", got.length)
	}
	if got := do(f, request(t, "PUT", "/", strings.NewReader("hello"), -1)); got.length != -1 {
		t.Errorf("a body without length came with length %d, want none", got.length)
	}
}

func TestH2Responses(t *testing.T) {
	checkForwardLeaks(t)
	addr := serveH2C(t, func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h["Date"] = nil
		switch r.URL.Path {
		case "/fields":
			h["Set-Cookie"], h["Content-Type"] = []string{"a=1", "b=2"}, nil
			w.WriteHeader(203)
		case "/head":
			h.Set("Content-Length", "1000")
		case "/304":
			h.Set("Content-Length", "1000")
			w.WriteHeader(304)
		case "/gzip":
			h.Set("Content-Encoding", "gzip")
			h.Set("Content-Type", "a/b")
			io.WriteString(w, "\x1f\x8b")
		case "/hints":
			h.Set("Link", "</a>")
			w.WriteHeader(103)
			h.Del("Link")
			w.WriteHeader(204)
		case "/trailers":
			h.Set("Content-Type", "a/b")
			h.Set("Trailer", "X-Sum")
			io.WriteString(w, "hi")
			w.(http.Flusher).Flush()
			h.Set("X-Sum", "7")
			h.Set(http.TrailerPrefix+"X-More", "8")
		case "/only-trailers":
			h.Set("Content-Type", "application/grpc")
			h.Set("Grpc-Status", "5")
		case "/cut":
			h.Set("Content-Type", "a/b")
			io.WriteString(w, "hello")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		case "/short":
			h.Set("Content-Type", "a/b")
			h.Set("Content-Length", "10")
			io.WriteString(w, "hello")
		case "/nothing":
			panic(http.ErrAbortHandler)
		}
	})
	f := newTestForwarder(t, "h2c://"+addr, ForwardOptions{})
	type fields = http.Header
	for _, c := range []struct {
		method, path string
		status       int
		header       fields
		body         string
		trailers     fields
		aborted      bool
	}{
		{"GET", "/fields", 203, fields{"Set-Cookie": {"a=1", "b=2"}, "Content-Length": {"0"}}, "", fields{}, false},
		{"HEAD", "/head", 200, fields{"Content-Length": {"1000"}}, "", fields{}, false},
		{"GET", "/304", 304, fields{"Content-Length": {"1000"}}, "", fields{}, false},
		{"GET", "/gzip", 200, fields{"Content-Encoding": {"gzip"}, "Content-Type": {"a/b"}, "Content-Length": {"2"}}, "\x1f\x8b", fields{}, false},
		{"GET", "/hints", 204, fields{}, "", fields{}, false},
		{"GET", "/trailers", 200, fields{"Content-Type": {"a/b"}, "Trailer": {"X-Sum"}}, "hi", fields{"X-Sum": {"7"}, "X-More": {"8"}}, false},
		{"POST", "/only-trailers", 200, fields{"Content-Type": {"application/grpc"}, "Grpc-Status": {"5"}, "Content-Length": {"0"}}, "", fields{}, false},
		{"GET", "/cut", 200, fields{"Content-Type": {"a/b"}}, "hello", fields{}, true},
		{"GET", "/short", 200, fields{"Content-Type": {"a/b"}, "Content-Length": {"10"}}, "hello", fields{}, true},
	} {
		w := newTunnelWriter()
		aborted := w.serve(f, request(t, c.method, c.path, nil, 0))
		if w.failed || w.status != c.status || w.body.String() != c.body || aborted != c.aborted {
			t.Errorf("%s: failed %q, status %d, body %q, aborted %v; want %d, %q, %v",
				c.path, w.reason, w.status, w.body.String(), aborted, c.status, c.body, c.aborted)
		}
		if got := made(w.sent); !reflect.DeepEqual(got, c.header) {
			t.Errorf("%s: fields %q, want %q", c.path, got, c.header)
		}
		if got := w.trailers(); !reflect.DeepEqual(got, c.trailers) {
			t.Errorf("%s: trailers %q, want %q", c.path, got, c.trailers)
		}
		if c.path == "/hints" && w.events[0] != "Early Hints\nLink: </a>" {
			t.Errorf("the visitor's side saw %q, want the hint first", w.events)
		}
	}
	w := newTunnelWriter()
	if w.serve(f, request(t, "GET", "/nothing", nil, 0)); w.code != messages.CancelBroken {
		t.Errorf("a stream that is reset: failed with %v %q, want %v", w.code, w.reason, messages.CancelBroken)
	}
}

// TestH2Duplex streams both ways at once, with trailers both ways, as gRPC does.
func TestH2Duplex(t *testing.T) {
	checkForwardLeaks(t)
	trailer := make(chan http.Header, 1)
	addr := serveH2C(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.(http.Flusher).Flush()
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			if n > 0 {
				fmt.Fprintf(w, "<%s>", buf[:n])
				w.(http.Flusher).Flush()
			}
			if err != nil {
				break
			}
		}
		trailer <- r.Trailer
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
	})
	body, feed := io.Pipe()
	w := newTunnelWriter()
	r := request(t, "POST", "/", nil, 0)
	r.Body, r.ContentLength = trailingBody{body, r}, -1
	r.Trailer = http.Header{"X-Sum": nil}
	done := make(chan bool)
	f := newTestForwarder(t, "h2c://"+addr, ForwardOptions{})
	go func() { done <- w.serve(f, r) }() // received below
	wait := func(what string) {
		select {
		case <-w.flushed:
		case <-time.After(time.Second):
			t.Errorf("%s was not flushed", what)
		}
	}
	wait("the head")
	for i := range 20 {
		fmt.Fprint(feed, i)
		wait(fmt.Sprint("piece ", i))
	}
	feed.Close()
	if <-done || w.trailers().Get("Grpc-Status") != "0" || !strings.HasSuffix(w.body.String(), "<18><19>") {
		t.Errorf("got %q, trailers %q, failed %q", w.body.String(), w.trailers(), w.reason)
	}
	if got := <-trailer; got.Get("X-Sum") != "7" {
		t.Errorf("the upstream got trailers %q, want X-Sum", got)
	}
}

// TestH2EarlyAnswer has the upstream answer, and end, while the request body hangs.
func TestH2EarlyAnswer(t *testing.T) {
	for _, status := range []int{200, 403} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			checkForwardLeaks(t)
			addr := serveH2C(t, func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(status)
				io.WriteString(w, "enough")
			})
			body, feed := io.Pipe()
			go feed.Write(make([]byte, 1<<20)) // ends when the Forwarder closes the body
			r := request(t, "POST", "/", nil, 0)
			r.Body, r.ContentLength = body, -1
			w := newTunnelWriter()
			start := time.Now()
			if w.serve(newTestForwarder(t, "h2c://"+addr, ForwardOptions{}), r) || w.status != status || w.body.String() != "enough" {
				t.Errorf("status %d, body %q, failed %q; want %d and all of it", w.status, w.body.String(), w.reason, status)
			}
			if d := time.Since(start); d > time.Second {
				t.Errorf("took %v", d)
			}
			body.Close()
		})
	}
}

func TestH2VisitorLeaves(t *testing.T) {
	for _, stage := range []string{"waiting", "response", "request"} {
		t.Run(stage, func(t *testing.T) {
			checkForwardLeaks(t)
			began, ended := make(chan struct{}), make(chan struct{})
			addr := serveH2C(t, func(w http.ResponseWriter, r *http.Request) {
				if stage == "response" {
					w.(http.Flusher).Flush()
				}
				close(began)
				<-r.Context().Done()
				close(ended)
			})
			ctx, cancel := context.WithCancel(t.Context())
			r := request(t, "GET", "/", nil, 0)
			if stage == "request" {
				body, feed := io.Pipe()
				defer feed.Close()
				r.Body, r.ContentLength = body, -1
			}
			time.AfterFunc(50*time.Millisecond, func() { <-began; cancel() })
			if !newTunnelWriter().serve(newTestForwarder(t, "h2c://"+addr, ForwardOptions{}), r.WithContext(ctx)) {
				t.Error("want http.ErrAbortHandler")
			}
			select {
			case <-ended:
			case <-time.After(time.Second):
				t.Error("the upstream does not know after a second")
			}
		})
	}
}

func TestH2RequestBodyBreaksOff(t *testing.T) {
	checkForwardLeaks(t)
	got := make(chan error, 1)
	addr := serveH2C(t, func(w http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		got <- err
	})
	w := newTunnelWriter()
	w.serve(newTestForwarder(t, "h2c://"+addr, ForwardOptions{}),
		request(t, "POST", "/", io.MultiReader(strings.NewReader("hello"), errReader{io.ErrUnexpectedEOF}), -1))
	if w.code != messages.CancelAborted {
		t.Errorf("failed with %v %q, want %v", w.code, w.reason, messages.CancelAborted)
	}
	if err := <-got; err == nil {
		t.Error("the upstream took a broken body for a whole one")
	}
}

func TestH2ExpectContinue(t *testing.T) {
	checkForwardLeaks(t)
	read := make(chan struct{})
	addr := serveH2C(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refused" {
			w.WriteHeader(417)
			return
		}
		time.Sleep(50 * time.Millisecond)
		select {
		case <-read:
			t.Error("the body was read before the upstream wanted it")
		default:
		}
		io.Copy(w, r.Body) // which sends the 100
	})
	f := newTestForwarder(t, "h2c://"+addr, ForwardOptions{})
	r := request(t, "PUT", "/", &notingReader{r: strings.NewReader("hello"), first: read}, 5)
	r.Header = http.Header{"Expect": {"100-continue"}}
	w := newTunnelWriter()
	if w.serve(f, r); w.status != 200 || w.events[0] != "Continue" || w.body.String() != "hello" {
		t.Errorf("status %d, events %q; want 100, then 200 and the body", w.status, w.events)
	}
	refused := make(chan struct{})
	r = request(t, "PUT", "/refused", &notingReader{r: strings.NewReader("hello"), first: refused}, 5)
	r.Header = http.Header{"Expect": {"100-continue"}}
	w = newTunnelWriter()
	if w.serve(f, r); w.status != 417 {
		t.Errorf("status %d, want 417", w.status)
	}
	select {
	case <-refused:
		t.Error("a body that was refused was read")
	default:
	}
}

// TestALPN forwards to a server that chooses h2, then stops to, and later does again.
func TestALPN(t *testing.T) {
	checkForwardLeaks(t)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			c, rw, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			io.WriteString(rw, upgradeAnswer)
			rw.Flush()
			io.Copy(c, rw)
			return
		}
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", r.Proto, r.RequestURI, body)
	})
	var addr string
	start := func(h2 bool) *httptest.Server {
		s := httptest.NewUnstartedServer(handler)
		if addr != "" {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				t.Skip(err)
			}
			s.Listener.Close()
			s.Listener = l
		}
		s.EnableHTTP2 = h2
		s.Config.ErrorLog = discardLog()
		s.StartTLS()
		addr = s.Listener.Addr().String()
		return s
	}
	s := start(true)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	f := newTestForwarder(t, "https://"+addr, ForwardOptions{RootCAs: roots})
	post := func(want string) {
		t.Helper()
		for range 2 {
			w := newTunnelWriter()
			w.serve(f, request(t, "POST", "//x", strings.NewReader("body"), 4))
			if got := w.body.String(); got != want+" //x body" {
				t.Errorf("got %q (%q), want %s", got, w.reason, want)
			}
		}
	}
	post("HTTP/2.0")
	visitor, far := net.Pipe()
	hw := hijackWriter{newTunnelWriter(), visitor, nil}
	done := make(chan struct{})
	go func() { // ends when far closes
		f.ServeHTTP(hw, upgradeRequestFor(t))
		close(done)
	}()
	fmt.Fprint(far, "hi")
	if _, err := io.ReadFull(far, make([]byte, 2)); err != nil || hw.status != 101 {
		t.Errorf("upgrade beside HTTP/2: status %d, %v", hw.status, err)
	}
	far.Close()
	<-done
	s.CloseClientConnections()
	s.Close()

	s = start(false)
	f.Close() // drops the idle connection of the old server, which a POST must not be tried on
	post("HTTP/1.1")
	if !f.h2.refused.Load() {
		t.Error("the choice of HTTP/1.1 was not remembered")
	}
	s.CloseClientConnections()
	s.Close()
}
