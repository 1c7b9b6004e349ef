package server

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

func nothing() error { return nil }

func TestRouteMatchesSegments(t *testing.T) {
	for _, test := range []struct {
		path, target string
		want         bool
	}{
		{"", "/", true}, {"", "*", true}, {"", "/api", true}, {"", "/?x", true}, {"", "//", true},
		{"/api", "/api", true}, {"/api", "/api/", true}, {"/api", "/api/x", true}, {"/api", "/api?x", true}, {"/api", "/api/?x=/", true},
		{"/api", "/apix", false}, {"/api", "/API", false}, {"/api", "/", false}, {"/api", "/x/api", false}, {"/api", "//api", false},
		{"/api", "/api%2Fx", false}, {"/api", "/ap", false}, {"/api", "*", false}, {"/api", "/api;x", false}, {"/api", "/api#x", false},
		{"/a/b", "/a/b/c", true}, {"/a/b", "/a/bc", false}, {"/a/b", "/a", false},
	} {
		rt := &route{path: test.path}
		if got := rt.matches(test.target); got != test.want {
			t.Errorf("%q matches %q: %v, want %v", test.path, test.target, got, test.want)
		}
	}
}

func TestRegistryModes(t *testing.T) {
	const takeover, share, standby = identity.ModeTakeover, identity.ModeShare, identity.ModeStandby
	type step struct{ mode, instance, path string }
	for _, test := range []struct {
		why   string
		steps []step
		want  string // who serves "/" in the end: the numbers of steps
		gone  string // and who was replaced, in order
	}{
		{"takeover takes over", []step{{takeover, "", ""}, {takeover, "", ""}, {takeover, "", ""}}, "2", "0 1"},
		{"takeover takes over from those who share", []step{{share, "", ""}, {share, "", ""}, {takeover, "", ""}}, "2", "0 1"},
		{"takeover leaves standbys", []step{{standby, "", ""}, {takeover, "", ""}, {takeover, "", ""}}, "0 2", "1"},
		{"share keeps all", []step{{takeover, "", ""}, {share, "", ""}, {share, "", ""}}, "0 1 2", ""},
		{"the same instance is replaced", []step{{share, "a", ""}, {share, "b", ""}, {share, "a", ""}}, "1 2", "0"},
		{"also a standby", []step{{standby, "a", ""}, {takeover, "a", ""}}, "1", "0"},
		{"also by a standby", []step{{takeover, "a", ""}, {standby, "a", ""}}, "1", "0"},
		{"no instance is not the same instance", []step{{standby, "", ""}, {standby, "", ""}}, "0 1", ""},
		{"other paths are not touched", []step{{takeover, "a", "/x"}, {takeover, "a", ""}}, "1", ""},
	} {
		g := newRegistry()
		var all []*registration
		name := func(rs []*registration) string {
			var names []string
			for _, r := range rs {
				names = append(names, fmt.Sprint(r.id))
			}
			return strings.Join(names, " ")
		}
		var gone []*registration
		for i, s := range test.steps {
			r := &registration{id: uint32(i), label: "l", mode: s.mode, instance: s.instance, path: s.path}
			replaced, err := g.add(r, nothing)
			if err != nil {
				t.Fatal(err)
			}
			all, gone = append(all, r), append(gone, replaced...)
		}
		serving, _ := g.lookup("l", "/")
		if got := name(serving); got != test.want || name(gone) != test.gone {
			t.Errorf("%s: serving %q, replaced %q; want %q and %q", test.why, got, name(gone), test.want, test.gone)
		}
		for _, r := range gone {
			if g.remove(r) {
				t.Errorf("%s: %d, which was replaced, was removed", test.why, r.id)
			}
		}
		if serving, _ := g.lookup("l", "/"); name(serving) != test.want {
			t.Errorf("%s: a replaced one that left took %q along", test.why, test.want)
		}
		removed := 0
		for _, r := range all {
			if g.remove(r) {
				removed++
			}
			if g.remove(r) {
				t.Errorf("%s: %d was removed twice", test.why, r.id)
			}
		}
		if removed != len(all)-len(gone) || len(g.hosts) != 0 {
			t.Errorf("%s: %d of %d removed, %d hosts left", test.why, removed, len(all)-len(gone), len(g.hosts))
		}
		if serving, known := g.lookup("l", "/"); serving != nil || !known {
			t.Errorf("%s: the label is forgotten", test.why)
		}
	}
}

func TestRegistryKeepsOutWhatWasNotAnnounced(t *testing.T) {
	g := newRegistry()
	old := &registration{label: "l", mode: identity.ModeTakeover}
	if _, err := g.add(old, nothing); err != nil {
		t.Fatal(err)
	}
	sorry := errors.New("cannot be told")
	replaced, err := g.add(&registration{label: "l", mode: identity.ModeTakeover}, func() error { return sorry })
	if err != sorry || replaced != nil {
		t.Errorf("replaced %v, %v", replaced, err)
	}
	if serving, _ := g.lookup("l", "/"); len(serving) != 1 || serving[0] != old {
		t.Errorf("serving %v, want the old one", serving)
	}
	if _, err := g.add(&registration{label: "new"}, func() error { return sorry }); err != sorry {
		t.Error(err)
	}
	if _, known := g.lookup("new", "/"); known || len(g.hosts) != 1 {
		t.Error("a label that was never served is known")
	}
}

func TestRegistryRemembersABoundedNumber(t *testing.T) {
	g := newRegistry()
	for i := range maxRemembered + 10 {
		r := &registration{label: fmt.Sprint(i)}
		_, _ = g.add(r, nothing)
		g.remove(r)
	}
	if n := len(g.seen); n != maxRemembered {
		t.Errorf("%d labels remembered, want %d", n, maxRemembered)
	}
	if _, known := g.lookup(fmt.Sprint(maxRemembered+9), "/"); !known {
		t.Error("the newest is not remembered")
	}
	r := &registration{label: fmt.Sprint(maxRemembered + 9)}
	_, _ = g.add(r, nothing)
	if n := len(g.seen); n != maxRemembered-1 {
		t.Errorf("%d labels remembered after one came back", n)
	}
}

// What a reader got stays as it was, whatever happens to the registry meanwhile.
func TestRegistryUnderTheRaceDetector(t *testing.T) {
	g := newRegistry()
	var wg sync.WaitGroup
	var stop atomic.Bool
	for i := range 4 {
		wg.Go(func() { // ends after its rounds
			for j := range 500 {
				r := &registration{label: "l", path: []string{"", "/a"}[j%2], mode: []string{identity.ModeShare, identity.ModeTakeover}[i%2], instance: fmt.Sprint(i)}
				_, _ = g.add(r, nothing)
				g.remove(r)
			}
		})
	}
	var readers sync.WaitGroup
	readers.Go(func() { // ends with stop
		for !stop.Load() {
			serving, _ := g.lookup("l", "/a/b")
			for _, r := range serving {
				if r == nil || r.label != "l" {
					t.Error("a reader saw a change")
				}
			}
		}
	})
	wg.Wait()
	stop.Store(true)
	readers.Wait()
	if len(g.hosts) != 0 {
		t.Errorf("left: %v", g.hosts)
	}
}

func TestOrderOfCandidates(t *testing.T) {
	candidate := func(mode string, served uint64) *registration {
		l := &link{session: tunnel.NewSession(nil, tunnel.Config{})}
		l.requests.Store(served)
		return &registration{link: l, mode: mode}
	}
	standby, busy, fresh := candidate(identity.ModeStandby, 0), candidate(identity.ModeShare, 5), candidate(identity.ModeTakeover, 4)
	got := inTurn([]*registration{standby, busy, fresh})
	if got[0] != fresh || got[1] != busy || got[2] != standby {
		t.Error("want who has carried less first, and standbys last")
	}
	if got := inTurn(nil); got != nil {
		t.Error("nobody in turn")
	}
}

func TestTakeoverEndToEnd(t *testing.T) {
	e := newEdge(t, Options{})
	key := newKey(t)
	old, host := e.publishAs(key, identity.Registration{}, saying("old"))
	young, _ := e.publishAs(key, identity.Registration{}, saying("young"))
	if d := receive(t, "word of the takeover", old.disconnects); d.Code != messages.DisconnectReplaced || d.Registration != 1 {
		t.Errorf("the older was told %+v, want replaced", d)
	}
	for range 5 {
		e.wantBody("the newest wins", e.get(host, "/"), 200, "young")
	}
	_ = old.conn.Close()
	eventually(t, "the older link is gone", func() bool { return e.metric("harp_links") == 1 })
	e.wantBody("the older has taken nothing along", e.get(host, "/"), 200, "young")
	if n := e.metric("harp_registrations"); n != 1 {
		t.Errorf("%v registrations in force, want 1", n)
	}
	again := young.register(identity.Registration{}) // on the same link
	if d := receive(t, "word of the takeover on one link", young.disconnects); d.Code != messages.DisconnectReplaced || d.Registration != 1 {
		t.Errorf("the link was told %+v, want that 1 is replaced", d)
	}
	if again.Registration != 2 {
		t.Errorf("registration %d, want a new number", again.Registration)
	}
	e.wantBody("the link goes on under the new number", e.get(host, "/"), 200, "young")
	if n := e.metric("harp_registrations"); n != 1 {
		t.Errorf("%v registrations in force, want 1", n)
	}
	_ = young.conn.Close()
	eventually(t, "the name is free", func() bool { return e.metric("harp_registrations") == 0 })
	e.wantError("nobody is left", e.get(host, "/"), agentAwayError())
}

// Agents that take a name from each other all the time neither block each other nor leave anything behind.
func TestTakeoverRace(t *testing.T) {
	e := newEdge(t, Options{})
	key := newKey(t)
	agents := []*agent{e.dial(key, saying("x")), e.dial(key, saying("x")), e.dial(key, saying("x"))}
	var wg sync.WaitGroup
	for _, a := range agents {
		wg.Go(func() { // ends after its rounds
			for range 30 {
				_ = a.session.SendText(signed(t, key, a.challenge, identity.Registration{}))
				if got := receive(t, "an answer", a.answers); got.Error != nil {
					t.Errorf("refused: %+v", got.Error)
				}
			}
		})
	}
	wg.Wait()
	host := key.Public().Thumbprint().Label("") + "." + testDomain
	e.wantBody("the newest serves", e.get(host, "/"), 200, "x")
	eventually(t, "one is left", func() bool { return e.metric("harp_registrations") == 1 })
	told := 0
	eventually(t, "all others were told", func() bool {
		for _, a := range agents {
			for len(a.disconnects) > 0 {
				<-a.disconnects
				told++
			}
		}
		return told == 3*30-1
	})
	for _, a := range agents {
		_ = a.conn.Close()
	}
	eventually(t, "nothing is left", func() bool { return e.metric("harp_registrations")+e.metric("harp_links") == 0 })
	if len(e.routes.hosts) != 0 {
		t.Errorf("routes left: %v", e.routes.hosts)
	}
}

// A link that has lost its last name may end what runs on it, and is closed some time later; one that has others stays.
func TestReplacedLinkMayFinish(t *testing.T) {
	e := newEdge(t, Options{})
	key := newKey(t)
	release := make(chan struct{})
	old, host := e.publishAs(key, identity.Registration{}, func(w http.ResponseWriter, r *http.Request) {
		await(r, release)
		io.WriteString(w, "finished")
	})
	other := old.register(identity.Registration{Session: "other"})
	done := make(chan answer, 1)
	go func() { done <- e.get(host, "/") }()
	eventually(t, "the request runs", func() bool { return old.session.Streams() == 1 })
	e.publishAs(key, identity.Registration{}, saying("young"))
	e.wantBody("a new request", e.get(host, "/"), 200, "young")
	close(release)
	e.wantBody("the running request", receive(t, "the running request", done), 200, "finished")
	e.wantBody("the other name of the link", e.get(other.Hostname, "/"), 200, "finished")
	e.mu.Lock()
	links := make([]*link, 0, 2)
	for l := range e.links {
		links = append(links, l)
	}
	e.mu.Unlock()
	for _, l := range links {
		l.endIfIdle(errReplaced) // what happens after a minute
	}
	e.wantBody("after the grace", e.get(other.Hostname, "/"), 200, "finished")
	e.publishAs(key, identity.Registration{Session: "other"}, saying("young"))
	for _, l := range links {
		l.endIfIdle(errReplaced)
	}
	if err := receive(t, "the end of a link without names", old.ended); err == nil {
		t.Error("the link ended without a reason")
	}
}

func TestShareSpreadsByLoad(t *testing.T) {
	e := newEdge(t, Options{})
	key := newKey(t)
	var host string
	var served [3]atomic.Int32
	release := make(chan struct{})
	for i := range served {
		_, host = e.publishAs(key, identity.Registration{Mode: identity.ModeShare, Instance: fmt.Sprint(i)}, func(w http.ResponseWriter, r *http.Request) {
			served[i].Add(1)
			if r.URL.Path == "/slow" {
				await(r, release)
			}
			fmt.Fprint(w, i)
		})
	}
	for range 30 {
		e.get(host, "/")
	}
	for i := range served {
		if n := served[i].Load(); n != 10 {
			t.Errorf("agent %d served %d of 30, want 10", i, n)
		}
	}
	var slow sync.WaitGroup
	for range 2 {
		want := e.metric("harp_streams") + 1
		slow.Go(func() { e.get(host, "/slow") })
		eventually(t, "it runs", func() bool { return e.metric("harp_streams") == want })
	}
	idle := ""
	for range 10 {
		got := e.get(host, "/").body
		if idle == "" {
			idle = got
		}
		if got != idle {
			t.Errorf("agent %s served, which is busy, though %s is idle", got, idle)
		}
	}
	close(release)
	slow.Wait()
}

func TestStandbyServesWhileNoOtherIsThere(t *testing.T) {
	e := newEdge(t, Options{MaxStreams: 2})
	key := newKey(t)
	_, host := e.publishAs(key, identity.Registration{Mode: identity.ModeStandby}, saying("standby"))
	e.wantBody("alone", e.get(host, "/"), 200, "standby")
	release := make(chan struct{})
	first, _ := e.publishAs(key, identity.Registration{Mode: identity.ModeShare, Instance: "1"}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			await(r, release)
		}
		io.WriteString(w, "first")
	})
	for range 5 {
		e.wantBody("beside another", e.get(host, "/"), 200, "first")
	}
	var slow sync.WaitGroup
	for range 2 {
		slow.Go(func() { e.get(host, "/slow") })
	}
	eventually(t, "the other is busy", func() bool { return first.session.Streams() == 2 })
	e.wantError("the other is there, and busy", e.get(host, "/"), busyError())
	close(release)
	slow.Wait()
	first.session.Disconnect(messages.Disconnect{Code: messages.DisconnectLeaving})
	eventually(t, "the standby serves", func() bool { return e.get(host, "/").body == "standby" })
	second, _ := e.publishAs(key, identity.Registration{}, saying("second"))
	e.wantBody("after a takeover", e.get(host, "/"), 200, "second")
	_ = second.conn.Close()
	start := time.Now()
	eventually(t, "the standby serves again", func() bool { return e.get(host, "/").body == "standby" })
	if took := time.Since(start); took > time.Second {
		t.Errorf("it took %v", took)
	}
}

// Once a request may have been processed only what is safe goes to another agent.
func TestLinkThatDiesUnderARequest(t *testing.T) {
	e := newEdge(t, Options{})
	key := newKey(t)
	_, host := e.publishAs(key, identity.Registration{Mode: identity.ModeStandby, Instance: "b"}, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "other ", r.Method)
	})
	for _, test := range []struct {
		method, body string
		want         string
	}{
		{"GET", "", "other GET"}, {"HEAD", "", ""}, {"OPTIONS", "", "other OPTIONS"}, {"TRACE", "", "other TRACE"},
		{"POST", "", "link-lost"}, {"PUT", "", "link-lost"}, {"DELETE", "", "link-lost"}, {"PATCH", "x", "link-lost"},
		{"GET", "with a body", "link-lost"}, {"get", "", "link-lost"},
	} {
		a := e.script(key, identity.Registration{Instance: "a"})
		done := make(chan answer, 1)
		go func() {
			var body io.Reader
			if test.body != "" {
				body = strings.NewReader(test.body)
			}
			got, err := e.ask(test.method, "http://"+host, body)
			if err != nil {
				t.Errorf("%s: %v", test.method, err)
			}
			done <- got
		}()
		a.awaits("the request", messages.TypeHTTPRequest)
		a.conn.Close()
		if got := receive(t, "the answer", done); got.body != test.want && got.code() != test.want {
			t.Errorf("%s %q: %d %s %q, want %q", test.method, test.body, got.StatusCode, got.code(), got.body, test.want)
		}
	}
	for _, method := range []string{"GET", "POST"} { // on a link that is draining nothing has been processed
		a, _ := e.publishAs(key, identity.Registration{Instance: "a"}, saying("no"))
		e.linkOf("a").session.Disconnect(messages.Disconnect{Code: messages.DisconnectDraining})
		if got, err := e.ask(method, "http://"+host, nil); err != nil || got.body != "other "+method {
			t.Errorf("%s beside a link that is draining: %q, %v", method, got.body, err)
		}
		_ = a.conn.Close()
	}
}
