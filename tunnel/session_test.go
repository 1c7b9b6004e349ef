package tunnel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

var errEnough = errors.New("enough")

// TestRunEnds ends a session in every way. Run returns the reason, and has closed the connection.
func TestRunEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(s *Session, peer *memConn, cancel context.CancelCauseFunc) // called before Run if it says so
		want error
	}{
		{"context", func(_ *Session, _ *memConn, cancel context.CancelCauseFunc) { cancel(errEnough) }, errEnough},
		{"Close", func(s *Session, _ *memConn, _ context.CancelCauseFunc) { s.Close(errEnough) }, errEnough},
		{"Close without a reason", func(s *Session, _ *memConn, _ context.CancelCauseFunc) { s.Close(nil) }, ErrClosed},
		{"Close twice", func(s *Session, _ *memConn, _ context.CancelCauseFunc) {
			s.Close(errEnough)
			s.Close(errors.New("too late"))
		}, errEnough},
		{"peer", func(_ *Session, peer *memConn, _ context.CancelCauseFunc) { _ = peer.Close() }, io.EOF},
	} {
		for _, before := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				here, there := newMemLink(4)
				s := NewSession(there, Config{})
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				if before {
					c.end(s, here, cancel)
				}
				ran := make(chan error, 1)
				go func() { ran <- s.Run(ctx) }()
				if !before {
					synctest.Wait()
					if isClosed(s.Ended()) || isClosed(s.Done()) || s.Err() != nil {
						t.Errorf("%s: the session has ended before its time: %v", c.name, s.Err())
					}
					c.end(s, here, cancel)
				}
				if err := <-ran; !errors.Is(err, c.want) || !errors.Is(s.Err(), c.want) {
					t.Errorf("%s, before Run %v: Run returned %v, Err %v, want %v", c.name, before, err, s.Err(), c.want)
				}
				if !isClosed(s.Ended()) || !isClosed(s.Done()) || !isClosed(there.here.c) {
					t.Errorf("%s, before Run %v: not everything is closed", c.name, before)
				}
				s.Close(errors.New("long after"))
				s.Disconnect(messages.Disconnect{})
				if err := s.SendText(nil); !errors.Is(err, ErrClosed) {
					t.Errorf("%s: text after the end: %v, want %v", c.name, err, ErrClosed)
				}
				if _, err := s.RoundTrip(1, request("GET", "/", nil)); !Unprocessed(err) {
					t.Errorf("%s: request after the end: %v", c.name, err)
				}
			})
		}
	}
}

// TestRunWaitsForHandlers wants nothing of a session to run after Run.
func TestRunWaitsForHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var returned atomic.Bool
		p := newAgent(t, func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			time.Sleep(time.Minute)
			returned.Store(true)
		})
		p.sends(requests(1, "GET", "/", messages.FlagEnd))
		start := time.Now()
		p.s.Close(errEnough)
		<-p.s.Ended()
		if returned.Load() {
			t.Error("Ended was closed only after the handlers")
		}
		if <-p.s.Done(); !returned.Load() || time.Since(start) != time.Minute {
			t.Errorf("Run ended after %v, handler returned: %v", time.Since(start), returned.Load())
		}
	})
}

// TestLastWords closes a session that has something to say: to a peer that reads it arrives, for another nobody waits
// longer than a second.
func TestLastWords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		bye := messages.Disconnect{Code: messages.DisconnectReplaced, Registration: 3, Reason: "a newer one"}
		p.s.Disconnect(bye)
		p.s.Close(errEnough)
		<-p.s.Done()
		p.wants("what was said before Close arrives", messages.AppendDisconnect(nil, bye))
	})
	synctest.Test(t, func(t *testing.T) {
		p := newPeerQueue(t, Config{}, 0)
		p.s.Disconnect(messages.Disconnect{Code: messages.DisconnectReplaced})
		start := time.Now()
		p.s.Close(errEnough)
		<-p.s.Done()
		if d := time.Since(start); d != time.Second {
			t.Errorf("Run waited %v for a peer that does not read, want a second", d)
		}
	})
}

// TestTextGoesBeforeStreams sends the answer to a registration and a request for it at once.
func TestTextGoesBeforeStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := newMemLink(4)
		s := NewSession(there, Config{})
		goRoundTrip(t, s, request("GET", "/", nil))
		synctest.Wait()
		if err := s.SendText([]byte("{}")); err != nil {
			t.Fatal(err)
		}
		run(t, s)
		synctest.Wait()
		if m := <-here.in; !m.text || string(m.b) != "{}" {
			t.Errorf("first comes %q, want the text", m.b)
		}
		if m := <-here.in; m.text {
			t.Errorf("then comes the text %q, want the request", m.b)
		}
	})
}

// TestPanicIsLogged wants the operator to learn of a broken handler, and of no more than that.
func TestPanicIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		p := newPeer(t, Config{Logger: slog.New(slog.NewTextHandler(&log, nil)), Handler: func(uint32) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.RequestURI == "/aborts" {
					panic(http.ErrAbortHandler)
				}
				panic("out of cheese")
			})
		}})
		p.sends(requests(1, "GET", "/aborts", messages.FlagEnd))
		p.wantsCancel("aborted", 1, messages.CancelAborted)
		if log.Len() > 0 {
			t.Errorf("an abort was logged: %s", log.String())
		}
		p.sends(requests(2, "GET", "/", messages.FlagEnd))
		h, payload := p.next("panicked")
		if s := show(h, payload); strings.Contains(s, "cheese") {
			t.Errorf("session sent %s, want no inner matter to leave", s)
		}
		if !strings.Contains(log.String(), "out of cheese") || !strings.Contains(log.String(), "session_test.go") {
			t.Errorf("log has %q, want the panic and its stack", log.String())
		}
	})
}
