package server

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/harp-tunnel/harp/tunnel"
)

// upgrade hands the visitor's connection over to the upgraded protocol, and carries its bytes both ways until both
// have ended. An end arrives as an end and a reset as a reset.
func (v *visit) upgrade(res *http.Response) {
	up, ok := res.Body.(*tunnel.UpgradedConn)
	if !ok {
		v.server.refuse(v.w, v.r, upstreamBrokeError("it switched protocols without being asked"))
		return
	}
	conn, rw, err := v.rc.Hijack()
	if err != nil {
		_ = up.Reset()
		v.server.refuse(v.w, v.r, upstreamBrokeError("this connection cannot be upgraded"))
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Time{})
	if err := writeSwitch(conn, res, v.w.Header().Get("X-Request-Id")); err != nil {
		_ = up.Reset()
		return
	}
	limit := int64(0)
	if strings.EqualFold(res.Header.Get("Upgrade"), "websocket") {
		limit = v.server.options.MaxBody
	}
	x := &upgraded{visit: v, visitor: conn, up: up}
	x.toAgent = direction{to: up, end: func() { _ = up.CloseWrite() }, frames: frameFollower{limit: limit}}
	x.toVisitor = direction{to: conn, end: func() { closeWrite(conn) }, frames: frameFollower{limit: limit}}
	var wg sync.WaitGroup
	wg.Go(x.carryToVisitor) // ends when the tunnel's stream does, or writing fails
	// net/http's own reader would end the request's context, and with it the stream, at the visitor's half-close.
	early, _ := rw.Reader.Peek(rw.Reader.Buffered())
	x.carryToAgent(io.MultiReader(bytes.NewReader(early), conn))
	wg.Wait()
	_ = up.Close()
}

// writeSwitch writes the upstream's 101 as it is, but for what a 101 must not say (RFC 9110, sections 8.6 and 15.2) and
// the edge's own fields.
func writeSwitch(conn net.Conn, res *http.Response, id string) error {
	w := bufio.NewWriter(conn)
	fmt.Fprintf(w, "HTTP/1.1 101 Switching Protocols\r\n")
	for name, values := range res.Header {
		if name == "Content-Length" || name == "Transfer-Encoding" || isHarpField(name) {
			continue
		}
		for _, value := range values {
			fmt.Fprintf(w, "%s: %s\r\n", name, value)
		}
	}
	if res.Header["X-Request-Id"] == nil {
		fmt.Fprintf(w, "X-Request-Id: %s\r\n", id)
	}
	fmt.Fprintf(w, "\r\n")
	return w.Flush()
}

// upgraded is an upgraded connection between a visitor and an agent.
type upgraded struct {
	visit              *visit
	visitor            net.Conn
	up                 *tunnel.UpgradedConn
	toAgent, toVisitor direction
}

// carryToAgent carries the visitor's bytes.
func (x *upgraded) carryToAgent(visitor io.Reader) {
	buf := make([]byte, 32<<10)
	held := 0 // bytes at the beginning of buf that could not pass yet
	for {
		n, err := visitor.Read(buf[held:])
		x.visit.server.metrics.bytes(int64(n), 0)
		var failed error
		if held, failed = x.toAgent.pass(buf[:held+n]); failed == errMessageTooLarge {
			x.tooLarge()
		} else if failed != nil {
			return // the other direction says what became of it
		}
		switch {
		case err == io.EOF:
			x.toAgent.finish(buf[:held])
			return
		case err != nil:
			_ = x.up.Reset()
			return
		}
	}
}

// carryToVisitor carries the agent's bytes.
func (x *upgraded) carryToVisitor() {
	buf := make([]byte, 32<<10)
	held := 0
	for {
		n, err := x.up.Read(buf[held:])
		x.visit.server.metrics.bytes(0, int64(n))
		var failed error
		if held, failed = x.toVisitor.pass(buf[:held+n]); failed == errMessageTooLarge {
			x.tooLarge()
		}
		switch {
		case err == io.EOF:
			x.toVisitor.finish(buf[:held])
			return
		case err != nil, failed != nil && failed != errMessageTooLarge:
			_ = x.up.Reset()
			hangUp(x.visitor)
			return
		}
	}
}

// tooLarge says farewell to both ends with close frame 1009 (RFC 6455, section 7.4.1). What they still send is dropped
// until they hang up or have lingered: to close on unread bytes would take the frame back.
func (x *upgraded) tooLarge() {
	x.visit.server.metrics.limit(limitMaxBody)
	_ = x.visitor.SetDeadline(time.Now().Add(linger))
	time.AfterFunc(linger, func() { _ = x.up.Reset() }) // does nothing if the agent has hung up
	const code = "\x03\xf1"                             // 1009
	x.toVisitor.farewell("\x88\x02" + code)
	x.toAgent.farewell("\x88\x82\x00\x00\x00\x00" + code)
}

// A direction is one half of an upgraded connection: where its bytes go.
type direction struct {
	to  io.Writer
	end func() // half-closes to

	mu     sync.Mutex // held while writing; guards the fields below
	frames frameFollower
	last   string // a frame to be written at the end of the one that is under way; empty for none
	ended  bool   // nothing more is written
}

// pass writes what may pass of p, and moves the rest, which has to come again, to the front of p. The error is
// errMessageTooLarge, after which nothing more passes, or to's. After the end, p is dropped.
func (d *direction) pass(p []byte) (held int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended || len(p) == 0 {
		return 0, nil
	}
	if d.last != "" {
		p = p[:d.frames.finish(len(p))]
		_, err := d.to.Write(p)
		d.sayLastLocked()
		return 0, err
	}
	n, tooLarge := d.frames.follow(p)
	if n > 0 {
		if _, err := d.to.Write(p[:n]); err != nil {
			d.ended = true
			return 0, err
		}
	}
	if tooLarge != nil {
		return 0, tooLarge
	}
	return copy(p, p[n:]), nil
}

// finish writes the last bytes, a frame's head that was cut short, and half-closes.
func (d *direction) finish(p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended {
		return
	}
	d.ended = true
	if len(p) > 0 {
		_, _ = d.to.Write(p)
	}
	d.end()
}

// farewell writes a last frame: now, or when the frame that is under way has passed.
func (d *direction) farewell(frame string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended {
		return
	}
	d.last = frame
	d.sayLastLocked()
}

// sayLastLocked writes the last frame if none is under way, and half-closes.
func (d *direction) sayLastLocked() {
	if !d.frames.between() {
		return
	}
	d.ended = true
	_, _ = io.WriteString(d.to, d.last)
	d.end()
}

// hangUp resets a visitor's connection.
func hangUp(c net.Conn) {
	for { // TLS, and what it is over
		t, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		c = t.NetConn()
	}
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

func closeWrite(c net.Conn) {
	if t, ok := c.(interface{ CloseWrite() error }); ok {
		_ = t.CloseWrite()
	}
}
