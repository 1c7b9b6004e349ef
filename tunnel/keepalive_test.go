package tunnel

import (
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// pings returns how many pings the session has sent, and wants each to come after a message of the reserved type.
func (p *peer) pings() (n int) {
	p.t.Helper()
	for p.pending() {
		h, _ := p.next("ping")
		if h.Type != messages.TypeReserved || h.Stream != 0 {
			p.t.Fatalf("session sent %s, want a message of the reserved type before each ping", h.Type)
		}
		if h, payload := p.next("ping"); h.Type != messages.TypePing || h.Flags != 0 || h.Stream != 0 || len(payload) != messages.PingLen {
			p.t.Fatalf("session sent %s, want a ping", show(h, payload))
		}
		n++
	}
	return n
}

func TestPingAfterSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		time.Sleep(10*time.Second - time.Millisecond)
		p.idle("ten seconds are not over")
		time.Sleep(time.Millisecond)
		if n := p.pings(); n != 1 {
			t.Fatalf("%d pings after ten seconds of silence, want 1", n)
		}
		time.Sleep(10*time.Second - time.Millisecond)
		p.idle("one ping is enough")
		if p.s.Err() != nil {
			t.Fatalf("link died after %v, want 20 s of patience", 20*time.Second-time.Millisecond)
		}
		time.Sleep(time.Millisecond)
		if err := p.dead("nothing was heard for 20 s"); !errors.Is(err, ErrSilent) {
			t.Errorf("link died of %v, want %v", err, ErrSilent)
		}
		if err := <-p.ran; !errors.Is(err, ErrSilent) {
			t.Errorf("Run returned %v, want %v", err, ErrSilent)
		}
	})
}

// TestAnyMessageIsASignOfLife answers the pings of a day, each in another way.
func TestAnyMessageIsASignOfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{OnText: func([]byte) error { return nil }})
		for i := range 8640 {
			time.Sleep(10 * time.Second)
			if n := p.pings(); n != 1 {
				t.Fatalf("%d pings after %d times ten seconds of silence, want 1", n, i+1)
			}
			switch i % 4 {
			case 0:
				p.sends(messages.AppendPing(nil, messages.FlagAck, [8]byte{}))
			case 1:
				p.sends(messages.AppendReserved(nil, 7))
			case 2:
				_ = p.conn.WriteText([]byte("{}"))
			case 3:
				p.sends(cancels(99, messages.CancelAborted, ""))
			}
		}
		p.alive("a day has gone by")
	})
}

func TestPingIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		data := [messages.PingLen]byte{1, 2, 3, 4, 5, 6, 7, 8}
		p.sends(messages.AppendPing(nil, 0, data))
		p.wants("a ping is answered at once", messages.AppendPing(nil, messages.FlagAck, data))
		p.sends(messages.AppendPing(nil, messages.FlagAck, data))
		p.idle("an answer is not")
	})
}

// TestNoPingWhileThereIsTraffic has a message go each way now and then.
func TestNoPingWhileThereIsTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		c, id := p.opens("GET", "/", nil)
		p.sends(responds(id, 200, 0))
		res := c.answered("the head came")
		for range 100 {
			time.Sleep(400 * time.Millisecond)
			p.sends(body(id, string(make([]byte, DefaultStreamWindow/2))))
			if _, err := io.ReadFull(res.Body, make([]byte, DefaultStreamWindow/2)); err != nil {
				t.Fatal(err)
			}
			for p.pending() {
				if h, payload := p.next("credit"); h.Type != messages.TypeCredit {
					t.Fatalf("session sent %s, want nothing but credit", show(h, payload))
				}
			}
		}
		res.Body.Close()
	})
}

// TestAgentPingsLast keeps an agent's link idle: it answers the edge's pings, and pings only when none comes.
func TestAgentPingsLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newAgent(t, nil)
		for range 10 {
			time.Sleep(10 * time.Second)
			p.idle("the edge is about to ping")
			p.sends(messages.AppendPing(nil, 0, [8]byte{}))
			if h, _ := p.next("the answer to a ping"); h.Type != messages.TypePing || h.Flags&messages.FlagAck == 0 {
				t.Fatalf("the answer to a ping is %v", h)
			}
		}
		time.Sleep(11*time.Second - time.Millisecond)
		p.idle("eleven seconds are not over")
		time.Sleep(time.Millisecond)
		if n := p.pings(); n != 1 {
			t.Fatalf("%d pings after eleven seconds of silence, want 1", n)
		}
		time.Sleep(9*time.Second - time.Millisecond)
		if err := p.s.Err(); err != nil {
			t.Fatalf("link died of %v, want 20 s of patience", err)
		}
		time.Sleep(time.Millisecond)
		if err := p.dead("nothing was heard for 20 s"); !errors.Is(err, ErrSilent) {
			t.Errorf("link died of %v, want %v", err, ErrSilent)
		}
	})
}

// TestPingWhileListening has the peer send and send: it hears nothing from this end unless that pings.
func TestPingWhileListening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		c, id := p.opens("GET", "/", nil)
		p.sends(responds(id, 200, 0))
		n := 0
		for range 60 {
			time.Sleep(time.Second)
			p.sends(body(id, "x"))
			n += p.pings()
		}
		if n < 5 || n > 6 {
			t.Errorf("%d pings in a minute of listening, want one every ten seconds", n)
		}
		c.answered("the head came").Body.Close()
	})
}

// TestPatienceBeginsWithRun has a link wait for its registration before Run.
func TestPatienceBeginsWithRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := newMemLink(16)
		p := &peer{t: t, s: NewSession(there, Config{}), conn: here}
		time.Sleep(15 * time.Second)
		go func() { _ = p.s.Run(context.Background()) }() // ends with the test
		time.Sleep(10 * time.Second)
		if n := p.pings(); n != 1 {
			t.Errorf("%d pings ten seconds after Run, want 1", n)
		}
		if err := p.s.Err(); err != nil {
			t.Errorf("link died of %v ten seconds after Run, want 20 s of patience", err)
		}
		p.s.Close(ErrClosed)
		<-p.s.Done()
	})
}

// TestSlowLinkStaysUp downloads over a link that is slower than its queue is long: each ping waits behind half a minute
// of other streams' bytes.
func TestSlowLinkStaysUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 100 << 10 // bytes a second
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(make([]byte, 400<<10)) })
		a, b := newMemLink(32) // 4 MiB of batches
		a.rate = rate
		p := runPair(t, a, b, Config{}, Config{Handler: func(uint32) http.Handler { return h }})
		var calls []*call
		for range 40 {
			calls = append(calls, goRoundTrip(t, p.edge, request("GET", "/", nil)))
		}
		for _, c := range calls {
			<-c.done
			if c.err != nil {
				t.Fatalf("request failed: %v", c.err)
			}
			if _, err := io.Copy(io.Discard, c.res.Body); err != nil {
				t.Fatalf("download failed: %v", err)
			}
		}
	})
}

// TestLongMessageIsASignOfLife has one message take longer than the patience of a link.
func TestLongMessageIsASignOfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newMemLink(4)
		a.rate = 1000
		p := &peer{t: t, s: NewSession(a, Config{}), conn: b}
		run(t, p.s)
		p.sends(finished(messages.AppendTrailers(nil, 99, messages.Fields(messages.AppendField(nil, "X", string(make([]byte, 60_000)))))))
		time.Sleep(59 * time.Second)
		if err := p.s.Err(); err != nil {
			t.Fatalf("link died of %v while a message was coming", err)
		}
	})
}
