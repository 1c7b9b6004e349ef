package tunnel

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/harp-tunnel/harp/messages"
)

// heapAlloc is how many bytes live on the heap.
func heapAlloc() int {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// TestMemoryOfAStream measures what a peer and visitors who never read can make a session hold for each stream, and
// holds it against what Config.MaxStreams promises.
func TestMemoryOfAStream(t *testing.T) {
	const streams = 20
	for _, c := range []struct {
		name string
		fill func(p *peer, id uint32)
		most int // bytes
	}{
		{"waiting", func(*peer, uint32) {}, 16 << 10},
		{"full window", func(p *peer, id uint32) {
			p.sends(responds(id, 200, 0))
			p.feeds(id, DefaultStreamWindow)
		}, DefaultStreamWindow + 16<<10},
		{"full window in small pieces", func(p *peer, id uint32) {
			p.sends(responds(id, 200, 0))
			piece := body(id, "0123456789abcdef")
			for range 64 {
				p.sends([]byte(strings.Repeat(string(piece), DefaultStreamWindow/16/64)))
			}
		}, DefaultStreamWindow + 16<<10},
		{"one byte", func(p *peer, id uint32) { p.sends(responds(id, 200, 0), body(id, "x")) }, 48 << 10},
		{"largest head", func(p *peer, id uint32) { p.sends(responds(id, 200, 0, "X: "+strings.Repeat("x", maxResponseHead-20))) },
			maxResponseHead + 32<<10},
		{"most fields", func(p *peer, id uint32) { p.sends(responds(id, 200, 0, shortFields()...)) }, 384 << 10},
		{"everything", func(p *peer, id uint32) {
			large := func(n int) string { return "X: " + strings.Repeat("x", n-20) }
			p.sends(responds(id, 103, 0)) // the visitor does not take it, so the others wait
			p.sends(responds(id, 103, 0, large(maxInterimBytes)))
			p.sends(responds(id, 200, 0, append(shortFields(), large(maxResponseHead-30_000))...))
			p.feeds(id, DefaultStreamWindow)
			p.sends(trailers(id, large(maxTrailers)))
		}, 1 << 20},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPeer(t, Config{})
			takes := make(chan struct{})
			trace := &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error {
				<-takes
				return nil
			}}
			before := heapAlloc()
			var calls []*call
			for range streams {
				req := request("GET", "/", nil)
				call := p.calls(req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
				id, _ := p.wantsRequest("a request")
				c.fill(p, id)
				calls = append(calls, call)
			}
			if got := (heapAlloc() - before) / streams; got > c.most {
				t.Errorf("%s: a stream takes %d bytes, want at most %d", c.name, got, c.most)
			} else {
				t.Logf("%s: a stream takes %d bytes", c.name, got)
			}
			if n := p.s.Streams(); n != streams {
				t.Errorf("%s: %d streams are open, want %d", c.name, n, streams)
			}
			close(takes)
			for _, call := range calls {
				call.cancel(io.EOF)
			}
			synctest.Wait()
		})
	}
}

// shortFields are as many fields as a head may have, with different names.
func shortFields() (list []string) {
	for i := range messages.MaxFields - 1 {
		list = append(list, fmt.Sprintf("a%d: ", i))
	}
	return list
}

// TestMemoryOfAHandler measures the same at an agent, whose edge sends the largest heads and fills every window.
func TestMemoryOfAHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const streams = 20
		p := newAgent(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		before := heapAlloc()
		for id := range uint32(streams) {
			p.sends(requests(id+1, "POST", "/", 0, append(shortFields(), "X: "+strings.Repeat("x", maxRequestHead-30_000))...))
			p.feeds(id+1, DefaultStreamWindow)
			p.sends(trailers(id+1, "X: "+strings.Repeat("x", maxTrailers-20)))
		}
		if got := (heapAlloc() - before) / streams; got > 1<<20 {
			t.Errorf("a stream takes %d bytes, want at most 1 MiB", got)
		} else {
			t.Logf("a stream takes %d bytes", got)
		}
		if n := p.s.Streams(); n != streams {
			t.Errorf("%d streams are open, want %d", n, streams)
		}
	})
}

// TestMemoryOfGrownWindows has readers be quick until their windows have grown, and then stop.
func TestMemoryOfGrownWindows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const streams = 16
		p := newPeer(t, Config{})
		before := heapAlloc()
		var open []io.Closer
		for range streams {
			id, b := p.streams()
			ahead := DefaultStreamWindow
			for range 32 {
				n := min(ahead, 256<<10)
				p.feeds(id, n)
				read(t, b, n)
				ahead += p.credits(id) - n
			}
			p.feeds(id, ahead)
			open = append(open, b)
		}
		most := windowBudget + streams*(DefaultStreamWindow+32<<10) + 1<<20
		if got := heapAlloc() - before; got > most {
			t.Errorf("%d streams take %d bytes, want at most %d", streams, got, most)
		} else {
			t.Logf("%d streams take %d bytes", streams, got)
		}
		for _, b := range open {
			b.Close()
		}
		for p.pending() {
			p.next("cancels")
		}
		if got := heapAlloc() - before; got > 1<<20 {
			t.Errorf("%d bytes are held after all streams were closed", got)
		}
	})
}

// TestMemoryOfAnIdleLink measures a link on which nothing happens.
func TestMemoryOfAnIdleLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const links = 200
		before := heapAlloc()
		for range links {
			newPeerQueue(t, Config{}, 0)
		}
		synctest.Wait()
		if got := (heapAlloc() - before) / links; got > 16<<10 {
			t.Errorf("an idle link takes %d bytes, want at most 16 KiB beside its connection", got)
		} else {
			t.Logf("an idle link takes %d bytes", got)
		}
	})
}
