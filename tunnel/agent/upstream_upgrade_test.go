package agent

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

const (
	upgradeRequest = "GET /ws HTTP/1.1\r\nHost: v\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate; x\r\n\r\n"
	upgradeAnswer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
)

// upgraded brings a visitor and an upstream together, through net/http's server; script plays the upstream once it
// has answered 101.
func upgraded(t *testing.T, script func(p *peer)) (visitor *peer) {
	t.Helper()
	checkForwardLeaks(t)
	addr := playUpstream(t, func(_ int, p *peer) {
		head := p.head()
		for _, line := range []string{
			"GET /ws HTTP/1.1", "Connection: Upgrade", "Upgrade: websocket",
			"Sec-Websocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-Websocket-Extensions: permessage-deflate; x",
		} {
			if !strings.Contains(head, line+"\r\n") {
				t.Errorf("the upstream got %q without %q", head, line)
			}
		}
		script(p)
	})
	visitor = dialPeer(t, serveForward(t, addr, ForwardOptions{}))
	return visitor
}

// wantUpgraded reads the head of a 101.
func (p *peer) wantUpgraded() {
	p.t.Helper()
	head := p.head()
	for _, line := range strings.Split(strings.TrimSuffix(upgradeAnswer, "\r\n\r\n"), "\r\n") {
		line = strings.ReplaceAll(line, "Sec-WebSocket", "Sec-Websocket")
		if !strings.Contains(head, line+"\r\n") {
			p.t.Errorf("the visitor got %q without %q", head, line)
		}
	}
	if strings.Contains(head, "Date:") || strings.Contains(head, "Content-Type:") {
		p.t.Errorf("the visitor got %q with fields that nobody sent", head)
	}
}

func TestUpgradeEcho(t *testing.T) {
	v := upgraded(t, func(p *peer) {
		p.send(upgradeAnswer + "early!")
		p.want("first")
		for range 100 {
			p.want("ping")
			p.send("pong")
		}
		big := make([]byte, 1<<20)
		if _, err := io.ReadFull(p.r, big); err != nil {
			t.Error(err)
		}
		p.Write(big)
		if s, err := p.rest(); s != "" || err != nil {
			t.Errorf("the upstream read %q, %v; want the visitor's end", s, err)
		}
		p.send("last words")
	})
	v.send(upgradeRequest + "first") // which a client may send with the request, if it dares
	v.wantUpgraded()
	v.want("early!")
	for range 100 {
		v.send("ping")
		v.want("pong")
	}
	big := make([]byte, 1<<20)
	go v.Write(big) // ends before the read does
	if _, err := io.ReadFull(v.r, make([]byte, len(big))); err != nil {
		t.Error(err)
	}
	v.Conn.(*net.TCPConn).CloseWrite()
	if s, err := v.rest(); s != "last words" || err != nil {
		t.Errorf("the visitor read %q, %v after its own half-close; want the last words and a clean end", s, err)
	}
}

func TestUpgradeEnds(t *testing.T) {
	t.Run("upstream half-closes", func(t *testing.T) {
		v := upgraded(t, func(p *peer) {
			p.send(upgradeAnswer + "bye")
			p.Conn.(*net.TCPConn).CloseWrite()
			p.want("still here")
			p.rest()
		})
		v.send(upgradeRequest)
		v.wantUpgraded()
		if s, err := v.rest(); s != "bye" || err != nil {
			t.Errorf("the visitor read %q, %v; want a clean end", s, err)
		}
		v.send("still here")
		v.Close()
	})
	t.Run("upstream closes", func(t *testing.T) {
		v := upgraded(t, func(p *peer) { p.send(upgradeAnswer + "bye") })
		v.send(upgradeRequest)
		v.wantUpgraded()
		if s, err := v.rest(); s != "bye" || err != nil {
			t.Errorf("the visitor read %q, %v; want a clean end", s, err)
		}
		v.Close()
	})
	t.Run("upstream resets", func(t *testing.T) {
		seen := make(chan struct{})
		v := upgraded(t, func(p *peer) {
			p.send(upgradeAnswer)
			<-seen
			p.reset()
		})
		v.send(upgradeRequest)
		v.wantUpgraded()
		close(seen)
		if s, err := v.rest(); !isReset(err) {
			t.Errorf("the visitor read %q, %v; want a reset", s, err)
		}
	})
	t.Run("visitor resets", func(t *testing.T) {
		got := make(chan error, 1)
		v := upgraded(t, func(p *peer) {
			p.send(upgradeAnswer)
			_, err := p.rest()
			got <- err
		})
		v.send(upgradeRequest)
		v.wantUpgraded()
		v.reset()
		if err := <-got; !isReset(err) {
			t.Errorf("the upstream read %v; want a reset", err)
		}
	})
}

func TestUpgradeRefused(t *testing.T) {
	for _, answer := range []string{
		"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
	} {
		v := upgraded(t, func(p *peer) {
			p.send(answer)
			p.rest()
		})
		v.send(upgradeRequest)
		res, err := http.ReadResponse(v.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(res.Body); string(body) != "no" || err != nil || res.StatusCode == 101 {
			t.Errorf("got %d %q, %v; want the upstream's own answer", res.StatusCode, body, err)
		}
		v.Close()
	}
}

// TestUpgradeWithBody upgrades behind a request body, as Docker's clients do.
func TestUpgradeWithBody(t *testing.T) {
	v := upgraded(t, func(p *peer) {
		p.want("{}")
		p.send("HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		p.want("raw")
		p.send("done")
	})
	v.send(strings.Replace(upgradeRequest, "\r\n\r\n", "\r\nContent-Length: 2\r\n\r\n{}", 1))
	v.head()
	v.send("raw")
	v.want("done")
	v.Close()
}

// hijackWriter is a tunnelWriter whose connection can be taken over.
type hijackWriter struct {
	*tunnelWriter
	conn net.Conn
	err  error
}

func (w hijackWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return w.conn, bufio.NewReadWriter(bufio.NewReader(w.conn), bufio.NewWriter(w.conn)), w.err
}

func upgradeRequestFor(t *testing.T) *http.Request {
	r := request(t, "GET", "/ws", nil, 0)
	r.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}}
	return r
}

// TestUpgradeVisitorLeaves cancels the context, which is all that the tunnel may have to say.
func TestUpgradeVisitorLeaves(t *testing.T) {
	checkForwardLeaks(t)
	got, ready := make(chan error, 1), make(chan struct{})
	addr := playUpstream(t, func(_ int, p *peer) {
		p.head()
		p.send(upgradeAnswer + "x")
		_, err := p.rest()
		got <- err
	})
	visitor, far := net.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { // ends with the pipe
		far.Read(make([]byte, 1))
		close(ready)
	}()
	time.AfterFunc(50*time.Millisecond, func() { <-ready; cancel() })
	defer far.Close()
	w := hijackWriter{newTunnelWriter(), visitor, nil}
	newTestForwarder(t, addr, ForwardOptions{}).ServeHTTP(w, upgradeRequestFor(t).WithContext(ctx))
	select {
	case err := <-got:
		if !isReset(err) {
			t.Errorf("the upstream read %v, want a reset", err)
		}
	case <-time.After(time.Second):
		t.Error("the upstream does not know after a second")
	}
}

// TestUpgradedIsNotReused ends an upgraded connection in good order.
func TestUpgradedIsNotReused(t *testing.T) {
	checkForwardLeaks(t)
	closed := make(chan struct{})
	addr := playUpstream(t, func(_ int, p *peer) {
		p.head()
		p.send(upgradeAnswer)
		p.Conn.(*net.TCPConn).CloseWrite()
		p.rest()
		close(closed)
	})
	visitor, far := net.Pipe()
	f := newTestForwarder(t, addr, ForwardOptions{})
	far.Close()
	f.ServeHTTP(hijackWriter{newTunnelWriter(), visitor, nil}, upgradeRequestFor(t))
	if n := len(f.pool.idle); n != 0 {
		t.Errorf("%d idle connections after an upgrade, want none", n)
	}
	<-closed
}

func TestUpgradeImpossible(t *testing.T) {
	checkForwardLeaks(t)
	addr := playUpstream(t, func(_ int, p *peer) {
		p.head()
		p.send(upgradeAnswer)
		p.rest()
	})
	f := newTestForwarder(t, addr, ForwardOptions{})
	w := newTunnelWriter()
	if w.serve(f, upgradeRequestFor(t)); w.code != messages.CancelUnsupported {
		t.Errorf("a ResponseWriter without Hijack: failed with %v %q, want %v", w.code, w.reason, messages.CancelUnsupported)
	}
	h := hijackWriter{newTunnelWriter(), nil, errors.New("no")}
	defer func() {
		if recover() != http.ErrAbortHandler {
			t.Error("Hijack fails: want http.ErrAbortHandler")
		}
	}()
	visitor, far := net.Pipe()
	defer visitor.Close()
	defer far.Close()
	h.conn = visitor
	f.ServeHTTP(h, upgradeRequestFor(t))
}
