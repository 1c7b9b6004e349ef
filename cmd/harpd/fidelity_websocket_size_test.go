package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	coder "github.com/coder/websocket"
	"github.com/gorilla/websocket"
)

// TestWebSocketSizes echoes messages of every awkward size, each kind by each library.
func TestWebSocketSizes(t *testing.T) {
	t.Parallel()
	sizes := []int{0, 1, 125, 126, 127, 65_535, 65_536, maxBody - 1, maxBody}
	for name, h := range map[string]http.Handler{
		"gorilla": gorillaEcho(websocket.Upgrader{}), "coder": coderEcho(coder.AcceptOptions{}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tn := publish(t, serveUpstream(t, h))
			g, _ := tn.gorillaDial(t, websocket.Dialer{}, nil)
			c, _ := tn.coderDial(t, coder.DialOptions{})
			for _, n := range sizes {
				text := strings.Repeat("aé", n/3) + strings.Repeat("z", n%3)
				wantCoderEcho(t, c, coder.MessageText, text)
				wantCoderEcho(t, c, coder.MessageBinary, string(pattern(n)))
				wantGorillaEcho(t, g, websocket.TextMessage, []byte(text))
				wantGorillaEcho(t, g, websocket.BinaryMessage, pattern(n))
			}
		})
	}
}

func wantGorillaEcho(t *testing.T, c *websocket.Conn, kind int, p []byte) {
	t.Helper()
	if err := c.WriteMessage(kind, p); err != nil {
		t.Fatal(err)
	}
	gotKind, got, err := c.ReadMessage()
	if err != nil || gotKind != kind || !bytes.Equal(got, p) {
		t.Fatalf("the echo of %d bytes (kind %d) is %d bytes (kind %d), %v", len(p), kind, len(got), gotKind, err)
	}
}

// TestWebSocketAtLimit wants messages of exactly the limit to pass, in any number of fragments, again and again: control frames
// do not count, and each message counts for itself.
func TestWebSocketAtLimit(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, from, to *rawConn, build func(byte, string) wsFrame) {
		first := build(opBinary, string(pattern(maxBody-10)))
		first.more = true
		frames := []wsFrame{
			build(opBinary, string(pattern(maxBody))), build(opText, strings.Repeat("t", maxBody)),
			first, build(opPing, strings.Repeat("p", 125)), build(opContinue, "0123456789"),
			build(opText, "one more"),
		}
		for i, f := range frames {
			wrote := make(chan error, 1)
			go func() { wrote <- from.write(f.wire()) }() // ends when the frame was read
			to.want(f.wire(), fmt.Sprintf("frame %d is within the limit", i))
			await(t, wrote, "the frame to be sent", func(err error) {
				if err != nil {
					t.Errorf("frame %d: %v", i, err)
				}
			})
		}
	})
}

// oversize are ways to send a message beyond the default limit; whole is what may still arrive of it.
var oversize = map[string]func(build func(byte, string) wsFrame) (frames []wsFrame, whole int){
	"one frame": func(build func(byte, string) wsFrame) ([]wsFrame, int) {
		return []wsFrame{build(opBinary, string(pattern(maxBody+1)))}, 0
	},
	"text": func(build func(byte, string) wsFrame) ([]wsFrame, int) {
		return []wsFrame{build(opText, strings.Repeat("x", maxBody+1))}, 0
	},
	"5 MiB": func(build func(byte, string) wsFrame) ([]wsFrame, int) {
		return []wsFrame{build(opBinary, string(pattern(5<<20)))}, 0
	},
	"two fragments": func(build func(byte, string) wsFrame) ([]wsFrame, int) {
		a, b := build(opBinary, string(pattern(maxBody-1))), build(opContinue, "xy")
		a.more = true
		return []wsFrame{a, b}, 1
	},
	"small fragments": func(build func(byte, string) wsFrame) ([]wsFrame, int) {
		var frames []wsFrame
		for i := range 513 {
			f := build(opContinue, strings.Repeat("x", 1000))
			if f.more = true; i == 0 {
				f.op = opText
			}
			frames = append(frames, f)
		}
		return frames, 512
	},
	"after a message": func(build func(byte, string) wsFrame) ([]wsFrame, int) {
		return []wsFrame{build(opText, "fine"), build(opText, strings.Repeat("x", maxBody+1))}, 1
	},
	"2^62 announced": func(build func(byte, string) wsFrame) ([]wsFrame, int) {
		f := build(opBinary, "a few bytes")
		f.length = 1 << 62
		return []wsFrame{f}, 0
	},
	"2^64-1 announced": func(build func(byte, string) wsFrame) ([]wsFrame, int) {
		f := build(opBinary, "a few bytes")
		f.length = 1<<64 - 1
		return []wsFrame{f}, 0
	},
	"fragments of 2^62": func(build func(byte, string) wsFrame) ([]wsFrame, int) {
		a, b := build(opBinary, "abc"), build(opContinue, "a few bytes")
		a.more, b.length = true, 1<<62
		return []wsFrame{a, b}, 1
	},
}

// TestWebSocketTooLarge wants both ends to be told 1009 and then to be cut off, and nothing of the frame that is too
// much to arrive: a frame that stops half-way leaves no room for a close frame.
func TestWebSocketTooLarge(t *testing.T) {
	t.Parallel()
	for name, tt := range oversize {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachWay(t, func(t *testing.T, from, to *rawConn, build func(byte, string) wsFrame) {
				if direct() {
					t.Skip("only the tunnel has a limit")
				}
				frames, whole := tt(build)
				wrote := make(chan struct{})
				go func() { // ends when from is closed
					defer close(wrote)
					from.write(wireOf(frames)) // fails when the tunnel has had enough
				}()
				toUpstream := frames[0].mask != nil
				wantTooLarge(t, "receiver", to, frames[:whole], toUpstream)
				wantTooLarge(t, "sender", from, nil, !toUpstream)
				from.Close()
				<-wrote
			})
		})
	}
}

// wantTooLarge wants these frames, a close frame with 1009, and the end.
func wantTooLarge(t *testing.T, who string, c *rawConn, before []wsFrame, isMasked bool) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	for i, want := range before {
		f, err := readFrame(c.br)
		if err != nil || !sameWire(f, want) {
			t.Fatalf("%s: frame %d of those within the limit is opcode %d with %d bytes (%v)", who, i, f.op, len(f.payload), err)
		}
	}
	f, err := readFrame(c.br)
	if err != nil {
		t.Fatalf("%s: %v in place of a close frame, after opcode %d of %d bytes", who, err, f.op, f.length)
	}
	if f.op != opClose || f.more || len(f.payload) < 2 || !strings.HasPrefix(string(f.payload), closePayload(1009, "")) {
		t.Fatalf("%s: got opcode %d with %d bytes (%.60q), want a close frame with 1009", who, f.op, len(f.payload), f.payload)
	}
	if (f.mask != nil) != isMasked {
		t.Errorf("%s: the close frame is masked: %v, RFC 6455 section 5.1 wants %v", who, f.mask != nil, isMasked)
	}
	if len(f.payload) > 125 {
		t.Errorf("%s: the close frame has %d bytes, RFC 6455 section 5.5 allows 125", who, len(f.payload))
	}
	if rest, err := c.ending(patience); len(rest) > 0 || isTimeout(err) {
		t.Errorf("%s: after the close frame %q, %v, want the end", who, rest, err)
	}
}

// TestWebSocketTooLargeInTraffic wants the 1009 to come between two frames of what flows the other way.
func TestWebSocketTooLargeInTraffic(t *testing.T) {
	t.Parallel()
	eachWay(t, func(t *testing.T, from, to *rawConn, build func(byte, string) wsFrame) {
		if direct() {
			t.Skip("only the tunnel has a limit")
		}
		other := plainFrame
		if build(opText, "").mask == nil {
			other = maskedFrame
		}
		flow := other(opBinary, string(pattern(50_000))).wire()
		var stopped = make(chan struct{})
		go func() { // ends when the tunnel cuts the connection
			defer close(stopped)
			for to.write(flow) == nil {
			}
		}()
		from.readExactly(len(flow))
		tooMuch := build(opBinary, "")
		tooMuch.length = maxBody + 1
		from.send(tooMuch.wire())
		from.SetReadDeadline(time.Now().Add(patience))
		for {
			f, err := readFrame(from.br)
			if err != nil {
				t.Fatalf("%v, want whole frames and then a close frame", err)
			}
			if f.op == opClose {
				if !strings.HasPrefix(string(f.payload), closePayload(1009, "")) {
					t.Errorf("closed with %q, want 1009", f.payload)
				}
				break
			}
			if f.op != opBinary || len(f.payload) != 50_000 {
				t.Fatalf("got opcode %d of %d bytes amid the other side's frames: something was put inside a frame", f.op, len(f.payload))
			}
		}
		from.Close()
		to.Close()
		<-stopped
	})
}

// TestWebSocketTooLargeSeenByLibraries has real ends learn why they were cut off.
func TestWebSocketTooLargeSeenByLibraries(t *testing.T) {
	t.Parallel()
	seen := make(chan error, 2)
	tn := publish(t, serveUpstream(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := new(websocket.Upgrader).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		if r.Header.Get("X-Send") != "" {
			c.WriteMessage(websocket.BinaryMessage, pattern(maxBody+1))
		}
		_, _, err = c.ReadMessage()
		seen <- err
	})))
	tn.needsTunnel(t)
	want1009 := func(who string, err error) {
		var g *websocket.CloseError
		if code := coder.CloseStatus(err); code != coder.StatusMessageTooBig && (!errors.As(err, &g) || g.Code != 1009) {
			t.Errorf("%s: %v, want the close code 1009", who, err)
		}
	}
	for _, send := range []string{"", "upstream"} {
		fields := http.Header{}
		if send != "" {
			fields.Set("X-Send", send)
		}
		g, _ := tn.gorillaDial(t, websocket.Dialer{}, fields)
		if send == "" {
			g.WriteMessage(websocket.BinaryMessage, pattern(maxBody+1))
		}
		_, _, err := g.ReadMessage()
		want1009("gorilla's client, sent by "+send, err)
		await(t, seen, "the upstream's end", func(err error) { want1009("gorilla's server, sent by "+send, err) })

		c, _ := tn.coderDial(t, coder.DialOptions{HTTPHeader: fields})
		if send == "" {
			c.Write(t.Context(), coder.MessageBinary, pattern(maxBody+1))
		}
		_, _, err = c.Read(t.Context())
		want1009("coder's client, sent by "+send, err)
		await(t, seen, "the upstream's end", func(err error) { want1009("gorilla's server, sent by "+send, err) })
	}
}

// TestWebSocketNoLimit wants a message of 5 MiB to pass when the limit is off, and an announced length that nobody
// can send to hurt nothing.
func TestWebSocketNoLimit(t *testing.T) {
	t.Parallel()
	noLimit := withConfig(func(c *config) { c.MaxBody = 0 })
	tn := publish(t, serveUpstream(t, gorillaEcho(websocket.Upgrader{})), noLimit)
	g, _ := tn.gorillaDial(t, websocket.Dialer{}, nil)
	wantGorillaEcho(t, g, websocket.BinaryMessage, pattern(5<<20))
	c, _ := tn.coderDial(t, coder.DialOptions{})
	wantCoderEcho(t, c, coder.MessageText, strings.Repeat("12345", 1<<20))
	eachWay(t, func(t *testing.T, from, to *rawConn, build func(byte, string) wsFrame) {
		f := build(opBinary, "a few bytes")
		f.length = 1 << 62
		from.send(f.wire())
		to.want(f.wire(), "the limit is off: what this means is for the other end to judge")
		from.Close()
		if _, err := to.ending(patience); isTimeout(err) || err == nil && err != io.EOF {
			t.Errorf("after the sender left: %v, want the end", err)
		}
	}, noLimit)
}
