package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// serveH2 runs a real net/http server that speaks HTTP/1.1 and, by prior knowledge, HTTP/2; it returns host:port.
func serveH2(t *testing.T, h http.Handler) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ln) }() // ends when srv closes
	t.Cleanup(func() {
		srv.Close()
		await(t, ended, "the upstream to stop", func(error) {})
	})
	return ln.Addr().String()
}

// A starter publishes a handler for one combination of visitor and upstream.
type starter func(h http.Handler, opts ...option) *tunnel

// eachH2 runs f for visitors of both kinds, each with both kinds of upstream.
func eachH2(t *testing.T, f func(t *testing.T, start starter)) {
	t.Helper()
	for _, visitor := range []string{"TLS", "prior knowledge"} {
		for _, scheme := range []string{"http", "h2c"} {
			t.Run(visitor+" to "+scheme, func(t *testing.T) {
				t.Parallel()
				if direct() && visitor == "TLS" && scheme == "http" {
					t.Skip("the direct TLS end speaks the upstream's protocol only")
				}
				f(t, func(h http.Handler, opts ...option) *tunnel {
					if visitor == "TLS" {
						opts = append(opts, withTLS())
					}
					return publish(t, scheme+"://"+serveH2(t, h), opts...)
				})
			})
		}
	}
}

// doH2 sends a request over HTTP/2 and returns the response, whose body is closed when the test ends.
func doH2(t *testing.T, c *http.Client, req *http.Request) *http.Response {
	t.Helper()
	res, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	t.Cleanup(func() { res.Body.Close() })
	if res.ProtoMajor != 2 {
		t.Errorf("%s %s came by %s, want HTTP/2", req.Method, req.URL, res.Proto)
	}
	return res
}

// request returns a request to the tunnel that ends with the test.
func (tn *tunnel) request(t *testing.T, method, path string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, tn.URL+path, body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// An h2Exchange is a request to reflect and the answer it asks for.
type h2Exchange struct {
	method, body string
	chunked      bool // the request's length is not told beforehand
	status       int  // 0 means 200 with the request's body
}

// mirror answers with what it saw of the request.
func mirror(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	h := w.Header()
	h.Set("X-Seen", fmt.Sprintf("%s %s %s %d %v", r.Method, r.RequestURI, r.Host, r.ContentLength, err))
	h["X-Multi"] = r.Header["X-Multi"]
	h["Set-Cookie"] = []string{"a=1", "b=2"}
	if status, err := strconv.Atoi(r.Header.Get("X-Status")); err == nil {
		w.WriteHeader(status)
		return
	}
	h.Set("Content-Length", strconv.Itoa(len(b)))
	w.Write(b)
}

func (x h2Exchange) run(t *testing.T, tn *tunnel, c *http.Client) {
	name := fmt.Sprintf("%s with %d bytes (sized: %v) for %d", x.method, len(x.body), !x.chunked, x.status)
	var body io.Reader
	length, status := len(x.body), 200
	if x.body != "" {
		body = strings.NewReader(x.body)
	}
	if x.chunked {
		body, length = io.MultiReader(body), -1
	}
	req := tn.request(t, x.method, "/a%2Fb//c;d?x;y=%zz", body)
	req.Header["X-Multi"] = []string{"one", "t\xc3\xb6", ""}
	if x.status != 0 {
		status = x.status
		req.Header.Set("X-Status", strconv.Itoa(status))
	}
	res := doH2(t, c, req)
	want := fmt.Sprintf("%s /a%%2Fb//c;d?x;y=%%zz %s %d <nil>", x.method, tn.Host, length)
	if got := res.Header.Get("X-Seen"); got != want {
		t.Errorf("%s: the upstream saw %q, want %q", name, got, want)
	}
	if got := res.Header["X-Multi"]; !slices.Equal(got, req.Header["X-Multi"]) {
		t.Errorf("%s: the upstream saw X-Multi %q", name, got)
	}
	if got := res.Header["Set-Cookie"]; !slices.Equal(got, []string{"a=1", "b=2"}) {
		t.Errorf("%s: the visitor got Set-Cookie %q", name, got)
	}
	if res.StatusCode != status {
		t.Errorf("%s: the visitor got %s", name, res.Status)
	}
	if x.status != 0 {
		return
	}
	got, err := io.ReadAll(res.Body)
	if diff := sameBytes(got, []byte(x.body)); diff != "" || err != nil {
		t.Errorf("%s: the answer is %s (%v)", name, diff, err)
	}
	if res.ContentLength != int64(len(x.body)) {
		t.Errorf("%s: the answer's length is given as %d", name, res.ContentLength)
	}
}

// TestHTTP2Exchange sends requests of every shape and wants the upstream and the visitor to see them as they were sent.
func TestHTTP2Exchange(t *testing.T) {
	t.Parallel()
	eachH2(t, func(t *testing.T, start starter) {
		tn := start(http.HandlerFunc(mirror))
		c := tn.client(t, true)
		for _, x := range []h2Exchange{
			{method: "GET"}, {method: "HEAD"}, {method: "OPTIONS"}, {method: "DELETE"}, {method: "PURGE"},
			{method: "POST", body: "hello"}, {method: "POST", body: "hello", chunked: true}, {method: "POST"},
			{method: "PUT", body: string(pattern(300_000)), chunked: true}, {method: "PATCH", body: "x"},
			{method: "GET", status: 204}, {method: "GET", status: 304}, {method: "GET", status: 500},
			{method: "POST", status: 401, body: "who"},
		} {
			x.run(t, tn, c)
		}
	})
}

// TestHTTP2Large sends 20 MiB up, 20 MiB down, and both at once.
func TestHTTP2Large(t *testing.T) {
	t.Parallel()
	large := pattern(20 << 20)
	eachH2(t, func(t *testing.T, start starter) {
		tn := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/up":
				b, err := io.ReadAll(r.Body)
				fmt.Fprintf(w, "%s%v", sameBytes(b, large), err)
			case "/down":
				w.Write(large)
			case "/both":
				http.NewResponseController(w).EnableFullDuplex()
				io.Copy(w, r.Body)
			}
		}), withConfig(func(c *config) { c.MaxBody = 0 }))
		c := tn.client(t, true)
		for _, path := range []string{"/up", "/down", "/both"} {
			req := tn.request(t, "POST", path, bytes.NewReader(large))
			if path == "/down" {
				req = tn.request(t, "GET", path, nil)
			}
			want := large
			if path == "/up" {
				want = []byte("<nil>")
			}
			res := doH2(t, c, req)
			got, err := io.ReadAll(res.Body)
			if diff := sameBytes(got, want); diff != "" || err != nil {
				t.Errorf("%s: the answer is %s (%v) %.100q", path, diff, err, got)
			}
		}
	})
}

// TestHTTP2Trailers sends trailers both ways, announced and not.
func TestHTTP2Trailers(t *testing.T) {
	t.Parallel()
	eachH2(t, func(t *testing.T, start starter) {
		tn := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "X-Sum")
			io.Copy(w, r.Body)
			if r.Method == "GET" {
				w.Header().Set("X-Sum", "no body")
				return
			}
			w.Header()["X-Sum"] = r.Trailer["X-Sum"]
			w.Header()[http.TrailerPrefix+"X-Late"] = r.Trailer["X-Late"]
		}))
		c := tn.client(t, true)
		req := tn.request(t, "POST", "/x", nil)
		req.Trailer = http.Header{"X-Sum": nil, "X-Late": nil}
		pr, pw := io.Pipe()
		req.Body = pr
		go func() { // ends when the body was read
			io.WriteString(pw, "hello")
			req.Trailer["X-Sum"] = []string{"abc", "second"}
			req.Trailer["X-Late"] = []string{"d"}
			pw.Close()
		}()
		res := doH2(t, c, req)
		b, err := io.ReadAll(res.Body)
		if string(b) != "hello" || err != nil {
			t.Errorf("got %q, %v", b, err)
		}
		if !slices.Equal(res.Trailer["X-Sum"], []string{"abc", "second"}) || !slices.Equal(res.Trailer["X-Late"], []string{"d"}) {
			t.Errorf("got the trailers %q, want those of the request", res.Trailer)
		}
		res = doH2(t, c, tn.request(t, "GET", "/x", nil))
		if b, err := io.ReadAll(res.Body); len(b) > 0 || err != nil || res.Trailer.Get("X-Sum") != "no body" {
			t.Errorf("without a body: got %q, %v, trailers %q", b, err, res.Trailer)
		}
	})
}

// TestHTTP2EarlyHints wants 103 before the upstream goes on.
func TestHTTP2EarlyHints(t *testing.T) {
	t.Parallel()
	eachH2(t, func(t *testing.T, start starter) {
		seen := make(chan struct{})
		tn := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for _, link := range []string{"</a.css>; rel=preload", "</b.css>; rel=preload"} {
				w.Header().Set("Link", link)
				w.WriteHeader(103)
			}
			w.Header().Del("Link")
			select {
			case <-seen:
			case <-r.Context().Done():
			}
			io.WriteString(w, "done")
		}))
		var links []string
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				if code != 103 {
					return fmt.Errorf("got %d in place of 103", code)
				}
				if links = append(links, h["Link"]...); len(links) == 2 {
					close(seen)
				}
				return nil
			},
		})
		res := doH2(t, tn.client(t, true), tn.request(t, "GET", "/x", nil).WithContext(ctx))
		b, _ := io.ReadAll(res.Body)
		if len(links) != 2 || links[0] != "</a.css>; rel=preload" || string(b) != "done" || res.Header.Get("Link") != "" {
			t.Errorf("got hints %q, then %s with Link %q and %q", links, res.Status, res.Header["Link"], b)
		}
	})
}

// wary is a request body that says whether it was asked for.
type wary struct {
	io.Reader
	read atomic.Bool
}

func (w *wary) Read(p []byte) (int, error) {
	w.read.Store(true)
	return w.Reader.Read(p)
}

// TestHTTP2ExpectContinue wants the body to come after a 100, and a refusal to arrive. A plain server waits for the
// handler's word first; the edge cannot, because net/http's HTTP/2 takes the Expect field away and says 100 by itself.
func TestHTTP2ExpectContinue(t *testing.T) {
	t.Parallel()
	eachH2(t, func(t *testing.T, start starter) {
		tn := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/refuse" {
				w.WriteHeader(417)
				return
			}
			<-time.After(200 * time.Millisecond) // nobody else may say 100 meanwhile
			b, err := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%d %v", len(b), err)
		}))
		c := tn.client(t, true)
		c.Transport.(*http.Transport).ExpectContinueTimeout = patience
		for _, path := range []string{"/take", "/refuse"} {
			body := &wary{Reader: bytes.NewReader(pattern(100_000))}
			var asked time.Duration
			begin := time.Now()
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
				Got100Continue: func() { asked = time.Since(begin) },
			})
			req := tn.request(t, "POST", path, body).WithContext(ctx)
			req.ContentLength = 100_000
			req.Header.Set("Expect", "100-continue")
			res := doH2(t, c, req)
			b, _ := io.ReadAll(res.Body)
			switch {
			case path == "/refuse" && (res.StatusCode != 417 || direct() && (body.read.Load() || asked > 0)):
				t.Errorf("got %s; the body was sent: %v, asked for: %v; the upstream refused it", res.Status, body.read.Load(), asked > 0)
			case path == "/take" && (string(b) != "100000 <nil>" || asked == 0):
				t.Errorf("got %s %q, 100 after %v", res.Status, b, asked)
			case path == "/take" && direct() && asked < 200*time.Millisecond:
				t.Errorf("100 came after %v, before the upstream wanted the body", asked)
			}
		}
	})
}

// TestHTTP2Concurrent has 100 requests wait for each other on one connection.
func TestHTTP2Concurrent(t *testing.T) {
	t.Parallel()
	const streams = 100
	eachH2(t, func(t *testing.T, start starter) {
		var waiting atomic.Int32
		all := make(chan struct{})
		tn := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/first" {
				return
			}
			if waiting.Add(1) == streams {
				close(all)
			}
			select {
			case <-all:
			case <-time.After(patience):
				w.WriteHeader(500)
			}
			io.WriteString(w, r.URL.Path)
		}))
		c := tn.client(t, true)
		var dials atomic.Int32
		tr := c.Transport.(*http.Transport)
		dial := tr.DialContext
		tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			dials.Add(1)
			return dial(ctx, network, addr)
		}
		io.Copy(io.Discard, doH2(t, c, tn.request(t, "GET", "/first", nil)).Body)
		var wg sync.WaitGroup
		for i := range streams {
			wg.Go(func() { // ends with its request
				path := fmt.Sprintf("/%d", i)
				res, err := c.Do(tn.request(t, "GET", path, nil))
				if err != nil {
					t.Errorf("%s: %v", path, err)
					return
				}
				defer res.Body.Close()
				if b, err := io.ReadAll(res.Body); res.StatusCode != 200 || string(b) != path || err != nil {
					t.Errorf("%s got %s %q, %v", path, res.Status, b, err)
				}
			})
		}
		wg.Wait()
		if n := dials.Load(); n != 1 {
			t.Errorf("the visitor dialled %d times, want one connection to carry all", n)
		}
	})
}

// TestHTTP2LimitsHold wants bodies beyond the limit to be refused: 413 for a request, and for a response 502 or, if its
// head is out, a broken stream.
func TestHTTP2LimitsHold(t *testing.T) {
	t.Parallel()
	eachH2(t, func(t *testing.T, start starter) {
		tn := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == "POST" {
				io.Copy(io.Discard, r.Body)
				return
			}
			if r.URL.Path == "/sized" {
				w.Header().Set("Content-Length", fmt.Sprint(maxBody+1))
			}
			w.Write(pattern(maxBody + 1))
		}))
		tn.needsTunnel(t)
		c := tn.client(t, true)
		for _, sized := range []bool{true, false} {
			req := tn.request(t, "POST", "/x", bytes.NewReader(pattern(maxBody+1)))
			if !sized {
				req.ContentLength = -1
			}
			res, err := c.Do(req)
			if err != nil || res.StatusCode != 413 || res.Header.Get("Harp-Error") == "" {
				t.Errorf("an upload of 512,001 bytes (sized: %v) got %v, %v; want 413", sized, res, err)
			}
			if err == nil {
				res.Body.Close()
			}
		}
		res := doH2(t, c, tn.request(t, "GET", "/sized", nil))
		if res.StatusCode != 502 || res.Header.Get("Harp-Error") == "" {
			t.Errorf("a response of 512,001 bytes got %s, want 502", res.Status)
		}
		res = doH2(t, c, tn.request(t, "GET", "/unsized", nil))
		if b, err := io.ReadAll(res.Body); res.StatusCode != 502 && err == nil || len(b) > maxBody {
			t.Errorf("a response of 512,001 bytes ended cleanly after %d", len(b))
		} else if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a response of 512,001 bytes: %v", err)
		}
	})
}
