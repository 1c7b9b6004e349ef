package server

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
)

func TestRequestArrivesAsItIs(t *testing.T) {
	e := newEdge(t, Options{})
	a := e.script(newKey(t), identity.Registration{})
	v := e.visit()
	v.says("WEIRD /a//b;c?d=%zz&&=e HTTP/1.1\nHost: "+a.host+":99\nX-Two: 1\nX-Two: 2\nHarp-Tunnel: x\nharp_auth: x\nX-Forwarded-For: 6.6.6.6\n"+
		"X-Forwarded-Prefix: /evil\nForwarded: for=6.6.6.6\nX-Real-IP: 6.6.6.6\nConnection: keep-alive, X-Drop\nX-Drop: 1\nKeep-Alive: 9\n"+
		"TE: gzip, trailers;q=1\nProxy-Connection: x\nX-Request-Id: mine\n\n", "")
	m := a.wants("the request", messages.TypeHTTPRequest)
	r, err := messages.ParseHTTPRequest(m.payload)
	if err != nil {
		t.Fatal(err)
	}
	if r.Method != "WEIRD" || r.Target != "/a//b;c?d=%zz&&=e" || r.Authority != a.host+":99" || r.Scheme != "http" || r.Registration != a.id || m.Flags != messages.FlagEnd {
		t.Errorf("head %+v, flags %d", r, m.Flags)
	}
	if r.Visitor != v.LocalAddr().String() {
		t.Errorf("visitor %s, want %s", r.Visitor, v.LocalAddr())
	}
	got := map[string]string{}
	for name, value := range r.Fields.All() {
		got[name] += value + "|"
	}
	want := map[string]string{
		"X-Two": "1|2|", "Te": "trailers|", "X-Request-Id": "mine|", "X-Forwarded-For": "127.0.0.1|", "X-Forwarded-Host": a.host + ":99|",
		"X-Forwarded-Proto": "http|", "Forwarded": `for=127.0.0.1;host="` + a.host + `:99";proto=http|`, "X-Real-Ip": "127.0.0.1|",
	}
	for name := range got {
		if got[name] != want[name] {
			t.Errorf("%s: %q, want %q", name, got[name], want[name])
		}
	}
	for name := range want {
		if got[name] == "" {
			t.Errorf("no %s", name)
		}
	}
	a.sends(head(messages.TypeHTTPResponse, messages.FlagEnd, m.Stream, 200, "Content-Length", "0"))
	if _, fields := v.head(); len(field(fields, "X-Request-Id")) != 1 || field(fields, "X-Request-Id")[0] != "mine" {
		t.Errorf("fields of the answer: %q", fields)
	}
}

// Every way in which an agent can fail has its own explanation.
func TestFailuresAreExplained(t *testing.T) {
	t.Parallel()
	e := newEdge(t, Options{RequestTimeout: 300 * time.Millisecond})
	a := e.script(newKey(t), identity.Registration{})
	cancel := func(code messages.CancelCode) func(uint32) {
		return func(stream uint32) {
			a.sends(messages.AppendCancel(nil, messages.TypeCancel, stream, code, "dial tcp 127.0.0.1:8080:\x1b refused"))
		}
	}
	for _, test := range []struct {
		why  string
		do   func(stream uint32)
		want visitorError
		says string
	}{
		{"refused", cancel(messages.CancelRefused), agentAwayError(), ""},
		{"aborted", cancel(messages.CancelAborted), upstreamBrokeError(""), "127.0.0.1:8080: refused"},
		{"too large", cancel(messages.CancelTooLarge), upstreamBrokeError(""), ""},
		{"timeout", cancel(messages.CancelTimeout), timeoutError(0), ""},
		{"internal", cancel(messages.CancelInternal), upstreamBrokeError(""), ""},
		{"unreachable", cancel(messages.CancelUnreachable), upstreamUnreachableError(""), "127.0.0.1:8080: refused"},
		{"broken", cancel(messages.CancelBroken), upstreamBrokeError(""), "127.0.0.1:8080: refused"},
		{"an unknown code", cancel(200), upstreamBrokeError(""), ""},
		{"no answer", func(uint32) {}, timeoutError(0), "300ms"},
		{"an interim answer only", func(s uint32) { a.sends(head(messages.TypeHTTPResponse, 0, s, 103)) }, timeoutError(0), ""},
		{"the link dies", func(uint32) { a.conn.Close() }, linkLostError(), ""},
	} {
		done := make(chan answer, 1)
		go func() {
			got, err := e.ask("POST", "http://"+a.host, nil)
			if err != nil {
				t.Errorf("%s: %v", test.why, err)
			}
			done <- got
		}()
		m := a.awaits("the request", messages.TypeHTTPRequest)
		test.do(m.Stream)
		got := receive(t, "the answer", done)
		e.wantError(test.why, got, test.want)
		if !strings.Contains(got.body, test.says) || strings.ContainsRune(got.body, 0x1b) {
			t.Errorf("%s: the page says %q, want %q in it", test.why, got.body, test.says)
		}
		if n := e.metric("harp_errors_total{code=" + test.want.Code + "}"); n == 0 {
			t.Errorf("%s: not counted", test.why)
		}
	}
}

func TestRateLimits(t *testing.T) {
	e := newEdge(t, Options{RateLimit: 0.001, RateBurst: 3, TrustedProxies: nil})
	_, host := e.publish(saying("x"))
	_, other := e.publish(saying("x"))
	for i := range 5 {
		got := e.get(host, "/")
		if i < 3 {
			e.wantBody("within the burst", got, 200, "x")
		} else {
			e.wantError("beyond the burst", got, rateLimitedError())
		}
	}
	e.wantBody("another hostname", e.get(other, "/"), 200, "x")
	if n := e.metric("harp_limits_total{limit=rate}"); n != 2 {
		t.Errorf("counted %v times, want 2", n)
	}

	e = newEdge(t, Options{VisitorRateLimit: 0.001, VisitorRateBurst: 3})
	_, host = e.publish(saying("x"))
	_, other = e.publish(saying("x"))
	for i := range 5 {
		got := e.get([]string{host, other}[i%2], "/", "X-Forwarded-For", fmt.Sprint("192.0.2.", i))
		if i < 3 {
			e.wantBody("a visitor within the burst", got, 200, "x")
		} else {
			e.wantError("a visitor beyond the burst, whatever it claims", got, rateLimitedError())
		}
	}
	if n := e.metric("harp_limits_total{limit=visitor-rate}"); n != 2 {
		t.Errorf("counted %v times, want 2", n)
	}
}

func TestMaxStreams(t *testing.T) {
	e := newEdge(t, Options{MaxStreams: 2})
	release := make(chan struct{})
	a, host := e.publish(func(w http.ResponseWriter, r *http.Request) { await(r, release) })
	var running sync.WaitGroup
	for range 2 {
		running.Go(func() { e.get(host, "/") })
	}
	eventually(t, "both run", func() bool { return a.session.Streams() == 2 })
	got := e.get(host, "/")
	e.wantError("one more", got, busyError())
	if got.Header.Get("Retry-After") == "" {
		t.Error("503 without Retry-After")
	}
	if n := e.metric("harp_limits_total{limit=max-streams}"); n != 1 {
		t.Errorf("counted %v times", n)
	}
	close(release)
	running.Wait()
	if got := e.get(host, "/"); got.StatusCode != 200 {
		t.Errorf("afterwards: %d", got.StatusCode)
	}
}

func TestHeadTooLarge(t *testing.T) {
	e := newEdge(t, Options{})
	_, host := e.publish(saying("x"))
	v := e.visit()
	v.says("GET / HTTP/1.1\nHost: "+host+"\n"+strings.Repeat("A: 1\n", messages.MaxFields)+"\n", "")
	status, fields := v.head()
	if !strings.Contains(status, "431") || field(fields, "Harp-Error") == nil {
		t.Errorf("%d fields: %q %q", messages.MaxFields+1, status, fields)
	}
	if n := e.metric("harp_limits_total{limit=head}"); n != 1 {
		t.Errorf("counted %v times", n)
	}
	e.wantBody("the link is not hurt", e.get(host, "/"), 200, "x")
}

func TestRequestTimeoutField(t *testing.T) {
	t.Parallel()
	e := newEdge(t, Options{RequestTimeout: 400 * time.Millisecond})
	_, host := e.publish(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Harp-Request-Timeout") != "" {
			t.Error("the field is the edge's, and the upstream got it")
		}
		<-r.Context().Done()
	})
	for _, test := range []struct {
		wish string
		want time.Duration
	}{{"", 400 * time.Millisecond}, {"50ms", 50 * time.Millisecond}, {"12h", 400 * time.Millisecond}} {
		start := time.Now()
		got := e.get(host, "/", "Harp-Request-Timeout", test.wish)
		e.wantError("wish "+test.wish, got, timeoutError(0))
		if took := time.Since(start); took < test.want || took > test.want+300*time.Millisecond {
			t.Errorf("wish %q: it took %v, want %v", test.wish, took, test.want)
		}
	}
	for _, wish := range []string{"12", "-1s", "0s", "s", "1e3s", "NaN"} {
		e.wantError("wish "+wish, e.get(host, "/", "Harp-Request-Timeout", wish), badRequestError(""))
	}
}

// Only silence is a timeout: an upload that moves is none, however long it takes.
func TestSlowUploadIsNoTimeout(t *testing.T) {
	t.Parallel()
	e := newEdge(t, Options{RequestTimeout: 300 * time.Millisecond})
	_, host := e.publish(reading)
	v := e.visit()
	v.says("POST / HTTP/1.1\nHost: "+host+"\nContent-Length: 20\n\n", "")
	for range 20 {
		time.Sleep(50 * time.Millisecond)
		v.says("", "x")
	}
	if status, _ := v.head(); status != "HTTP/1.1 200 OK" {
		t.Errorf("an upload that moves: %s", status)
	}
	v = e.visit()
	v.says("POST / HTTP/1.1\nHost: "+host+"\nContent-Length: 20\n\n", "x")
	start := time.Now()
	if status, fields := v.head(); !strings.Contains(status, "504") {
		t.Errorf("an upload that stalls: %s %q", status, fields)
	}
	if took := time.Since(start); took < 250*time.Millisecond || took > linger {
		t.Errorf("it took %v", took)
	}
	if _, err := v.rest(); err != nil {
		t.Errorf("the connection's end: %v", err)
	}
}

func TestVisitorLeaves(t *testing.T) {
	e := newEdge(t, Options{})
	gone := make(chan struct{}, 2)
	_, host := e.publish(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/began" {
			w.(http.Flusher).Flush()
		}
		<-r.Context().Done()
		gone <- struct{}{}
	})
	for _, target := range []string{"/waiting", "/began"} {
		v := e.visit()
		v.says("GET "+target+" HTTP/1.1\nHost: "+host+"\n\n", "")
		if target == "/began" {
			v.head()
		}
		eventually(t, "it runs", func() bool { return e.metric("harp_streams") == 1 })
		v.Close()
		receive(t, "the agent to hear of it", gone)
		eventually(t, "nothing runs", func() bool { return e.metric("harp_streams") == 0 })
	}
	if n := e.metric("harp_requests_total{code=499}"); n != 1 {
		t.Errorf("%v requests counted as left by the visitor, want 1", n)
	}
}

func TestInterimResponses(t *testing.T) {
	e := newEdge(t, Options{})
	_, host := e.publish(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a>")
		w.WriteHeader(103)
		w.Header().Del("Link")
		io.WriteString(w, "x")
	})
	v := e.visit()
	v.says("GET / HTTP/1.1\nHost: "+host+"\n\n", "")
	if status, fields := v.head(); status != "HTTP/1.1 103 Early Hints" || field(fields, "Link") == nil {
		t.Errorf("got %q %q", status, fields)
	}
	if status, fields := v.head(); status != "HTTP/1.1 200 OK" || field(fields, "Link") != nil || len(field(fields, "X-Request-Id")) != 1 {
		t.Errorf("got %q %q", status, fields)
	}
	v = e.visit()
	v.says("GET / HTTP/1.0\nHost: "+host+"\n\n", "")
	if status, _ := v.head(); status != "HTTP/1.0 200 OK" {
		t.Errorf("HTTP/1.0 knows no interim responses, and got %q", status)
	}
}

func TestHTTP2Visitor(t *testing.T) {
	e := newEdge(t, Options{})
	_, host := e.publish(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		reading(w, r)
		w.Header().Set("X-Sum", "1")
		w.Header().Set(http.TrailerPrefix+"Harp-Error", "fake")
		w.Header().Set(http.TrailerPrefix+"Content-Length", "7")
		if r.URL.Path == "/break" {
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
	})
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", e.addr)
	}}
	e.client.Transport = transport
	t.Cleanup(transport.CloseIdleConnections)
	r, _ := http.NewRequestWithContext(t.Context(), "POST", "http://"+host, chunked(strings.NewReader("hello")))
	r.Trailer = http.Header{"X-Mine": {"2"}, "Harp-Tunnel": {"evil"}}
	res, err := e.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	res.Body.Close()
	if string(b) != "5 <nil> map[X-Mine:[2]]" || err != nil || res.ProtoMajor != 2 {
		t.Errorf("%s: %q, %v", res.Proto, b, err)
	}
	if len(res.Trailer) != 1 || res.Trailer.Get("X-Sum") != "1" {
		t.Errorf("trailers %v, want X-Sum alone", res.Trailer)
	}
	if got, err := e.ask("GET", "http://"+host+"/break", nil); err != nil || got.err == nil {
		t.Errorf("an answer that breaks off: %v, %v", err, got.err)
	}
	for range 50 { // many at once on one connection
		if got := e.get(host, "/"); got.StatusCode != 200 {
			t.Error(got.Status)
		}
	}
	e.wantError("no tunnel", e.get("nobody.test", "/"), noTunnelError())
	if got := e.get(testDomain, messages.ConnectPath); got.StatusCode != 426 {
		t.Errorf("a link over HTTP/2: %s, want 426", got.Status)
	}
}

// killers are the ways in which links end while requests run.
var killers = []func(a *agent, l *link){
	func(a *agent, _ *link) { _ = a.conn.Close() },
	func(a *agent, _ *link) {
		a.session.Disconnect(messages.Disconnect{Code: messages.DisconnectLeaving})
		time.Sleep(time.Millisecond)
	},
	func(a *agent, _ *link) { a.session.Close(io.ErrClosedPipe) },
	func(_ *agent, l *link) { // as revoke does
		l.leave()
		l.session.Disconnect(messages.Disconnect{Code: messages.DisconnectRevoked})
		l.end(errRevoked)
	},
	func(_ *agent, l *link) { l.end(errReplaced) },
}

// linkOf returns the link that serves an instance.
func (e *edge) linkOf(instance string) *link {
	e.mu.Lock()
	links := make([]*link, 0, len(e.links))
	for l := range e.links {
		links = append(links, l)
	}
	e.mu.Unlock()
	for _, l := range links {
		l.mu.Lock()
		for _, r := range l.registrations {
			if r.instance == instance {
				l.mu.Unlock()
				return l
			}
		}
		l.mu.Unlock()
	}
	return nil
}

// A storm of requests and dying links, and what has run in it.
type storm struct {
	*edge
	host  string
	key   identity.Key
	start time.Time
	ran   sync.Map // number of runs by request target

	kills, posts, failed atomic.Int32
}

func (s *storm) runs(target string) *atomic.Int32 {
	n, _ := s.ran.LoadOrStore(target, new(atomic.Int32))
	return n.(*atomic.Int32)
}

func (s *storm) handle(w http.ResponseWriter, r *http.Request) {
	s.runs(r.URL.Path).Add(1)
	_, _ = io.Copy(io.Discard, r.Body)
	time.Sleep(time.Duration(rand.IntN(1000)) * time.Microsecond)
	io.WriteString(w, r.URL.Path)
}

func (s *storm) over() bool {
	took := time.Since(s.start)
	return took > 2*time.Second && s.kills.Load() > 50 && s.posts.Load() > 200 || took > patience
}

// kill publishes agents and ends their links.
func (s *storm) kill() {
	for !s.over() {
		instance := fmt.Sprint(s.kills.Add(1))
		a, _ := s.publishAs(s.key, identity.Registration{Mode: identity.ModeShare, Instance: instance}, s.handle)
		l := s.linkOf(instance)
		time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond)
		killers[rand.IntN(len(killers))](a, l)
		a.session.Close(io.ErrClosedPipe)
	}
}

// post sends one POST of size bytes.
func (s *storm) post(target string, size int) {
	s.posts.Add(1)
	var body io.Reader
	if size > 0 {
		body = strings.NewReader(strings.Repeat("x", size))
	}
	got, err := s.ask("POST", "http://"+s.host+target, body)
	if err != nil || got.StatusCode != 200 || got.err != nil {
		s.failed.Add(1)
	} else if n := s.runs(target).Load(); n != 1 || got.body != target {
		s.t.Errorf("a POST of %d bytes was answered %q and ran %d times", size, got.body, n)
	}
}

// fetch sends one GET, which must be answered; the answer may break off with its link.
func (s *storm) fetch(target string) {
	got, err := s.ask("GET", "http://"+s.host+target, nil)
	if err != nil || got.StatusCode != 200 {
		s.t.Errorf("a GET failed, though another agent is there: %v %v", err, got.Response)
	} else if got.err == nil && got.body != target {
		s.t.Errorf("a GET of %s was answered %q", target, got.body)
	}
}

// Agents come and go, links die in every way: whatever becomes of a POST, it is processed at most once, and exactly
// once if the visitor got its answer. A GET may be sent again, and gets its answer as long as one agent is there.
func TestAtMostOnce(t *testing.T) {
	t.Parallel()
	s := &storm{edge: newEdge(t, Options{}), key: newKey(t), start: time.Now()}
	_, s.host = s.publishAs(s.key, identity.Registration{Mode: identity.ModeStandby, Instance: "rock"}, s.handle)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(s.kill) // ends when the storm is over
	}
	sizes := []int{0, 0, 100, 30_000, 300_000}
	for i := range 6 {
		wg.Go(func() { // ends when the storm is over
			for j := 0; !s.over(); j++ {
				if i == 0 {
					s.fetch(fmt.Sprint("/get/", j))
				} else {
					s.post(fmt.Sprintf("/%d/%d", i, j), sizes[j%len(sizes)])
				}
			}
		})
	}
	wg.Wait()
	s.ran.Range(func(target, n any) bool {
		if runs := n.(*atomic.Int32).Load(); runs > 1 && !strings.HasPrefix(target.(string), "/get/") {
			t.Errorf("POST %s ran %d times", target, runs)
		}
		return true
	})
	t.Logf("%d kills, %d POSTs, %d of them failed", s.kills.Load(), s.posts.Load(), s.failed.Load())
	if s.kills.Load() < 10 || s.posts.Load() < 20 {
		t.Error("that proves nothing")
	}
	eventually(t, "nothing runs", func() bool { return s.metric("harp_streams") == 0 })
}
