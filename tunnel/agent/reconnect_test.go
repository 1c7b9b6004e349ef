package agent

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

// An edge that takes links and ends them at once, in whatever way, must not be dialled ever so often.
func TestBackoffGrows(t *testing.T) {
	for _, c := range []struct {
		name string
		play func(*edgeLink)
	}{
		{"cut after the handshake", func(l *edgeLink) { l.cut() }},
		{"cut after the registration", func(l *edgeLink) { l.grant(); l.cut() }},
		{"cut after a slow registration", func(l *edgeLink) { time.Sleep(steady + time.Second); l.grant(); l.cut() }},
		{"draining at once", func(l *edgeLink) {
			l.grant()
			l.serve()
			l.disconnect(messages.DisconnectDraining, 0)
		}},
		{"refused for now", func(l *edgeLink) {
			l.claim()
			l.answer(messages.RegistrationResponse{Error: &messages.RegistrationError{Code: "limit", Retry: true}})
		}},
	} {
		synctest.Test(t, func(t *testing.T) {
			e := newMemoryEdge(t)
			startAgent(t, e, nil)
			var ends, waits []time.Time
			for range 40 {
				l := e.next()
				waits = append(waits, time.Now())
				c.play(l)
				synctest.Wait()
				ends = append(ends, time.Now())
			}
			var total time.Duration // of the waits whose bound is maxWait
			for i := 1; i < len(waits); i++ {
				wait := waits[i].Sub(ends[i-1])
				if bound := min(firstWait<<min(i-1, 10), maxWait); wait > bound {
					t.Errorf("%s: wait %d was %v, want at most %v", c.name, i, wait, bound)
				}
				if i > 7 {
					total += wait
				}
			}
			// Of 32 waits with the mean of maxWait/2, this is six standard deviations off.
			if want := 32 * maxWait / 2 * 2 / 5; total < want {
				t.Errorf("%s: 32 waits took %v together, want more than %v", c.name, total, want)
			}
		})
	}
}

func TestBackoffStartsAnewAfterASteadyLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newMemoryEdge(t)
		startAgent(t, e, nil)
		for range 20 {
			e.next().cut()
		}
		l := e.accept(1)
		time.Sleep(steady + time.Second)
		began := time.Now()
		l.cut()
		e.next()
		if d := time.Since(began); d > firstWait {
			t.Errorf("the next dial came after %v, want at most %v", d, firstWait)
		}
	})
}

func TestWaitsForTheNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newMemoryEdge(t)
		e.refuseWith(func() error { return errors.New("no such host") })
		a := startAgent(t, e, nil)
		time.Sleep(24 * time.Hour)
		a.goesOn("the network may still come")
		e.refuseWith(nil)
		began := time.Now()
		e.accept(1).wants(1, "/", "main /")
		if d := time.Since(began); d > maxWait {
			t.Errorf("the agent came %v after the network, want at most %v", d, maxWait)
		}
	})
}

// TestHints: a hint stands beside the failure that it is for, once, and never after a link.
func TestHints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newMemoryEdge(t)
		reason := errors.New("typing mistake")
		e.refuseWith(func() error { return reason })
		log := new(lockedBuffer)
		startAgent(t, e, func(o *Options) {
			o.Logger = slog.New(slog.NewTextHandler(log, nil))
			o.Hint = func(err error) string {
				if errors.Is(err, reason) {
					return "look at what you typed"
				}
				return ""
			}
		})
		time.Sleep(time.Hour)
		said := log.String()
		if first, _, _ := strings.Cut(said, "\n"); !strings.Contains(first, "typing mistake") || !strings.Contains(first, "look at what you typed") {
			t.Errorf("the first line is %q, want the reason with its hint", first)
		}
		if n := strings.Count(said, "hint="); n != 1 || strings.Count(said, "no link") < 10 {
			t.Errorf("%d hints beside one reason, want 1:\n%.2000s", n, said)
		}
		e.refuseWith(nil)
		l := e.accept(1)
		e.refuseWith(func() error { return reason })
		l.cut()
		time.Sleep(time.Hour)
		if n := strings.Count(log.String(), "hint="); n != 1 {
			t.Errorf("%d hints, want none after a link: what was typed was right", n-1)
		}
	})
}

// ExitOnFailure is about the first link only.
func TestComesBackWithExitOnFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newMemoryEdge(t)
		a := startAgent(t, e, func(o *Options) { o.ExitOnFailure = true })
		e.accept(1).cut()
		e.refuseWith(func() error { return &tunnel.RefusedError{Status: http.StatusNotFound} })
		time.Sleep(time.Hour)
		a.goesOn("it was connected once")
		e.refuseWith(nil)
		e.accept(1).wants(1, "/", "main /")
	})
}

func TestSilentEdge(t *testing.T) {
	for _, c := range []struct{ interval, want time.Duration }{
		{0, 20 * time.Second},
		{-1, 20 * time.Second},
		{time.Minute, 2 * time.Minute},
		{50 * time.Millisecond, 100 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			e, lost := newMemoryEdge(t), make(chan error, 1)
			startAgent(t, e, func(o *Options) {
				o.PingInterval = c.interval
				o.OnDisconnect = func(err error) { lost <- err }
			})
			e.next().grant() // and then nobody reads or writes
			began := time.Now()
			if err := <-lost; !errors.Is(err, tunnel.ErrSilent) {
				t.Errorf("interval %v: the link was lost by %v, want ErrSilent", c.interval, err)
			}
			if d := time.Since(began); d != c.want {
				t.Errorf("interval %v: the link was given up after %v, want %v", c.interval, d, c.want)
			}
			l := e.accept(1)
			time.Sleep(100 * c.want)
			l.wants(1, "/", "main /")
		})
	}
}

// A machine that is gone leaves a connection that nobody closes.
func TestSilentEdgeOnASocket(t *testing.T) {
	e := startEdge(t)
	startAgent(t, e, func(o *Options) { o.PingInterval = 50 * time.Millisecond })
	e.next().grant()
	e.accept(1).wants(1, "/", "main /")
}

func TestRegistrationIsNotAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newMemoryEdge(t)
		a := startAgent(t, e, func(o *Options) { o.PingInterval = time.Hour })
		l := e.next()
		l.claim()
		began := time.Now()
		for { // pings would be fine
			if _, _, err := l.NextMessage(); err != nil {
				break
			}
		}
		if d := time.Since(began); d != registerTimeout {
			t.Errorf("the agent left after %v, want %v", d, registerTimeout)
		}
		e.accept(1).wants(1, "/", "main /")
		a.goesOn("the next link is better")
	})
}

// A moved link's requests go on beside the next link, until they are done or the program ends.
func TestDrainingEdge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, gate := newMemoryEdge(t), newGate()
		a := startAgent(t, e, func(o *Options) { o.Services[0].Handler = gate })
		old := e.accept(1)
		time.Sleep(time.Minute)
		answers := []<-chan string{gate.visit(old), gate.visit(old)}
		began := time.Now()
		old.disconnect(messages.DisconnectDraining, 0)
		next := e.accept(1)
		if d := time.Since(began); d > 0 { // PROTOCOL.md section 11
			t.Errorf("the new link came after %v, want at once", d)
		}
		time.Sleep(59 * time.Minute)
		gate.open <- struct{}{}
		time.Sleep(time.Second)
		if len(answers[0])+len(answers[1]) != 1 {
			t.Fatal("the old link's requests do not go on")
		}
		a.end()
		next.farewell()
		time.Sleep(8 * time.Second)
		a.goesOn("a request is running on the old link, and has 15 s")
		close(gate.open)
		for _, answer := range answers {
			if got := <-answer; got != "through" {
				t.Errorf("a request on the old link got %q, want its answer", got)
			}
		}
		if got := ended(a.wait()); got != "nil" {
			t.Errorf("Run returned %s, want nil", got)
		}
		if err := old.gone(); err == nil {
			t.Error("the old link lives on")
		}
	})
}

func TestOldLinksEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, gate := newMemoryEdge(t), newGate()
		startAgent(t, e, func(o *Options) { o.Services[0].Handler = gate })
		var old []*edgeLink
		for range maxMoved + 2 {
			l := e.accept(1)
			gate.visit(l)
			time.Sleep(steady + time.Second)
			l.disconnect(messages.DisconnectDraining, 0)
			old = append(old, l)
		}
		e.accept(1)
		synctest.Wait()
		for i, l := range old {
			if alive, want := l.session.Err() == nil, i >= 2; alive != want {
				t.Errorf("old link %d of %d: alive %v, want %v: at most %d are kept", i, len(old), alive, want, maxMoved)
			}
		}
		time.Sleep(moveTimeout + time.Second)
		for i, l := range old {
			if l.session.Err() == nil {
				t.Errorf("old link %d is alive after %v", i, moveTimeout)
			}
		}
		close(gate.open)
	})
}

// No request is lost and none runs twice while the edge moves the agent about.
func TestMovesUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const workers, moves = 5, 5
		e := newMemoryEdge(t)
		var runs sync.Map // how often each request was run, by target
		startAgent(t, e, func(o *Options) {
			o.Services[0].Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				n, _ := runs.LoadOrStore(r.RequestURI, new(atomic.Int32))
				n.(*atomic.Int32).Add(1)
				time.Sleep(30 * time.Millisecond)
				io.WriteString(w, r.RequestURI)
			})
		})
		var current atomic.Pointer[edgeLink]
		current.Store(e.accept(1))
		stop := make(chan struct{})
		var busy sync.WaitGroup
		var refused atomic.Int32
		for worker := range workers {
			busy.Go(func() { // ends with stop
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					target := fmt.Sprintf("/%d/%d", worker, i)
					got, err := current.Load().visit(1, target)
					for tunnel.Unprocessed(err) { // as the real edge does, which knows several links
						refused.Add(1)
						time.Sleep(time.Millisecond)
						got, err = current.Load().visit(1, target)
					}
					if err != nil || got != target {
						t.Errorf("%s: got %q, %v", target, got, err)
					}
				}
			})
		}
		for range moves {
			time.Sleep(steady + time.Second)
			current.Load().disconnect(messages.DisconnectDraining, 0)
			current.Store(e.accept(1))
		}
		time.Sleep(time.Second)
		close(stop)
		busy.Wait()
		total := 0
		for target, n := range runs.Range {
			if total++; n.(*atomic.Int32).Load() != 1 {
				t.Errorf("%s was run %d times, want once", target, n.(*atomic.Int32).Load())
			}
		}
		if total < 5_000 {
			t.Errorf("only %d requests in %d moves; the test proves little", total, moves)
		}
		t.Logf("%d requests, %d refusals", total, refused.Load())
	})
}

func TestServerRestart(t *testing.T) {
	e, gate := startEdge(t), newGate()
	startAgent(t, e, func(o *Options) { o.Services[0].Handler = gate })
	l := e.accept(1)
	close(gate.open)
	l.wants(1, "/", "through")
	addr := e.server.Listener.Addr().String()
	e.server.Close()
	l.cut()
	e = listenEdge(t, addr)
	e.server.Start()
	e.accept(1).wants(1, "/", "through")
}
