package main

import (
	"bufio"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// okAnswer is what a recorder answers unless told otherwise.
const okAnswer = "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"

// A recorder is a raw upstream that keeps what it was sent, as the wire said it.
type recorder struct {
	Target string
	seen   chan message // one per request; with Err set if the wire held anything but a plain request
}

// recordUpstream starts a recorder; answer returns the bytes to send for a request, "" to close instead.
// A nil answer sends okAnswer.
func recordUpstream(t *testing.T, answer func(message) string) *recorder {
	t.Helper()
	r := &recorder{seen: make(chan message, 1000)}
	r.Target = scriptUpstream(t, func(_ *testing.T, conn net.Conn, br *bufio.Reader) {
		for {
			m := readMessage(br, "")
			if m.Err == io.EOF {
				return
			}
			r.seen <- m
			if m.Err != nil {
				return
			}
			reply := okAnswer
			if answer != nil {
				reply = answer(m)
			} else if m.method() == "HEAD" {
				reply = strings.TrimSuffix(okAnswer, "ok")
			}
			if reply == "" {
				return
			}
			if _, err := io.WriteString(conn, reply); err != nil || m.get("Connection") == "close" {
				return
			}
		}
	})
	return r
}

// next returns the next request; the test ends if there is none or it broke off.
func (r *recorder) next(t *testing.T) message {
	t.Helper()
	select {
	case m := <-r.seen:
		if m.Err != nil {
			t.Fatalf("the upstream was sent a broken request: %v; it got %q %q and %d bytes of body", m.Err, m.Line, m.Fields, len(m.Body))
		}
		return m
	case <-time.After(patience):
		t.Fatal("the upstream was sent nothing")
	}
	panic("not reached")
}

// complete returns the requests that have come in full so far and were not taken by next.
func (r *recorder) complete() []message {
	var all []message
	for {
		select {
		case m := <-r.seen:
			if m.Err == nil {
				all = append(all, m)
			}
		default:
			return all
		}
	}
}
