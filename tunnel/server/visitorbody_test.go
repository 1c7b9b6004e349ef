package server

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
)

// reading answers with what it has read: bytes, error, trailers.
func reading(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	fmt.Fprintf(w, "%d %v %v", len(b), err, r.Trailer)
}

// chunked hides the length of a body.
func chunked(r io.Reader) io.Reader { return struct{ io.Reader }{r} }

func TestRequestLimit(t *testing.T) {
	t.Parallel()
	const limit = 100_000
	e := newEdge(t, Options{MaxBody: limit})
	var ran atomic.Int32
	_, host := e.publish(func(w http.ResponseWriter, r *http.Request) {
		ran.Add(1)
		reading(w, r)
	})
	for _, n := range []int{0, 1, limit - 1, limit} {
		for kind, body := range map[string]io.Reader{"sized": strings.NewReader(strings.Repeat("x", n)), "chunked": chunked(strings.NewReader(strings.Repeat("x", n)))} {
			got, err := e.ask("POST", "http://"+host, body)
			if want := fmt.Sprintf("%d <nil> map[]", n); err != nil || got.body != want {
				t.Errorf("%s, %d bytes: %q, %v", kind, n, got.body, err)
			}
		}
	}
	before := ran.Load()
	got, err := e.ask("POST", "http://"+host, strings.NewReader(strings.Repeat("x", limit+1)))
	if err != nil {
		t.Fatal(err)
	}
	e.wantError("a byte too many, announced", got, requestTooLargeError(limit))
	if ran.Load() != before {
		t.Error("the agent got a request that is too large by its own word")
	}
	for _, n := range []int{limit + 1, 20 * limit} {
		v := e.visit()
		v.says("POST / HTTP/1.1\nHost: "+host+"\nTransfer-Encoding: chunked\n\n", "")
		go func() { // ends when the connection does
			for range n / 1000 {
				_, _ = io.WriteString(v, "3e8\r\n"+strings.Repeat("x", 1000)+"\r\n")
			}
			_, _ = io.WriteString(v, "1\r\nx\r\n0\r\n\r\n")
		}()
		status, fields := v.head()
		if !strings.Contains(status, "413") || field(fields, "Harp-Error")[0] != "request-too-large" {
			t.Errorf("%d bytes in chunks: %q %q", n, status, fields)
		}
	}
	if n := e.metric("harp_limits_total{limit=max-body}"); n != 3 {
		t.Errorf("counted %v times, want 3", n)
	}
	unlimited := newEdge(t, Options{MaxBody: -1})
	_, host = unlimited.publish(reading)
	if got, err := unlimited.ask("POST", "http://"+host, strings.NewReader(strings.Repeat("x", 3_000_000))); err != nil || got.body != "3000000 <nil> map[]" {
		t.Errorf("no limit: %q, %v", got.body, err)
	}
}

func TestRequestTrailers(t *testing.T) {
	e := newEdge(t, Options{})
	_, host := e.publish(reading)
	v := e.visit()
	v.says("POST / HTTP/1.1\nHost: "+host+"\nTransfer-Encoding: chunked\nTrailer: X-Sum, X-Forwarded-For\n\n",
		"2\r\nhi\r\n0\r\nX-Sum: 1\r\nX-Late: 2\r\nX-Forwarded-For: 6.6.6.6\r\nHarp_Tunnel: x\r\nX-Real-IP: 6.6.6.6\r\n"+
			"Connection: close\r\nUpgrade: x\r\nHost: evil\r\nAuthorization: evil\r\n\r\n")
	v.head()
	want := "2 <nil> map[X-Late:[2] X-Sum:[1]]"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(v.r, got); err != nil || string(got) != want {
		t.Errorf("the agent got %q, want %q: nothing that pretends or frames", got, want)
	}
}

// An answer may come before the request has ended. It arrives whole, and nothing of the rest may be taken for another
// request.
func TestEarlyAnswer(t *testing.T) {
	t.Parallel()
	e := newEdge(t, Options{})
	var all sync.WaitGroup
	for _, test := range []struct {
		why   string
		head  string // of the request
		begin string // of its body, before the answer
		rest  string
		delay time.Duration // before the rest
		may   bool          // the connection may go on, if the rest came before the answer had ended
	}{
		{"the rest comes at once, sized", "Content-Length: 1000", "x", strings.Repeat("x", 999), 0, true},
		{"the rest comes at once, chunked", "Transfer-Encoding: chunked", "1\r\nx\r\n", "5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n", 0, true},
		{"the rest is large", "Content-Length: 100001", "x", strings.Repeat("x", 100000), 0, true},
		{"the rest comes soon", "Content-Length: 1000", "x", strings.Repeat("x", 999), 200 * time.Millisecond, false},
		{"the rest is too large to wait for", "Content-Length: 400001", "x", strings.Repeat("x", 400000), 0, false},
		{"the rest comes late, sized", "Content-Length: 29", "x", "GET / HTTP/1.1\r\nHost: HOST\r\n\r\n", 1500 * time.Millisecond, false},
		{"the rest comes late, chunked", "Transfer-Encoding: chunked", "5\r\nhello\r\n", "GET / HTTP/1.1\r\nHost: HOST\r\n\r\n", 1500 * time.Millisecond, false},
		{"the rest never comes", "Content-Length: 1000", "", "", 0, false},
		{"the rest waits for 100", "Content-Length: 10\nExpect: 100-continue", "", "", 0, false},
		{"the rest is no chunk", "Transfer-Encoding: chunked", "5\r\nhello\r\n", "\r\n\r\nGET / HTTP/1.1\r\nHost: HOST\r\n\r\n", 0, false},
	} {
		var ran atomic.Int32
		_, host := e.publish(func(w http.ResponseWriter, r *http.Request) {
			ran.Add(1)
			w.Header().Set("Content-Length", "5")
			io.WriteString(w, "early")
		})
		all.Go(func() { // all at once, since each takes its time
			v := e.visit()
			v.says("POST / HTTP/1.1\nHost: "+host+"\n"+test.head+"\n\n", test.begin)
			status, _ := v.head()
			got := make([]byte, 5)
			if _, err := io.ReadFull(v.r, got); err != nil || string(got) != "early" || status != "HTTP/1.1 200 OK" {
				t.Errorf("%s: %q %q, %v", test.why, status, got, err)
			}
			time.Sleep(test.delay)
			_, _ = io.WriteString(v, strings.ReplaceAll(test.rest, "HOST", host)+"GET /next HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
			rest, err := v.r.ReadString('\n')
			goes := strings.HasPrefix(rest, "HTTP/1.1 200")
			if !goes && (rest != "" || err == nil) || goes && !test.may {
				t.Errorf("%s: after the answer came %q, %v; want the end, or the next answer: %v", test.why, rest, err, test.may)
			}
			if n := ran.Load(); goes != (n == 2) || n > 2 {
				t.Errorf("%s: %d requests came to the agent", test.why, n)
			}
		})
	}
	all.Wait()
	eventually(t, "nothing runs", func() bool { return e.metric("harp_streams") == 0 })
}

func TestExpectContinue(t *testing.T) {
	t.Parallel()
	e := newEdge(t, Options{})
	_, host := e.publish(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(417)
			return
		}
		w.WriteHeader(100)
		reading(w, r)
	})
	v := e.visit()
	v.says("POST / HTTP/1.1\nHost: "+host+"\nContent-Length: 2\nExpect: 100-continue\n\n", "")
	if status, _ := v.head(); status != "HTTP/1.1 100 Continue" {
		t.Errorf("got %q", status)
	}
	v.says("", "hi")
	if status, _ := v.head(); status != "HTTP/1.1 200 OK" {
		t.Errorf("got %q, and no second 100", status)
	}
	v = e.visit()
	v.says("POST /no HTTP/1.1\nHost: "+host+"\nContent-Length: 2\nExpect: 100-continue\n\n", "")
	if status, fields := v.head(); status != "HTTP/1.1 417 Expectation Failed" || len(field(fields, "Connection")) != 1 {
		t.Errorf("got %q %q, want a refusal and the end of the connection", status, fields)
	}
	if rest, err := v.rest(); rest != "" || err != nil {
		t.Errorf("then came %q, %v", rest, err)
	}
}

// A body that was refused goes to another agent from its beginning, if it is short enough to be kept.
func TestBodyIsSentAgain(t *testing.T) {
	t.Parallel()
	e := newEdge(t, Options{})
	key := newKey(t)
	a := e.script(key, identity.Registration{Mode: identity.ModeShare, Instance: "a"})
	_, host := e.publishAs(key, identity.Registration{Mode: identity.ModeShare, Instance: "b"}, reading)
	for _, test := range []struct {
		why     string
		n       int
		chunked bool
		await   int // bytes that the first agent waits for
		want    string
	}{
		{"no body", 0, false, 0, "0 <nil> map[]"},
		{"a short body", 10, false, 0, "10 <nil> map[]"},
		{"a short body that it has", 10, false, 10, "10 <nil> map[]"},
		{"in chunks, with trailers", 1000, true, 1000, "1000 <nil> map[X-Sum:[1]]"},
		{"as much as is kept", maxKept, true, maxKept, fmt.Sprintf("%d <nil> map[X-Sum:[1]]", maxKept)},
		{"a byte more than is kept", maxKept + 1, true, maxKept + 1, "agent-away"},
		{"much more than is kept", 400_000, false, 100_000, "agent-away"},
	} {
		r, _ := http.NewRequestWithContext(t.Context(), "POST", "http://"+host, strings.NewReader(strings.Repeat("x", test.n)))
		if test.chunked {
			r.ContentLength = -1
			r.Trailer = http.Header{"X-Sum": {"1"}}
		}
		done := make(chan answer, 1)
		go func() {
			res, err := e.client.Do(r)
			if err != nil {
				t.Error(err)
				close(done)
				return
			}
			defer res.Body.Close()
			b, err := io.ReadAll(res.Body)
			done <- answer{res, string(b), err}
		}()
		m := a.awaits(test.why, messages.TypeHTTPRequest)
		for n := 0; n < test.await; {
			n += len(a.awaits("the body", messages.TypeBody).payload)
		}
		if test.await == test.n && test.chunked {
			a.awaits("the trailers", messages.TypeTrailers)
		}
		a.sends(messages.AppendCancel(nil, messages.TypeCancel, m.Stream, messages.CancelRefused, "no"))
		got := receive(t, "an answer", done)
		if got.Response == nil || got.body != test.want && got.code() != test.want {
			t.Errorf("%s: %q %q, want %q", test.why, got.code(), got.body, test.want)
		}
		eventually(t, "nothing runs", func() bool { return e.metric("harp_streams") == 0 })
		if test.want == "agent-away" {
			e.get(host, "/") // so that the first agent has not carried more, and is asked first
		}
	}
}

// A visitor who stalls in the middle of a body costs no more than a moment once an agent has refused it.
func TestRefusedWhileTheVisitorStalls(t *testing.T) {
	t.Parallel()
	e := newEdge(t, Options{})
	key := newKey(t)
	a := e.script(key, identity.Registration{Mode: identity.ModeShare, Instance: "a"})
	_, host := e.publishAs(key, identity.Registration{Mode: identity.ModeShare, Instance: "b"}, reading)
	v := e.visit()
	v.says("POST / HTTP/1.1\nHost: "+host+"\nContent-Length: 100\n\n", "some")
	m := a.awaits("the request", messages.TypeHTTPRequest)
	a.awaits("its body", messages.TypeBody)
	a.sends(messages.AppendCancel(nil, messages.TypeCancel, m.Stream, messages.CancelRefused, "no"))
	start := time.Now()
	if status, _ := v.head(); !strings.Contains(status, "503") {
		t.Error(status)
	}
	if _, err := v.rest(); err != nil {
		t.Errorf("the connection's end: %v", err)
	}
	if took := time.Since(start); took > 4*linger {
		t.Errorf("it took %v", took)
	}
}

func TestVisitorLeavesDuringTheBody(t *testing.T) {
	e := newEdge(t, Options{})
	seen := make(chan error, 1)
	_, host := e.publish(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		seen <- err
	})
	v := e.visit()
	v.says("POST / HTTP/1.1\nHost: "+host+"\nContent-Length: 100\n\n", "some")
	eventually(t, "it runs", func() bool { return e.metric("harp_streams") == 1 })
	v.Close()
	if err := receive(t, "the agent to hear of it", seen); err == nil {
		t.Error("a body that was cut off looks complete to the agent")
	}
	eventually(t, "nothing runs", func() bool { return e.metric("harp_streams") == 0 })
}

func TestBrokenRequestBody(t *testing.T) {
	t.Parallel()
	e := newEdge(t, Options{})
	seen := make(chan error, 1)
	_, host := e.publish(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		seen <- err
	})
	v := e.visit()
	v.says("POST / HTTP/1.1\nHost: "+host+"\nTransfer-Encoding: chunked\n\n", "zz\r\nGET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
	status, _ := v.head()
	if rest, err := v.rest(); !strings.Contains(status, "400") || strings.Contains(rest, "HTTP/1.1") || err != nil {
		t.Errorf("%q, then %q, %v; want 400 and the end", status, rest, err)
	}
	if err := receive(t, "the agent to hear of it", seen); err == nil {
		t.Error("a body that is broken looks complete to the agent")
	}
}

// Whoever is refused without having sent the body that was announced must not hold the connection.
func TestRefusedWithAStalledBody(t *testing.T) {
	t.Parallel()
	e := newEdge(t, Options{})
	_, host := e.publish(reading)
	var all sync.WaitGroup
	for why, head := range map[string]string{
		"no tunnel":           "POST / HTTP/1.1\nHost: nobody.test\nContent-Length: 10\n\n",
		"bad timeout":         "POST / HTTP/1.1\nHost: " + host + "\nHarp-Request-Timeout: x\nContent-Length: 10\n\n",
		"too large":           "POST / HTTP/1.1\nHost: " + host + "\nContent-Length: 100000000\n\n",
		"in chunks":           "POST / HTTP/1.1\nHost: nobody.test\nTransfer-Encoding: chunked\n\n",
		"waiting for a 100":   "POST / HTTP/1.1\nHost: nobody.test\nContent-Length: 10\nExpect: 100-continue\n\n",
		"the connect path":    "POST " + messages.ConnectPath + " HTTP/1.1\nHost: tunnels.test\nContent-Length: 10\n\n",
		"a link with a body?": "GET " + messages.ConnectPath + " HTTP/1.1\nHost: tunnels.test\nContent-Length: 10\n\n",
	} {
		all.Go(func() { // all at once, since each takes its time
			v := e.visit()
			start := time.Now()
			v.says(head, "")
			if status, _ := v.head(); !strings.HasPrefix(status, "HTTP/1.1 4") {
				t.Errorf("%s: %s", why, status)
			}
			if _, err := v.rest(); err != nil {
				t.Errorf("%s: the connection's end: %v", why, err)
			}
			if took := time.Since(start); took > refusedLinger+2*time.Second {
				t.Errorf("%s: it took %v", why, took)
			}
		})
	}
	all.Wait()
}
