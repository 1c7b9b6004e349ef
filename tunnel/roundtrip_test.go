package tunnel

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// TestRequestArrivesAsItWas sends requests of every kind and has the handler say what came.
func TestRequestArrivesAsItWas(t *testing.T) {
	p := newPair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %s length %d chunks %v %q %v\n", r.Method, r.RequestURI, r.Host, r.RemoteAddr,
			r.ContentLength, r.TransferEncoding, b, err)
		_ = r.Header.Write(w)
	}))
	const host = " label.example.com 192.0.2.7:1234 "
	for _, c := range []struct {
		req  *http.Request
		want string
	}{
		{request("GET", "/", nil), `GET /` + host + `length 0 chunks [] "" <nil>`},
		{request("DELETE", "/a%2Fb//c;d?", nil), `DELETE /a%2Fb//c;d?` + host + `length 0 chunks [] "" <nil>`},
		{request("OPTIONS", "*", nil), `OPTIONS *` + host + `length 0 chunks [] "" <nil>`},
		{request("BREW", "/tea?x=%zz&y;z", nil), `BREW /tea?x=%zz&y;z` + host + `length 0 chunks [] "" <nil>`},
		{request("GET", "http://other.example/x", nil), `GET http://other.example/x` + host + `length 0 chunks [] "" <nil>`},
		{request("POST", "/", strings.NewReader("hello"), "Content-Length: 5"),
			`POST /` + host + `length 5 chunks [] "hello" <nil>` + "\nContent-Length: 5\r"},
		{request("PUT", "/ü", strings.NewReader("hello")), `PUT /ü` + host + `length -1 chunks [] "hello" <nil>`},
		{request("PATCH", "/", strings.NewReader("")), `PATCH /` + host + `length -1 chunks [] "" <nil>`},
		{request("POST", "/", http.NoBody, "Content-Length: 0"),
			`POST /` + host + `length 0 chunks [] "" <nil>` + "\nContent-Length: 0\r"},
		{request("GET", "/", nil, "Cookie: a=b", "X-Twice: 1", "X-Twice: 2", "x-lower: ", "Te: trailers"),
			`GET /` + host + `length 0 chunks [] "" <nil>` +
				"\nCookie: a=b\r\nTe: trailers\r\nX-Lower: \r\nX-Twice: 1\r\nX-Twice: 2\r"},
	} {
		if _, got := p.get(c.req); got != c.want+"\n" {
			t.Errorf("handler got\n%s\nwant\n%s", got, c.want)
		}
	}
}

// TestBodiesArriveWhole sends bodies of many sizes there and back.
func TestBodiesArriveWhole(t *testing.T) {
	p := newPair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(w, r.Body); err != nil {
			t.Errorf("copy: %v", err)
		}
	}))
	for _, n := range []int{0, 1, 511, 4095, 4096, 4097, turn - 1, turn, turn + 1, bodyBatch, 1 << 18, 1<<18 + 1, 5 << 20} {
		sent := pattern(n, 7)
		_, got := p.get(request("POST", "/", bytes.NewReader(sent)))
		if sha256.Sum256([]byte(got)) != sha256.Sum256(sent) {
			t.Errorf("%d bytes were sent, %d others came back", n, len(got))
		}
		res := p.do(request("POST", "/", bytes.NewReader(sent)))
		var all bytes.Buffer
		if m, err := io.Copy(&all, res.Body); err != nil || int(m) != n || !bytes.Equal(all.Bytes(), sent) {
			t.Errorf("%d bytes were sent, WriteTo gave %d others and %v", n, m, err)
		}
		res.Body.Close()
	}
}

// pattern is n bytes in which a piece that is lost, doubled or out of order shows.
func pattern(n int, seed uint32) []byte {
	b := make([]byte, n)
	x := seed | 1
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

func TestResponseArrivesAsItWas(t *testing.T) {
	p := newPair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h["Set-Cookie"] = []string{"a=1", "b=2", "a=3"}
		h["X-Empty"] = []string{""}
		h["Content-Type"] = nil
		w.WriteHeader(299)
		_, _ = io.WriteString(w, "body")
	}))
	res, got := p.get(request("GET", "/", nil))
	want := http.Header{"Set-Cookie": {"a=1", "b=2", "a=3"}, "X-Empty": {""}, "Content-Length": {"4"}}
	if res.StatusCode != 299 || got != "body" || res.ContentLength != 4 || fmt.Sprint(res.Header) != fmt.Sprint(want) {
		t.Errorf("response %d with %v, length %d and %q, want 299 with %v, length 4 and \"body\"",
			res.StatusCode, res.Header, res.ContentLength, got, want)
	}
}

func TestTrailersBothWays(t *testing.T) {
	p := newPair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := r.Trailer["X-Sum"]; !ok || r.Header.Get("Trailer") != "" {
			t.Errorf("before the body, trailers are %v and the header is %v, want X-Sum to be announced", r.Trailer, r.Header)
		}
		w.Header().Set("Trailer", "X-Announced")
		_, _ = io.Copy(w, r.Body)
		w.Header().Set("X-Announced", r.Trailer.Get("X-Sum"))
		w.Header().Set(http.TrailerPrefix+"x-prefixed", r.Trailer.Get("X-Late"))
	}))
	req := request("POST", "/", nil)
	req.Trailer = http.Header{"X-Sum": nil}
	req.Body = io.NopCloser(io.MultiReader(strings.NewReader("hello"), atEnd(func() {
		req.Trailer = http.Header{"X-Sum": {"12"}, "X-Late": {"13"}}
	})))
	res, got := p.get(req)
	if got != "hello" || fmt.Sprint(res.Trailer) != fmt.Sprint(http.Header{"X-Announced": {"12"}, "X-Prefixed": {"13"}}) {
		t.Errorf("body %q with trailers %v, want \"hello\" with X-Announced: 12 and X-Prefixed: 13", got, res.Trailer)
	}
}

// atEnd is an empty reader that does something at its end.
type atEnd func()

func (f atEnd) Read([]byte) (int, error) {
	f()
	return 0, io.EOF
}

func TestInterimResponses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</a.css>")
			w.Header().Set("Content-Length", "4")
			w.WriteHeader(103)
			time.Sleep(time.Minute)
			w.Header().Set("Link", "</b.css>")
			w.WriteHeader(103)
			_, _ = io.WriteString(w, "body")
		}))
		start := time.Now()
		var seen []string
		trace := &httptrace.ClientTrace{Got1xxResponse: func(status int, h textproto.MIMEHeader) error {
			seen = append(seen, fmt.Sprint(status, " ", h, " after ", time.Since(start)))
			return nil
		}}
		req := request("GET", "/", nil)
		res, got := p.get(req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
		want := []string{"103 map[Link:[</a.css>]] after 0s", "103 map[Link:[</b.css>]] after 1m0s"}
		if !slices.Equal(seen, want) {
			t.Errorf("interim responses %q, want %q: without the length of a body that they have not", seen, want)
		}
		if res.StatusCode != 200 || got != "body" || res.Header.Get("Link") != "</b.css>" {
			t.Errorf("then %d, %v and %q, want 200, the header as it was left, and the body", res.StatusCode, res.Header, got)
		}
	})
}

// TestInterimIsRefusedByVisitor has the visitor go when the edge passes an interim response on.
func TestInterimIsRefusedByVisitor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		gone := errors.New("visitor is gone")
		trace := &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error { return gone }}
		req := request("GET", "/", nil)
		c := p.calls(req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
		id, _ := p.wantsRequest("a request was made")
		p.sends(responds(id, 103, 0))
		if err := c.failed("the visitor did not want it"); err != gone {
			t.Errorf("error %v, want that of the visitor", err)
		}
		p.wantsCancel("the agent is told", id, messages.CancelAborted)
	})
}

func TestHead(t *testing.T) {
	p := newPair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "<html>not for you")
	}))
	res, got := p.get(request("HEAD", "/", nil))
	if got != "" || res.ContentLength != 17 || res.Body != http.NoBody || res.Header.Get("Content-Type") != "text/html; charset=utf-8" {
		t.Errorf("HEAD got body %q and header %v, want none and what GET has", got, res.Header)
	}
}

// TestAnswerBeforeEndOfRequest has a handler answer while the request body has only begun.
func TestAnswerBeforeEndOfRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b := make([]byte, 5)
			_, _ = io.ReadFull(r.Body, b)
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			_, _ = w.Write(b)
		}))
		lent := newLentBody("hello")
		res, got := p.get(request("POST", "/", lent))
		if res.StatusCode != 413 || got != "hello" {
			t.Errorf("answer %d %q, want 413 and what was read", res.StatusCode, got)
		}
		if n := p.edge.Streams(); n != 0 {
			t.Errorf("%d streams at the edge after the response was complete", n)
		}
		lent.more("more")
		synctest.Wait()
		if !isClosed(lent.closed) {
			t.Error("the request body was not closed, although nobody wants it")
		}
	})
}

// A lentBody is a request body that comes when the test wants.
type lentBody struct {
	io.Reader
	feed   *io.PipeWriter
	closed chan struct{} // closed by the first Close
}

func newLentBody(begin string) *lentBody {
	r, w := io.Pipe()
	return &lentBody{Reader: io.MultiReader(strings.NewReader(begin), r), feed: w, closed: make(chan struct{})}
}

// more gives s, if anybody reads it.
func (b *lentBody) more(s string) {
	go func() { // ends with the body
		<-b.closed
		_ = b.feed.Close()
	}()
	_, _ = b.feed.Write([]byte(s))
}

func (b *lentBody) end() { _ = b.feed.Close() }

func (b *lentBody) Close() error {
	if !isClosed(b.closed) {
		close(b.closed)
	}
	_ = b.feed.Close()
	return nil
}

// TestWriteToAWriterThatFails wants WriteTo to say how far it came.
func TestWriteToAWriterThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		for _, want := range []error{io.ErrClosedPipe, io.ErrShortWrite} {
			id, b := p.streams()
			p.sends(end(id, "hello"))
			n, err := b.(io.WriterTo).WriteTo(failingWriter{want})
			if n != 2 || err != want {
				t.Errorf("WriteTo returned %d, %v, want 2, %v", n, err, want)
			}
			b.Close()
		}
	})
}

// A failingWriter takes two bytes and fails, or says nothing if it is to be io.ErrShortWrite.
type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) {
	if w.err == io.ErrShortWrite {
		return 2, nil
	}
	return 2, w.err
}

// TestFullDuplex talks to a handler line by line, both ways at once.
func TestFullDuplex(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rc := http.NewResponseController(w)
			if err := rc.EnableFullDuplex(); err != nil {
				t.Errorf("full duplex: %v", err)
			}
			b := make([]byte, 64)
			for {
				n, err := r.Body.Read(b)
				if err != nil {
					return
				}
				_, _ = w.Write(bytes.ToUpper(b[:n]))
				if err := rc.Flush(); err != nil {
					t.Errorf("flush: %v", err)
				}
			}
		}))
		in, feed := io.Pipe()
		go func() { _, _ = feed.Write([]byte("one")) }()
		res := p.do(request("POST", "/", in))
		b := make([]byte, 64)
		for _, word := range []string{"one", "two", "three"} {
			if word != "one" {
				if _, err := feed.Write([]byte(word)); err != nil {
					t.Fatal(err)
				}
			}
			if n, err := res.Body.Read(b); err != nil || string(b[:n]) != strings.ToUpper(word) {
				t.Fatalf("sent %q, got %q and %v", word, b[:n], err)
			}
		}
		_ = feed.Close()
		if n, err := res.Body.Read(b); n != 0 || err != io.EOF {
			t.Errorf("after the end of the request came %q and %v, want io.EOF", b[:n], err)
		}
	})
}

// TestTooMuchOfAHead wants heads that the peer would refuse not to be sent.
func TestTooMuchOfAHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n, _ := strconv.Atoi(r.URL.Query().Get("n"))
			w.Header().Set("X", strings.Repeat("x", n))
			w.Header()["Y"] = make([]string, 1000)
		}))
		for _, n := range []int{0, 100_000, maxResponseHead - 4000} {
			if res := p.do(request("GET", fmt.Sprint("/?n=", n), nil, "X: "+strings.Repeat("x", n))); len(res.Header.Get("X")) != n {
				t.Errorf("a field of %d bytes came back with %d", n, len(res.Header.Get("X")))
			}
		}
		for _, fields := range [][]string{{"X: " + strings.Repeat("x", maxRequestHead)}, make([]string, messages.MaxFields+1)} {
			req := request("POST", "/", newLentBody("").asLent(t), fields...)
			if err := goRoundTrip(t, p.edge, req).failed("too large"); !errors.Is(err, messages.ErrTooLong) || Unprocessed(err) {
				t.Errorf("request with %d fields: %v, want %v", len(fields), err, messages.ErrTooLong)
			}
		}
		var cancelled *CancelError
		err := goRoundTrip(t, p.edge, request("GET", fmt.Sprint("/?n=", maxResponseHead), nil)).failed("too large")
		if !errors.As(err, &cancelled) || cancelled.Code != messages.CancelTooLarge {
			t.Errorf("response with a large field: %v, want a cancel that says too large", err)
		}
		if a, b := p.edge.Streams(), p.agent.Streams(); a != 0 || b != 0 {
			t.Errorf("%d streams are left at the edge and %d at the agent", a, b)
		}
	})
}

// TestPending says whether the next piece is there.
func TestPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		c, id := p.opens("GET", "/", nil)
		p.sends(responds(id, 200, 0))
		b := c.answered("the head came").Body.(interface{ Pending() bool })
		if b.Pending() {
			t.Error("something is said to be pending before anything came")
		}
		p.sends(body(id, "x"))
		if !b.Pending() {
			t.Error("a byte has come, yet nothing is pending")
		}
		_, _ = c.res.Body.Read(make([]byte, 8))
		if b.Pending() {
			t.Error("everything was read, yet something is pending")
		}
		p.sends(end(id, ""))
		if !b.Pending() {
			t.Error("the end has come, yet it is not pending")
		}
		c.res.Body.Close()
	})
}
