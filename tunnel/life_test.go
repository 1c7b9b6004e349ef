package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// TestVisitorCancels has the visitor go at every stage of an exchange. Each time the agent is told, and nothing is left.
func TestVisitorCancels(t *testing.T) {
	gone := errors.New("visitor is gone")
	for _, c := range []struct {
		name  string
		stage func(p *peer, c *call, id uint32)
	}{
		{"before anything", func(p *peer, c *call, id uint32) {}},
		{"after an interim head", func(p *peer, c *call, id uint32) { p.sends(responds(id, 103, 0)) }},
		{"after the head", func(p *peer, c *call, id uint32) { p.sends(responds(id, 200, 0)) }},
		{"in the body", func(p *peer, c *call, id uint32) { p.sends(responds(id, 200, 0), body(id, "hello")) }},
		{"after half was read", func(p *peer, c *call, id uint32) {
			p.sends(responds(id, 200, 0), body(id, "hello"))
			read(p.t, c.answered("the head came").Body, 2)
		}},
		{"when the agent wants no more", func(p *peer, c *call, id uint32) {
			p.sends(responds(id, 200, 0), cancels(id, messages.CancelEnough, ""), body(id, "hello"))
		}},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPeer(t, Config{})
			lent := newLentBody("begin")
			call, id := p.opens("POST", "/", lent)
			p.wants("the body begins", body(id, "begin"))
			c.stage(p, call, id)
			call.cancel(gone)
			p.wantsCancel(c.name, id, messages.CancelAborted)
			synctest.Wait()
			if call.err == nil {
				if _, err := io.ReadAll(call.res.Body); err == nil {
					t.Errorf("%s: the body ended well", c.name)
				}
				call.res.Body.Close()
			} else if !errors.Is(call.err, gone) {
				t.Errorf("%s: RoundTrip failed with %v, want the cause of the context", c.name, call.err)
			}
			if n := p.s.Streams(); n != 0 {
				t.Errorf("%s: %d streams are left", c.name, n)
			}
			lent.more("more")
			synctest.Wait()
			if !isClosed(lent.closed) {
				t.Errorf("%s: the request body was not closed", c.name)
			}
			p.sends(body(id, "late"), credit(id, 5), trailers(id), cancels(id, messages.CancelAborted, ""), responds(id, 200, 0))
			p.idle("what was on its way is dropped")
		})
	}
}

// TestClosedBodyCancels closes the response at the edge before its end.
func TestClosedBodyCancels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		id, b := p.streams()
		p.sends(body(id, "hello"))
		_ = b.Close()
		p.wantsCancel("the visitor reads no more", id, messages.CancelAborted)
		_ = b.Close()
		p.idle("once is enough")
		id, b = p.streams()
		p.sends(end(id, "hello"))
		_ = b.Close()
		p.idle("the response had come whole")
		if n := p.s.Streams(); n != 0 {
			t.Errorf("%d streams are left", n)
		}
	})
}

// TestAgentCancels has the agent break off at every stage.
func TestAgentCancels(t *testing.T) {
	for _, code := range []messages.CancelCode{messages.CancelRefused, messages.CancelAborted, messages.CancelInternal,
		messages.CancelTooLarge, messages.CancelTimeout, messages.CancelUnreachable, messages.CancelBroken} {
		synctest.Test(t, func(t *testing.T) {
			p := newPeer(t, Config{})
			lent := newLentBody("begin")
			call, id := p.opens("POST", "/", lent)
			p.wants("the body begins", body(id, "begin"))
			p.sends(cancels(id, code, "no luck"))
			var cancelled *CancelError
			if err := call.failed("the agent gave up"); !errors.As(err, &cancelled) || cancelled.Code != code || cancelled.Reason != "no luck" {
				t.Errorf("RoundTrip failed with %v, want the agent's own words", err)
			} else if Unprocessed(err) != (code == messages.CancelRefused) {
				t.Errorf("after %v the request is said to be unprocessed: %v", err, Unprocessed(err))
			}
			lent.more("more")
			p.idle("a cancel is not answered")

			id, b := p.streams()
			p.sends(body(id, "hello"), cancels(id, code, "no luck"))
			got, err := io.ReadAll(b)
			if string(got) != "hello" || !errors.As(err, &cancelled) || cancelled.Code != code {
				t.Errorf("in the body: got %q and %v, want what came before the cancel and then that", got, err)
			}
			b.Close()
			p.idle("a cancel is not answered")
			if n := p.s.Streams(); n != 0 {
				t.Errorf("%d streams are left", n)
			}
		})
	}
}

func TestCancelWithUnknownCode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		call, id := p.opens("GET", "/", nil)
		p.sends(cancels(id, 200, "from the future"))
		var cancelled *CancelError
		if err := call.failed("cancelled"); !errors.As(err, &cancelled) || cancelled.Code != messages.CancelInternal || Unprocessed(err) {
			t.Errorf("RoundTrip failed with %v, want an internal error", err)
		}
	})
}

// TestEnoughStopsTheRequestOnly has the agent refuse the rest of the request body and answer all the same.
func TestEnoughStopsTheRequestOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		call, id := p.opens("POST", "/", strings.NewReader(strings.Repeat("x", DefaultStreamWindow+1)))
		sent := 0
		for sent < DefaultStreamWindow {
			_, payload := p.next("body")
			sent += len(payload)
		}
		p.sends(cancels(id, messages.CancelEnough, ""))
		p.idle("the body ends there")
		p.sends(responds(id, 200, 0), end(id, "fine"))
		if got, err := io.ReadAll(call.answered("the response came").Body); string(got) != "fine" || err != nil {
			t.Errorf("response %q, %v", got, err)
		}
		p.idle("nothing more")
	})
}

// TestHandlerSeesCancel cancels requests at an agent at every stage.
func TestHandlerSeesCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		returned := make(chan error, 1)
		p := newAgent(t, func(w http.ResponseWriter, r *http.Request) {
			switch r.RequestURI {
			case "/waits":
				<-r.Context().Done()
				returned <- context.Cause(r.Context())
			case "/reads":
				_, err := io.Copy(io.Discard, r.Body)
				returned <- err
			case "/writes":
				n, err := w.Write(make([]byte, 1<<20))
				if n != DefaultStreamWindow {
					t.Errorf("%d bytes are said to be sent, want a window", n)
				}
				returned <- err
			case "/flushes":
				<-r.Context().Done()
				returned <- http.NewResponseController(w).Flush()
			}
		})
		id := uint32(0)
		for _, target := range []string{"/waits", "/reads", "/writes", "/flushes"} {
			id++
			p.sends(requests(id, "POST", target, 0), body(id, "hello"))
			synctest.Wait()
			select {
			case err := <-returned:
				t.Fatalf("%s: handler returned with %v before the cancel", target, err)
			default:
			}
			p.sends(cancels(id, messages.CancelAborted, "visitor is gone"))
			var cancelled *CancelError
			switch err := <-returned; {
			case target == "/waits":
				if !errors.Is(err, context.Canceled) {
					t.Errorf("context ended with %v, want %v", err, context.Canceled)
				}
			case !errors.As(err, &cancelled) || cancelled.Code != messages.CancelAborted:
				t.Errorf("%s: handler got %v, want the visitor's cancel", target, err)
			}
			if n := p.s.Streams(); n != 0 {
				t.Errorf("%s: %d streams are left", target, n)
			}
			for p.pending() { // only what was sent before
				if h, payload := p.next("before the cancel"); h.Stream != id || h.Type != messages.TypeHTTPResponse && h.Type != messages.TypeBody || h.Flags != 0 {
					t.Errorf("%s: session sent %s", target, show(h, payload))
				}
			}
		}
	})
}

// TestBodyAfterTheHandler has a request body come for a handler that has returned, or closed it.
func TestBodyAfterTheHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wait := make(chan struct{})
		p := newAgent(t, func(w http.ResponseWriter, r *http.Request) {
			if r.RequestURI == "/closes" {
				_ = r.Body.Close()
				if _, err := r.Body.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
					t.Errorf("read after close: %v, want %v", err, net.ErrClosed)
				}
				<-wait
			}
		})
		p.sends(requests(1, "POST", "/", 0))
		p.wantsResponse("an early answer", 1, 200, messages.FlagEnd)
		p.wantsCancel("the rest is not wanted", 1, messages.CancelEnough)
		p.sends(body(1, "x"), end(1, ""), body(1, "after the end"))
		p.idle("it was on its way")

		p.sends(requests(2, "POST", "/closes", 0))
		p.wantsCancel("the body was closed", 2, messages.CancelEnough)
		p.feeds(2, 2*DefaultStreamWindow) // it may have been on its way
		p.idle("nobody reads it")
		close(wait)
		p.wantsResponse("the answer", 2, 200, messages.FlagEnd)
	})
}

// TestPanicIsNotAnAnswer wants no response head to overtake the cancel of a request that failed.
func TestPanicIsNotAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newAgent(t, func(w http.ResponseWriter, r *http.Request) {
			if r.RequestURI == "/fails" {
				w.(interface {
					Fail(messages.CancelCode, string)
				}).Fail(messages.CancelUnreachable, "nobody listens")
				return
			}
			_, _ = io.WriteString(w, "half")
			panic("service failed")
		})
		p.sends(requests(1, "GET", "/", messages.FlagEnd))
		p.wantsCancel("the handler panicked", 1, messages.CancelInternal)
		p.idle("and nothing else")
		p.sends(requests(2, "GET", "/%zz", messages.FlagEnd))
		p.wantsCancel("a target that is none", 2, messages.CancelProtocol)
		p.idle("and nothing else")
		p.sends(requests(3, "GET", "/fails", messages.FlagEnd))
		p.wantsCancel("the handler failed", 3, messages.CancelUnreachable)
		p.idle("and nothing else")
		if n := p.s.Streams(); n != 0 {
			t.Errorf("%d streams are left", n)
		}
	})
}

// TestHandlersTakeRoom opens and cancels requests whose handlers do not look.
func TestHandlersTakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wait := make(chan struct{})
		running := 0
		p := newPeer(t, Config{MaxStreams: 10, Handler: func(uint32) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				running++
				<-wait
			})
		}})
		for id := range uint32(100) {
			p.sends(requests(id+1, "GET", "/", messages.FlagEnd), cancels(id+1, messages.CancelAborted, ""))
		}
		let := sync.OnceFunc(func() { close(wait) })
		defer let()
		if running > 10 {
			t.Errorf("%d handlers run, want at most 10", running)
		}
		for id := range uint32(90) {
			p.wantsCancel("there is no room", id+11, messages.CancelRefused)
		}
		let()
		synctest.Wait()
		p.sends(requests(101, "GET", "/", messages.FlagEnd))
		p.wantsResponse("there is room again", 101, 200, messages.FlagEnd)
	})
}

// TestCancelledResponseIsNotEmpty cancels a request whose response has come whole and was not looked at.
func TestCancelledResponseIsNotEmpty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		takes := make(chan struct{})
		trace := &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error {
			<-takes
			return nil
		}}
		req := request("GET", "/", nil)
		c := p.calls(req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
		id, _ := p.wantsRequest("a request was made")
		p.sends(responds(id, 103, 0), responds(id, 200, 0), end(id, "body"))
		c.cancel(errors.New("too late"))
		synctest.Wait()
		close(takes)
		synctest.Wait()
		if c.err != nil {
			return // that would be right too
		}
		if got, err := io.ReadAll(c.res.Body); err == nil && string(got) != "body" {
			t.Errorf("the body ended well with %q, want all of it or an error", got)
		}
	})
}

// TestLinkDiesInTheMiddle kills the link in the middle of a request and its response, at both ends.
func TestLinkDiesInTheMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		id, b := p.streams()
		p.sends(body(id, "half"))
		whole, good := p.streams()
		p.sends(end(whole, "whole"))
		_ = p.conn.Close()
		<-p.s.Done()
		if got, err := io.ReadAll(b); string(got) != "half" || !errors.Is(err, ErrClosed) {
			t.Errorf("a body that was cut brought %q and %v, want what had come and %v", got, err, ErrClosed)
		}
		if got, err := io.ReadAll(good); string(got) != "whole" || err != nil {
			t.Errorf("a body that had come whole brought %q and %v", got, err)
		}
		b.Close()
	})
	synctest.Test(t, func(t *testing.T) {
		errs := make(chan error, 3)
		p := newAgent(t, func(w http.ResponseWriter, r *http.Request) {
			_, err := io.Copy(io.Discard, r.Body)
			errs <- err
			<-r.Context().Done()
			_, _ = w.Write(make([]byte, 10_000))
			errs <- http.NewResponseController(w).Flush()
		})
		p.sends(requests(1, "POST", "/", 0), body(1, "half"))
		_ = p.conn.Close()
		<-p.s.Done()
		for range 2 {
			if err := <-errs; !errors.Is(err, ErrClosed) {
				t.Errorf("handler got %v, want %v", err, ErrClosed)
			}
		}
	})
}

// TestEnoughLeavesTheHandlerAlone sends WSTeardown 0, which is an end and no abort: the handler goes on.
func TestEnoughLeavesTheHandlerAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan error, 1)
		p := newAgent(t, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			ended <- r.Context().Err()
		})
		p.sends(requests(1, "GET", "/", messages.FlagEnd))
		p.sends(messages.AppendCancel(nil, messages.TypeCancel, 1, messages.CancelEnough, ""))
		if err := <-ended; err != nil {
			t.Errorf("the request's context ended with %v, though the edge has only said that it wants no more", err)
		}
	})
}

// TestOverflowEndsTheLink has a peer that asks and never reads: what finds no room must not be lost in silence.
func TestOverflowEndsTheLink(t *testing.T) {
	var cause error
	o := newOutbox(nil, func(err error) { cause = err })
	small := func(b []byte) []byte { return append(b, make([]byte, 1<<20)...) }
	for o.control(small) == nil {
	}
	if cause != errStalledPeer {
		t.Errorf("the link was ended with %v, want %v", cause, errStalledPeer)
	}
}
