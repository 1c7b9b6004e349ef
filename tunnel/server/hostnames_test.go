package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
)

const ownHost = "app.example.org"

// proven grants every hostname.
func proven(context.Context, string, string, string) error { return nil }

// passingError may be gone at the next attempt.
type passingError string

func (e passingError) Error() string { return string(e) }
func (passingError) Temporary() bool { return true }

func named(hostnames ...string) identity.Registration {
	return identity.Registration{Hostnames: hostnames}
}

func TestHostname(t *testing.T) {
	type question struct{ thumbprint, label, hostname string }
	asked, granted := make(chan question, 10), make(chan string, 10)
	e := newEdge(t, Options{
		ProveHostname: func(_ context.Context, thumbprint, label, hostname string) error {
			asked <- question{thumbprint, label, hostname}
			return nil
		},
		OnHostname: func(hostname string) { granted <- hostname },
	})
	key := newKey(t)
	e.wantError("before anybody serves it", e.get(ownHost, "/"), noTunnelError())
	if e.ServesHostname(ownHost) {
		t.Error("a hostname that nobody asked for is served")
	}
	a := e.dial(key, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%s%s", r.Host, r.RequestURI) }))
	r := a.register(identity.Registration{Session: "s", Path: "/api", Hostnames: []string{ownHost, "example.org"}})
	label := key.Public().Thumbprint().Label("s")
	for range 2 {
		got := receive(t, "the question for a proof", asked)
		if want := (question{key.Public().Thumbprint().String(), label, got.hostname}); got != want {
			t.Errorf("asked %v, want %v", got, want)
		}
		receive(t, "the news of a hostname", granted)
	}
	e.wantBody("the hostname, written as a visitor may", e.get("APP.example.org.", "/api/x?y"), 200, "APP.example.org./api/x?y")
	e.wantBody("the other hostname", e.get("example.org", "/api"), 200, "example.org/api")
	e.wantBody("the tunnel's own", e.get(r.Hostname, "/api"), 200, r.Hostname+"/api")
	e.wantError("outside of the path", e.get(ownHost, "/other"), noTunnelError())
	e.wantError("a name below the hostname", e.get("x."+ownHost, "/api"), noTunnelError())
	a.register(identity.Registration{Session: "s"})
	e.wantBody("a further path of the label, which did not ask for the hostname", e.get(ownHost, messages.ConnectPath), 200, ownHost+messages.ConnectPath)

	if got, ok := e.LabelOf(ownHost); got != label || !ok || !e.ServesHostname(ownHost) {
		t.Errorf("the hostname is %q's (%v), want %q's", got, ok, label)
	}
	a.conn.Close()
	eventually(t, "the agent is away", func() bool { return e.metric("harp_registrations") == 0 })
	e.wantError("the agent is away", e.get(ownHost, "/api"), agentAwayError())
	if !e.ServesHostname(ownHost) {
		t.Error("the hostname is forgotten at once")
	}
}

func TestHostnameRefused(t *testing.T) {
	for _, test := range []struct {
		why, hostname string
		o             Options
		code, message string
		retry         bool
	}{
		{"nobody can prove anything", ownHost, Options{}, messages.RefuseUnsupported, "hostnames of your own", false},
		{"hosts are not looked at", ownHost, Options{NoHostRoute: true, RouteByPath: true, ProveHostname: proven}, messages.RefuseUnsupported, "hostnames of your own", false},
		{"the domain", testDomain, Options{ProveHostname: proven}, messages.RefuseHostname, "is a name of this server", false},
		{"a tunnel's", "x." + testDomain, Options{ProveHostname: proven}, messages.RefuseHostname, "is a name of this server", false},
		{"another name of the server", ownHost, Options{Audiences: []string{"App.Example.org:443"}, ProveHostname: proven}, messages.RefuseHostname, "is a name of this server", false},
		{"no record", ownHost, Options{ProveHostname: func(context.Context, string, string, string) error {
			return errors.New(ownHost + " has no CNAME")
		}}, messages.RefuseHostname, ownHost + " has no CNAME", false},
		{"the DNS fails", ownHost, Options{ProveHostname: func(context.Context, string, string, string) error {
			return fmt.Errorf("prove: %w", passingError("SERVFAIL"))
		}}, messages.RefuseHostname, "SERVFAIL", true},
	} {
		e := newEdge(t, test.o)
		a := e.dial(newKey(t), saying("hello"))
		refused := a.ask(named(test.hostname)).Error
		if refused == nil || refused.Code != test.code || !strings.Contains(refused.Message, test.message) || refused.Retry != test.retry {
			t.Errorf("%s: %+v, want %s %q, retry %v", test.why, refused, test.code, test.message, test.retry)
		}
		if e.ServesHostname(test.hostname) {
			t.Errorf("%s: what was refused is served", test.why)
		}
	}
}

// TestHostnameNoneOrAll: one hostname that is not proven refuses the registration, for the reason that does not pass.
func TestHostnameNoneOrAll(t *testing.T) {
	e := newEdge(t, Options{ProveHostname: func(_ context.Context, _, _, hostname string) error {
		switch hostname {
		case "away.example.org":
			return passingError("SERVFAIL")
		case "no.example.org":
			return errors.New("no record")
		}
		return nil
	}})
	a, host := e.publish(saying("hello"))
	refused := a.ask(named(ownHost, "away.example.org", "no.example.org")).Error
	if refused == nil || refused.Message != "no record" || refused.Retry {
		t.Errorf("got %+v, want the refusal that does not pass", refused)
	}
	e.wantError("a hostname that was proven beside one that was not", e.get(ownHost, "/"), noTunnelError())
	e.wantBody("the registration before", e.get(host, "/"), 200, "hello")
	late := refuseUnproven([]error{nil, fmt.Errorf("look up: %w", context.DeadlineExceeded)})
	if late == nil || !late.Retry {
		t.Errorf("a proof that took too long: %+v, want one that may be tried again", late)
	}
}

// TestSlowProof: while one registration waits for the DNS, its link carries requests and others register.
func TestSlowProof(t *testing.T) {
	asked, release := make(chan struct{}), make(chan struct{})
	e := newEdge(t, Options{PingInterval: 300 * time.Millisecond, ProveHostname: func(ctx context.Context, _, _, _ string) error {
		asked <- struct{}{}
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}})
	a, host := e.publish(saying("hello"))
	if err := a.session.SendText(signed(t, a.key, a.challenge, identity.Registration{Session: "slow", Hostnames: []string{ownHost}})); err != nil {
		t.Fatal(err)
	}
	if err := a.session.SendText(signed(t, a.key, a.challenge, identity.Registration{Session: "next"})); err != nil {
		t.Fatal(err)
	}
	receive(t, "the proof to begin", asked)
	e.wantBody("a visitor of the link that waits", e.get(host, "/"), 200, "hello")
	_, other := e.publish(saying("other"))
	e.wantBody("a visitor of another link", e.get(other, "/"), 200, "other")
	time.Sleep(1500 * time.Millisecond) // the link would be dropped after two intervals of silence
	close(release)
	for i, session := range []string{"slow", "next"} {
		want := a.key.Public().Thumbprint().Label(session) + "." + testDomain
		if r := receive(t, "the answers", a.answers); r.Error != nil || r.Hostname != want {
			t.Errorf("answer %d is for %s (%v), want %s: they come in order", i+1, r.Hostname, r.Error, want)
		}
	}
	e.wantBody("the hostname", e.get(ownHost, "/"), 200, "hello")
}

// TestProofEndsWithLink: an agent that leaves takes its proof along.
func TestProofEndsWithLink(t *testing.T) {
	asked, ended := make(chan struct{}), make(chan error, 1)
	e := newEdge(t, Options{ProveHostname: func(ctx context.Context, _, _, _ string) error {
		close(asked)
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return ctx.Err()
	}})
	a, _ := e.publish(saying("hello"))
	if err := a.session.SendText(signed(t, a.key, a.challenge, named(ownHost))); err != nil {
		t.Fatal(err)
	}
	receive(t, "the proof to begin", asked)
	a.conn.Close()
	if err := receive(t, "the proof to end", ended); errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the proof ended with %v, want it to end with the link", err)
	}
}

// TestHostnameNewestProofWins: whom the record names now has the hostname, whatever became of the one before.
func TestHostnameNewestProofWins(t *testing.T) {
	e := newEdge(t, Options{ProveHostname: proven})
	first, firstHost := e.publishAs(newKey(t), named(ownHost), saying("first"))
	e.wantBody("the first", e.get(ownHost, "/"), 200, "first")
	second, _ := e.publishAs(newKey(t), named(ownHost), saying("second"))
	e.wantBody("the second", e.get(ownHost, "/"), 200, "second")
	e.wantBody("the first by its own name", e.get(firstHost, "/"), 200, "first")
	first.conn.Close()
	eventually(t, "the first is away", func() bool { return e.metric("harp_registrations") == 1 })
	e.wantBody("the first is away", e.get(ownHost, "/"), 200, "second")
	second.conn.Close()
	eventually(t, "the second is away", func() bool { return e.metric("harp_registrations") == 0 })
	e.wantError("both are away", e.get(ownHost, "/"), agentAwayError())
	if label, _ := e.LabelOf(ownHost); label != second.key.Public().Thumbprint().Label("") {
		t.Errorf("the hostname is %s's, want the second's", label)
	}
}

// TestHostnameTakeover: a hostname stays with a key whose agent another one of the same key replaces.
func TestHostnameTakeover(t *testing.T) {
	e := newEdge(t, Options{ProveHostname: proven})
	key := newKey(t)
	old, _ := e.publishAs(key, named(ownHost), saying("old"))
	e.publishAs(key, named(ownHost), saying("new"))
	receive(t, "the old one to be told", old.disconnects)
	e.wantBody("after a takeover", e.get(ownHost, "/"), 200, "new")
	eventually(t, "one registration holds the hostname", func() bool {
		e.names.mu.RLock()
		defer e.names.mu.RUnlock()
		return len(e.names.owners[ownHost].serving) == 1
	})
}

// TestHostnameEndToEnd: the edge gets no certificate for a hostname whose TLS ends at the agent.
func TestHostnameEndToEnd(t *testing.T) {
	var news atomic.Int32
	e := newEdge(t, Options{PassTLS: true, ProveHostname: proven, OnHostname: func(string) { news.Add(1) }})
	key := newKey(t)
	a := e.dial(key, saying("hello"))
	a.register(identity.Registration{Hostnames: []string{ownHost}, EndToEnd: true})
	check := func(why string) {
		t.Helper()
		if e.ServesHostname(ownHost) || news.Load() != 0 {
			t.Errorf("%s: a certificate may be obtained for the name (%d times it was asked for)", why, news.Load())
		}
		if label, ok := e.LabelOf(ownHost); label != key.Public().Thumbprint().Label("") || !ok {
			t.Errorf("%s: the hostname has no label", why)
		}
	}
	check("while the agent is there")
	a.conn.Close()
	eventually(t, "the agent is away", func() bool { return e.metric("harp_registrations") == 0 })
	check("when the agent is away")
}

// TestProofRate: an agent cannot have this server ask the DNS for names without end.
func TestProofRate(t *testing.T) {
	var asked atomic.Int32
	e := newEdge(t, Options{ProveHostname: func(context.Context, string, string, string) error {
		asked.Add(1)
		return errors.New("no record")
	}})
	a, _ := e.publish(saying("hello"))
	hostnames := make([]string, 16)
	for i := range hostnames {
		hostnames[i] = fmt.Sprintf("a%d.example.org", i)
	}
	var last *messages.RegistrationError
	for range 2 * proofBurst / len(hostnames) {
		if last = a.ask(named(hostnames...)).Error; last == nil {
			t.Fatal("registered")
		}
	}
	if last.Code != messages.RefuseLimit || !last.Retry {
		t.Errorf("got %+v, want a limit that passes", last)
	}
	if n := asked.Load(); n > proofBurst+10 {
		t.Errorf("%d proofs at once, want at most %d", n, proofBurst)
	}
}

// TestHostnamesMemory: hostnames are remembered for a day.
func TestHostnamesMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHostnames()
		r := &registration{label: "one", hostnames: []string{ownHost}}
		h.claim(r)
		time.Sleep(2 * hostnameMemory)
		if label, ok := h.lookup(ownHost); label != "one" || !ok {
			t.Errorf("while it is served it is %q's (%v)", label, ok)
		}
		h.release(r)
		time.Sleep(hostnameMemory)
		if _, ok := h.lookup(ownHost); !ok {
			t.Error("it is forgotten before the day is over")
		}
		time.Sleep(time.Second)
		if _, ok := h.lookup(ownHost); ok {
			t.Error("it is remembered after the day is over")
		}
		h.claim(r)
		if _, ok := h.lookup(ownHost); !ok || h.idle != 0 {
			t.Errorf("it came back and is not there, or %d are taken for idle", h.idle)
		}
		h.release(r)
		h.release(r)
		if h.idle != 1 {
			t.Errorf("%d are taken for idle after it left twice, want 1", h.idle)
		}
	})
}

// TestHostnamesBounded: hostnames without end leave the table small, and those that are served stay.
func TestHostnamesBounded(t *testing.T) {
	h := newHostnames()
	h.claim(&registration{label: "served", hostnames: []string{ownHost}})
	for i := range 2 * maxRemembered {
		r := &registration{label: "x", hostnames: []string{fmt.Sprintf("a%d.example.org", i)}}
		h.claim(r)
		h.release(r)
	}
	if n := len(h.owners); n > maxRemembered+1 || h.idle != n-1 {
		t.Errorf("%d are kept and %d taken for idle, want at most %d and one less", n, h.idle, maxRemembered)
	}
	if _, ok := h.lookup(ownHost); !ok {
		t.Error("the one that is served was forgotten")
	}
}

// TestHostnamesAtOnce: claims, releases and look-ups of the same names from many goroutines leave no trace.
func TestHostnamesAtOnce(t *testing.T) {
	h := newHostnames()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 1000 {
				r := &registration{label: fmt.Sprint(i % 2), hostnames: []string{ownHost, "example.org"}}
				h.claim(r)
				h.lookup(ownHost)
				h.release(r)
			}
		})
	}
	wg.Wait()
	for name, o := range h.owners {
		if len(o.serving) != 0 {
			t.Errorf("%s: %d registrations have gone and hold it", name, len(o.serving))
		}
	}
	if h.idle != len(h.owners) {
		t.Errorf("%d are taken for idle, want %d", h.idle, len(h.owners))
	}
}
