package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// endLimit is how soon the end of an answer has to follow it, also if the request goes on.
const endLimit = 500 * time.Millisecond

// TestHTTP2Pieces wants each piece of a response at once, as SSE needs it.
func TestHTTP2Pieces(t *testing.T) {
	t.Parallel()
	eachH2(t, func(t *testing.T, start starter) {
		next := make(chan struct{}, 1)
		tn := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			w.(http.Flusher).Flush()
			for i := range pieces {
				select {
				case <-next:
				case <-r.Context().Done():
					return
				}
				fmt.Fprintf(w, "data: %d\n\n", i)
				w.(http.Flusher).Flush()
			}
		}))
		var watch stopwatch
		sent := time.Now()
		res := doH2(t, tn.client(t, true), tn.request(t, "GET", "/x", nil)) // the head, before any of the body exists
		watch.since(sent)
		for i := range pieces {
			<-time.After(pieceGap)
			sent := time.Now()
			next <- struct{}{}
			got := make([]byte, 9)
			if _, err := io.ReadFull(res.Body, got); err != nil || string(got) != fmt.Sprintf("data: %d\n\n", i) {
				t.Fatalf("piece %d is %q (%v)", i, got, err)
			}
			watch.since(sent)
		}
		if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 {
			t.Errorf("after the last piece: %q, %v, want a clean end", rest, err)
		}
		watch.report(t)
	})
}

// TestHTTP2BothWaysAtOnce has each piece echoed while the request goes on.
func TestHTTP2BothWaysAtOnce(t *testing.T) {
	t.Parallel()
	eachH2(t, func(t *testing.T, start starter) {
		tn := start(http.HandlerFunc(echo))
		pr, pw := io.Pipe()
		var watch stopwatch
		res := doH2(t, tn.client(t, true), tn.request(t, "POST", "/x", pr)) // while the request has no body yet
		for i := range pieces {
			<-time.After(pieceGap)
			want, got := fmt.Sprintf("p%03d", i), make([]byte, 4)
			sent := time.Now()
			io.WriteString(pw, want)
			if _, err := io.ReadFull(res.Body, got); err != nil || string(got) != want {
				t.Fatalf("the echo of %q is %q (%v)", want, got, err)
			}
			watch.since(sent)
		}
		pw.Close()
		if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 {
			t.Errorf("after the request ended: %q, %v; want a clean end", rest, err)
		}
		watch.report(t)
	})
}

// TestHTTP2AnswerBeforeBodyEnds has an upstream that answers in full while the upload goes on.
func TestHTTP2AnswerBeforeBodyEnds(t *testing.T) {
	t.Parallel()
	eachH2(t, func(t *testing.T, start starter) {
		tn := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).EnableFullDuplex() // or HTTP/1 waits for the rest of the body
			io.ReadFull(r.Body, make([]byte, 10))
			w.WriteHeader(403)
			io.WriteString(w, "early")
		}))
		c := tn.client(t, true)
		pr, pw := io.Pipe()
		defer pw.Close()
		go pw.Write(pattern(1000)) // ends when it was read, or when pw is closed
		begin := time.Now()
		res := doH2(t, c, tn.request(t, "POST", "/x", pr))
		if b, err := io.ReadAll(res.Body); res.StatusCode != 403 || string(b) != "early" || err != nil {
			t.Errorf("got %s %q, %v while the upload goes on; want the upstream's answer in full", res.Status, b, err)
		}
		if took := time.Since(begin); took > endLimit {
			t.Errorf("the answer was complete after %v: its end is held back until the upload gives way", took)
		}
	})
}

// TestHTTP2SlowStream has a visitor leave one large response unread: other streams of the connection must not wait.
func TestHTTP2SlowStream(t *testing.T) {
	t.Parallel()
	large := pattern(8 << 20)
	eachH2(t, func(t *testing.T, start starter) {
		tn := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/large" {
				w.Write(large)
				return
			}
			io.WriteString(w, "quick")
		}), withConfig(func(c *config) { c.MaxBody = 0 }))
		c := tn.client(t, true)
		slow := doH2(t, c, tn.request(t, "GET", "/large", nil))
		<-time.After(100 * time.Millisecond) // by now every window is full
		for range 20 {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			res, err := c.Do(tn.request(t, "GET", "/quick", nil).WithContext(ctx))
			if err != nil {
				t.Fatalf("beside an unread response: %v", err)
			}
			if b, err := io.ReadAll(res.Body); string(b) != "quick" || err != nil {
				t.Errorf("beside an unread response: %q, %v", b, err)
			}
			res.Body.Close()
			cancel()
		}
		got, err := io.ReadAll(slow.Body)
		if diff := sameBytes(got, large); diff != "" || err != nil {
			t.Errorf("the slow response is %s (%v)", diff, err)
		}
	})
}

// TestHTTP2VisitorResets has a visitor give one stream up at every stage: the upstream must see it, and other streams
// of the connection must not.
func TestHTTP2VisitorResets(t *testing.T) {
	t.Parallel()
	eachH2(t, func(t *testing.T, start starter) {
		started, gone := make(chan struct{}, 1), make(chan error, 1)
		tn := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/other" {
				io.WriteString(w, "fine")
				return
			}
			gone <- workUntilGone(w, r, r.URL.Path == "/download", started)
		}))
		c := tn.client(t, true)
		for _, tt := range []struct{ name, method, path string }{
			{"waiting for the head", "GET", "/waiting"}, {"in a download", "GET", "/download"},
			{"in an upload", "POST", "/waiting"}, {"in both", "POST", "/download"},
		} {
			ctx, cancel := context.WithCancel(t.Context())
			req := tn.request(t, tt.method, tt.path, nil).WithContext(ctx)
			pr, pw := io.Pipe()
			if tt.method == "POST" {
				req.Body = pr
				go io.WriteString(pw, "hello") // ends when it was read
			}
			failed := make(chan error, 1)
			go func() { // ends when cancel is called
				res, err := c.Do(req)
				if err == nil {
					_, err = io.Copy(io.Discard, res.Body)
					res.Body.Close()
				}
				failed <- err
			}()
			await(t, started, "the request", func(struct{}) {})
			<-time.After(20 * time.Millisecond)
			left := time.Now()
			cancel()
			pw.CloseWithError(context.Canceled) // net/http's client looks at ctx only between two pieces of a body
			await(t, gone, "the upstream to see that the visitor left", func(err error) {
				if took := time.Since(left); took > abortLimit {
					t.Errorf("%s: the upstream went on for %v", tt.name, took)
				}
				if tt.method == "POST" && err == io.EOF {
					t.Errorf("%s: the upstream saw a clean end of an upload that was cut off", tt.name)
				}
			})
			if err := <-failed; !errors.Is(err, context.Canceled) {
				t.Errorf("%s: the visitor saw %v", tt.name, err)
			}
			res := doH2(t, c, tn.request(t, "GET", "/other", nil))
			if b, err := io.ReadAll(res.Body); string(b) != "fine" || err != nil {
				t.Errorf("%s: another stream got %q, %v", tt.name, b, err)
			}
		}
	})
}

// workUntilGone is an upstream that works until its visitor leaves, and returns how the request's body ended.
func workUntilGone(w http.ResponseWriter, r *http.Request, download bool, started chan<- struct{}) error {
	rc := http.NewResponseController(w)
	rc.EnableFullDuplex()
	if r.Method == "POST" {
		io.ReadFull(r.Body, make([]byte, 5))
	}
	started <- struct{}{}
	var wg sync.WaitGroup
	defer wg.Wait()
	if download {
		wg.Go(func() { // ends with the request
			for r.Context().Err() == nil {
				if _, err := w.Write(pattern(5000)); err != nil {
					return
				}
				rc.Flush()
				<-time.After(10 * time.Millisecond)
			}
		})
	}
	_, err := io.Copy(io.Discard, r.Body)
	if err == nil {
		err = io.EOF
	}
	<-r.Context().Done()
	return err
}

// TestHTTP2UpstreamBreaks wants a response that the upstream breaks off to end with RST_STREAM, and the connection to
// live on.
func TestHTTP2UpstreamBreaks(t *testing.T) {
	t.Parallel()
	eachH2(t, func(t *testing.T, start starter) {
		arrived := make(chan struct{}, 1)
		tn := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/sized" {
				w.Header().Set("Content-Length", "100000")
			}
			if r.URL.Path != "/ok" {
				w.WriteHeader(200)
				if r.URL.Path != "/head" {
					io.WriteString(w, "piece")
				}
				w.(http.Flusher).Flush()
				<-arrived
				panic(http.ErrAbortHandler)
			}
		}))
		c := tn.dialH2(t)
		for _, path := range []string{"/head", "/sized", "/unsized", "/ok"} {
			id := c.ask(":path", path)
			a := c.answer(id, func(a *h2Answer) {
				if a.status == 200 && (string(a.data) == "piece" || path == "/head") && path != "/ok" {
					select {
					case arrived <- struct{}{}:
					default:
					}
				}
			})
			switch {
			case path == "/ok" && (a.status != 200 || a.reset != nil):
				t.Errorf("after the broken ones a request got %d, %v", a.status, a.reset)
			case path != "/ok" && a.reset == nil:
				t.Errorf("%s: the stream ended cleanly (%d, %q), but the upstream broke off", path, a.status, a.data)
			case path != "/ok" && *a.reset == http2.ErrCodeNo:
				t.Errorf("%s: reset with NO_ERROR, which stands for a complete response (RFC 9113 section 8.1)", path)
			case path != "/ok" && path != "/head" && string(a.data) != "piece":
				t.Errorf("%s: %q came before the break, want what was sent", path, a.data)
			}
		}
	})
}

// TestHTTP2UpstreamBreaksRaw is the same with upstreams that are cut in the middle of HTTP/1.1's framing.
func TestHTTP2UpstreamBreaksRaw(t *testing.T) {
	t.Parallel()
	for name, response := range map[string]string{
		"chunked, no last chunk": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk("piece"),
		"chunked, in a chunk":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\npiece",
		"sized":                  "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npiece",
	} {
		for _, end := range []string{"FIN", "RST"} {
			t.Run(name+" by "+end, func(t *testing.T) {
				t.Parallel()
				tn := publish(t, scriptUpstream(t, func(_ *testing.T, conn net.Conn, br *bufio.Reader) {
					if m := readMessage(br, ""); m.target() == "/next" {
						io.WriteString(conn, plainOK)
						return
					}
					io.WriteString(conn, response)
					if end == "RST" {
						<-time.After(100 * time.Millisecond) // a reset throws away what is still on its way
						resetConn(conn)
					}
				}))
				tn.needsTunnel(t)
				c := tn.dialH2(t)
				a := c.answer(c.ask(":path", "/x"), nil)
				if a.status != 200 || a.reset == nil || string(a.data) != "piece" {
					t.Errorf("got %d %q, reset %v; want the piece and RST_STREAM", a.status, a.data, a.reset)
				}
				if a := c.answer(c.ask(":path", "/next"), nil); a.status != 200 || a.reset != nil {
					t.Errorf("the next request on the connection got %d, %v", a.status, a.reset)
				}
			})
		}
	}
}

// TestHTTP2BreakBeforeHead wants an upstream that breaks before its head to be the edge's 502.
func TestHTTP2BreakBeforeHead(t *testing.T) {
	t.Parallel()
	eachH2(t, func(t *testing.T, start starter) {
		tn := start(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
		tn.needsTunnel(t)
		res := doH2(t, tn.client(t, true), tn.request(t, "POST", "/x", nil))
		if b, err := io.ReadAll(res.Body); res.StatusCode != 502 || res.Header.Get("Harp-Error") == "" || err != nil || len(b) == 0 {
			t.Errorf("got %s with %q, %v; want the edge's 502", res.Status, b, err)
		}
	})
}
