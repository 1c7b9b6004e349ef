package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// streams opens a response of which nothing was read, and returns its body.
func (p *peer) streams() (uint32, io.ReadCloser) {
	p.t.Helper()
	c, id := p.opens("GET", "/", nil)
	p.sends(responds(id, 200, 0))
	return id, c.answered("the head came").Body
}

// feeds sends n bytes of a body.
func (p *peer) feeds(id uint32, n int) {
	p.t.Helper()
	piece := make([]byte, min(n, 256<<10))
	for n > 0 {
		m := min(n, len(piece))
		p.sends(messages.AppendBody(nil, messages.TypeBody, 0, id, piece[:m]))
		n -= m
	}
}

// credits takes what the session gives back, all of it on stream id.
func (p *peer) credits(id uint32) (n int) {
	p.t.Helper()
	for p.pending() {
		h, payload := p.next("credit")
		if h.Type != messages.TypeCredit || h.Stream != id {
			p.t.Fatalf("session sent %s, want nothing but credit for stream %d", show(h, payload), id)
		}
		n += int(binary.BigEndian.Uint32(payload))
	}
	return n
}

func read(t *testing.T, r io.Reader, n int) {
	t.Helper()
	if _, err := io.ReadFull(r, make([]byte, n)); err != nil {
		t.Fatalf("read %d bytes: %v", n, err)
	}
}

func TestSenderKeepsToWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		sent := pattern(1<<20, 3)
		_, id := p.opens("POST", "/", bytes.NewReader(sent))
		var got []byte
		takes := func(why string, n int) {
			t.Helper()
			for len(got) < n {
				h, payload := p.next(why)
				if h.Type != messages.TypeBody || h.Flags != 0 {
					t.Fatalf("%s: session sent %s, want body", why, show(h, payload))
				}
				got = append(got, payload...)
			}
			if len(got) != n {
				t.Fatalf("%s: %d bytes were sent, want %d", why, len(got), n)
			}
			p.idle(why)
		}
		takes("the first window", DefaultStreamWindow)
		p.sends(credit(id, 1))
		takes("credit for a byte", DefaultStreamWindow+1)
		p.sends(credit(id, 40_000), credit(id, 2))
		takes("credit for more", DefaultStreamWindow+40_003)
		p.sends(credit(id, 1<<30))
		takes2 := 1<<20 - len(got)
		for len(got) < 1<<20 {
			_, payload := p.next("the rest")
			got = append(got, payload...)
		}
		if !bytes.Equal(got, sent) {
			t.Errorf("the last %d bytes are not those that were sent", takes2)
		}
		p.wants("the end", end(id, ""))
	})
}

// TestEndNeedsNoCredit fills the window and ends the body in both ways.
func TestEndNeedsNoCredit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newAgent(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "X-Sum")
			_, _ = w.Write(make([]byte, DefaultStreamWindow))
			if r.RequestURI == "/trailers" {
				w.Header().Set("X-Sum", "1")
			}
		})
		p.sends(requests(1, "GET", "/", messages.FlagEnd))
		p.wantsResponse("a response", 1, 200, 0)
		read := 0
		for read < DefaultStreamWindow {
			_, payload := p.next("body")
			read += len(payload)
		}
		p.wants("the end needs no credit", end(1, ""))
		p.sends(requests(2, "GET", "/trailers", messages.FlagEnd))
		p.wantsResponse("a response", 2, 200, 0)
		for read = 0; read < DefaultStreamWindow; {
			_, payload := p.next("body")
			read += len(payload)
		}
		p.wants("trailers need no credit", trailers(2, "X-Sum: 1"))
	})
}

func TestCreditComesBackOnRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		id, b := p.streams()
		p.feeds(id, DefaultStreamWindow)
		read(t, b, DefaultStreamWindow/4-1)
		p.idle("less than a quarter of the window was read")
		read(t, b, 1)
		p.wants("a quarter of the window was read", credit(id, DefaultStreamWindow/4))
		p.idle("and nothing else is sent")
		p.sends(end(id, ""))
		read(t, b, DefaultStreamWindow*3/4)
		p.idle("after the end no credit is due")
		b.Close()
	})
}

// TestWindowGrows reads as fast as bytes come, and counts how far ahead the peer may send.
func TestWindowGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		id, b := p.streams()
		ahead, rounds := DefaultStreamWindow, 0
		for ; ahead < maxStreamWindow*3/4; rounds++ {
			if rounds == 10 {
				t.Fatalf("the peer may send %d bytes after ten windows were read at once, want about %d", ahead, maxStreamWindow)
			}
			time.Sleep(10 * time.Millisecond) // a round trip
			n := ahead
			p.feeds(id, n)
			for part := n; part > 0; part -= min(part, 64<<10) {
				read(t, b, min(part, 64<<10))
			}
			if ahead += p.credits(id) - n; ahead > maxStreamWindow {
				t.Fatalf("the peer may send %d bytes, want at most %d", ahead, maxStreamWindow)
			}
		}
		t.Logf("%d round trips", rounds)
		if got, want := p.s.grown.Load(), int64(maxStreamWindow-DefaultStreamWindow); got != want {
			t.Errorf("the budget has given %d bytes, want %d", got, want)
		}
		b.Close()
		if got := p.s.grown.Load(); got != 0 {
			t.Errorf("%d bytes of the budget are missing after the stream has ended", got)
		}
	})
}

// TestWindowShrinks lets a grown window fill up.
func TestWindowShrinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		id, b := p.streams()
		ahead := DefaultStreamWindow
		for range 10 {
			time.Sleep(10 * time.Millisecond) // a round trip
			n := ahead
			p.feeds(id, n)
			read(t, b, n)
			ahead += p.credits(id) - n
		}
		held := 0
		for range 2 * maxStreamWindow / (32 << 10) { // it sends all it may, and only a part is read
			p.feeds(id, ahead)
			held += ahead
			ahead = 0
			read(t, b, 32<<10)
			held -= 32 << 10
			ahead += p.credits(id)
		}
		if held > DefaultStreamWindow {
			t.Errorf("a reader that is slow for long still holds %d bytes, want at most %d", held, DefaultStreamWindow)
		}
		if got := p.s.grown.Load(); got != 0 {
			t.Errorf("%d bytes of the budget are still in use", got)
		}
		b.Close()
	})
}

// TestSlowTransferGrowsNoWindow has a reader be done with all that comes, but little comes: no round trip is so long that
// it needs a large window.
func TestSlowTransferGrowsNoWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		id, b := p.streams()
		for range 500 {
			time.Sleep(100 * time.Millisecond)
			p.feeds(id, 20<<10)
			read(t, b, 20<<10)
			for p.pending() {
				p.next("credit, or a ping")
			}
		}
		if got := p.s.grown.Load(); got > 2<<20 {
			t.Errorf("a transfer of 200 KiB a second took %d bytes of the budget, want at most 2 MiB", got)
		}
		b.Close()
	})
}

// TestWindowFitsRoundTrip has a sender that is limited by its speed, on a link that was silent before, so that its pings have told
// the round trip.
func TestWindowFitsRoundTrip(t *testing.T) {
	for _, c := range []struct {
		roundTrip   time.Duration
		least, most int64 // bytes of growth
	}{
		{time.Millisecond, 0, 768 << 10},
		{100 * time.Millisecond, 4 << 20, 16 << 20},
	} {
		synctest.Test(t, func(t *testing.T) {
			const rate = 40 << 20 // bytes a second
			a, b := newMemLink(1024)
			a.delay, b.delay, a.rate = c.roundTrip/2, c.roundTrip/2, rate
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, io.LimitReader(zeros{}, 64<<20)) })
			p := runPair(t, a, b, Config{}, Config{Handler: func(uint32) http.Handler { return h }})
			time.Sleep(DefaultPingInterval + time.Second)
			res := p.do(request("GET", "/", nil))
			read(t, res.Body, 60<<20)
			if got := p.edge.grown.Load(); got < c.least || got > c.most {
				t.Errorf("with %v of round trip a transfer of 40 MiB a second took %d bytes of the budget, want %d to %d",
					c.roundTrip, got, c.least, c.most)
			} else {
				t.Logf("%v: %d bytes", c.roundTrip, got)
			}
			res.Body.Close()
		})
	}
}

// TestTransferLeavesRoom has other requests come beside a transfer. On a short link its window makes room for them.
func TestTransferLeavesRoom(t *testing.T) {
	for _, c := range []struct {
		roundTrip   time.Duration
		least, most int // bytes that the peer may send while others come
	}{
		{time.Millisecond, minStreamWindow, crowdBudget},
		{50 * time.Millisecond, 1 << 20, maxStreamWindow},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPeer(t, Config{})
			id, b := p.streams()
			ahead := DefaultStreamWindow
			rounds := func(crowd bool) {
				for range 10 {
					time.Sleep(c.roundTrip)
					if crowd {
						other, body := p.streams()
						body.Close()
						p.wantsCancel("closed", other, messages.CancelAborted)
					}
					n := ahead
					p.feeds(id, n)
					read(t, b, n)
					ahead += p.credits(id) - n
				}
			}
			rounds(false)
			if ahead < 1<<20 {
				t.Errorf("%v: alone, the peer may send %d bytes, want 1 MiB at least", c.roundTrip, ahead)
			}
			rounds(true)
			if ahead < c.least || ahead > c.most {
				t.Errorf("%v: beside other requests, the peer may send %d bytes, want %d to %d", c.roundTrip, ahead, c.least, c.most)
			}
			time.Sleep(2 * crowdMemory)
			rounds(false)
			if ahead < 1<<20 {
				t.Errorf("%v: alone again, the peer may send %d bytes, want 1 MiB at least", c.roundTrip, ahead)
			}
			b.Close()
		})
	}
}

// TestWindowBudget grows more windows than the link has room for: they share it, and leave something for the next.
func TestWindowBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		type open struct {
			id    uint32
			body  io.ReadCloser
			ahead int
		}
		var all []*open
		grow := func() {
			for range 8 {
				time.Sleep(10 * time.Millisecond) // a round trip
				total := 0
				for _, o := range all {
					n := o.ahead
					p.feeds(o.id, n)
					read(t, o.body, n)
					o.ahead += p.credits(o.id) - n
					total += o.ahead
					if o.ahead > maxStreamWindow {
						t.Fatalf("the peer may send %d bytes on a stream, want at most %d", o.ahead, maxStreamWindow)
					}
				}
				if most := windowBudget + len(all)*DefaultStreamWindow; total > most {
					t.Fatalf("the peer may send %d bytes in all, want at most %d", total, most)
				}
			}
			share := (windowBudget + len(all)*DefaultStreamWindow) / (len(all) + 1)
			for _, o := range all {
				if o.ahead < share/2 || o.ahead > share*3/2 {
					t.Errorf("the peer may send %d bytes on one of %d streams, want about %d", o.ahead, len(all), share)
				}
			}
		}
		for range 2 {
			for range 3 { // the first have the budget when the others come
				id, b := p.streams()
				all = append(all, &open{id, b, DefaultStreamWindow})
			}
			grow()
		}
		for _, o := range all[2:] {
			o.body.Close()
			p.wantsCancel("closed", o.id, messages.CancelAborted)
		}
		all = all[:2]
		grow()
		for _, o := range all {
			o.body.Close()
		}
		if got := p.s.grown.Load(); got != 0 {
			t.Errorf("%d bytes of the budget are missing after all streams have ended", got)
		}
	})
}

// TestDataBeyondCredit sends a byte more than the window.
func TestDataBeyondCredit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		other, b := p.streams()
		id, bad := p.streams()
		p.feeds(id, DefaultStreamWindow)
		p.sends(body(id, ""))
		p.idle("an empty piece needs no credit")
		p.sends(body(id, "x"))
		p.wantsCancel("a byte too many", id, messages.CancelFlow)
		if _, err := bad.Read(make([]byte, 10)); !errors.Is(err, ErrProtocol) {
			t.Errorf("reader got %v, want an error that wraps %v", err, ErrProtocol)
		}
		bad.Close()
		p.sends(body(other, "fine"), end(other, ""))
		if got, err := io.ReadAll(b); string(got) != "fine" || err != nil {
			t.Errorf("another stream got %q, %v", got, err)
		}
	})
}

func TestCreditOverflow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		for _, c := range []struct {
			name string
			list []uint32
			want messages.CancelCode
		}{
			{"as much as may be", []uint32{maxCredit - DefaultStreamWindow}, 0},
			{"one more", []uint32{maxCredit - DefaultStreamWindow, 1}, messages.CancelFlow},
			{"too much at once", []uint32{maxCredit}, messages.CancelFlow},
			{"the largest number", []uint32{1<<32 - 1}, messages.CancelFlow},
			{"nothing", []uint32{0}, messages.CancelProtocol},
		} {
			lent := newLentBody("")
			call, id := p.opens("POST", "/", lent)
			for _, n := range c.list {
				p.sends(credit(id, n))
			}
			if c.want == 0 {
				p.idle(c.name)
				p.sends(responds(id, 200, messages.FlagEnd), cancels(id, messages.CancelEnough, ""))
				call.answered(c.name)
			} else {
				p.wantsCancel(c.name, id, c.want)
				if err := call.failed(c.name); !errors.Is(err, ErrProtocol) {
					t.Errorf("%s: RoundTrip failed with %v, want an error that wraps %v", c.name, err, ErrProtocol)
				}
			}
			lent.end()
		}
		p.alive("credit is a matter of its stream")
	})
}

// TestStalledStreamDelaysNoOther fills the window of one stream whose reader sleeps.
func TestStalledStreamDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.RequestURI == "/bulk" {
				_, _ = w.Write(make([]byte, 1<<20))
			}
			_, _ = io.WriteString(w, "small")
		}))
		var stalled []*http.Response
		for range 20 {
			stalled = append(stalled, p.do(request("GET", "/bulk", nil)))
		}
		synctest.Wait()
		for range 100 {
			if _, got := p.get(request("GET", "/", nil)); got != "small" {
				t.Fatalf("got %q beside stalled streams", got)
			}
		}
		p.edge.mu.Lock()
		held := 0
		for _, st := range p.edge.streams {
			held += st.in.size
		}
		p.edge.mu.Unlock()
		if held != 20*DefaultStreamWindow {
			t.Errorf("20 readers that sleep hold %d bytes, want their windows: %d", held, 20*DefaultStreamWindow)
		}
		for _, res := range stalled {
			n, err := io.Copy(io.Discard, res.Body)
			if n != 1<<20+5 || err != nil {
				t.Errorf("after a while the reader got %d bytes, %v", n, err)
			}
		}
	})
}
