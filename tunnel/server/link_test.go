package server

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

// A script is an agent that says exactly what a test wants.
type script struct {
	t    testing.TB
	conn tunnel.Conn
	host string
	id   uint32       // of its registration
	in   chan message // what has come, but for pings
}

// A message is a binary message from the edge.
type message struct {
	messages.Header
	payload string
}

// script registers an agent that does nothing else by itself.
func (e *edge) script(key identity.Key, r identity.Registration) *script {
	e.t.Helper()
	conn, challenge := e.dialConn()
	a := &script{t: e.t, conn: conn, in: make(chan message, 10000)}
	if err := conn.WriteText(signed(e.t, key, challenge, r)); err != nil {
		e.t.Fatal(err)
	}
	answer := e.readAnswer(conn)
	if answer.Error != nil {
		e.t.Fatalf("registration refused: %+v", answer.Error)
	}
	a.host, a.id = answer.Hostname, answer.Registration
	var reading sync.WaitGroup
	reading.Go(a.read) // ends with the link
	e.t.Cleanup(func() { conn.Close(); reading.Wait() })
	return a
}

func (a *script) read() {
	defer close(a.in)
	for {
		_, r, err := a.conn.NextMessage()
		if err != nil {
			return
		}
		b, err := io.ReadAll(r)
		if err != nil {
			return
		}
		for len(b) > 0 {
			h, payload, rest, err := messages.Next(b)
			if err != nil {
				a.t.Error("the edge sent a broken header:", err)
				return
			}
			if b = rest; h.Type != messages.TypePing && h.Type != messages.TypeReserved {
				a.in <- message{h, string(payload)}
			}
		}
	}
}

// wants takes the next message, which must be of that type.
func (a *script) wants(why string, kind messages.Type) message {
	a.t.Helper()
	m := receive(a.t, why, a.in)
	if m.Type != kind {
		a.t.Fatalf("%s: got %s %q on stream %d, want %s", why, m.Type, m.payload, m.Stream, kind)
	}
	return m
}

// awaits passes messages over until one of that type comes.
func (a *script) awaits(why string, kind messages.Type) message {
	a.t.Helper()
	for {
		m := receive(a.t, why, a.in)
		if m.Type == kind {
			return m
		}
		if m == (message{}) {
			a.t.Fatalf("the link ended while waiting for %s", why)
		}
	}
}

func (a *script) sends(b []byte) {
	a.t.Helper()
	if err := a.conn.WriteBinary(b); err != nil {
		a.t.Errorf("script's write: %v", err)
	}
}

// head is a response head. Fields come in pairs of name and value.
func head(kind messages.Type, flags messages.Flags, stream uint32, status int, fields ...string) []byte {
	b := messages.BeginHTTPResponse(nil, kind, flags, stream, &messages.HTTPResponse{Status: status})
	for i := 0; i < len(fields); i += 2 {
		b = messages.AppendField(b, fields[i], fields[i+1])
	}
	b, err := messages.Finish(b, 0)
	if err != nil {
		panic(err)
	}
	return b
}

func TestConnectIsRefusedByHTTP(t *testing.T) {
	e := newEdge(t, Options{})
	const upgrade = "Upgrade: websocket\nConnection: Upgrade\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n"
	for _, test := range []struct{ why, head, status string }{
		{"no upgrade", "GET " + messages.ConnectPath + " HTTP/1.1\nHost: tunnels.test\n\n", "426"},
		{"POST", "POST " + messages.ConnectPath + " HTTP/1.1\nHost: tunnels.test\n" + upgrade + "\n", "405"},
		{"HTTP/1.0", "GET " + messages.ConnectPath + " HTTP/1.0\nHost: tunnels.test\n" + upgrade + "\n", "426"},
		{"a page of another site", "GET " + messages.ConnectPath + " HTTP/1.1\nHost: tunnels.test\nOrigin: https://evil.test\n" + upgrade + "\n", "403"},
		{"an old version", "GET " + messages.ConnectPath + " HTTP/1.1\nHost: tunnels.test\n" + strings.Replace(upgrade, "13", "8", 1) + "\n", "400"},
	} {
		v := e.visit()
		v.says(test.head, "")
		status, fields := v.head()
		if _, got, _ := strings.Cut(status, " "); !strings.HasPrefix(got, test.status) {
			t.Errorf("%s: %q, want %s", test.why, status, test.status)
		}
		if len(field(fields, "X-Request-Id")) != 1 {
			t.Errorf("%s: no X-Request-Id", test.why)
		}
	}
	v := e.visit()
	v.says("GET "+messages.ConnectPath+" HTTP/1.1\nHost: tunnels.test\n"+upgrade+"\n", "")
	if status, _ := v.head(); !strings.Contains(status, "101") {
		t.Errorf("without a subprotocol: %q", status)
	}
	frame := make([]byte, 4)
	if _, err := io.ReadFull(v.r, frame); err != nil || string(frame[2:]) != "\x03\xf0" {
		t.Errorf("without a subprotocol: close frame %q, want 1008 (%v)", frame, err)
	}
	v.Close()
	eventually(t, "no link is pending", func() bool { return e.pendingLinks() == 0 })
}

func (e *edge) pendingLinks() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.pending
}

func TestPendingLinksAreBounded(t *testing.T) {
	e := newEdge(t, Options{})
	c, _ := e.dialConn()
	defer c.Close()
	eventually(t, "the link is pending", func() bool { return e.pendingLinks() == 1 })
	e.mu.Lock()
	e.pending += maxPendingLinks - 1
	e.mu.Unlock()
	_, _, err := tunnel.Dial(t.Context(), "ws://"+e.addr+messages.ConnectPath, tunnel.DialOptions{})
	var refused *tunnel.RefusedError
	if !errors.As(err, &refused) || refused.Status != 503 || !strings.Contains(refused.Text, "try again") {
		t.Errorf("link %d that waits for its registration: %v, want 503 and a sentence", maxPendingLinks+1, err)
	}
	if got := e.get(testDomain, messages.ConnectPath).Header.Get("Retry-After"); got == "" {
		t.Error("503 without Retry-After")
	}
	if got := e.metric("harp_limits_total{limit=pending-links}"); got != 2 {
		t.Errorf("counted %v times, want 2", got)
	}
	e.mu.Lock()
	e.pending -= maxPendingLinks - 1
	e.mu.Unlock()
	e.publish(saying("x"))
	if n := e.pendingLinks(); n != 1 {
		t.Errorf("%d links pending after one has registered, want the one that has not", n)
	}
	c.Close()
	eventually(t, "a link that hangs up is not pending", func() bool { return e.pendingLinks() == 0 })
}

// pipeListener hands out one end of a pipe for each dial: inside synctest there are no sockets.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

func (l *pipeListener) dial() net.Conn {
	here, there := net.Pipe()
	l.conns <- there
	return here
}

func TestLinkThatDoesNotRegisterIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Options{Domain: testDomain})
		if err != nil {
			t.Fatal(err)
		}
		l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
		web := &http.Server{Handler: s}
		go web.Serve(l) // ends when web closes
		defer web.Close()
		c := l.dial()
		defer c.Close()
		start := time.Now()
		io.WriteString(c, "GET "+messages.ConnectPath+" HTTP/1.1\r\nHost: tunnels.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: harp.v1\r\n\r\n")
		r := bufio.NewReader(c)
		res, err := http.ReadResponse(r, nil)
		if err != nil || res.StatusCode != 101 || len(res.Header.Get(messages.ChallengeField)) != 43 {
			t.Fatalf("handshake: %v %v", res, err)
		}
		var pings sync.WaitGroup
		pings.Go(func() { // a ping now and then is no registration; ends when the edge closes
			for time.Sleep(time.Second); ; time.Sleep(time.Second) {
				if _, err := c.Write([]byte("\x89\x80\x00\x00\x00\x00")); err != nil {
					return
				}
			}
		})
		_, _ = io.Copy(io.Discard, r)
		if took := time.Since(start); took != registerTimeout {
			t.Errorf("closed after %v, want %v", took, registerTimeout)
		}
		pings.Wait()
		synctest.Wait()
		if s.pending != 0 || len(s.links) != 0 {
			t.Errorf("%d links pending, %d remembered", s.pending, len(s.links))
		}
	})
}

func TestSilentLinkIsDropped(t *testing.T) {
	t.Parallel()
	e := newEdge(t, Options{PingInterval: time.Second})
	a := e.script(newKey(t), identity.Registration{}) // answers no ping
	lively, host := e.publish(saying("here"))
	start := time.Now()
	eventually(t, "the silent link is gone", func() bool { return e.metric("harp_links") == 1 })
	if took := time.Since(start); took < 1500*time.Millisecond {
		t.Errorf("dropped after %v of silence, want 2 s", took)
	}
	e.wantError("the silent agent's name", e.get(a.host, "/"), agentAwayError())
	time.Sleep(time.Second)
	e.wantBody("an agent that answers pings stays", e.get(host, "/"), 200, "here")
	if err := lively.session.Err(); err != nil {
		t.Errorf("the lively link ended: %v", err)
	}
}

func TestAgentThatLeaves(t *testing.T) {
	e := newEdge(t, Options{})
	release := make(chan struct{})
	a, host := e.publish(func(w http.ResponseWriter, r *http.Request) {
		await(r, release)
		io.WriteString(w, "done")
	})
	done := make(chan answer, 1)
	go func() { done <- e.get(host, "/") }()
	eventually(t, "the request runs", func() bool { return a.session.Streams() == 1 })
	a.session.Disconnect(messages.Disconnect{Code: messages.DisconnectLeaving})
	eventually(t, "its name is given up", func() bool { return e.metric("harp_registrations") == 0 })
	e.wantError("a visitor of an agent that leaves", e.get(host, "/"), agentAwayError())
	if err := a.session.SendText(signed(t, a.key, a.challenge, identity.Registration{})); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, "an answer", a.answers); got.Error == nil || got.Error.Code != messages.RefuseDraining {
		t.Errorf("registration on a link that its agent leaves: %+v", got)
	}
	close(release)
	e.wantBody("the running request", receive(t, "the running request", done), 200, "done")
	a.session.Close(nil)
	eventually(t, "the link is gone", func() bool { return e.metric("harp_links") == 0 })
}

func TestRevokedKeyLosesItsLink(t *testing.T) {
	good, bad := newKey(t), newKey(t)
	file := filepath.Join(t.TempDir(), "keys")
	write := func(keys ...identity.Key) {
		text := ""
		for _, k := range keys {
			text += k.Public().Thumbprint().String() + "\n"
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(good, bad)
	e := newEdge(t, Options{AuthorizedKeys: file})
	stay, stayHost := e.publishAs(good, identity.Registration{}, saying("here"))
	running := make(chan struct{})
	cut, cutHost := e.publishAs(bad, identity.Registration{}, func(w http.ResponseWriter, r *http.Request) {
		close(running)
		<-r.Context().Done()
	})
	done := make(chan answer, 1)
	go func() { done <- e.get(cutHost, "/") }()
	receive(t, "the request to run", running)
	write(good)
	if !e.keys.poll() {
		t.Fatal("the change was not seen")
	}
	e.revoke()
	if d := receive(t, "word of the revocation", cut.disconnects); d.Code != messages.DisconnectRevoked || d.Registration != 0 {
		t.Errorf("the agent was told %+v, want revoked", d)
	}
	receive(t, "the end of the link", cut.ended)
	e.wantError("the running request", receive(t, "the running request", done), linkLostError())
	e.wantError("a later visitor", e.get(cutHost, "/"), agentAwayError())
	e.wantBody("the other link", e.get(stayHost, "/"), 200, "here")
	if got := e.dial(bad, nil).ask(identity.Registration{}); got.Error == nil || got.Error.Code != messages.RefuseNotAuthorized {
		t.Errorf("registering again: %+v", got)
	}
	if len(stay.disconnects) != 0 {
		t.Errorf("the other agent was told %+v", <-stay.disconnects)
	}
}

// A key that is revoked while its request is being checked must not get in behind the back of revoke.
func TestRevocationDuringRegistration(t *testing.T) {
	key := newKey(t)
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte(key.Public().Thumbprint().String()), 0o600); err != nil {
		t.Fatal(err)
	}
	e := newEdge(t, Options{AuthorizedKeys: file})
	a := e.dial(key, saying("here"))
	a.register(identity.Registration{Session: "first"})
	e.mu.Lock()
	var l *link
	for l = range e.links {
	}
	e.mu.Unlock()
	l.mu.Lock()
	if err := a.session.SendText(signed(t, key, a.challenge, identity.Registration{})); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // the request is verified and waits for the link
	none := identity.AuthorizedKeys{}
	e.keys.keys.Store(&none)
	l.mu.Unlock()
	if got := receive(t, "an answer", a.answers); got.Error == nil || got.Error.Code != messages.RefuseNotAuthorized {
		t.Errorf("got %+v, want %s", got, messages.RefuseNotAuthorized)
	}
}

func TestShutdown(t *testing.T) {
	e := newEdge(t, Options{})
	release := make(chan struct{})
	a, host := e.publish(func(w http.ResponseWriter, r *http.Request) {
		await(r, release)
		io.WriteString(w, "done")
	})
	pending, _ := e.dialConn()
	defer pending.Close()
	done := make(chan answer, 1)
	go func() { done <- e.get(host, "/") }()
	eventually(t, "the request runs", func() bool { return a.session.Streams() == 1 })
	ended := make(chan error, 1)
	go func() { ended <- e.Shutdown(t.Context()) }()
	if d := receive(t, "word of the shutdown", a.disconnects); d.Code != messages.DisconnectDraining || d.Registration != 0 || d.Reason == "" {
		t.Errorf("the agent was told %+v, want draining", d)
	}
	if _, _, err := pending.NextMessage(); err == nil {
		t.Error("a link that had not registered got a message")
	}
	_, _, err := tunnel.Dial(t.Context(), "ws://"+e.addr+messages.ConnectPath, tunnel.DialOptions{})
	var refused *tunnel.RefusedError
	if !errors.As(err, &refused) || refused.Status != 503 {
		t.Errorf("a new link: %v, want 503", err)
	}
	if got := a.ask(identity.Registration{Session: "late"}); got.Error == nil || got.Error.Code != messages.RefuseDraining || !got.Error.Retry {
		t.Errorf("a new registration: %+v, want %s", got, messages.RefuseDraining)
	}
	e.wantError("a new visitor", e.get(host, "/"), agentAwayError())
	select {
	case err := <-ended:
		t.Errorf("Shutdown returned %v before the running request had finished", err)
	default:
	}
	close(release)
	e.wantBody("the running request", receive(t, "the running request", done), 200, "done")
	if err := receive(t, "Shutdown", ended); err != nil {
		t.Errorf("Shutdown: %v, though everything has finished", err)
	}
	receive(t, "the end of the link", a.ended)
	eventually(t, "nothing is left", func() bool {
		return e.metric("harp_links")+e.metric("harp_registrations")+e.metric("harp_streams") == 0
	})
	if err := e.Shutdown(t.Context()); err != nil {
		t.Errorf("a second Shutdown: %v", err)
	}
}

func TestShutdownCutsWhatDoesNotFinish(t *testing.T) {
	e := newEdge(t, Options{})
	a, host := e.publish(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "lines")
			w.WriteHeader(101)
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.Copy(c, c)
			return
		}
		<-r.Context().Done()
	})
	v := e.visit()
	v.says("GET / HTTP/1.1\nHost: "+host+"\nConnection: Upgrade\nUpgrade: lines\n\n", "")
	if status, _ := v.head(); !strings.Contains(status, "101") {
		t.Fatal(status)
	}
	v.says("ping\n", "")
	if line, err := v.r.ReadString('\n'); line != "ping\r\n" {
		t.Errorf("echo %q %v", line, err)
	}
	done := make(chan answer, 1)
	go func() { done <- e.get(host, "/") }()
	eventually(t, "both run", func() bool { return a.session.Streams() == 2 })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := e.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v, want the context's error", err)
	}
	if rest, err := v.rest(); err == nil || rest != "" {
		t.Errorf("the upgraded connection ended with %q, %v, as if it were complete", rest, err)
	}
	e.wantError("the running request", receive(t, "the running request", done), linkLostError())
	eventually(t, "nothing runs", func() bool { return e.metric("harp_streams") == 0 })
}
