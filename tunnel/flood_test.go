package tunnel

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/harp-tunnel/harp/messages"
)

// held returns how many bytes the outbox has for a peer that does not read.
func (o *outbox) held() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := cap(o.urgent) + cap(o.body)
	for _, text := range o.texts {
		n += len(text)
	}
	return n
}

// TestFloodsWithoutReading has a peer ask and ask and never read an answer: the link ends before much is held.
func TestFloodsWithoutReading(t *testing.T) {
	for _, c := range []struct {
		name    string
		message func(id uint32) []byte
	}{
		{"pings", func(uint32) []byte { return messages.AppendPing(nil, 0, [messages.PingLen]byte{}) }},
		{"requests that are refused", func(id uint32) []byte { return requests(id, "GET", "/", messages.FlagEnd) }},
		{"requests that are none", func(id uint32) []byte { return raw(messages.TypeHTTPRequest, 0, id, garbage) }},
		{"messages for streams that were never opened", func(uint32) []byte { return body(1<<31, "x") }},
		{"TLS requests", func(id uint32) []byte { return raw(messages.TypeTLSRequest, 0, id, "") }},
	} {
		synctest.Test(t, func(t *testing.T) {
			wait := make(chan struct{})
			p := newPeerQueue(t, Config{MaxStreams: 10, Handler: func(uint32) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-wait })
			}}, 1)
			defer close(wait)
			most := 0
			for id := uint32(1); p.s.Err() == nil; {
				var batch []byte
				for range 5000 {
					batch = append(batch, c.message(id)...)
					id++
				}
				if p.conn.WriteBinary(batch) != nil {
					break
				}
				synctest.Wait()
				most = max(most, p.s.out.held())
				if id > 2_000_000 {
					t.Fatalf("%s: the link lives after %d messages, holding %d bytes", c.name, id, most)
				}
			}
			if err := p.dead(c.name); !errors.Is(err, errStalledPeer) {
				t.Errorf("%s: link died of %v, want %v", c.name, err, errStalledPeer)
			}
			if most > 2*maxUrgent {
				t.Errorf("%s: up to %d bytes were held, want at most %d", c.name, most, 2*maxUrgent)
			}
		})
	}
}

// TestFloodsThatAreRead has a peer that reads: such floods are only work.
func TestFloodsThatAreRead(t *testing.T) {
	for _, c := range []struct {
		name    string
		message func(open, id uint32) []byte
		answers int // for each message
	}{
		{"pings", func(_, _ uint32) []byte { return messages.AppendPing(nil, 0, [messages.PingLen]byte{}) }, 1},
		{"credit", func(open, _ uint32) []byte { return credit(open, 1) }, 0},
		{"empty pieces", func(open, _ uint32) []byte { return body(open, "") }, 0},
		{"cancels", func(_, id uint32) []byte { return cancels(id, messages.CancelAborted, "") }, 0},
		{"requests and cancels", func(_, id uint32) []byte {
			return append(requests(id, "GET", "/", 0), cancels(id, messages.CancelAborted, "")...)
		}, -1},
		{"messages of unknown types", func(open, _ uint32) []byte { return raw(0x77, 0xff, open, garbage) }, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newAgent(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
			p.sends(requests(1, "POST", "/", 0))
			id, answers := uint32(2), 0
			for range 20 {
				var batch []byte
				for range 500 {
					batch = append(batch, c.message(1, id)...)
					id++
				}
				p.sends(batch)
				for p.pending() {
					p.next(c.name)
					answers++
				}
			}
			if c.answers >= 0 && answers != 10_000*c.answers {
				t.Errorf("%s: %d answers to 10,000 messages, want %d", c.name, answers, 10_000*c.answers)
			}
			if n := p.s.Streams(); n != 1 {
				t.Errorf("%s: %d streams, want the first one only", c.name, n)
			}
			if n := p.s.out.held(); n > keepBuffer {
				t.Errorf("%s: the outbox still holds %d bytes", c.name, n)
			}
			p.alive(c.name)
		})
	}
}

// TestTenThousandAtOnce makes more requests than a link takes: each is answered or was not sent.
func TestTenThousandAtOnce(t *testing.T) {
	p := newPair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RequestURI) }))
	p.get(request("GET", "/", nil))
	before := runtime.NumGoroutine()
	var answered, busy atomic.Int64
	done := make(chan struct{})
	for n := range 10_000 {
		go func() {
			defer func() { done <- struct{}{} }()
			target := fmt.Sprintf("/%d", n)
			res, err := p.edge.RoundTrip(1, request("GET", target, nil))
			if err != nil {
				if !errors.Is(err, ErrBusy) && !Unprocessed(err) {
					t.Errorf("request failed: %v", err)
				}
				busy.Add(1)
				return
			}
			if b, err := io.ReadAll(res.Body); err != nil || string(b) != target {
				t.Errorf("response to %s is %q, %v", target, b, err)
			}
			res.Body.Close()
			answered.Add(1)
		}()
	}
	for range 10_000 {
		<-done
	}
	t.Logf("%d answered, %d refused", answered.Load(), busy.Load())
	if answered.Load() < DefaultMaxStreams {
		t.Errorf("%d requests were answered, want at least as many as there may be streams", answered.Load())
	}
	wantGoroutines(t, before)
}

// TestTenThousandAtAnAgent sends ten thousand requests in a few batches to handlers that wait.
func TestTenThousandAtAnAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wait := make(chan struct{})
		p := newAgent(t, func(w http.ResponseWriter, r *http.Request) { <-wait })
		for i := range uint32(100) {
			var batch []byte
			for j := range uint32(100) {
				batch = append(batch, requests(i*100+j+1, "GET", "/", messages.FlagEnd)...)
			}
			p.sends(batch)
		}
		refused := 0
		for p.pending() {
			h, payload := p.next("refusals")
			if code, _, err := messages.ParseCancel(payload); h.Type != messages.TypeCancel || err != nil || code != messages.CancelRefused {
				t.Errorf("session sent %s, want a refusal", show(h, payload))
			}
			refused++
		}
		if want := 10_000 - DefaultMaxStreams; refused != want {
			t.Errorf("%d requests were refused, want %d", refused, want)
		}
		close(wait)
		answered := 0
		for p.pending() {
			p.next("answers")
			answered++
		}
		if answered != DefaultMaxStreams {
			t.Errorf("%d requests were answered, want %d", answered, DefaultMaxStreams)
		}
	})
}
