package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// TestLinkDies has the link die at every stage of a request. Only what has certainly not left is unprocessed: that
// decides whether a POST may be sent to another agent.
func TestLinkDies(t *testing.T) {
	for _, c := range []struct {
		name  string
		stage func(p *peer) *call
		want  bool
	}{
		{"head sent", func(p *peer) *call {
			call, _ := p.opens("POST", "/", strings.NewReader("body"))
			return call
		}, false},
		{"interim head came", func(p *peer) *call {
			call, id := p.opens("POST", "/", strings.NewReader("body"))
			p.sends(responds(id, 103, 0))
			return call
		}, false},
		{"head is being written", func(p *peer) *call {
			p.fills()
			return p.calls(request("POST", "/", strings.NewReader("body")))
		}, false},
		{"head waits for the next batch", func(p *peer) *call {
			p.fills()
			p.calls(request("GET", "/written", nil))
			synctest.Wait()
			return p.calls(request("POST", "/", strings.NewReader("body")))
		}, true},
		{"head waits for room", func(p *peer) *call {
			p.fills()
			p.calls(request("GET", "/written", nil))
			synctest.Wait()
			for range 3 {
				p.calls(request("GET", "/large", nil, "X: "+strings.Repeat("x", headBatch)))
				synctest.Wait()
			}
			return p.calls(request("POST", "/", strings.NewReader("body")))
		}, true},
		{"link is dead already", func(p *peer) *call {
			p.s.Close(io.ErrUnexpectedEOF)
			<-p.s.Done()
			return p.calls(request("POST", "/", strings.NewReader("body")))
		}, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPeerQueue(t, Config{}, 1)
			call := c.stage(p)
			synctest.Wait()
			p.s.Close(io.ErrUnexpectedEOF)
			<-call.done
			if call.err == nil || !errors.Is(call.err, ErrClosed) || !errors.Is(call.err, io.ErrUnexpectedEOF) {
				t.Fatalf("%s: RoundTrip failed with %v, want %v and its cause", c.name, call.err, ErrClosed)
			}
			if got := Unprocessed(call.err); got != c.want {
				t.Errorf("%s: the request is said to be unprocessed: %v, want %v (%v)", c.name, got, c.want, call.err)
			}
		})
	}
}

// fills fills the link's queue, so that the next batch blocks in the writer.
func (p *peer) fills() {
	p.t.Helper()
	p.calls(request("GET", "/fill", nil))
	synctest.Wait()
}

// TestLastWordsMayHoldARequest closes a link while a request waits behind a batch, and lets the peer read on: if the
// agent gets the request after all, it is not unprocessed.
func TestLastWordsMayHoldARequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeerQueue(t, Config{}, 1)
		p.fills()
		p.calls(request("GET", "/written", nil))
		synctest.Wait()
		call := p.calls(request("POST", "/twice", nil))
		synctest.Wait()
		p.s.Close(errors.New("replaced"))
		synctest.Wait()
		got := false
		for p.pending() {
			h, payload := p.next("requests")
			if h.Type == messages.TypeHTTPRequest {
				head, err := messages.ParseHTTPRequest(string(payload))
				got = got || err == nil && head.Target == "/twice"
			}
		}
		if err := call.failed("the link is closed"); got == Unprocessed(err) {
			t.Errorf("the agent got the request: %v; it is said to be unprocessed: %v (%v)", got, Unprocessed(err), err)
		}
	})
}

// TestNothingRunsTwice kills links under load, and sends again what is unprocessed: each request runs at most once.
func TestNothingRunsTwice(t *testing.T) {
	var again atomic.Int64
	for round := range 30 {
		ran := make([]atomic.Int64, 200)
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var n int
			_, _ = fmt.Sscanf(r.RequestURI, "/%d", &n)
			ran[n].Add(1)
			_, _ = io.WriteString(w, "done")
		})
		first, second := newPair(t, h), newPair(t, h)
		done := make(chan struct{})
		for n := range ran {
			go func() {
				defer func() { done <- struct{}{} }()
				for _, p := range []*pair{first, second} {
					res, err := p.edge.RoundTrip(1, request("POST", fmt.Sprintf("/%d", n), strings.NewReader("body")))
					if err == nil {
						_, _ = io.Copy(io.Discard, res.Body)
						res.Body.Close()
					}
					if err == nil || !Unprocessed(err) {
						return
					}
					again.Add(1)
				}
			}()
			if n == 10+round*6 {
				switch round % 3 {
				case 0:
					first.edge.Close(errors.New("killed at the edge"))
				case 1:
					first.agent.Close(errors.New("killed at the agent"))
				case 2:
					_ = first.edge.conn.Close()
				}
			}
		}
		for range ran {
			<-done
		}
		for n := range ran {
			if got := ran[n].Load(); got > 1 {
				t.Errorf("request %d ran %d times", n, got)
			}
		}
	}
	t.Logf("%d requests were sent again", again.Load())
}

func TestBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{MaxStreams: 3})
		first, id := p.opens("GET", "/", nil)
		for range 2 {
			p.opens("GET", "/", nil)
		}
		lent := newLentBody("")
		err := p.calls(request("POST", "/", lent)).failed("three streams are open")
		if !errors.Is(err, ErrBusy) || !Unprocessed(err) {
			t.Errorf("RoundTrip failed with %v, want %v", err, ErrBusy)
		}
		if !isClosed(lent.closed) {
			t.Error("the request body was not closed")
		}
		p.idle("nothing was sent")
		p.sends(responds(id, 204, messages.FlagEnd))
		first.answered("one is done")
		p.opens("GET", "/", nil)
	})
}

func TestRefusedAtTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wait := make(chan struct{})
		p := newPeer(t, Config{MaxStreams: 3, Handler: func(registration uint32) http.Handler {
			if registration != 1 {
				return nil
			}
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-wait })
		}})
		for id := range uint32(3) {
			p.sends(requests(id+1, "GET", "/", messages.FlagEnd))
		}
		p.sends(requests(4, "GET", "/", messages.FlagEnd))
		p.wantsCancel("three streams are open", 4, messages.CancelRefused)
		close(wait)
		for range 3 {
			p.next("a response")
		}
		b := messages.BeginHTTPRequest(nil, messages.TypeHTTPRequest, 0, 5, &messages.HTTPRequest{Registration: 2, Method: "GET", Scheme: "http", Target: "/"})
		p.sends(finished(b))
		p.wantsCancel("no such registration", 5, messages.CancelRefused)
		p.s.Disconnect(messages.Disconnect{Code: messages.DisconnectLeaving, Registration: 1})
		p.wants("one registration ends", messages.AppendDisconnect(nil, messages.Disconnect{Code: messages.DisconnectLeaving, Registration: 1}))
		p.sends(requests(6, "GET", "/", messages.FlagEnd))
		p.wantsResponse("the link goes on", 6, 200, messages.FlagEnd)
		p.s.Disconnect(messages.Disconnect{Code: messages.DisconnectLeaving})
		p.wants("the link ends", messages.AppendDisconnect(nil, messages.Disconnect{Code: messages.DisconnectLeaving}))
		p.sends(requests(7, "GET", "/", messages.FlagEnd))
		p.wantsCancel("no new streams", 7, messages.CancelRefused)
	})
}

// TestNumbersRunOut lets a link use its last stream number.
func TestNumbersRunOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		p.s.mu.Lock()
		p.s.lastID = math.MaxUint32 - 2
		p.s.mu.Unlock()
		p.opens("GET", "/", nil)
		last, id := p.opens("GET", "/", nil)
		if id != math.MaxUint32 {
			t.Errorf("last number is %d, want %d", id, uint32(math.MaxUint32))
		}
		for range 3 {
			if err := p.calls(request("GET", "/", nil)).failed("no numbers are left"); !errors.Is(err, ErrDraining) || !Unprocessed(err) {
				t.Errorf("RoundTrip failed with %v, want %v", err, ErrDraining)
			}
		}
		h, payload := p.next("the agent is asked to connect again")
		if d, err := messages.ParseDisconnect(payload); h.Type != messages.TypeDisconnect || err != nil || d.Code != messages.DisconnectDraining || d.Registration != 0 {
			t.Errorf("session sent %s, want a Disconnect that says draining", show(h, payload))
		}
		p.idle("once is enough")
		p.sends(responds(id, 204, messages.FlagEnd))
		last.answered("running streams finish")
	})
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		call, id := p.opens("GET", "/", nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.s.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("drain of a link with a stream: %v, want %v", err, context.DeadlineExceeded)
		}
		if err := p.calls(request("GET", "/", nil)).failed("the link drains"); !errors.Is(err, ErrDraining) || !Unprocessed(err) {
			t.Errorf("RoundTrip failed with %v, want %v", err, ErrDraining)
		}
		drained := make(chan error, 1)
		go func() { drained <- p.s.Drain(t.Context()) }()
		synctest.Wait()
		select {
		case err := <-drained:
			t.Fatalf("drain ended with %v while a stream was open", err)
		default:
		}
		p.sends(responds(id, 200, 0), end(id, "body"))
		if _, err := io.ReadAll(call.answered("running streams finish").Body); err != nil {
			t.Error(err)
		}
		if err := <-drained; err != nil {
			t.Errorf("drain ended with %v after the last stream, want nil", err)
		}
		if err := p.s.Drain(t.Context()); err != nil {
			t.Errorf("drain once more: %v", err)
		}
		p.idle("the peer learns of it by Disconnect only")
	})
}

// TestDrainOfADeadLink waits for streams that can never end well.
func TestDrainOfADeadLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		p.opens("GET", "/", nil)
		drained := make(chan error, 1)
		go func() { drained <- p.s.Drain(context.Background()) }()
		synctest.Wait()
		_ = p.conn.Close()
		<-drained // with the reason, or with nothing because the streams ended with the link
		<-p.s.Done()
	})
}

// TestPeerDisconnects has the peer end one registration, and then the link.
func TestPeerDisconnects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []messages.Disconnect
		p := newPeer(t, Config{OnDisconnect: func(d messages.Disconnect) { got = append(got, d) }})
		one := messages.Disconnect{Code: messages.DisconnectLeaving, Registration: 7, Reason: "bye"}
		p.sends(messages.AppendDisconnect(nil, one))
		call, id := p.opens("GET", "/", nil)
		all := messages.Disconnect{Code: messages.DisconnectLeaving}
		p.sends(messages.AppendDisconnect(nil, all))
		if len(got) != 2 || got[0] != one || got[1] != all {
			t.Errorf("OnDisconnect got %v, want %v and %v", got, one, all)
		}
		if err := p.calls(request("GET", "/", nil)).failed("the agent leaves"); !errors.Is(err, ErrDraining) || !Unprocessed(err) {
			t.Errorf("RoundTrip failed with %v, want %v", err, ErrDraining)
		}
		p.sends(responds(id, 204, messages.FlagEnd))
		call.answered("running streams finish")
	})
}

func TestUnprocessedIsStrict(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{context.Canceled, false},
		{ErrClosed, false},
		{ErrProtocol, false},
		{errCancelled, false},
		{&CancelError{Code: messages.CancelAborted}, false},
		{&CancelError{Code: messages.CancelEnough}, false},
		{&CancelError{Code: messages.CancelRefused}, true},
		{fmt.Errorf("link 7: %w", &CancelError{Code: messages.CancelRefused}), true},
		{ErrBusy, true},
		{ErrDraining, true},
		{errors.Join(errUnsent, ErrClosed), true},
	} {
		if got := Unprocessed(c.err); got != c.want {
			t.Errorf("%v is unprocessed: %v, want %v", c.err, got, c.want)
		}
	}
}
