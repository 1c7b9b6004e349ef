package tunnel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/harp-tunnel/harp/messages"
)

// A pendingCall is a request that was sent by Send.
type pendingCall struct {
	Pending
	t     *testing.T
	calls atomic.Int32
	ready func() // called by Ready; may be nil
}

func (c *pendingCall) Ready() {
	c.calls.Add(1)
	if c.ready != nil {
		c.ready()
	}
}

// sendsOne has the session send a request, which the peer takes.
func (p *peer) sendsOne() (*pendingCall, uint32) {
	p.t.Helper()
	c := &pendingCall{t: p.t}
	if err := p.s.Send(&c.Pending, pendingHead("/x"), fields("A", "1", "A", "2"), c); err != nil {
		p.t.Fatal(err)
	}
	id, head := p.wantsRequest("a request was sent")
	if got := string(head.Fields); head.Target != "/x" || got != string(fields("A", "1", "A", "2")) || head.Registration != 7 {
		p.t.Errorf("it arrived as %+v", head)
	}
	return c, id
}

func pendingHead(target string) *messages.HTTPRequest {
	return &messages.HTTPRequest{
		Registration: 7, Method: "GET", Scheme: "http", Authority: "label.example.com", Target: target, Visitor: "192.0.2.7:1234",
	}
}

func fields(pairs ...string) (b []byte) {
	for i := 0; i < len(pairs); i += 2 {
		b = messages.AppendField(b, pairs[i], pairs[i+1])
	}
	return b
}

// looks checks how much has come, and that Ready was called since the last time.
func (c *pendingCall) looks(why string, want Progress, size int) {
	c.t.Helper()
	synctest.Wait()
	if got, _, n := c.Look(); got != want || n != size {
		c.t.Errorf("%s: Look says %d with %d bytes, want %d with %d", why, got, n, want, size)
	}
	if c.calls.Swap(0) == 0 && want != NoAnswer {
		c.t.Errorf("%s: nobody was told", why)
	}
}

func TestPendingLook(t *testing.T) {
	large := strings.Repeat("x", chunkSize)
	for _, c := range []struct {
		name string
		want Progress
		size int
		come func(id uint32) [][]byte // in one batch
	}{
		{"nothing", NoAnswer, 0, nil},
		{"a head", PartAnswer, 0, func(id uint32) [][]byte { return [][]byte{responds(id, 200, 0)} }},
		{"a part", PartAnswer, 4, func(id uint32) [][]byte { return [][]byte{responds(id, 200, 0), body(id, "body")} }},
		{"the whole", WholeAnswer, 4, func(id uint32) [][]byte { return [][]byte{responds(id, 200, 0), end(id, "body")} }},
		{"no body", WholeAnswer, 0, func(id uint32) [][]byte { return [][]byte{responds(id, 204, messages.FlagEnd)} }},
		{"as much as may be", WholeAnswer, chunkSize, func(id uint32) [][]byte { return [][]byte{responds(id, 200, 0), end(id, large)} }},
		{"more", OtherAnswer, 0, func(id uint32) [][]byte { return [][]byte{responds(id, 200, 0), body(id, large), body(id, "x")} }},
		{"an interim head", OtherAnswer, 0, func(id uint32) [][]byte { return [][]byte{responds(id, 103, 0)} }},
		{"that and the whole", OtherAnswer, 0, func(id uint32) [][]byte {
			return [][]byte{responds(id, 103, 0), responds(id, 200, 0), end(id, "body")}
		}},
		{"trailers", OtherAnswer, 0, func(id uint32) [][]byte { return [][]byte{responds(id, 200, 0), trailers(id, "X: y")} }},
		{"a cancel", OtherAnswer, 0, func(id uint32) [][]byte { return [][]byte{cancels(id, messages.CancelBroken, "why")} }},
		{"101", OtherAnswer, 0, func(id uint32) [][]byte { return [][]byte{responds(id, 101, 0)} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPeer(t, Config{})
				call, id := p.sendsOne()
				if c.come != nil {
					p.sends(c.come(id)...)
				}
				call.looks(c.name, c.want, c.size)
				call.Cancel()
				if n := p.s.Streams(); n != 0 {
					t.Errorf("%d streams are left", n)
				}
				if call.calls.Load() > 0 {
					t.Error("it was called after Cancel")
				}
			})
		})
	}
}

func TestPendingTake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		call, id := p.sendsOne()
		p.sends(responds(id, 200, 0, "X: y"))
		if b, ok := call.Take([]byte("a")); ok || string(b) != "a" {
			t.Errorf("a part was taken: %q", b)
		}
		call.looks("the head came", PartAnswer, 0)
		p.sends(body(id, "bo"))
		p.sends(end(id, "dy"))
		call.looks("the body came", WholeAnswer, 4)
		if b, ok := call.Take([]byte("a ")); !ok || string(b) != "a body" {
			t.Errorf("took %q, %v", b, ok)
		}
		if n := p.s.Streams(); n != 0 {
			t.Errorf("%d streams are left", n)
		}
		p.sends(end(id, "more"), cancels(id, messages.CancelAborted, ""))
		synctest.Wait()
		if n := call.calls.Load(); n > 0 {
			t.Errorf("it was called %d times after Take", n)
		}
		p.idle("after Take")
		p.alive("after Take")
	})
}

func TestPendingCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		call, id := p.sendsOne()
		call.Cancel()
		p.wantsCancel("nobody waits", id, messages.CancelAborted)
		call, id = p.sendsOne()
		p.sends(responds(id, 200, messages.FlagEnd))
		call.Cancel()
		p.idle("what has ended needs no cancel")
	})
}

// Await gets all that has come, and all that comes after it.
func TestPendingAwait(t *testing.T) {
	for _, c := range []struct {
		name         string
		before, then func(id uint32) [][]byte
		body         string
		failed       bool
	}{
		{"nothing", nil, func(id uint32) [][]byte { return [][]byte{responds(id, 200, 0), end(id, "body")} }, "body", false},
		{"a part", func(id uint32) [][]byte { return [][]byte{responds(id, 200, 0), body(id, "bo")} },
			func(id uint32) [][]byte { return [][]byte{end(id, "dy")} }, "body", false},
		{"the whole", func(id uint32) [][]byte { return [][]byte{responds(id, 103, 0), responds(id, 200, 0), end(id, "body")} }, nil, "body", false},
		{"no body", func(id uint32) [][]byte { return [][]byte{responds(id, 200, messages.FlagEnd)} }, nil, "", false},
		{"an error", func(id uint32) [][]byte { return [][]byte{cancels(id, messages.CancelBroken, "")} }, nil, "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPeer(t, Config{})
				call, id := p.sendsOne()
				if c.before != nil {
					p.sends(c.before(id)...)
				}
				if c.then != nil {
					go func() { _ = p.conn.WriteBinary(bytes.Join(c.then(id), nil)) }() // ends when it is sent
				}
				res, err := call.Await(context.Background(), request("GET", "/x", nil), nil)
				if c.failed {
					if cancelled := (*CancelError)(nil); !errors.As(err, &cancelled) {
						t.Fatalf("the error is %v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(res.Body)
				if string(b) != c.body || err != nil || res.StatusCode != http.StatusOK {
					t.Errorf("got %d %q, %v", res.StatusCode, b, err)
				}
				_ = res.Body.Close()
				if n := p.s.Streams(); n != 0 {
					t.Errorf("%d streams are left", n)
				}
			})
		})
	}
}

func TestPendingLinkDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		call, _ := p.sendsOne()
		whole, id := p.sendsOne()
		p.sends(responds(id, 200, 0), end(id, "body"))
		whole.looks("it came", WholeAnswer, 4)
		p.conn.Close()
		synctest.Wait()
		call.looks("the link died", OtherAnswer, 0)
		if _, ok := call.Take(nil); ok {
			t.Error("an answer that did not come was taken")
		}
		if _, err := call.Await(context.Background(), request("GET", "/x", nil), nil); !errors.Is(err, ErrClosed) || Unprocessed(err) {
			t.Errorf("Await returned %v", err)
		}
		if b, ok := whole.Take(nil); !ok || string(b) != "body" {
			t.Errorf("what came before was taken as %q, %v", b, ok)
		}
		late := &pendingCall{t: t}
		if err := p.s.Send(&late.Pending, pendingHead("/"), nil, late); !Unprocessed(err) {
			t.Errorf("Send over a dead link returned %v", err)
		}
	})
}

// Send does not wait for a link whose peer does not read.
func TestPendingSendDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeerQueue(t, Config{}, 1)
		p.fills()
		filler := fields("X", strings.Repeat("x", 64<<10))
		var err error
		sent := 0
		for ; err == nil && sent < 100; sent++ { // a wait would be a deadlock of the bubble
			c := &pendingCall{t: t}
			err = p.s.Send(&c.Pending, pendingHead("/"), filler, c)
		}
		if err == nil {
			t.Fatalf("%d heads found room", sent)
		}
		if n := p.s.Streams(); n != sent {
			t.Errorf("%d streams, want that of fills and %d", n, sent-1)
		}
	})
}

// The peer may answer before Send has returned.
func TestPendingReadyDuringSend(t *testing.T) {
	edge, _ := newLoopbackPair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RequestURI) }))
	for range 500 {
		done := make(chan string, 1)
		c := &pendingCall{t: t}
		c.ready = func() {
			if so, _, _ := c.Look(); so == WholeAnswer {
				b, _ := c.Take(nil)
				done <- string(b)
			}
		}
		if err := edge.Send(&c.Pending, pendingHead("/ready"), nil, c); err != nil {
			t.Fatal(err)
		}
		if got := <-done; got != "/ready" {
			t.Fatalf("got %q", got)
		}
	}
}
