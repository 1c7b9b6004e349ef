package main

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// A rawConn is a visitor who decides every byte. Its methods end the test if a wait takes longer than
// patience, and belong to the test's own goroutine; write and close may be called from any.
type rawConn struct {
	net.Conn
	t    *testing.T
	br   *bufio.Reader
	host string
}

// dial connects to the edge, with TLS if the tunnel has it; alpn is what the visitor offers then.
// The connection is closed when the test ends.
func (tn *tunnel) dial(t *testing.T, alpn ...string) *rawConn {
	t.Helper()
	conn, err := net.DialTimeout(tn.network, tn.Addr, patience)
	if err != nil {
		t.Fatalf("dial the edge: %v", err)
	}
	t.Cleanup(func() { conn.Close() })
	if tn.Roots != nil {
		c := tls.Client(conn, &tls.Config{RootCAs: tn.Roots, ServerName: tn.Host, NextProtos: alpn})
		conn.SetDeadline(time.Now().Add(patience))
		if err := c.Handshake(); err != nil {
			t.Fatalf("TLS handshake with the edge: %v", err)
		}
		conn.SetDeadline(time.Time{})
		conn = c
	}
	return &rawConn{Conn: conn, t: t, br: bufio.NewReaderSize(conn, 64<<10), host: tn.Host}
}

// request returns a request head for the tunnel's host; fields are whole lines without their CRLF.
func (c *rawConn) request(method, target string, fields ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, target, c.host)
	for _, f := range fields {
		b.WriteString(f + "\r\n")
	}
	b.WriteString("\r\n")
	return b.String()
}

// send writes the bytes as they are.
func (c *rawConn) send(s string) {
	c.t.Helper()
	if err := c.write(s); err != nil {
		c.t.Fatalf("send %.60q: %v", s, err)
	}
}

// write is send for other goroutines, and for peers who may stop reading.
func (c *rawConn) write(s string) error {
	c.SetWriteDeadline(time.Now().Add(2 * patience))
	_, err := io.WriteString(c.Conn, s)
	return err
}

// readHead returns the next response head.
func (c *rawConn) readHead() head {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	h, err := readHead(c.br)
	if err != nil {
		c.t.Fatalf("read a response head: %v (got %q)", err, h)
	}
	if h.status() == 0 {
		c.t.Fatalf("not a status line: %q", h.Line)
	}
	return h
}

// response reads the whole next response to a request of that method, an interim one included; the caller
// looks at Err.
func (c *rawConn) response(method string) message {
	c.t.Helper()
	h := c.readHead()
	c.SetReadDeadline(time.Now().Add(2 * patience))
	return readRest(c.br, h, method)
}

// final is response without the interim ones; the test ends unless the response ends cleanly.
func (c *rawConn) final(method string) message {
	c.t.Helper()
	for {
		m := c.response(method)
		if m.status() < 200 {
			continue
		}
		if m.Err != nil {
			c.t.Fatalf("response %q broke after %d bytes of body: %v", m.Line, len(m.Body), m.Err)
		}
		return m
	}
}

// do sends a request and returns its response.
func (c *rawConn) do(method, target string, fields ...string) message {
	c.t.Helper()
	c.send(c.request(method, target, fields...))
	return c.final(method)
}

// readExactly returns the next n bytes.
func (c *rawConn) readExactly(n int) string {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, n)
	if m, err := io.ReadFull(c.br, b); err != nil {
		c.t.Fatalf("read %d bytes: %v after %q", n, err, b[:m])
	}
	return string(b)
}

// readUntil returns everything up to and with end.
func (c *rawConn) readUntil(end string) string {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	var b strings.Builder
	for !strings.HasSuffix(b.String(), end) {
		ch, err := c.br.ReadByte()
		if err != nil {
			c.t.Fatalf("read until %q: %v after %q", end, err, b.String())
		}
		b.WriteByte(ch)
	}
	return b.String()
}

// expectClosed wants the connection to end without another byte, by FIN or RST.
func (c *rawConn) expectClosed(why string) {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	rest, err := io.ReadAll(c.br)
	if isTimeout(err) {
		c.t.Errorf("the connection stays open, but %s", why)
	}
	if len(rest) > 0 {
		c.t.Errorf("%d more bytes came (%.80q), but %s", len(rest), rest, why)
	}
}

// reset closes with RST in place of FIN.
func (c *rawConn) reset() { resetConn(c.Conn) }

func resetConn(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if t, ok := c.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	c.Close()
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
