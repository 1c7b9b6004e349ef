package server

import (
	"bufio"
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
	if err := writeSwitch(conn, res); err != nil {
		_ = up.Reset()
		return
	}
	limit := int64(0)
	if strings.EqualFold(res.Header.Get("Upgrade"), "websocket") {
		limit = v.server.options.MaxBody
	}
	x := &upgraded{visit: v, visitor: conn, up: up}
	var wg sync.WaitGroup
	wg.Go(func() { x.toVisitor(limit) }) // ends when the tunnel's stream does, or writing fails
	x.toAgent(rw.Reader, limit)
	wg.Wait()
	_ = up.Close()
}

// writeSwitch writes the upstream's 101 as it is.
func writeSwitch(conn net.Conn, res *http.Response) error {
	w := bufio.NewWriter(conn)
	fmt.Fprintf(w, "HTTP/1.1 101 Switching Protocols\r\n")
	for name, values := range res.Header {
		if isHarpField(name) {
			continue
		}
		for _, value := range values {
			fmt.Fprintf(w, "%s: %s\r\n", name, value)
		}
	}
	fmt.Fprintf(w, "\r\n")
	return w.Flush()
}

// upgraded is an upgraded connection between a visitor and an agent.
type upgraded struct {
	visit   *visit
	visitor net.Conn
	up      *tunnel.UpgradedConn

	mu       sync.Mutex // held while writing to the visitor; guards farewell
	farewell bool       // a close frame of the edge's own was the last that the visitor gets
}

// toAgent carries the visitor's bytes.
func (x *upgraded) toAgent(visitor io.Reader, limit int64) {
	f := &frameFollower{limit: limit}
	buf := make([]byte, 32<<10)
	for {
		n, err := visitor.Read(buf)
		if n > 0 {
			x.visit.server.metrics.bytes(int64(n), 0)
			pass, over := f.follow(buf[:n])
			if _, err := x.up.Write(buf[:pass]); err != nil {
				return // the other direction says what became of it
			}
			if over != nil {
				x.tooLarge()
				return
			}
		}
		switch {
		case err == io.EOF:
			_ = x.up.CloseWrite()
			return
		case err != nil:
			_ = x.up.Reset()
			return
		}
	}
}

// toVisitor carries the agent's bytes.
func (x *upgraded) toVisitor(limit int64) {
	f := &frameFollower{limit: limit}
	buf := make([]byte, 32<<10)
	for {
		n, err := x.up.Read(buf)
		if n > 0 {
			x.visit.server.metrics.bytes(0, int64(n))
			pass, over := f.follow(buf[:n])
			if err := x.write(buf[:pass]); err != nil {
				_ = x.up.Reset()
				hangUp(x.visitor)
				return
			}
			if over != nil {
				x.tooLarge()
				return
			}
		}
		switch {
		case err == io.EOF:
			closeWrite(x.visitor)
			return
		case err != nil:
			hangUp(x.visitor)
			return
		}
	}
}

func (x *upgraded) write(p []byte) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.farewell {
		return net.ErrClosed
	}
	_, err := x.visitor.Write(p)
	return err
}

// tooLarge tells both ends with close frame 1009 (RFC 6455, section 7.4.1) and ends the connection. Both directions
// are between two frames: nothing of the one that is too large was passed on.
func (x *upgraded) tooLarge() {
	x.visit.server.metrics.limit(limitMaxBody)
	const code = "\x03\xf1" // 1009
	_, _ = x.up.Write([]byte("\x88\x82\x00\x00\x00\x00" + code))
	_ = x.up.CloseWrite()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.farewell {
		return
	}
	x.farewell = true
	_ = x.visitor.SetWriteDeadline(time.Now().Add(linger))
	_, _ = x.visitor.Write([]byte("\x88\x02" + code))
	closeWrite(x.visitor)
	_ = x.visitor.SetReadDeadline(time.Now().Add(linger)) // ends toAgent
	time.AfterFunc(linger, func() { _ = x.up.Reset() })   // ends toVisitor
}

// hangUp resets a visitor's connection.
func hangUp(c net.Conn) {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok { // TLS
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
