package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// readChunked reads a chunked body with its trailers, as raw bytes up to the empty line that ends them.
func (p *peer) readChunked() string {
	p.t.Helper()
	var data strings.Builder
	for {
		line, err := p.r.ReadString('\n')
		var n int
		if _, serr := fmt.Sscanf(line, "%x\r\n", &n); err != nil || serr != nil {
			p.t.Errorf("chunk size line %q: %v", line, err)
			return data.String()
		}
		if n == 0 {
			return data.String() + "|" + p.head()
		}
		buf := make([]byte, n+2)
		if _, err := io.ReadFull(p.r, buf); err != nil || string(buf[n:]) != "\r\n" {
			p.t.Errorf("chunk of %d ends with %q (%v)", n, buf[n:], err)
		}
		data.Write(buf[:n])
	}
}

const okEmpty = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

func TestRequestBodies(t *testing.T) {
	for _, n := range []int{1, 2, 4 << 10, 4<<10 + 1, 32 << 10, 100 << 10, 3 << 20} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			checkForwardLeaks(t)
			data := strings.Repeat("0123456789abcdef", n/16+1)[:n]
			addr := playUpstream(t, func(_ int, p *peer) {
				if head := p.head(); !strings.Contains(head, fmt.Sprintf("Content-Length: %d\r\n", n)) {
					t.Errorf("head %q has no length %d", head, n)
				}
				p.want(data)
				p.send(okEmpty)
				if head := p.head(); !strings.Contains(head, "Transfer-Encoding: chunked\r\n") {
					t.Errorf("head %q is not chunked", head)
				}
				if got := p.readChunked(); got != data+"|\r\n" {
					t.Errorf("chunked body of %d came as %d bytes ending %.20q", n, len(got), got[max(0, len(got)-20):])
				}
				p.send(okEmpty)
			})
			f := newTestForwarder(t, addr, ForwardOptions{})
			for _, length := range []int64{int64(n), -1} {
				w := newTunnelWriter()
				if w.serve(f, request(t, "POST", "/", strings.NewReader(data), length)); w.status != 200 {
					t.Errorf("body of %d bytes, length %d: status %d, failed %q", n, length, w.status, w.reason)
				}
			}
		})
	}
}

// atHand is a body that has all come, as the tunnel knows it.
type atHand struct{ *bytes.Reader }

func (a atHand) Buffered() int { return a.Len() }
func (a atHand) Close() error  { return nil }

func TestSmallBodyGoesWithTheHead(t *testing.T) {
	checkForwardLeaks(t)
	addr := playUpstream(t, func(_ int, p *peer) {
		buf := make([]byte, 4096)
		n, _ := p.Read(buf)
		if !bytes.HasSuffix(buf[:n], []byte("\r\n\r\nhello")) {
			t.Errorf("first read gave %q, want head and body together", buf[:n])
		}
		p.send(okEmpty)
	})
	r := request(t, "POST", "/", nil, 0)
	r.Body, r.ContentLength = atHand{bytes.NewReader([]byte("hello"))}, 5
	w := newTunnelWriter()
	if w.serve(newTestForwarder(t, addr, ForwardOptions{}), r); w.status != 200 {
		t.Errorf("status %d, %q", w.status, w.reason)
	}
}

// trailingBody sets trailers when it ends, as a server's does.
type trailingBody struct {
	io.Reader
	r *http.Request
}

func (b trailingBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		b.r.Trailer = http.Header{"X-Sum": {"7"}, "Content-Length": {"3"}, "X-Bad": {"a\r\nb"}}
	}
	return n, err
}
func (trailingBody) Close() error { return nil }

func TestRequestTrailers(t *testing.T) {
	checkForwardLeaks(t)
	addr := playUpstream(t, func(_ int, p *peer) {
		p.head()
		if got := p.readChunked(); got != "hello|X-Sum: 7\r\n\r\n" {
			t.Errorf("body and trailers came as %q", got)
		}
		p.send(okEmpty)
	})
	r := request(t, "POST", "/", nil, 0)
	r.Body, r.ContentLength = trailingBody{strings.NewReader("hello"), r}, -1
	w := newTunnelWriter()
	if w.serve(newTestForwarder(t, addr, ForwardOptions{}), r); w.status != 200 {
		t.Errorf("status %d, %q", w.status, w.reason)
	}
}

// TestFullDuplex plays both ends of a request whose body and response trickle at the same time.
func TestFullDuplex(t *testing.T) {
	checkForwardLeaks(t)
	body, feed := io.Pipe()
	w := newTunnelWriter()
	addr := playUpstream(t, func(_ int, p *peer) {
		p.head()
		p.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		<-w.flushed // the head is passed on before any of the body has come
		for i := range 20 {
			io.WriteString(feed, "ping")
			p.want("4\r\nping\r\n")
			p.send(fmt.Sprintf("2\r\n%02d\r\n", i))
			<-w.flushed
		}
		feed.Close()
		p.want("0\r\n\r\n")
		p.send("0\r\n\r\n")
	})
	r := request(t, "POST", "/", body, -1)
	r.Body = body
	if w.serve(newTestForwarder(t, addr, ForwardOptions{}), r) || w.body.Len() != 40 {
		t.Errorf("got %q, failed %q", w.body.String(), w.reason)
	}
}

// TestEarlyAnswer has upstreams answer before the request body has ended, and then not care for it in several ways.
func TestEarlyAnswer(t *testing.T) {
	for why, after := range map[string]func(p *peer, done chan struct{}){
		"closes":        func(p *peer, done chan struct{}) {},
		"resets":        func(p *peer, done chan struct{}) { <-done; p.reset() },
		"reads nothing": func(p *peer, done chan struct{}) { <-done },
	} {
		for _, length := range []int64{10 << 20, -1} {
			t.Run(fmt.Sprint(why, length), func(t *testing.T) {
				checkForwardLeaks(t)
				done := make(chan struct{})
				addr := playUpstream(t, func(_ int, p *peer) {
					p.head()
					p.send("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nno!")
					after(p, done)
				})
				body, feed := io.Pipe() // 100 KiB come, and then nothing for ever
				go feed.Write(make([]byte, 100<<10))
				r := request(t, "POST", "/", body, length)
				r.Body = body
				w := newTunnelWriter()
				start := time.Now()
				aborted := w.serve(newTestForwarder(t, addr, ForwardOptions{}), r)
				if aborted || w.failed || w.status != 413 || w.body.String() != "no!" {
					t.Errorf("upstream %s: aborted %v, failed %q, status %d, body %q; its answer was good",
						why, aborted, w.reason, w.status, w.body.String())
				}
				if d := time.Since(start); d > time.Second {
					t.Errorf("upstream %s: took %v, want at once", why, d)
				}
				feed.Close()
				close(done)
			})
		}
	}
}

// TestExpectContinue plays an upstream that wants the body, one that does not, and one that has never heard of it.
func TestExpectContinue(t *testing.T) {
	var read chan struct{} // closed when the body is first read
	run := func(t *testing.T, script func(p *peer)) *tunnelWriter {
		checkForwardLeaks(t)
		read = make(chan struct{})
		addr := playUpstream(t, func(_ int, p *peer) {
			if head := p.head(); !strings.Contains(head, "Expect: 100-continue\r\n") {
				t.Errorf("head %q has no Expect", head)
			}
			script(p)
		})
		r := request(t, "PUT", "/", &notingReader{r: strings.NewReader("hello"), first: read}, 5)
		r.Header = http.Header{"Expect": {"100-continue"}}
		w := newTunnelWriter()
		w.serve(newTestForwarder(t, addr, ForwardOptions{}), r)
		return w
	}
	unread := func(t *testing.T) {
		select {
		case <-read:
			t.Error("the body was read before the upstream wanted it")
		default:
		}
	}
	t.Run("wanted", func(t *testing.T) {
		w := run(t, func(p *peer) {
			time.Sleep(50 * time.Millisecond)
			unread(t)
			p.send("HTTP/1.1 100 Continue\r\n\r\n")
			p.want("hello")
			p.send(okEmpty)
		})
		if w.status != 200 || w.events[0] != "Continue" {
			t.Errorf("status %d, events %q; want 100 and then 200", w.status, w.events)
		}
	})
	t.Run("refused", func(t *testing.T) {
		w := run(t, func(p *peer) {
			p.send("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
			if got, _ := p.rest(); got != "" {
				t.Errorf("upstream got %q behind a refused Expect", got)
			}
		})
		unread(t)
		if w.status != 417 {
			t.Errorf("status %d, want 417", w.status)
		}
	})
	t.Run("unknown", func(t *testing.T) {
		w := run(t, func(p *peer) {
			start := time.Now()
			p.want("hello")
			if d := time.Since(start); d < 900*time.Millisecond {
				t.Errorf("the body came after %v, want a second", d)
			}
			p.send(okEmpty)
		})
		if w.status != 200 {
			t.Errorf("status %d, want 200", w.status)
		}
	})
}

type notingReader struct {
	r     io.Reader
	first chan struct{}
	noted bool
}

func (n *notingReader) Read(p []byte) (int, error) {
	if !n.noted {
		n.noted = true
		close(n.first)
	}
	return n.r.Read(p)
}

// TestRequestBodyBreaksOff wants the upstream to see a broken request, never a whole one.
func TestRequestBodyBreaksOff(t *testing.T) {
	for _, c := range []struct {
		length int64
		err    error
		code   messages.CancelCode
	}{
		{10, io.EOF, messages.CancelAborted},
		{10, errors.New("gone"), messages.CancelAborted},
		{-1, errors.New("gone"), messages.CancelAborted},
		{-1, io.ErrUnexpectedEOF, messages.CancelAborted},
		{-1, &http.MaxBytesError{Limit: 5}, messages.CancelTooLarge},
	} {
		t.Run(fmt.Sprint(c.length, c.err), func(t *testing.T) {
			checkForwardLeaks(t)
			got := make(chan string, 1)
			addr := playUpstream(t, func(_ int, p *peer) {
				p.head()
				s, _ := p.rest()
				got <- s
			})
			w := newTunnelWriter()
			w.serve(newTestForwarder(t, addr, ForwardOptions{}),
				request(t, "POST", "/", io.MultiReader(strings.NewReader("hello"), errReader{c.err}), c.length))
			if w.code != c.code {
				t.Errorf("length %d, %v: failed with %v %q, want %v", c.length, c.err, w.code, w.reason, c.code)
			}
			if s := <-got; strings.Contains(s, "0\r\n\r\n") || strings.Count(s, "hello") != 1 {
				t.Errorf("length %d, %v: the upstream got %q, want what came and no end", c.length, c.err, s)
			}
		})
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

// TestVisitorLeaves cancels the request's context at each stage: the upstream must see its connection end at once.
func TestVisitorLeaves(t *testing.T) {
	type stage struct {
		body   bool
		script func(p *peer)
	}
	for why, c := range map[string]stage{
		"waiting for a head":         {false, func(p *peer) {}},
		"in the middle of a head":    {false, func(p *peer) { p.send("HTTP/1.1 200 OK\r\n") }},
		"after an interim head":      {false, func(p *peer) { p.send("HTTP/1.1 103 Early Hints\r\n\r\n") }},
		"in a sized body":            {false, func(p *peer) { p.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello") }},
		"in a chunked body":          {false, func(p *peer) { p.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n") }},
		"in the request body":        {true, func(p *peer) {}},
		"in both bodies":             {true, func(p *peer) { p.send("HTTP/1.1 200 OK\r\n\r\nhello") }},
		"while the upstream is deaf": {true, nil},
	} {
		t.Run(why, func(t *testing.T) {
			checkForwardLeaks(t)
			ended, ready := make(chan time.Time, 1), make(chan struct{})
			addr := playUpstream(t, func(_ int, p *peer) {
				p.head()
				if c.script == nil {
					close(ready)
					time.Sleep(200 * time.Millisecond)
				} else {
					c.script(p)
					close(ready)
				}
				p.rest()
				ended <- time.Now()
			})
			ctx, cancel := context.WithCancel(t.Context())
			r := request(t, "GET", "/", nil, 0).WithContext(ctx)
			if c.body {
				body, feed := io.Pipe()
				r.Body, r.ContentLength = body, -1
				go feed.Write(make([]byte, 16<<20)) // ends when the Forwarder closes the body
			}
			left := make(chan time.Time, 1)
			go func() { // ends with the script
				<-ready
				time.Sleep(50 * time.Millisecond)
				left <- time.Now()
				cancel()
			}()
			w := newTunnelWriter()
			aborted := w.serve(newTestForwarder(t, addr, ForwardOptions{}), r)
			r.Body.Close() // as every server does
			at := <-left
			if d := time.Since(at); d > 500*time.Millisecond {
				t.Errorf("%s: the handler returned %v after the visitor had left", why, d)
			}
			if !aborted || w.failed {
				t.Errorf("%s: aborted %v, failed %v: want http.ErrAbortHandler", why, aborted, w.failed)
			}
			if d := (<-ended).Sub(at); d > time.Second {
				t.Errorf("%s: the upstream saw it after %v, want under a second", why, d)
			}
			cancel()
		})
	}
}

func TestDeadline(t *testing.T) {
	checkForwardLeaks(t)
	addr := playUpstream(t, func(_ int, p *peer) { p.head(); p.rest() })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	w := newTunnelWriter()
	if w.serve(newTestForwarder(t, addr, ForwardOptions{}), request(t, "GET", "/", nil, 0).WithContext(ctx)); w.code != messages.CancelTimeout {
		t.Errorf("failed with %v %q, want %v", w.code, w.reason, messages.CancelTimeout)
	}
}

// TestVisitorTakesNoMore has the ResponseWriter fail.
func TestVisitorTakesNoMore(t *testing.T) {
	checkForwardLeaks(t)
	ended := make(chan struct{})
	addr := playUpstream(t, func(_ int, p *peer) {
		p.head()
		p.send("HTTP/1.1 200 OK\r\n\r\nhello")
		p.rest()
		close(ended)
	})
	w := newTunnelWriter()
	w.dead = true
	if !w.serve(newTestForwarder(t, addr, ForwardOptions{}), request(t, "GET", "/", nil, 0)) {
		t.Error("want http.ErrAbortHandler")
	}
	<-ended
}
