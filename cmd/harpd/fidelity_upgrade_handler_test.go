package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// hijack is a handler that takes the connection over and leaves it to f.
func hijack(t *testing.T, f func(c net.Conn, rw *bufio.ReadWriter)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Errorf("hijack: %v", err)
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(2 * patience))
		f(c, rw)
	})
}

// TestUpgradeHandler has a handler write its own 101 and then speak a protocol of its own.
func TestUpgradeHandler(t *testing.T) {
	t.Parallel()
	ended := make(chan error, 1)
	tn := publishHandler(t, hijack(t, func(c net.Conn, rw *bufio.ReadWriter) {
		// The head in pieces, as bufio would send one that does not fit.
		for _, piece := range []string{
			"HTTP/1.1 101 Switching", " Protocols\r\nConnection: Upgrade\r\nUpgrade: foo/2\r\nX-A: 1\r\nX-A: 2\r\n\r", "\nfirst",
		} {
			io.WriteString(c, piece)
		}
		_, err := io.Copy(c, rw) // echoes to the visitor's half-close
		io.WriteString(c, "bye")
		ended <- err
	}))
	c := tn.dial(t)
	c.send(c.request("GET", "/x", "Connection: Upgrade", "Upgrade: foo/2") + "early")
	h := c.readHead()
	if h.status() != 101 || h.get("Upgrade") != "foo/2" || len(h.values("X-A")) != 2 {
		t.Fatalf("got %q %q, want the handler's own head", h.Line, h.Fields)
	}
	c.want("firstearly", "what is written behind the head follows it, and so does the visitor's early data")
	c.send("\x00\xff raw")
	c.want("\x00\xff raw", "the handler echoes")
	c.closeWrite()
	c.want("bye", "the handler still had this to say after the half-close")
	if rest, err := c.ending(abortLimit); err != io.EOF || len(rest) > 0 {
		t.Errorf("after the handler closed: %q, %v, want the end", rest, err)
	}
	await(t, ended, "the handler to end", func(err error) {
		if err != nil {
			t.Errorf("the handler's read ended with %v, want the visitor's end", err)
		}
	})
}

// TestUpgradeHandlerReset wants a reset to be an error for the handler, and a deadline to work.
func TestUpgradeHandlerReset(t *testing.T) {
	t.Parallel()
	ended := make(chan error, 1)
	tn := publishHandler(t, hijack(t, func(c net.Conn, rw *bufio.ReadWriter) {
		io.WriteString(c, strings.Replace(wsSwitch, "websocket", "foo/2", 1))
		c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); !isTimeout(err) {
			t.Errorf("read past its deadline: %v, want a timeout", err)
		}
		c.SetReadDeadline(time.Now().Add(2 * patience))
		io.WriteString(c, "ready")
		_, err := io.Copy(io.Discard, c)
		ended <- err
	}))
	c := tn.dial(t)
	c.send(c.request("GET", "/x", "Connection: Upgrade", "Upgrade: foo/2"))
	if h := c.readHead(); h.status() != 101 {
		t.Fatalf("got %q", h.Line)
	}
	c.want("ready", "a deadline that has passed and was moved does not hurt")
	c.reset()
	start := time.Now()
	await(t, ended, "the handler to see the reset", func(err error) {
		if err == nil || isTimeout(err) || time.Since(start) > abortLimit {
			t.Errorf("after the visitor's reset the handler got %v after %v, want an error within %v", err, time.Since(start), abortLimit)
		}
	})
}

// TestHijackedResponse has a handler write an ordinary response by hand.
func TestHijackedResponse(t *testing.T) {
	t.Parallel()
	large := string(pattern(200_000))
	for name, response := range map[string]string{
		"sized":     fmt.Sprintf("HTTP/1.1 418 I'm a teapot\r\nContent-Length: %d\r\nX-A: 1\r\n\r\n%s", len(large), large),
		"chunked":   "HTTP/1.1 418 I'm a teapot\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\n\r\n" + chunk(large) + chunk(""),
		"until end": "HTTP/1.1 418 I'm a teapot\r\nConnection: close\r\nX-A: 1\r\n\r\n" + large,
	} {
		for _, request := range []string{"plain", "Upgrade"} {
			t.Run(name+" to a "+request+" request", func(t *testing.T) {
				t.Parallel()
				tn := publishHandler(t, hijack(t, func(c net.Conn, rw *bufio.ReadWriter) {
					rw.WriteString(response)
					if err := rw.Flush(); err != nil {
						t.Errorf("the handler cannot write its response: %v", err)
					}
				}))
				c := tn.dial(t)
				var fields []string
				if request == "Upgrade" {
					fields = []string{"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: " + wsKey, "Sec-WebSocket-Version: 13"}
				}
				m := c.do("GET", "/x", fields...)
				if diff := sameBytes(m.Body, []byte(large)); m.status() != 418 || m.get("X-A") != "1" || diff != "" {
					t.Errorf("got %q %q with %s, want the handler's response", m.Line, m.Fields, diff)
				}
			})
		}
	}
}

// TestHijackedResponseShort has a handler break its own response off: that must not look whole.
func TestHijackedResponseShort(t *testing.T) {
	t.Parallel()
	tn := publishHandler(t, hijack(t, func(c net.Conn, rw *bufio.ReadWriter) {
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello")
	}))
	c := tn.dial(t)
	c.send(c.request("GET", "/x"))
	if m := c.response("GET"); m.status() == 200 && m.Err == nil {
		t.Errorf("5 of 100 bytes arrived as a whole response: %q %q", m.Line, m.Body)
	}
}
