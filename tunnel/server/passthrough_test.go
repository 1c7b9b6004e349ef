package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

// dialEnd connects an agent that ends TLS itself: take carries each visitor's connection and closes it.
func (e *edge) dialEnd(key identity.Key, take func(net.Conn)) *agent {
	e.t.Helper()
	conn, challenge := e.dialConn()
	a := &agent{
		e: e, key: key, conn: conn, challenge: challenge,
		answers: make(chan messages.RegistrationResponse, 100), disconnects: make(chan messages.Disconnect, 100),
		ended: make(chan error, 1), handlers: map[uint32]http.Handler{0: saying("plain")},
	}
	a.session = tunnel.NewSession(conn, tunnel.Config{
		Handler: a.handler, OnDisconnect: func(d messages.Disconnect) { a.disconnects <- d },
		TLSHandler: func(messages.TLSRequest) func(net.Conn) { return take },
		OnText: func(text []byte) error {
			answer, err := messages.ParseRegistrationResponse(text)
			a.answers <- answer
			return err
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { a.ended <- a.session.Run(ctx) }) // ends with ctx or the link
	e.t.Cleanup(func() { cancel(); running.Wait() })
	return a
}

// passes publishes take as r with TLS at the agent.
func (e *edge) passes(key identity.Key, r identity.Registration, take func(net.Conn)) (*agent, string) {
	e.t.Helper()
	r.EndToEnd = true
	a := e.dialEnd(key, take)
	return a, a.register(r).Hostname
}

// names says its name and echoes the rest.
func names(name string) func(net.Conn) {
	return func(c net.Conn) {
		defer c.Close()
		_, _ = io.WriteString(c, name)
		_, _ = io.Copy(c, c)
	}
}

// connect is a visitor's connection to a name whose TLS ends at an agent, over TCP, as the edge's listener hands it on.
func (e *edge) connect(name string) *net.TCPConn {
	e.t.Helper()
	pass, ok := e.PassThrough(name)
	if !ok {
		e.t.Fatalf("TLS for %s may end at the edge", name)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		e.t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		e.t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		e.t.Fatal(err)
	}
	var passing sync.WaitGroup
	passing.Go(func() { pass(far) }) // ends with the visitor's end
	e.t.Cleanup(func() { near.Close(); passing.Wait() })
	_ = near.SetDeadline(time.Now().Add(patience))
	return near.(*net.TCPConn)
}

// hears returns the first n bytes that the visitor of a name gets.
func (e *edge) hears(name string, n int) (string, error) {
	c := e.connect(name)
	defer c.Close()
	b := make([]byte, n)
	n, err := io.ReadFull(c, b)
	return string(b[:n]), err
}

// TestPassThrough: bytes pass both ways as they are, each side ends by itself, and the edge knows how many they were.
func TestPassThrough(t *testing.T) {
	e := newEdge(t, Options{PassTLS: true, ProveHostname: proven})
	_, host := e.passes(newKey(t), identity.Registration{Hostnames: []string{ownHost}}, names("agent"))
	_, plain := e.publish(saying("plain"))
	sent := bytes.Repeat([]byte("sealed "), 200_000)
	for _, name := range []string{host, ownHost} {
		c := e.connect(name)
		go func() {
			_, _ = c.Write(sent)
			_ = c.CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || string(got) != "agent"+string(sent) {
			t.Errorf("%s: %d bytes came back, %v; want %d", name, len(got), err, len("agent")+len(sent))
		}
	}
	eventually(t, "the connections are over", func() bool { return e.metric("harp_streams") == 0 })
	if n := e.metric("harp_visitor_bytes_total"); n != float64(2*(2*len(sent)+len("agent"))) {
		t.Errorf("%v bytes were counted, want each once", n)
	}
	if e.log.has("sealed") {
		t.Error("the log holds what passed")
	}
	for _, name := range []string{plain, testDomain, "x." + testDomain, "other.example", "", "." + testDomain, "a." + host} {
		if _, ok := e.PassThrough(name); ok {
			t.Errorf("%q passes through", name)
		}
	}
}

// TestPassThroughLateByte: what a visitor still says when the agent has closed does not take the answer back.
func TestPassThroughLateByte(t *testing.T) {
	e := newEdge(t, Options{PassTLS: true})
	answer := bytes.Repeat([]byte("x"), 1<<20)
	closed := make(chan struct{})
	_, host := e.passes(newKey(t), identity.Registration{}, func(c net.Conn) {
		_, _ = c.Write(answer)
		_ = c.Close()
		close(closed)
	})
	c := e.connect(host)
	receive(t, "the agent to close", closed) // most of the answer is at the edge then
	for range 5 {
		if _, err := io.WriteString(c, "late"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond) // for the edge to have read it
	}
	got, err := io.ReadAll(c)
	if err != nil || len(got) != len(answer) {
		t.Errorf("the visitor got %d of %d bytes, %v", len(got), len(answer), err)
	}
}

// TestPassThroughReset: what breaks off on one side does not look complete on the other.
func TestPassThroughReset(t *testing.T) {
	e := newEdge(t, Options{PassTLS: true})
	ended := make(chan error, 1)
	_, host := e.passes(newKey(t), identity.Registration{}, func(c net.Conn) {
		defer c.Close()
		_, _ = io.WriteString(c, "hello")
		_, err := io.Copy(io.Discard, c)
		ended <- err
	})
	c := e.connect(host)
	_, _ = io.ReadFull(c, make([]byte, 5))
	_ = c.SetLinger(0)
	_ = c.Close()
	if err := receive(t, "the agent to see the end", ended); err == nil {
		t.Error("a visitor's reset came as a proper end")
	}
	a, host := e.passes(newKey(t), identity.Registration{}, names("hello"))
	c = e.connect(host)
	_, _ = io.ReadFull(c, make([]byte, 5))
	_ = a.conn.Close()
	if _, err := c.Read(make([]byte, 1)); !isReset(err) {
		t.Errorf("a lost link came to the visitor as %v, want a reset", err)
	}
}

// TestPassThroughAway: TLS for a name that was last served end to end never ends at the edge.
func TestPassThroughAway(t *testing.T) {
	e := newEdge(t, Options{PassTLS: true})
	key := newKey(t)
	a, host := e.passes(key, identity.Registration{}, names("agent"))
	_ = a.conn.Close()
	eventually(t, "the agent is away", func() bool { return e.metric("harp_registrations") == 0 })
	if got, err := e.hears(host, 1); err != io.EOF {
		t.Errorf("while the agent is away: %q, %v; want the end", got, err)
	}
	e.publishAs(key, identity.Registration{}, saying("plain"))
	if _, ok := e.PassThrough(host); ok {
		t.Error("the key's holder has said that TLS may end at the edge, and it does not")
	}
}

// TestPassThroughKinds: TLS for a name ends either here or at its agents, on all paths.
func TestPassThroughKinds(t *testing.T) {
	e := newEdge(t, Options{PassTLS: true})
	key := newKey(t)
	replaced := func(why string, a *agent) {
		t.Helper()
		if d := receive(t, why, a.disconnects); d.Code != messages.DisconnectReplaced {
			t.Errorf("%s: told %+v, want replaced", why, d)
		}
	}
	path, host := e.publishAs(key, identity.Registration{Path: "/api"}, saying("api"))
	whole, _ := e.publishAs(key, identity.Registration{Mode: identity.ModeStandby}, saying("all"))
	end, _ := e.passes(key, identity.Registration{}, names("agent"))
	replaced("the service of a path", path)
	replaced("the standby", whole)
	if got, err := e.hears(host, 5); got != "agent" {
		t.Errorf("after the takeover: %q, %v", got, err)
	}
	for _, mode := range []string{identity.ModeShare, identity.ModeStandby} {
		answer := e.dial(key, saying("plain")).ask(identity.Registration{Mode: mode, Path: "/api"})
		if answer.Error == nil || answer.Error.Code != messages.RefuseLimit || !answer.Error.Retry {
			t.Errorf("%s beside an agent that ends TLS: %+v, want a conflict that may pass", mode, answer.Error)
		}
	}
	_ = end.conn.Close()
	eventually(t, "all are gone", func() bool { return e.metric("harp_registrations") == 0 })
	if _, ok := e.PassThrough(host); !ok {
		t.Error("with the agent away, TLS for the name may end at the edge")
	}
	plain, _ := e.publishAs(key, identity.Registration{Path: "/api"}, saying("plain"))
	answer := e.dialEnd(key, names("agent")).ask(identity.Registration{Mode: identity.ModeShare, EndToEnd: true})
	if answer.Error == nil || answer.Error.Code != messages.RefuseLimit {
		t.Errorf("TLS at the agent, shared with plain: %+v, want a conflict", answer.Error)
	}
	e.wantBody("who was there serves on", e.get(host, "/api"), 200, "plain")
	e.passes(key, identity.Registration{}, names("agent"))
	replaced("the plain one", plain)
}

// TestPassThroughModes: connections go to the least busy, and to a standby only when nobody else is there.
func TestPassThroughModes(t *testing.T) {
	e := newEdge(t, Options{PassTLS: true, MaxStreams: 1})
	key := newKey(t)
	e.passes(key, identity.Registration{Mode: identity.ModeStandby}, names("c"))
	a, host := e.passes(key, identity.Registration{Mode: identity.ModeShare}, names("a"))
	b, _ := e.passes(key, identity.Registration{Mode: identity.ModeShare}, names("b"))
	heard := make(map[string]bool)
	for range 2 { // each has room for one
		c := e.connect(host)
		one := make([]byte, 1)
		_, _ = io.ReadFull(c, one)
		heard[string(one)] = true
	}
	if !heard["a"] || !heard["b"] {
		t.Errorf("two connections went to %v, want one to each", heard)
	}
	if got, err := e.hears(host, 1); err == nil {
		t.Errorf("the third went to %q, want that it is closed: standbys are for when nobody is there", got)
	}
	if n := e.metric("harp_limits_total{limit=max-streams}"); n == 0 {
		t.Error("nobody counted that there was no room")
	}
	_ = a.conn.Close()
	_ = b.conn.Close()
	eventually(t, "the standby is alone", func() bool { return e.metric("harp_registrations") == 1 })
	if got, err := e.hears(host, 1); got != "c" {
		t.Errorf("with the others gone: %q, %v; want the standby", got, err)
	}
}

// TestPassThroughLimits: the rate of a hostname counts connections, and silence has an end.
func TestPassThroughLimits(t *testing.T) {
	e := newEdge(t, Options{PassTLS: true, RateLimit: 0.001, RateBurst: 1})
	_, host := e.passes(newKey(t), identity.Registration{}, names("a"))
	if got, err := e.hears(host, 1); got != "a" {
		t.Errorf("the first: %q, %v", got, err)
	}
	if got, err := e.hears(host, 1); err != io.EOF {
		t.Errorf("one too many: %q, %v; want the end", got, err)
	}
	e = newEdge(t, Options{PassTLS: true, PassIdle: 50 * time.Millisecond})
	ended := make(chan error, 1)
	_, host = e.passes(newKey(t), identity.Registration{}, func(c net.Conn) {
		defer c.Close()
		_, err := io.Copy(io.Discard, c)
		ended <- err
	})
	c := e.connect(host)
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a silent connection: %v, want that the edge ends it", err)
	}
	if err := receive(t, "the agent to see the end", ended); err == nil {
		t.Error("to the agent it looks like a proper end")
	}
}

// TestPassThroughRefused: what a registration must not have, and where TLS cannot be passed on.
func TestPassThroughRefused(t *testing.T) {
	for _, test := range []struct {
		why  string
		o    Options
		r    identity.Registration
		code string
	}{
		{"a path", Options{PassTLS: true}, identity.Registration{Path: "/api"}, messages.RefuseMalformed},
		{"a listener that asks nobody", Options{}, identity.Registration{}, messages.RefuseUnsupported},
		{"no names below the domain", Options{PassTLS: true, NoHostRoute: true, RouteByPath: true}, identity.Registration{}, messages.RefuseUnsupported},
	} {
		test.r.EndToEnd = true
		answer := newEdge(t, test.o).dialEnd(newKey(t), names("a")).ask(test.r)
		if answer.Error == nil || answer.Error.Code != test.code || answer.Error.Retry {
			t.Errorf("%s: %+v, want %s for good", test.why, answer.Error, test.code)
		}
	}
	e := newEdge(t, Options{PassTLS: true})
	e.passes(newKey(t), identity.Registration{Path: "/"}, names("a"))
}

// TestPassThroughPlain: a visitor of plain HTTP is sent to https, and nothing of the request reaches the agent.
func TestPassThroughPlain(t *testing.T) {
	e := newEdge(t, Options{PassTLS: true})
	_, host := e.passes(newKey(t), identity.Registration{}, names("a"))
	res := e.get(host, "/a%2Fb?c=d")
	if want := "https://" + host + "/a%2Fb?c=d"; res.StatusCode != 308 || res.Header.Get("Location") != want || res.body != "" {
		t.Errorf("plain HTTP got %d %q %q, want 308 to %s", res.StatusCode, res.Header.Get("Location"), res.body, want)
	}
}

// TestPassThroughShutdown: connections may finish, and no new one comes.
func TestPassThroughShutdown(t *testing.T) {
	e := newEdge(t, Options{PassTLS: true})
	_, host := e.passes(newKey(t), identity.Registration{}, names("a"))
	c := e.connect(host)
	_, _ = io.ReadFull(c, make([]byte, 1))
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		done <- e.Shutdown(ctx)
	}()
	eventually(t, "the shutdown has begun", e.stopping)
	eventually(t, "no new connection comes through", func() bool {
		_, err := e.hears(host, 1)
		return err != nil
	})
	_, _ = io.WriteString(c, "bye")
	_ = c.CloseWrite()
	if got, err := io.ReadAll(c); string(got) != "bye" || err != nil {
		t.Errorf("while the edge drains: %q, %v", got, err)
	}
	if err := receive(t, "the end of the drain", done); err != nil && !strings.Contains(err.Error(), "closed") {
		t.Errorf("shutdown: %v", err)
	}
}
