package server

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

// Whatever is not simple goes to net/http, once, with the right answer, and the upstream gets it once.
func TestHandsOverWhatIsNotSimple(t *testing.T) {
	t.Parallel()
	f := newFastEdge(t, Options{}, nil)
	var ran atomic.Int32
	late := make(chan struct{})
	_, host := f.publish(func(w http.ResponseWriter, r *http.Request) {
		ran.Add(1)
		switch r.URL.Path {
		case "/late":
			await(r, late)
		case "/stream":
			io.WriteString(w, "/str")
			w.(http.Flusher).Flush()
			time.Sleep(20 * fastGather)
			io.WriteString(w, "eam")
			return
		case "/large":
			io.WriteString(w, strings.Repeat("x", 32<<10+1))
			return
		case "/early":
			w.Header().Set("X-Early", "1")
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Del("X-Early")
		case "/trailers":
			w.Header().Set("Trailer", "X-Sum")
			defer w.Header().Set("X-Sum", "7")
		}
		echoing(w, r)
	})
	time.AfterFunc(fastPatience+2*sweepEvery, func() { close(late) })
	get := func(target string) string { return "GET " + target + " HTTP/1.1\nHost: " + host + "\n" }
	for _, test := range []struct {
		why, says, body string
		want            []string // bodies of the answers
	}{
		{"POST", "POST /p HTTP/1.1\nHost: " + host + "\nContent-Length: 1\n\n", "x", []string{"/p"}},
		{"HEAD", "HEAD /h HTTP/1.1\nHost: " + host + "\n\n", "", []string{""}},
		{"pipelined", get("/1") + "\n" + get("/2") + "\n" + get("/3") + "\n", "", []string{"/1", "/2", "/3"}},
		{"a late answer", get("/late") + "\n", "", []string{"/late"}},
		{"a stream", get("/stream") + "\n", "", []string{"/stream"}},
		{"a large answer", get("/large") + "\n", "", []string{strings.Repeat("x", 32<<10+1)}},
		{"early hints", get("/early") + "\n", "", []string{"", "/early"}},
		{"trailers", get("/trailers") + "\n", "", []string{"/trailers"}},
		{"HTTP/1.0", "GET /old HTTP/1.0\nHost: " + host + "\n\n", "", []string{"/old"}},
		{"a large head", get("/head") + "A: " + strings.Repeat("x", maxFastHead) + "\n\n", "", []string{"/head"}},
		{"a head of more than the buffer", get("/head") + "A: " + strings.Repeat("x", 3*maxFastHead) + "\n\n", "", []string{"/head"}},
		{"close", get("/close") + "Connection: close\n\n", "", []string{"/close"}},
	} {
		t.Run(test.why, func(t *testing.T) {
			handed, before := f.handed.Load(), ran.Load()
			v := f.front.visit()
			f.wantBody("a simple one before", v.gets(host, "/before", ""), 200, "/before")
			f.wantHanded("a simple one before", handed)
			v.says(test.says, test.body)
			method, _, _ := strings.Cut(test.says, " ")
			requests := int32(strings.Count(test.says, "Host:"))
			for i, want := range test.want {
				got := v.answerTo(method)
				if status := got.StatusCode; got.body != want || got.err != nil || status != 200 && !(status == 103 && i == 0) {
					t.Errorf("got %s %.80q (%v), want %.80q", got.Status, got.body, got.err, want)
				}
				if test.why == "trailers" && got.Trailer.Get("X-Sum") != "7" {
					t.Errorf("trailers: %q", got.Trailer)
				}
			}
			f.wantHanded("afterwards", handed+1)
			if n := ran.Load() - before; n != requests+1 {
				t.Errorf("the upstream got %d requests, want %d", n, requests+1)
			}
			if strings.HasPrefix(test.why, "HTTP/1.0") || test.why == "close" {
				return
			}
			f.wantBody("after it", v.gets(host, "/after", ""), 200, "/after")
		})
	}
	f.wantQuiet()
}

// What comes in pieces is no less a request.
func TestHandsOverPieces(t *testing.T) {
	f := newFastEdge(t, Options{}, nil)
	_, host := f.publish(echoing)
	v := f.front.visit()
	f.wantBody("before", v.gets(host, "/0", ""), 200, "/0")
	_ = v.Conn.(*net.TCPConn).SetNoDelay(true)
	for _, b := range []byte("GET /x HTTP/1.1\r\nHost: " + host + "\r\n\r\n") {
		v.says("", string(b))
		time.Sleep(100 * time.Microsecond)
	}
	f.wantBody("byte by byte", v.answer(), 200, "/x")
	f.wantHanded("byte by byte", 1)
}

func TestHandsOverWhatIsRefused(t *testing.T) {
	f := newFastEdge(t, Options{RateLimit: 0.001, RateBurst: 3}, nil)
	_, host := f.publish(echoing)
	v := f.front.visit()
	for range 3 {
		f.wantBody("within the burst", v.gets(host, "/", ""), 200, "/")
	}
	f.wantHanded("within the burst", 0)
	f.wantError("beyond it", v.gets(host, "/", ""), rateLimitedError())
	f.wantHanded("beyond it", 1)
	f.wantError("nobody's label", f.front.visit().gets(fuzzLabel+"."+testDomain, "/", ""), noTunnelError())
	f.wantError("another domain", f.front.visit().gets("example.com", "/", ""), noTunnelError())
	if n := f.metric("harp_limits_total{limit=rate}"); n != 1 {
		t.Errorf("counted %v times", n)
	}
}

// Who is refused pays for one request, not for one here and one at net/http.
func TestRefusedRequestCountsOnce(t *testing.T) {
	f := newFastEdge(t, Options{RateLimit: 0.001, RateBurst: 4}, nil)
	for range 4 {
		f.wantError("within the burst", f.front.visit().gets(fuzzLabel+"."+testDomain, "/", ""), noTunnelError())
	}
	f.wantError("beyond it", f.front.visit().gets(fuzzLabel+"."+testDomain, "/", ""), rateLimitedError())
}

// What the visitor's own limit has counted here, net/http does not count once more.
func TestRefusedVisitorPaysOnce(t *testing.T) {
	f := newFastEdge(t, Options{RateLimit: 0.001, RateBurst: 1, VisitorRateLimit: 0.001, VisitorRateBurst: 4}, nil)
	_, host := f.publish(echoing)
	f.wantBody("within the burst", f.front.visit().gets(host, "/", ""), 200, "/")
	for range 3 {
		f.wantError("beyond the tunnel's", f.front.visit().gets(host, "/", ""), rateLimitedError())
	}
	if n := f.metric("harp_limits_total{limit=visitor-rate}"); n != 0 {
		t.Errorf("four requests are beyond a burst of four, %v times", n)
	}
	f.wantError("beyond the visitor's", f.front.visit().gets(host, "/", ""), rateLimitedError())
	if n := f.metric("harp_limits_total{limit=visitor-rate}"); n != 1 {
		t.Errorf("the fifth request was counted %v times", n)
	}
}

// What a trusted proxy says of the visitor counts without net/http, too.
func TestTrustedProxyIsServedFast(t *testing.T) {
	f := newFastEdge(t, Options{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}, nil)
	_, host := f.publish(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Header["X-Real-Ip"], r.Header["X-Forwarded-For"], r.Header["X-Forwarded-Proto"], r.Header["X-Forwarded-Port"], " ", r.RemoteAddr)
	})
	v := f.front.visit()
	f.wantBody("its word", v.gets(host, "/", "X-Forwarded-For: 192.0.2.9\nX-Forwarded-Proto: https\nX-Forwarded-Port: 444\n"), 200,
		"[192.0.2.9] [192.0.2.9, 127.0.0.1] [https] [444] 192.0.2.9:0")
	f.wantBody("another visitor", v.gets(host, "/", "X-Forwarded-For: 192.0.2.10\n"), 200,
		"[192.0.2.10] [192.0.2.10, 127.0.0.1] [http] [] 192.0.2.10:0")
	f.wantHanded("a trusted proxy", 0)
}

// secureVisit opens a visitor's connection with TLS, on which protos are offered.
func (f *fastEdge) secureVisit(protos ...string) *visitor {
	f.t.Helper()
	web := httptest.NewUnstartedServer(nil)
	web.StartTLS() // has a certificate
	web.Close()
	config := web.TLS.Clone()
	config.NextProtos = []string{"h2", "http/1.1"}
	f.secure.Store(config)
	v := f.front.visit()
	roots := x509.NewCertPool()
	roots.AddCert(web.Certificate())
	c := tls.Client(v.Conn, &tls.Config{RootCAs: roots, ServerName: "example.com", NextProtos: protos})
	if err := c.Handshake(); err != nil {
		f.t.Fatal(err)
	}
	return &visitor{Conn: c, t: f.t, r: bufio.NewReader(c)}
}

// Over TLS the same is served without net/http, which still knows of the TLS of what it is given.
func TestFastOverTLS(t *testing.T) {
	f := newFastEdge(t, Options{HSTS: time.Hour}, nil)
	body := strings.Repeat("0123456789abcdef", 2<<10)
	_, host := f.publish(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/late" {
			time.Sleep(fastPatience + sweepEvery)
		}
		w.Header().Set("X-Proto", r.Header.Get("X-Forwarded-Proto"))
		io.WriteString(w, body)
	})
	for _, protos := range [][]string{nil, {"http/1.1"}} {
		f.handed.Store(0)
		v := f.secureVisit(protos...)
		gets := func(why, target string) {
			t.Helper()
			a := v.gets(host, target, "")
			f.wantBody(why, a, 200, body)
			if a.Header.Get("X-Proto") != "https" || a.Header.Get("Strict-Transport-Security") != "max-age=3600" {
				t.Errorf("%s: %q", why, a.Header)
			}
		}
		for range 3 {
			gets("a simple GET", "/")
		}
		f.wantHanded("simple requests", 0)
		gets("a late answer", "/late")
		gets("what comes after it", "/")
		f.wantHanded("a late answer", 1)
		v = f.secureVisit(protos...)
		v.says(strings.Repeat("GET / HTTP/1.1\nHost: "+host+"\n\n", 5), "") // each waits for the one before
		for range 5 {
			f.wantBody("pipelined", v.answer(), 200, body)
		}
		f.wantHanded("pipelined requests", 2)
	}
	f.handed.Store(0)
	v := f.secureVisit("h2")
	if _, err := io.WriteString(v, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil {
		t.Fatal(err)
	}
	frame := make([]byte, 9)
	if _, err := io.ReadFull(v.r, frame); err != nil || frame[3] != 4 {
		t.Errorf("over h2 came %x (%v), want SETTINGS", frame, err)
	}
	f.wantHanded("HTTP/2", 1)
}

func TestFastVisitorLeaves(t *testing.T) {
	f := newFastEdge(t, Options{}, nil)
	gone := make(chan struct{}, 1)
	_, host := f.publish(func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		gone <- struct{}{}
	})
	for i, leave := range []func(c *net.TCPConn){
		func(c *net.TCPConn) { c.Close() }, func(c *net.TCPConn) { _ = c.SetLinger(0); c.Close() }, func(c *net.TCPConn) { _ = c.CloseWrite() },
	} {
		v := f.front.visit()
		v.says("GET / HTTP/1.1\nHost: "+host+"\n\n", "")
		eventually(t, "it runs", func() bool { return f.metric("harp_streams") == 1 })
		leave(v.Conn.(*net.TCPConn))
		receive(t, "the agent to hear of it", gone)
		f.wantQuiet()
		eventually(t, "it is counted", func() bool { return f.metric("harp_requests_total{code=499}") == float64(i+1) })
	}
	f.wantHanded("who left", 0)
}

// The reader of the link may have just seen that an answer has come when the visitor leaves, and say so afterwards.
func TestAnswerComesAsItsVisitorLeaves(t *testing.T) {
	f := newFastEdge(t, Options{}, nil)
	_, host := f.publish(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	conn := f.edge.visit().Conn // any socket will do
	c := newFastConn(&fastListener{server: f.Server}, conn)
	c.held = copy(c.buf[:], "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
	if !c.serve() {
		t.Fatal("a simple request is not served")
	}
	c.end()
	c.Ready()
	f.wantQuiet()
}

// The time for an answer counts from the beginning, whoever waits for it. One that would be over before a late answer is handed
// over is net/http's to keep, for all requests.
func TestFastRequestTimeout(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		timeout time.Duration
		handed  int32 // connections, of two
	}{{200 * time.Millisecond, 2}, {3 * time.Second, 1}} {
		f := newFastEdge(t, Options{RequestTimeout: test.timeout}, nil)
		_, host := f.publish(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/late" {
				<-r.Context().Done()
			}
		})
		f.wantBody("in time", f.front.visit().gets(host, "/", ""), 200, "")
		start := time.Now()
		f.wantError(test.timeout.String(), f.front.visit().gets(host, "/late", ""), timeoutError(test.timeout))
		if took := time.Since(start); took < test.timeout || took > test.timeout+patience {
			t.Errorf("%v: it took %v", test.timeout, took)
		}
		f.wantHanded(test.timeout.String(), test.handed)
		f.wantQuiet()
	}
}

// The link dies while a request waits: another agent gets it, or the visitor an explanation.
func TestFastRequestSurvivesItsAgent(t *testing.T) {
	f := newFastEdge(t, Options{}, nil)
	key := newKey(t)
	one := f.script(key, identity.Registration{Mode: identity.ModeStandby, Instance: "one"})
	v := f.front.visit()
	v.says("GET /x HTTP/1.1\nHost: "+one.host+"\n\n", "")
	one.awaits("the request", messages.TypeHTTPRequest)
	other := f.script(key, identity.Registration{Mode: identity.ModeStandby, Instance: "two"})
	one.conn.Close()
	m := other.awaits("the request once more", messages.TypeHTTPRequest)
	other.sends(upstreamAnswer{status: 200, body: "other"}.messages(m.Stream))
	f.wantBody("the other's answer", v.answer(), 200, "other")
	v = f.front.visit()
	v.says("GET /y HTTP/1.1\nHost: "+one.host+"\n\n", "")
	other.awaits("the request", messages.TypeHTTPRequest)
	other.conn.Close()
	f.wantError("nobody is left", v.answer(), linkLostError())
	if v.r.Buffered() > 0 {
		t.Error("there is more than one answer")
	}
	f.wantQuiet()
}

// An agent may say anything: the visitor gets one answer or an error, the next visitor the right one.
func TestFastHostileAgent(t *testing.T) {
	f := newFastEdge(t, Options{}, nil)
	a := f.script(newKey(t), identity.Registration{})
	answer := upstreamAnswer{status: 200, body: "answer"}.messages
	more := func(s uint32) []byte {
		return messages.AppendBody(nil, messages.TypeBody, messages.FlagEnd, s, []byte("more"))
	}
	for _, test := range []struct {
		why    string
		sends  func(s uint32) [][]byte // batches
		status int
	}{
		{"twice", func(s uint32) [][]byte { return [][]byte{answer(s), answer(s)} }, 200},
		{"data after the end", func(s uint32) [][]byte { return [][]byte{answer(s), more(s)} }, 200},
		{"a cancel after the end", func(s uint32) [][]byte {
			return [][]byte{bytes.Join([][]byte{answer(s), messages.AppendCancel(nil, messages.TypeCancel, s, messages.CancelAborted, "")}, nil)}
		}, 200},
		{"the next one's answer", func(s uint32) [][]byte { return [][]byte{answer(s), answer(s + 1), answer(s + 2)} }, 200},
		{"data first", func(s uint32) [][]byte { return [][]byte{more(s), answer(s)} }, 502},
		{"a cancel", func(s uint32) [][]byte {
			return [][]byte{messages.AppendCancel(nil, messages.TypeCancel, s, messages.CancelAborted, ""), answer(s)}
		}, 502},
		{"fields that end the line", func(s uint32) [][]byte {
			b := head(messages.TypeHTTPResponse, messages.FlagEnd, s, 200, "X", "a!!b")
			return [][]byte{bytes.Replace(b, []byte("!!"), []byte("\r\n"), 1)}
		}, 502},
	} {
		v := f.front.visit()
		v.says("GET / HTTP/1.1\nHost: "+a.host+"\n\n", "")
		for _, b := range test.sends(a.awaits(test.why, messages.TypeHTTPRequest).Stream) {
			a.sends(b)
		}
		if got := v.answer(); got.StatusCode != test.status || got.err != nil || got.StatusCode == 200 && got.body != "answer" {
			t.Errorf("%s: got %s %.80q (%v), want %d", test.why, got.Status, got.body, got.err, test.status)
		}
		v.says("GET / HTTP/1.1\nHost: "+a.host+"\n\n", "")
		a.sends(upstreamAnswer{status: 200, body: "next"}.messages(a.awaits(test.why+": the next", messages.TypeHTTPRequest).Stream))
		f.wantBody(test.why+": the next", v.answer(), 200, "next")
	}
	f.wantQuiet()
}

// A visitor who reads late gets all of each answer.
func TestFastSlowReader(t *testing.T) {
	t.Parallel()
	f := newFastEdge(t, Options{}, nil)
	by := &interceptor{rest: make(chan struct{}, 1), dial: func(c *net.TCPConn) { _ = c.SetWriteBuffer(4 << 10) }}
	f.intercept.Store(by)
	body := strings.Repeat("0123456789abcdef", 2<<10)
	_, host := f.publish(saying(body))
	v := f.front.visit()
	_ = v.Conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	asked := 0
	for stuck := false; !stuck; asked++ {
		v.says("GET / HTTP/1.1\nHost: "+host+"\n\n", "")
		select {
		case <-by.rest:
			stuck = true
		case <-time.After(100 * time.Millisecond):
		}
	}
	f.wantBody("another one meanwhile", f.front.visit().gets(host, "/", ""), 200, body)
	for range asked {
		f.wantBody("late", v.answer(), 200, body)
	}
	f.wantBody("the next", v.gets(host, "/", ""), 200, body)
	f.wantHanded("a slow reader", 0)
}

// The link's reader may be about to tell of an answer while the visitor leaves.
func TestFastReadyWhenTheVisitorHasLeft(t *testing.T) {
	var c fastConn
	if !c.begin(fastVisit{pending: new(tunnel.Pending)}) {
		t.Fatal("a new connection is not idle")
	}
	c.takeVisit() // as Close does
	c.Ready()
}

// Nothing may follow an answer of which a part is missing, not even the answer to a request that has come already.
func TestFastBrokenAnswerIsTheLast(t *testing.T) {
	here, there := net.Pipe()
	there.Close()
	c := fastConn{Conn: here, state: fastSends, sent: make(chan struct{}, 1)}
	c.send([]byte("the rest"))
	if state := c.woken(true); state == fastLeaves {
		t.Error("the connection is handed over")
	}
}

// What comes when nobody serves any more is closed.
func TestHandedToNobody(t *testing.T) {
	here, there := net.Pipe()
	defer there.Close()
	f := &fastListener{last: new(http.Server), closing: make(chan struct{})}
	close(f.closing)
	f.last.Close()
	f.hand(here, nil)
	_ = there.SetReadDeadline(time.Now().Add(patience))
	if _, err := there.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the other end reads %v, want EOF", err)
	}
}

// Not every layer over a socket can end one direction of it.
func TestFastCloseWriteOfWhatCannot(t *testing.T) {
	here, _ := net.Pipe()
	if err := (&fastConn{Conn: here}).CloseWrite(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v, want %v", err, errors.ErrUnsupported)
	}
}
