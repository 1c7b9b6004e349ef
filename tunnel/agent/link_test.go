package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

// twoServices publishes /a and /b.
func twoServices(o *Options) {
	o.Services = []Service{{Path: "/a", Handler: named("a")}, {Path: "/b", Handler: named("b")}}
}

// ended is what an agent's Run returned, in a form to compare: what a caller branches on.
func ended(err error) string {
	var refused *RefusedError
	switch {
	case err == nil:
		return "nil"
	case errors.As(err, &refused):
		return "refused: " + refused.Code + ": " + refused.Reason
	case errors.Is(err, ErrReplaced):
		return "replaced"
	case errors.Is(err, ErrUnreachable):
		return "unreachable"
	}
	return err.Error()
}

func TestRefused(t *testing.T) {
	final := messages.RegistrationError{Code: messages.RefuseNotAuthorized, Message: "ask the operator"}
	later := messages.RegistrationError{Code: messages.RefuseDraining, Message: "not now", Retry: true}
	for _, c := range []struct {
		name      string
		connected bool // before
		exit      bool // ExitOnFailure
		e         messages.RegistrationError
		want      string // empty if the agent tries again
	}{
		{"for good", false, false, final, "refused: not-authorized: ask the operator"},
		{"for good, after a link", true, false, final, "refused: not-authorized: ask the operator"},
		{"for good, with ExitOnFailure", false, true, final, "refused: not-authorized: ask the operator"},
		{"for now", false, false, later, ""},
		{"for now, after a link", true, true, later, ""},
		{"for now, with ExitOnFailure", false, true, later, "unreachable"},
		{"an unknown code goes by retry", false, false, messages.RegistrationError{Code: "new", Retry: true}, ""},
		{"with terminal escapes", false, false,
			messages.RegistrationError{Code: "a\x1b[2J\nb", Message: "\x1b]0;title\aline\r\nline\u202e" + strings.Repeat("x", 5000)},
			"refused: a[2Jb: ]0;titlelineline" + strings.Repeat("x", maxShown-16)},
	} {
		synctest.Test(t, func(t *testing.T) {
			e := newMemoryEdge(t)
			a := startAgent(t, e, func(o *Options) { twoServices(o); o.ExitOnFailure = c.exit })
			if c.connected {
				e.accept(2).cut()
			}
			l := e.next()
			l.grant()
			l.claim()
			l.answer(messages.RegistrationResponse{Error: &c.e})
			if c.want == "" {
				e.accept(2).wants(2, "/b/", "b /b/")
				a.goesOn(c.name + ": trying again can help")
			} else if got := ended(a.wait()); got != c.want {
				t.Errorf("%s: Run returned %.200q, want %q", c.name, got, c.want)
			}
		})
	}
}

// A link that was lost as soon as it had its name was a link all the same: what counts as a first failure is over.
func TestNameCountsWhenTheLinkIsLost(t *testing.T) {
	for i := range 100 { // in each of them chance may decide what is looked at first
		near, far := newPipe()
		far.Close()
		l := &link{
			session:    tunnel.NewSession(near, tunnel.Config{}),
			registered: make(chan struct{}), disconnect: make(chan error, 1),
		}
		want := l.session.Run(t.Context())
		close(l.registered)
		if i%2 == 0 {
			want = errMoveOn
			l.tell(want)
		}
		if err := l.awaitRegistration(t.Context()); err != nil {
			t.Fatalf("round %d: %v, although the name was there", i, err)
		}
		if err := l.cause(); err != want {
			t.Fatalf("round %d: the link ended by %v, want %v", i, err, want)
		}
	}
}

func TestReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, gate := newMemoryEdge(t), newGate()
		a := startAgent(t, e, func(o *Options) { o.Services[0].Handler = gate })
		l := e.accept(1)
		answer := gate.visit(l)
		l.disconnect(messages.DisconnectReplaced, 1)
		l.farewell()
		time.Sleep(9 * time.Second)
		a.goesOn("a request is still running")
		close(gate.open)
		if got := <-answer; got != "through" {
			t.Errorf("the running request got %q, want its answer", got)
		}
		if got := ended(a.wait()); got != "replaced" {
			t.Errorf("Run returned %s, want ErrReplaced", got)
		}
		if n := len(e.dialled()); n != 1 {
			t.Errorf("the agent dialled %d times, want 1: it must not take the name back", n)
		}
	})
}

func TestReplacedInPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newMemoryEdge(t)
		a := startAgent(t, e, twoServices)
		l := e.accept(2)
		l.disconnect(messages.DisconnectReplaced, 1)
		l.wants(2, "/b", "b /b")
		if _, err := l.visit(1, "/a"); !tunnel.Unprocessed(err) {
			t.Errorf("the replaced service: error %v, want a refusal that lets another agent be tried", err)
		}
		l.cut()
		l = e.next()
		if claim := l.grant(); claim.Path != "/b" {
			t.Errorf("after a reconnect %q is asked for, want /b: /a was replaced", claim.Path)
		}
		l.serve()
		l.wants(1, "/b", "b /b")
		time.Sleep(time.Hour)
		l.wants(1, "/b", "b /b")
		l.disconnect(messages.DisconnectReplaced, 1)
		if got := ended(a.wait()); got != "replaced" {
			t.Errorf("Run returned %s when the last service was replaced, want ErrReplaced", got)
		}
	})
}

// One service can be replaced while the edge has not answered for the other.
func TestReplacedWhileRegistering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newMemoryEdge(t)
		a := startAgent(t, e, twoServices)
		l := e.next()
		l.grant()
		raw := messages.AppendDisconnect(nil, messages.Disconnect{Code: messages.DisconnectReplaced, Registration: 1})
		if err := l.WriteBinary(raw); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		a.goesOn("the other service may still get its name")
		l.grant()
		l.serve()
		l.wants(2, "/b", "b /b")
	})
}

func TestRevoked(t *testing.T) {
	for _, c := range []struct {
		name         string
		registration uint32
		want         string // empty if the agent goes on with what is left
	}{
		{"the link", 0, "refused: revoked: says the edge"},
		{"one of two", 1, ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			e := newMemoryEdge(t)
			a := startAgent(t, e, twoServices)
			l := e.accept(2)
			l.disconnect(messages.DisconnectRevoked, c.registration)
			if c.want != "" {
				if got := ended(a.wait()); got != c.want {
					t.Errorf("%s is revoked: Run returned %s, want %s", c.name, got, c.want)
				}
				return
			}
			l.wants(2, "/b", "b /b")
			a.goesOn("one service is left")
		})
	}
}

// PROTOCOL.md section 11: for a registration that the link does not have, nothing happens.
func TestDisconnectOfUnknownRegistration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newMemoryEdge(t)
		a := startAgent(t, e, nil)
		l := e.next()
		for code := messages.DisconnectDraining; code <= messages.DisconnectLeaving; code++ {
			raw := messages.AppendDisconnect(nil, messages.Disconnect{Code: code, Registration: 9})
			if err := l.WriteBinary(raw); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		l.grant()
		l.serve()
		for code := messages.DisconnectDraining; code <= messages.DisconnectLeaving; code++ {
			l.disconnect(code, 2)
			l.wants(1, "/", "main /")
		}
		a.goesOn("none of this was about its registration")
		if n := len(e.dialled()); n != 1 {
			t.Errorf("the agent dialled %d times, want 1", n)
		}
	})
}

func TestHostileText(t *testing.T) {
	const grant = `{"type":"RegistrationResponse","registration":%d,"hostname":%q,"url":%q}`
	for _, c := range []struct {
		name    string
		granted int // before
		text    string
	}{
		{"no JSON, before the registration", 0, "hello"},
		{"nothing", 0, ""},
		{"no JSON, after the registration", 2, "hello"},
		{"a request", 0, `{"type":"RegistrationRequest","jws":"a.b.c"}`},
		{"neither granted nor refused", 0, `{"type":"RegistrationResponse"}`},
		{"64 KiB", 0, strings.Repeat(" ", 64<<10)},
		{"one answer too many", 2, fmt.Sprintf(grant, 3, "x.example", "https://x.example")},
		{"one refusal too many", 2, `{"type":"RegistrationResponse","error":{"code":"limit","message":"no"}}`},
		{"a number given twice", 1, fmt.Sprintf(grant, 1, "x.example", "https://x.example")},
		{"a hostname with an escape", 0, fmt.Sprintf(grant, 1, "x\x1b[2J.example", "https://x.example")},
		{"a URL with a line break", 0, fmt.Sprintf(grant, 1, "x.example", "https://x.example\nhttps://evil.example")},
		{"a URL with a space", 0, fmt.Sprintf(grant, 1, "x.example", "https://x.example is new")},
	} {
		synctest.Test(t, func(t *testing.T) {
			e := newMemoryEdge(t)
			a := startAgent(t, e, twoServices)
			l := e.next()
			for range c.granted {
				l.grant()
			}
			l.say(c.text)
			for range 2 - c.granted {
				l.claim() // what the agent sent before it read
			}
			l.serve()
			if err := l.gone(); !strings.Contains(fmt.Sprint(err), "ended by peer: tunnel: protocol error") {
				t.Errorf("%s: the edge is told %v, want a protocol error", c.name, err)
			}
			e.accept(2).wants(1, "/a", "a /a")
			a.goesOn(c.name + ": the next link may be better")
		})
	}
}

func TestStreamFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, gate := newMemoryEdge(t), newGate()
		startAgent(t, e, func(o *Options) { o.Services[0].Handler, o.MaxStreams = gate, 1000 })
		l := e.accept(1)
		answers := make([]<-chan string, 1000)
		for i := range answers {
			answers[i] = gate.visit(l)
		}
		if _, err := l.visit(1, "/"); !tunnel.Unprocessed(err) {
			t.Errorf("request %d at once: error %v, want a refusal", len(answers)+1, err)
		}
		close(gate.open)
		for i, answer := range answers {
			if got := <-answer; got != "through" {
				t.Fatalf("request %d got %q, want its answer: the one too many must not hurt others", i+1, got)
			}
		}
		l.wants(1, "/", "through")
	})
}

// A gate answers "through" once it is open.
type gate struct {
	open     chan struct{}
	entered  chan struct{} // gets a token for each request
	stubborn bool          // ignores the request's context
}

func newGate() *gate {
	return &gate{open: make(chan struct{}), entered: make(chan struct{}, 10_000)}
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.entered <- struct{}{}
	done := r.Context().Done()
	if g.stubborn {
		done = nil
	}
	select {
	case <-g.open:
		fmt.Fprint(w, "through")
	case <-done:
	}
}

// visit sends a request to registration 1 and returns when the handler has it. What comes is the answer, or the error.
func (g *gate) visit(l *edgeLink) <-chan string {
	answer := make(chan string, 1)
	go func() { // ends with the request
		got, err := l.visit(1, "/")
		if err != nil {
			got = err.Error()
		}
		answer <- got
	}()
	<-g.entered
	return answer
}

func TestEndDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, gate := newMemoryEdge(t), newGate()
		a := startAgent(t, e, func(o *Options) { o.Services[0].Handler = gate })
		l := e.accept(1)
		answer := gate.visit(l)
		a.end()
		l.farewell()
		if _, err := l.visit(1, "/"); !tunnel.Unprocessed(err) {
			t.Errorf("a new request: error %v, want a refusal that lets another agent be tried", err)
		}
		time.Sleep(14 * time.Second)
		a.goesOn("a request is running, and has 15 s")
		close(gate.open)
		if got := <-answer; got != "through" {
			t.Errorf("the running request got %q, want its answer", got)
		}
		began := time.Now()
		if got := ended(a.wait()); got != "nil" {
			t.Errorf("Run returned %s, want nil", got)
		}
		if d := time.Since(began); d > 10*time.Millisecond {
			t.Errorf("Run returned %v after the last request, want at once", d)
		}
	})
}

func TestDrainTimeout(t *testing.T) {
	for _, c := range []struct {
		name           string
		timeout, after time.Duration
		stubborn       bool
		late           time.Duration // more than after
	}{
		{"the default", 0, 15 * time.Second, false, 0},
		{"longer", 40 * time.Second, 40 * time.Second, false, 0},
		{"none", -1, 0, false, 0},
		{"a handler that ignores its context", time.Second, time.Second, true, handlerGrace},
	} {
		synctest.Test(t, func(t *testing.T) {
			e, gate := newMemoryEdge(t), newGate()
			gate.stubborn = c.stubborn
			a := startAgent(t, e, func(o *Options) { o.Services[0].Handler, o.DrainTimeout = gate, c.timeout })
			l := e.accept(1)
			answer := gate.visit(l)
			began := time.Now()
			a.end()
			if got := ended(a.wait()); got != "nil" {
				t.Errorf("%s: Run returned %s, want nil", c.name, got)
			}
			if d := time.Since(began); d != c.after+c.late {
				t.Errorf("%s: Run returned after %v, want %v", c.name, d, c.after+c.late)
			}
			if got := <-answer; !strings.Contains(got, "closed") && !strings.Contains(got, "cancelled") {
				t.Errorf("%s: the running request got %q, want that it broke off", c.name, got)
			}
			close(gate.open)
		})
	}
}

// A handler that obeys nothing must not keep the agent from its next link.
func TestStubbornHandlerDoesNotBlockReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, gate := newMemoryEdge(t), newGate()
		gate.stubborn = true
		startAgent(t, e, func(o *Options) { o.Services[0].Handler = gate })
		l := e.accept(1)
		gate.visit(l)
		l.cut()
		began := time.Now()
		e.next()
		if d := time.Since(began); d > firstWait {
			t.Errorf("the next link came after %v, want at most %v", d, firstWait)
		}
		close(gate.open)
	})
}

func TestExitOnFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, broken := newMemoryEdge(t), errors.New("no route to host")
		e.refuseWith(func() error { return broken })
		a := startAgent(t, e, func(o *Options) { o.ExitOnFailure = true })
		if err := a.wait(); !errors.Is(err, ErrUnreachable) || !errors.Is(err, broken) {
			t.Errorf("Run returned %v, want ErrUnreachable with its cause", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := a.Run(ctx); err != nil {
			t.Errorf("with a context that has ended, Run returned %v, want nil", err)
		}
	})
}
