package tunnel

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/harp-tunnel/harp/messages"
)

// split returns the messages of a batch that is sent in parts, and wants each part to be a message that a link can carry.
func split(t *testing.T, b batch) (kinds []messages.Header, payloads [][]byte) {
	t.Helper()
	c := new(partConn)
	if err := b.send(c); err != nil {
		t.Fatal(err)
	}
	for _, part := range c.parts {
		if len(part) > maxMessage {
			t.Errorf("a message of %d bytes is sent, at most %d are allowed", len(part), maxMessage)
		}
		for rest := part; len(rest) > 0; {
			h, payload, r, err := messages.Next(rest)
			if err != nil {
				t.Fatalf("outbox sent %v", err)
			}
			kinds, payloads, rest = append(kinds, h), append(payloads, payload), r
		}
	}
	return kinds, payloads
}

// A partConn keeps what is written to it.
type partConn struct {
	parts [][]byte
	texts []string
}

func (c *partConn) NextMessage() (bool, io.Reader, error) { return false, nil, io.EOF }
func (c *partConn) Close() error                          { return nil }

func (c *partConn) WriteText(text []byte) error {
	c.texts = append(c.texts, string(text))
	return nil
}

func (c *partConn) WriteBinary(parts ...[]byte) error {
	for _, p := range parts {
		if len(p) > 0 {
			c.parts = append(c.parts, bytes.Clone(p))
		}
	}
	return nil
}

// A batchChan is a Conn to which somebody else listens. It takes what need not be cut.
type batchChan chan<- batch

func (batchChan) NextMessage() (bool, io.Reader, error) { return false, nil, io.EOF }
func (batchChan) Close() error                          { return nil }
func (batchChan) WriteText([]byte) error                { return nil }

func (c batchChan) WriteBinary(parts ...[]byte) error {
	c <- batch{urgent: bytes.Clone(parts[0]), body: bytes.Clone(parts[1])}
	return nil
}

// never is for who waits for room without end.
func never() <-chan struct{} { return nil }

func testStream(id uint32) *stream {
	return newStream(NewSession(nil, Config{}), id, messages.TypeBody)
}

// TestNothingIsLost offers from many goroutines in random pieces. The bytes of each stream come out complete and in
// order, and a caller may reuse its buffer as soon as offer has returned.
func TestNothingIsLost(t *testing.T) {
	const streams, size = 64, 300_000
	batches := make(chan batch)
	o := newOutbox(batchChan(batches), func(error) {})
	o.begin()
	var sums [streams + 1]uint32
	var wg sync.WaitGroup
	for id := uint32(1); id <= streams; id++ {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(id)))
			st, buf, left := testStream(id), make([]byte, 100_000), size
			for left > 0 {
				p := buf[:min(left, 1+rnd.IntN(len(buf)))]
				for i := range p {
					p[i] = byte(rnd.Uint32())
				}
				sums[id] = crc32.Update(sums[id], crc32.IEEETable, p)
				if n, err := o.offer(st, p, false, nil); n != len(p) || err != nil {
					t.Errorf("offer of %d bytes: %d, %v", len(p), n, err)
				}
				clear(p)
				left -= len(p)
				if rnd.IntN(4) == 0 {
					_ = o.control(func(b []byte) []byte { return messages.AppendCredit(b, id, 1) })
				}
			}
			_ = o.trail(func(b []byte) []byte { return messages.AppendBody(b, messages.TypeBody, messages.FlagEnd, id, nil) })
		})
	}
	go func() {
		wg.Wait()
		o.close(ErrClosed)
		<-o.written
		close(batches)
	}()
	var got [streams + 1]uint32
	var sizes [streams + 1]int
	var ended [streams + 1]bool
	for b := range batches {
		if len(b.body) > bodyBatch+64*messages.HeaderLen {
			t.Errorf("a batch has %d bytes of bodies, want at most %d and their headers", len(b.body), bodyBatch)
		}
		kinds, payloads := split(t, b)
		for i, h := range kinds {
			if h.Type != messages.TypeBody {
				continue
			}
			if ended[h.Stream] {
				t.Errorf("stream %d: bytes after the end", h.Stream)
			}
			if len(payloads[i]) > turn {
				t.Errorf("stream %d has a turn of %d bytes, want at most %d", h.Stream, len(payloads[i]), turn)
			}
			got[h.Stream] = crc32.Update(got[h.Stream], crc32.IEEETable, payloads[i])
			sizes[h.Stream] += len(payloads[i])
			ended[h.Stream] = h.Flags&messages.FlagEnd != 0
		}
	}
	for id := 1; id <= streams; id++ {
		if got[id] != sums[id] || sizes[id] != size || !ended[id] {
			t.Errorf("stream %d: %d bytes came out (whole: %v, ended: %v), want %d", id, sizes[id], got[id] == sums[id], ended[id], size)
		}
	}
}

// TestTurns has bulk streams share the link, with a head and a small body coming in between.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox(nil, func(error) {})
		for id := range uint32(8) {
			go func() { _, _ = o.offer(testStream(id+1), make([]byte, 1<<20), false, nil) }()
			synctest.Wait()
		}
		next := func() batch {
			b, ok := o.take()
			if !ok {
				t.Fatal("outbox is closed")
			}
			return b
		}
		split(t, next()) // the first stream was alone when it came
		sent := make(map[uint32]int)
		for batches := 1; batches < 40; batches++ {
			if batches == 3 {
				_, _ = o.head(never, false, func(b []byte) ([]byte, error) { return append(b, responds(100, 200, 0)...), nil })
				_, _ = o.offer(testStream(100), make([]byte, 1000), false, nil)
			}
			kinds, _ := split(t, next())
			for i, h := range kinds {
				if h.Type == messages.TypeHTTPResponse && (batches != 3 || i != 0) {
					t.Errorf("the head is message %d of batch %d, want the first of the next one", i, batches)
				}
				if h.Stream == 100 && h.Type == messages.TypeBody && (batches != 3 || i != 1) {
					t.Errorf("the small body is message %d of batch %d, want it right behind its head", i, batches)
				}
				sent[h.Stream] += h.Length
			}
			least, most := 1<<30, 0
			for id := uint32(2); id <= 8; id++ {
				least, most = min(least, sent[id]), max(most, sent[id])
			}
			if most-least > turn {
				t.Fatalf("after %d batches one stream has had %d bytes and another %d", batches, most, least)
			}
		}
		if sent[100] == 0 {
			t.Error("the small body did not come at all")
		}
		o.close(ErrClosed)
		synctest.Wait()
	})
}

// TestWithdrawnOffer ends a stream while its bytes wait: what was not taken is not read again.
func TestWithdrawnOffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox(nil, func(error) {})
		st, p := testStream(1), bytes.Repeat([]byte{'x'}, 1<<20)
		var n int
		var err error
		returned := make(chan struct{})
		go func() {
			n, err = o.offer(st, p, false, nil)
			clear(p)
			close(returned)
		}()
		synctest.Wait()
		b, _ := o.take()
		_, first := split(t, b)
		st.shut(errCancelled, true)
		<-returned
		_ = o.control(func(b []byte) []byte { return messages.AppendReserved(b, 0) })
		b, _ = o.take()
		_, second := split(t, b)
		all := bytes.Join(append(first, second...), nil)
		if err != errGivenUp || n != len(all) {
			t.Errorf("offer returned %d, %v; %d bytes were sent", n, err, len(all))
		}
		if i := bytes.IndexByte(all, 0); i >= 0 {
			t.Errorf("byte %d was read after offer had returned", i)
		}
	})
}

// TestCloseWhileOffersWait wants everybody to be told, and what was gathered to be sent.
func TestCloseWhileOffersWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox(nil, func(error) {})
		gone := errors.New("gone")
		errs := make(chan error, 30)
		taken := make(chan int, 10)
		for id := range uint32(10) {
			go func() {
				n, err := o.offer(testStream(id+1), make([]byte, 200_000), false, nil)
				taken <- n
				errs <- err
			}()
			go func() {
				_, err := o.head(never, false, func(b []byte) ([]byte, error) { return append(b, make([]byte, headBatch+1)...), nil })
				errs <- err
			}()
			go func() { errs <- o.trailers(nil, trailers(id+1, "X: y")) }()
		}
		synctest.Wait()
		o.mu.Lock()
		body := len(o.body)
		o.mu.Unlock()
		o.close(gone)
		o.close(errors.New("closed again"))
		failed := 0
		for range 30 {
			if err := <-errs; errors.Is(err, gone) {
				failed++
			} else if err != nil {
				t.Errorf("waiting call returned %v, want %v", err, gone)
			}
		}
		if failed != 19 { // one head had room, and the trailers
			t.Errorf("%d waiting calls failed, want 19", failed)
		}
		for _, err := range []error{
			o.control(func(b []byte) []byte { return b }),
			o.trail(func(b []byte) []byte { return b }),
			o.text(nil),
		} {
			if err != gone {
				t.Errorf("after close: %v, want %v", err, gone)
			}
		}
		b, ok := o.take()
		if !ok || len(b.body) != body {
			t.Errorf("%d bytes of bodies can be taken after close, want the %d that were gathered", len(b.body), body)
		}
		if _, ok := o.take(); ok {
			t.Error("there is a second batch after close")
		}
		sum := 0
		for range 10 {
			sum += <-taken
		}
		if got := body - 10*len(trailers(1, "X: y")) - messages.HeaderLen*((sum+turn-1)/turn); got != sum {
			t.Errorf("offers say that %d bytes were taken, %d were", sum, got)
		}
	})
}

func TestTextsGoFirst(t *testing.T) {
	o := newOutbox(nil, func(error) {})
	_ = o.control(func(b []byte) []byte { return messages.AppendReserved(b, 0) })
	for i := range maxTexts {
		if err := o.text(fmt.Append(nil, i)); err != nil {
			t.Fatalf("text %d: %v", i, err)
		}
	}
	if err := o.text(nil); !errors.Is(err, errStalledPeer) {
		t.Errorf("one text too many: %v, want %v", err, errStalledPeer)
	}
	b, _ := o.take()
	c := new(partConn)
	if err := b.send(c); err != nil {
		t.Fatal(err)
	}
	if len(c.texts) != maxTexts || c.texts[0] != "0" || len(c.parts) != 1 {
		t.Errorf("%d texts and %d binary messages are sent, want %d and 1", len(c.texts), len(c.parts), maxTexts)
	}
}

// TestLargeBatchesAreCut gathers more than one message of a link can carry.
func TestLargeBatchesAreCut(t *testing.T) {
	o := newOutbox(nil, func(error) {})
	largest := raw(messages.TypeHTTPResponse, 0, 7, string(make([]byte, messages.MaxPayload)))
	want := 0
	add := func(b []byte) {
		want++
		if err := o.control(func(all []byte) []byte { return append(all, b...) }); err != nil {
			t.Fatal(err)
		}
	}
	add(credit(1, 1))
	add(largest)
	add(credit(1, 2))
	add(credit(1, 3))
	for range 100 {
		add(raw(messages.TypeHTTPResponse, 0, 7, string(make([]byte, 10_000))))
	}
	for i := range 60 {
		want++
		if err := o.trail(func(b []byte) []byte { return append(b, trailers(uint32(i), "X: "+string(make([]byte, 60_000)))...) }); err != nil {
			t.Fatal(err)
		}
	}
	b, _ := o.take()
	if kinds, _ := split(t, b); len(kinds) != want {
		t.Errorf("%d messages are sent, want %d", len(kinds), want)
	}
}

// TestManyTrailers ends many bodies with large trailers at once, on a slow link: they wait for room, and none is lost.
func TestManyTrailers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := make(chan struct{})
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-all
			w.Header().Set(http.TrailerPrefix+"X-Large", strings.Repeat("x", 60_000))
		})
		a, b := newMemLink(1)
		a.rate = 1 << 20
		p := runPair(t, a, b, Config{}, Config{Handler: func(uint32) http.Handler { return h }})
		var calls []*call
		for range 200 {
			calls = append(calls, goRoundTrip(t, p.edge, request("GET", "/", nil)))
		}
		synctest.Wait()
		close(all)
		synctest.Wait()
		if n := p.agent.out.held(); n > maxUrgent {
			t.Errorf("the outbox holds %d bytes of trailers", n)
		}
		for _, c := range calls {
			<-c.done
			if c.err != nil {
				t.Fatalf("request failed: %v", c.err)
			}
			_, err := io.Copy(io.Discard, c.res.Body)
			if err != nil || len(c.res.Trailer.Get("X-Large")) != 60_000 {
				t.Errorf("trailers %.100v, %v", c.res.Trailer, err)
			}
		}
	})
}

// TestTrailersThatDoNotFit wants a response whose trailers cannot be sent to be broken, not to lose them.
func TestTrailersThatDoNotFit(t *testing.T) {
	p := newPair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "hello")
		switch r.RequestURI {
		case "/bytes":
			w.Header().Set(http.TrailerPrefix+"X-Large", strings.Repeat("x", maxTrailers))
		case "/fields":
			w.Header()[http.TrailerPrefix+"X-Many"] = make([]string, messages.MaxFields+1)
		}
	}))
	for _, target := range []string{"/bytes", "/fields"} {
		res := p.do(request("GET", target, nil))
		got, err := io.ReadAll(res.Body)
		var cancelled *CancelError
		if string(got) != "hello" || !errors.As(err, &cancelled) || cancelled.Code != messages.CancelTooLarge {
			t.Errorf("%s: got %q and %v, want the body and then a cancel that says too large", target, got, err)
		}
		res.Body.Close()
	}
}

// TestHeadGivesUp has a visitor leave while a head waits for room.
func TestHeadGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox(nil, func(error) {})
		large := func(b []byte) ([]byte, error) { return append(b, make([]byte, headBatch+1)...), nil }
		first, err := o.head(never, false, large)
		if err != nil || o.begun(first) {
			t.Errorf("first head: begun %v, %v", o.begun(first), err)
		}
		quit := make(chan struct{})
		go func() {
			synctest.Wait()
			close(quit)
		}()
		if _, err := o.head(func() <-chan struct{} { return quit }, false, large); err != errGivenUp {
			t.Errorf("second head: %v, want %v", err, errGivenUp)
		}
		second := make(chan uint64)
		go func() {
			n, _ := o.head(never, false, large)
			second <- n
		}()
		synctest.Wait()
		_, _ = o.take()
		if n := <-second; !o.begun(first) || o.begun(n) {
			t.Errorf("after the first batch was taken, begun is %v and %v, want true and false", o.begun(first), o.begun(n))
		}
	})
}
