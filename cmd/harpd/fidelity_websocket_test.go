package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// The handshake of RFC 6455 section 1.3.
const (
	wsKey    = "dGhlIHNhbXBsZSBub25jZQ=="
	wsAccept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
	wsSwitch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Accept: " + wsAccept + "\r\n\r\n"
)

const (
	opContinue = 0x0
	opText     = 0x1
	opBinary   = 0x2
	opClose    = 0x8
	opPing     = 0x9
	opPong     = 0xa
)

// A wsFrame is one WebSocket frame (RFC 6455 section 5.2).
type wsFrame struct {
	op      byte
	more    bool // FIN is not set
	rsv     byte // the three reserved bits, in place
	mask    []byte
	payload []byte
	length  uint64 // announced length if it is not that of payload
}

// wire returns the frame in its shortest form.
func (f wsFrame) wire() string {
	first, masked := f.op|f.rsv, byte(0)
	if !f.more {
		first |= 0x80
	}
	if f.mask != nil {
		masked = 0x80
	}
	n := max(uint64(len(f.payload)), f.length)
	b := []byte{first}
	switch {
	case n < 126:
		b = append(b, masked|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, masked|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, masked|127), n)
	}
	b = append(b, f.mask...)
	start := len(b)
	b = append(b, f.payload...)
	maskBytes(b[start:], f.mask)
	return string(b)
}

func maskBytes(b, mask []byte) {
	if mask == nil {
		return
	}
	for i := range b {
		b[i] ^= mask[i%4]
	}
}

// maskedFrame returns a frame as a visitor sends it.
func maskedFrame(op byte, payload string) wsFrame {
	return wsFrame{op: op, mask: []byte{0x37, 0xfa, 0x21, 0x3d}, payload: []byte(payload)}
}

// plainFrame returns a frame as an upstream sends it.
func plainFrame(op byte, payload string) wsFrame { return wsFrame{op: op, payload: []byte(payload)} }

func wireOf(frames []wsFrame) string {
	var b strings.Builder
	for _, f := range frames {
		b.WriteString(f.wire())
	}
	return b.String()
}

// readFrame reads one frame and unmasks it; io.EOF comes only between frames.
func readFrame(br *bufio.Reader) (wsFrame, error) {
	var h [8]byte
	if _, err := io.ReadFull(br, h[:2]); err != nil {
		return wsFrame{}, err
	}
	f := wsFrame{op: h[0] & 0xf, more: h[0]&0x80 == 0, rsv: h[0] & 0x70}
	n, isMasked := uint64(h[1]&0x7f), h[1]&0x80 != 0
	if size := map[uint64]int{126: 2, 127: 8}[n]; size > 0 {
		if _, err := io.ReadFull(br, h[8-size:]); err != nil {
			return f, noEOF(err)
		}
		clear(h[:8-size])
		n = binary.BigEndian.Uint64(h[:])
	}
	if isMasked {
		f.mask = make([]byte, 4)
		if _, err := io.ReadFull(br, f.mask); err != nil {
			return f, noEOF(err)
		}
	}
	if f.length = n; n > 1<<26 {
		return f, errors.New("a frame beyond what these tests send")
	}
	f.payload = make([]byte, n)
	_, err := io.ReadFull(br, f.payload)
	maskBytes(f.payload, f.mask)
	return f, noEOF(err)
}

// closePayload is the payload of a close frame; code 0 means an empty one.
func closePayload(code uint16, reason string) string {
	if code == 0 {
		return ""
	}
	return string(binary.BigEndian.AppendUint16(nil, code)) + reason
}

// A switchedConn is the upstream's end of an upgraded connection, with the request as the upstream saw it.
type switchedConn struct {
	*rawConn
	request head
}

// switchUpstream listens as a raw upstream that sends answer for each head it reads and then leaves the connection
// to the test, which takes it by calling next.
func switchUpstream(t *testing.T, answer func(head) string) (target string, next func() switchedConn) {
	t.Helper()
	conns := make(chan switchedConn, 1000)
	target = scriptUpstream(t, func(_ *testing.T, conn net.Conn, br *bufio.Reader) {
		h, err := readHead(br)
		if err != nil {
			return
		}
		if _, err := io.WriteString(conn, answer(h)); err != nil {
			return
		}
		conns <- switchedConn{&rawConn{Conn: conn, t: t, br: br}, h}
		<-t.Context().Done() // the connection is closed when this returns
	})
	return target, func() switchedConn {
		t.Helper()
		select {
		case c := <-conns:
			return c
		case <-time.After(patience):
			t.Fatal("the upstream was sent no handshake")
		}
		panic("not reached")
	}
}

func switchToWebSocket(head) string { return wsSwitch }

// wsRequest is a visitor's opening handshake.
func (c *rawConn) wsRequest(fields ...string) string {
	return c.request("GET", "/ws", append([]string{"Upgrade: websocket", "Connection: Upgrade",
		"Sec-WebSocket-Key: " + wsKey, "Sec-WebSocket-Version: 13"}, fields...)...)
}

// A wsPair is both ends of a WebSocket whose handshake is done.
type wsPair struct {
	visitor, upstream *rawConn
}

// openPair publishes a raw upstream and opens a WebSocket to it.
func openPair(t *testing.T, opts ...option) (*tunnel, wsPair) {
	t.Helper()
	target, next := switchUpstream(t, switchToWebSocket)
	tn := publish(t, target, opts...)
	return tn, tn.openPair(t, next)
}

// openPair opens one more WebSocket to a raw upstream.
func (tn *tunnel) openPair(t *testing.T, next func() switchedConn) wsPair {
	t.Helper()
	c := tn.dial(t)
	c.send(c.wsRequest())
	if h := c.readHead(); h.status() != 101 {
		t.Fatalf("the handshake got %q %q", h.Line, h.Fields)
	}
	return wsPair{c, next().rawConn}
}

// want wants these bytes next, and no others in their place.
func (c *rawConn) want(wire, why string) {
	c.t.Helper()
	got := make([]byte, len(wire))
	c.SetReadDeadline(time.Now().Add(patience))
	n, err := io.ReadFull(c.br, got)
	switch {
	case err != nil:
		c.t.Fatalf("%v after %d of %d bytes (%.60q), but %s", err, n, len(wire), got[:n], why)
	case string(got) != wire && len(wire) < 200:
		c.t.Fatalf("got %q, want %q: %s", got, wire, why)
	case string(got) != wire:
		c.t.Fatalf("got %s: %s", sameBytes(got, []byte(wire)), why)
	}
}

// wantQuiet wants nothing to come for a while, and the connection to stay open.
func (c *rawConn) wantQuiet(d time.Duration, why string) {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(d))
	b, err := c.br.Peek(1)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Errorf("got %q, %v, but %s", b, err, why)
	}
}

// ending returns what is left to read and how it ended: io.EOF after FIN, a timeout if it did not.
func (c *rawConn) ending(within time.Duration) ([]byte, error) {
	c.SetReadDeadline(time.Now().Add(within))
	rest, err := io.ReadAll(c.br)
	if err == nil {
		err = io.EOF
	}
	return rest, err
}

// closeWrite ends what this side sends, and nothing else.
func (c *rawConn) closeWrite() {
	c.t.Helper()
	if err := c.Conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		c.t.Fatalf("half-close: %v", err)
	}
}

// eachWay runs f with both directions of a fresh WebSocket; build makes a frame as the sender has to send it.
func eachWay(t *testing.T, f func(t *testing.T, from, to *rawConn, build func(byte, string) wsFrame), opts ...option) {
	t.Helper()
	t.Run("to the upstream", func(t *testing.T) {
		t.Parallel()
		_, p := openPair(t, opts...)
		f(t, p.visitor, p.upstream, maskedFrame)
	})
	t.Run("to the visitor", func(t *testing.T) {
		t.Parallel()
		_, p := openPair(t, opts...)
		f(t, p.upstream, p.visitor, plainFrame)
	})
}

// TestWebSocketFramesUntouched wants every byte of every frame to arrive as it was sent: masks, reserved bits,
// fragments with a ping between them, empty fragments, and opcodes that nobody has defined.
func TestWebSocketFramesUntouched(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, from, to *rawConn, build func(byte, string) wsFrame) {
		more := func(f wsFrame) wsFrame { f.more = true; return f }
		reserved := func(f wsFrame) wsFrame { f.rsv = 0x70; return f }
		compressed := func(f wsFrame) wsFrame { f.rsv = 0x40; return f }
		wire := wireOf([]wsFrame{
			more(build(opText, "he")), build(opPing, "in between"), more(build(opContinue, "")), build(opContinue, "llo"),
			more(build(opBinary, "")), build(opContinue, ""),
			compressed(build(opText, "\xf2\x48\xcd\xc9\xc9\x07\x00")),
			reserved(build(opBinary, "all reserved bits")), build(0x3, "no such opcode"), build(0xb, "nor this"),
			build(opText, strings.Repeat("x", 125)), build(opText, strings.Repeat("y", 126)),
			build(opBinary, strings.Repeat("z", 1<<16)), build(opText, "\xff not UTF-8"),
			build(opPong, "nobody asked"), build(opPong, ""), build(opPing, ""), build(opText, "end"),
		})
		from.send(wire)
		to.want(wire, "frames are the business of the two ends")
		short := wire[:300] // headers in single bytes
		for i := range len(short) {
			from.send(short[i : i+1])
		}
		to.want(short, "a frame header may come in any number of pieces")
	})
}

// TestWebSocketPingAnsweredByPeer wants pings to travel to the other end, and only that end to answer.
func TestWebSocketPingAnsweredByPeer(t *testing.T) {
	t.Parallel()
	_, p := openPair(t)
	ping, pong := maskedFrame(opPing, "are you there").wire(), plainFrame(opPong, "are you there").wire()
	p.visitor.send(ping)
	p.upstream.want(ping, "a visitor's ping is for the upstream")
	p.visitor.wantQuiet(300*time.Millisecond, "the upstream has not answered the ping yet")
	p.upstream.send(pong)
	p.visitor.want(pong, "that is the upstream's answer")

	ping, pong = plainFrame(opPing, "and you").wire(), maskedFrame(opPong, "and you").wire()
	p.upstream.send(ping)
	p.visitor.want(ping, "an upstream's ping is for the visitor")
	p.upstream.wantQuiet(300*time.Millisecond, "the visitor has not answered the ping yet")
	p.visitor.send(pong)
	p.upstream.want(pong, "that is the visitor's answer")
}

// TestWebSocketCloseFrames wants close codes and reasons to arrive as they are, and the other end to answer them.
func TestWebSocketCloseFrames(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, payload string
	}{
		{"1000", closePayload(1000, "")},
		{"1001", closePayload(1001, "going away")},
		{"1011", closePayload(1011, "grüße")},
		{"4000", closePayload(4000, strings.Repeat("r", 123))},
		{"empty", ""},
		{"one byte", "\x03"},
		{"1005", closePayload(1005, "not for the wire")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			eachWay(t, func(t *testing.T, from, to *rawConn, build func(byte, string) wsFrame) {
				wire := build(opClose, tt.payload).wire()
				from.send(wire)
				to.want(wire, "the close frame is the other end's to see")
				from.wantQuiet(100*time.Millisecond, "the other end has not answered the close frame yet")
				to.send(wire)
				from.want(wire, "the answer to a close frame comes back")
				to.Close()
				if rest, err := from.ending(patience); err != io.EOF || len(rest) > 0 {
					t.Errorf("after both close frames: %q, %v, want the end", rest, err)
				}
			})
		})
	}
}

func sameWire(got, want wsFrame) bool {
	return got.op == want.op && got.more == want.more && bytes.Equal(got.payload, want.payload)
}
