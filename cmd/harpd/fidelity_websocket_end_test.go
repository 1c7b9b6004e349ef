package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/tunnel/agent"
)

// How one end leaves, and what the other end has to see of it.
var departures = []struct {
	name  string
	leave func(*rawConn)
	clean bool // the end may look like an end; otherwise it must be an error
}{
	{"FIN", func(c *rawConn) { c.Close() }, true},
	{"RST", func(c *rawConn) { c.reset() }, false},
}

// TestWebSocketAbruptEnds has one end leave without a close frame: the other must see it within a second, and must
// not take a reset for an end.
func TestWebSocketAbruptEnds(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]option{"plain": nil, "TLS": {withTLS()}} {
		for _, d := range departures {
			t.Run(name+" by "+d.name, func(t *testing.T) {
				t.Parallel()
				skipDirectTLS(t, name)
				eachWay(t, func(t *testing.T, from, to *rawConn, build func(byte, string) wsFrame) {
					hello := build(opText, "hello").wire()
					from.send(hello)
					to.want(hello, "the socket is open")
					d.leave(from)
					wantEnd(t, to, "", d.clean)
				}, opts...)
			})
		}
	}
}

func skipDirectTLS(t *testing.T, name string) {
	if direct() && name == "TLS" {
		t.Skip("the direct TLS end does not pass on how a connection ends")
	}
}

// TestWebSocketEndBehindData has one end leave right behind much data, and in the middle of a frame.
func TestWebSocketEndBehindData(t *testing.T) {
	t.Parallel()
	for _, d := range departures {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			eachWay(t, func(t *testing.T, from, to *rawConn, build func(byte, string) wsFrame) {
				whole := build(opBinary, string(pattern(300_000))).wire()
				wire := whole + whole[:200_000]
				from.send(wire)
				if d.clean {
					d.leave(from)
					wantEnd(t, to, wire, true)
					return
				}
				to.want(wire, "it was sent") // a reset throws away what is still on its way
				d.leave(from)
				wantEnd(t, to, "", false)
			})
		})
	}
}

// wantEnd wants these bytes, and then the end within a second; only if clean may it be io.EOF, and over TCP it must.
func wantEnd(t *testing.T, c *rawConn, wire string, clean bool) {
	t.Helper()
	rest, err := c.ending(abortLimit)
	if diff := sameBytes(rest, []byte(wire)); diff != "" {
		t.Errorf("before the end came %s (%v)", diff, err)
	}
	_, isTCP := c.Conn.(*net.TCPConn)
	switch {
	case isTimeout(err):
		t.Errorf("after %v the other end still knows nothing", abortLimit)
	case clean && isTCP && err != io.EOF:
		t.Errorf("a FIN arrived as %v", err)
	case !clean && err == io.EOF:
		t.Errorf("a reset arrived as a clean end")
	}
}

// TestWebSocketHalfClose has each end finish its sending half without a close frame and receive what the other still has to say.
func TestWebSocketHalfClose(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]option{"plain": nil, "TLS": {withTLS()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			skipDirectTLS(t, name)
			eachWay(t, func(t *testing.T, from, to *rawConn, build func(byte, string) wsFrame) {
				other := plainFrame
				if build(opText, "").mask == nil {
					other = maskedFrame
				}
				wantHalfClose(t, from, to, build(opText, "hello").wire(), other(opBinary, string(pattern(400_000))).wire())
			}, opts...)
		})
	}
}

// wantHalfClose sends a word, ends from's direction, sends a reply the other way and ends that.
func wantHalfClose(t *testing.T, from, to *rawConn, word, reply string) {
	t.Helper()
	from.send(word)
	to.want(word, "the connection is open")
	from.closeWrite()
	if rest, err := to.ending(abortLimit); err != io.EOF || len(rest) > 0 {
		t.Fatalf("after the half-close: %q, %v, want the end of this direction within %v", rest, err, abortLimit)
	}
	sent := make(chan error, 1)
	go func() { sent <- to.write(reply) }() // ends when the reply was read
	from.want(reply, "only one direction has ended")
	await(t, sent, "the reply to be sent", func(err error) {
		if err != nil {
			t.Errorf("after the half-close: %v, want the other direction to go on", err)
		}
	})
	from.wantQuiet(100*time.Millisecond, "the other direction is still open")
	to.closeWrite()
	if rest, err := from.ending(abortLimit); err != io.EOF || len(rest) > 0 {
		t.Errorf("after the second half-close: %q, %v, want the end", rest, err)
	}
}

// TestWebSocketLinkDies cuts the agent's link: neither end may wait, or take it for a proper end.
func TestWebSocketLinkDies(t *testing.T) {
	t.Parallel()
	target, next := switchUpstream(t, switchToWebSocket)
	tn, cut := publishBehindRelay(t, target)
	p := tn.openPair(t, next)
	hello := maskedFrame(opText, "hello").wire()
	p.visitor.send(hello)
	p.upstream.want(hello, "the socket is open")
	cut()
	start := time.Now()
	for who, c := range map[string]*rawConn{"visitor": p.visitor, "upstream": p.upstream} {
		rest, err := c.ending(time.Until(start.Add(2 * time.Second)))
		switch {
		case isTimeout(err):
			t.Errorf("the %s knows nothing 2 s after the link has died", who)
		case err == io.EOF && len(rest) == 0:
			t.Errorf("the %s saw a clean end, but the link died", who)
		case len(rest) > 0:
			t.Logf("the %s was told %q", who, rest)
		}
	}
	for deadline := time.Now().Add(patience); ; <-time.After(20 * time.Millisecond) {
		c := tn.dial(t)
		c.send(c.wsRequest())
		h := c.readHead()
		if h.status() == 101 {
			return // by the link that the agent has opened since
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v after the link has died the handshake gets %q", patience, h.Line)
		}
	}
}

// TestWebSocketAgentLeaves stops the agent in good order: once its time to drain is over, neither end may be left with
// a socket that nobody serves.
func TestWebSocketAgentLeaves(t *testing.T) {
	t.Parallel()
	target, next := switchUpstream(t, switchToWebSocket)
	s := newSetup(t, nil)
	(&tunnel{}).needsTunnel(t)
	fwd, err := agent.Forward(target, s.forward)
	if err != nil {
		t.Fatal(err)
	}
	tn := &tunnel{network: "tcp", Addr: startEdge(t, s.cfg).HTTP}
	registered, ended := make(chan string, 1), make(chan error, 1)
	o := agentOptions(t, "http://"+tn.Addr, nil)
	o.Services = []agent.Service{{Handler: fwd}}
	o.DrainTimeout = 300 * time.Millisecond
	o.OnRegister = func(r agent.Registration) { registered <- r.Hostname }
	a, err := agent.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() { ended <- a.Run(ctx) }() // ends with ctx
	await(t, registered, "the agent to register", func(host string) { tn.Host = host })
	p := tn.openPair(t, next)
	stop()
	await(t, ended, "the agent to end", func(error) {})
	for who, c := range map[string]*rawConn{"visitor": p.visitor, "upstream": p.upstream} {
		if _, err := c.ending(2 * time.Second); isTimeout(err) {
			t.Errorf("the %s knows nothing 2 s after the agent has gone", who)
		}
	}
}

// publishBehindRelay is publish with a relay between the agent and the edge; cut resets the link that is open.
// The edge serves the name again once the agent has dialled anew.
func publishBehindRelay(t *testing.T, upstream string, opts ...option) (tn *tunnel, cut func()) {
	t.Helper()
	if direct() {
		t.Skip("only the tunnel has a link")
	}
	s := newSetup(t, opts)
	fwd, err := agent.Forward(upstream, s.forward)
	if err != nil {
		t.Fatal(err)
	}
	s.service.Handler = fwd
	edge := startEdge(t, s.cfg).HTTP
	var mu sync.Mutex
	var links []net.Conn
	relay := scriptListener(t, func(c net.Conn) net.Conn { return c }, func(c net.Conn, br *bufio.Reader) {
		up, err := net.Dial("tcp", edge)
		if err != nil {
			return
		}
		defer up.Close()
		mu.Lock()
		links = append(links, c, up)
		mu.Unlock()
		go func() { io.Copy(up, br); up.Close() }() // ends when either side closes
		io.Copy(c, up)
	})
	tn = &tunnel{network: "tcp", Addr: edge}
	reg := tn.startAgent(t, "http://"+relay, s)
	tn.Host, tn.URL = reg.Hostname, "http://"+reg.Hostname
	return tn, func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range links {
			resetConn(c)
		}
		links = nil
	}
}
