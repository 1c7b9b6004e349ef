package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

// named answers with its name and the request target.
func named(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, name+" "+r.RequestURI) })
}

func rfcKey(t testing.TB) identity.Key {
	t.Helper()
	key, err := identity.ParseKey([]byte(testKey))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// testOptions are options that New takes, with one service, "main".
func testOptions(t testing.TB) Options {
	return Options{
		Server:   "https://tunnels.example.com",
		Key:      rfcKey(t),
		Services: []Service{{Handler: named("main")}},
	}
}

// A running is an agent whose Run has been called.
type running struct {
	*Agent
	t    testing.TB
	end  context.CancelFunc
	done chan error
}

// startAgent runs an agent against e until the end of the test. change may be nil; without e it names the server.
func startAgent(t testing.TB, e *fakeEdge, change func(*Options)) *running {
	t.Helper()
	o := testOptions(t)
	if e != nil && e.server != nil {
		o.Server = e.server.URL
	}
	if change != nil {
		change(&o)
	}
	a, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if e != nil && e.server == nil {
		a.dial = e.dial
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Agent: a, t: t, end: cancel, done: make(chan error, 1)}
	go func() { r.done <- a.Run(ctx) }() // ends with ctx
	t.Cleanup(func() { r.end(); r.wait() })
	return r
}

// wait returns what Run returns.
func (r *running) wait() error {
	r.t.Helper()
	select {
	case err := <-r.done:
		r.done <- err
		return err
	case <-time.After(patience):
		r.t.Fatal("Run does not return")
		return nil
	}
}

// goesOn makes the test fail if Run has returned.
func (r *running) goesOn(why string) {
	r.t.Helper()
	select {
	case err := <-r.done:
		r.done <- err
		r.t.Fatalf("Run returned %v; %s", err, why)
	default:
	}
}

func TestNewRefuses(t *testing.T) {
	long := make([]Service, 65)
	for i := range long {
		long[i] = Service{Session: fmt.Sprint(i), Handler: named("")}
	}
	for _, c := range []struct {
		name   string
		change func(*Options)
		says   string
	}{
		{"no server", func(o *Options) { o.Server = "" }, "server"},
		{"server with a path", func(o *Options) { o.Server = "https://example.com/harp" }, "server"},
		{"server with a query", func(o *Options) { o.Server = "https://example.com/?a=b" }, "server"},
		{"server with an empty query", func(o *Options) { o.Server = "https://example.com?" }, "server"},
		{"server with a fragment", func(o *Options) { o.Server = "https://example.com#a" }, "server"},
		{"another scheme", func(o *Options) { o.Server = "ftp://example.com" }, "scheme"},
		{"no host", func(o *Options) { o.Server = "https://:8080" }, "server"},
		{"a space in the host", func(o *Options) { o.Server = "https://example .com" }, "server"},
		{"a port that is none", func(o *Options) { o.Server = "example.com:http" }, "server"},
		{"port 0", func(o *Options) { o.Server = "example.com:0" }, "port"},
		{"port 65536", func(o *Options) { o.Server = "example.com:65536" }, "port"},
		{"an address without brackets", func(o *Options) { o.Server = "::1" }, "server"},
		{"a host that is too long to sign", func(o *Options) { o.Server = strings.Repeat("a.", 150) + "com" }, "audience"},
		{"a host that no name server could hold", func(o *Options) { o.Server = "a\u0378.example" }, "server"},
		{"no key", func(o *Options) { o.Key = identity.Key{} }, "key"},
		{"no services", func(o *Options) { o.Services = nil }, "services"},
		{"more services than a link has room for", func(o *Options) { o.Services = long }, "64"},
		{"no handler", func(o *Options) { o.Services = []Service{{Session: "api"}} }, `"api" has no handler`},
		{"bad session", func(o *Options) { o.Services[0].Session = "two words" }, "session"},
		{"bad path", func(o *Options) { o.Services[0].Path = "api" }, "path"},
		{"bad hostname", func(o *Options) { o.Services[0].Hostnames = []string{"app.example.org."} }, `hostname "app.example.org."`},
		{"bad mode", func(o *Options) { o.Services[0].Mode = "both" }, "mode"},
		{"the same service twice", func(o *Options) { o.Services = append(o.Services, o.Services[0]) }, "two services"},
		{"the same path, spelled in two ways", func(o *Options) {
			o.Services = []Service{{Path: "/api", Handler: named("")}, {Path: "/api/", Handler: named("")}}
		}, `path "/api"`},
	} {
		o := testOptions(t)
		c.change(&o)
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error %v does not say %q", c.name, err, c.says)
		}
	}
}

func TestNewKeepsPasswordsToItself(t *testing.T) {
	for _, server := range []string{"https://me:secret@example.com", "me:secret@example.com", "https://me:secret@exa mple.com"} {
		o := testOptions(t)
		o.Server = server
		if _, err := New(o); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("server %s: error %v, want one that does not repeat the password", server, err)
		}
	}
}

func TestServerForms(t *testing.T) {
	for _, c := range []struct{ server, url, audience string }{
		{"tunnels.example.com", "wss://tunnels.example.com", "tunnels.example.com"},
		{"https://tunnels.example.com", "wss://tunnels.example.com", "tunnels.example.com"},
		{"https://tunnels.example.com/", "wss://tunnels.example.com", "tunnels.example.com"},
		{"wss://tunnels.example.com", "wss://tunnels.example.com", "tunnels.example.com"},
		{"HTTPS://tunnels.example.com:8443", "wss://tunnels.example.com:8443", "tunnels.example.com"},
		{"tunnels.example.com:8443", "wss://tunnels.example.com:8443", "tunnels.example.com"},
		{"http://localhost:8080", "ws://localhost:8080", "localhost"},
		{"ws://127.0.0.1:8080", "ws://127.0.0.1:8080", "127.0.0.1"},
		{"https://Tunnels.Example.COM", "wss://tunnels.example.com", "tunnels.example.com"},
		{"https://tunnels.example.com.", "wss://tunnels.example.com.", "tunnels.example.com"},
		{"https://tünnel.example", "wss://xn--tnnel-kva.example", "xn--tnnel-kva.example"},
		{"http://[::1]:8080", "ws://[::1]:8080", "[::1]"}, // PROTOCOL.md section 3.3: in brackets
		{"[2001:DB8::1]", "wss://[2001:db8::1]", "[2001:db8::1]"},
	} {
		o := testOptions(t)
		o.Server = c.server
		a, err := New(o)
		if err != nil {
			t.Errorf("%s: %v", c.server, err)
			continue
		}
		if want := c.url + messages.ConnectPath; a.url != want || a.audience != c.audience {
			t.Errorf("%s: dials %s and signs for %s, want %s and %s", c.server, a.url, a.audience, want, c.audience)
		}
	}
}

func TestOptionsAreCopied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newMemoryEdge(t)
		services := []Service{{Path: "/a/", Handler: named("a")}}
		startAgent(t, e, func(o *Options) { o.Services = services })
		services[0] = Service{Path: "/b", Handler: named("b")}
		l := e.next()
		if claim := l.grant(); claim.Path != "/a" {
			t.Errorf("path %q is asked for, want the one that New got, cleaned", claim.Path)
		}
		l.serve()
		l.wants(1, "/a/x", "a /a/x")
	})
}

func TestWhatIsSigned(t *testing.T) {
	e := startEdge(t)
	services := []Service{
		{Handler: named("main")},
		{Session: "api", Path: "/v1/", Mode: identity.ModeShare, Handler: named("api")},
	}
	want := []identity.Registration{
		{Audience: "127.0.0.1"},
		{Audience: "127.0.0.1", Session: "api", Path: "/v1", Mode: identity.ModeShare},
	}
	instances := make([]string, 2)
	for i := range instances {
		a := startAgent(t, e, func(o *Options) { o.Services = services })
		for dial := range 2 {
			l := e.next()
			for s, want := range want {
				claim := l.grant()
				if !claim.HasChallenge(l.challenge) {
					t.Errorf("service %d signs the challenge %q, want %q, the one of this link", s, claim.Challenge, l.challenge)
				}
				if instances[i] == "" {
					instances[i] = claim.Instance
				}
				if want.Challenge, want.Instance = claim.Challenge, instances[i]; !reflect.DeepEqual(claim, want) {
					t.Errorf("dial %d, service %d signs %+v, want %+v", dial, s, claim, want)
				}
			}
			l.serve()
			l.wants(2, "/v1/x", "api /v1/x")
			if dial == 0 {
				l.cut()
			}
		}
		a.end()
		if err := a.wait(); err != nil {
			t.Errorf("Run returned %v after its context ended, want nil", err)
		}
	}
	if len(instances[0]) < 16 || instances[0] == instances[1] {
		t.Errorf("instances %q and %q: want a long one, and another for another agent", instances[0], instances[1])
	}
}

func TestRequestsReachTheirService(t *testing.T) {
	e := startEdge(t)
	startAgent(t, e, func(o *Options) {
		o.Services = []Service{
			{Handler: named("main")}, {Path: "/a", Handler: named("path")}, {Session: "s", Handler: named("session")},
		}
	})
	l := e.accept(3)
	l.wants(1, "/x?y", "main /x?y")
	l.wants(2, "/a/%2F//", "path /a/%2F//")
	l.wants(3, "/", "session /")
	for _, unknown := range []uint32{0, 4, 1 << 31} {
		var cancel *tunnel.CancelError
		if _, err := l.visit(unknown, "/"); !errors.As(err, &cancel) || !tunnel.Unprocessed(err) {
			t.Errorf("registration %d: error %v, want the agent's word that nothing was processed", unknown, err)
		}
	}
	l.wants(1, "/", "main /")
}

// A diary is what OnRegister and OnDisconnect were told, in order.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) keep(o *Options) {
	write := func(line string) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.lines = append(d.lines, line)
	}
	o.OnRegister = func(r Registration) { write("+" + r.Session + r.Path) }
	o.OnDisconnect = func(err error) { write("- " + err.Error()) }
}

func (d *diary) wants(t *testing.T, why string, want ...string) {
	t.Helper()
	synctest.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slices.EqualFunc(d.lines, want, strings.HasPrefix) {
		t.Errorf("%s: the program was told %q, want %q", why, d.lines, want)
	}
	d.lines = nil
}

func TestOnRegister(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, got := newMemoryEdge(t), make(chan Registration, 1)
		startAgent(t, e, func(o *Options) { o.OnRegister = func(r Registration) { got <- r } })
		l := e.next()
		l.claim()
		l.answer(messages.RegistrationResponse{
			Registration: 7, Hostname: "x.example", URL: "https://x.example:8443/p", Limits: &messages.Limits{MaxBody: 5},
		})
		l.serve()
		want := Registration{Hostname: "x.example", URL: "https://x.example:8443/p", Limits: messages.Limits{MaxBody: 5}}
		if r := <-got; r != want {
			t.Errorf("got %+v, want what the edge said: %+v", r, want)
		}
		l.wants(7, "/", "main /")
	})
}

// TestHostnamesAreLogged: the log says that a name of one's own is served.
func TestHostnamesAreLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, log := newMemoryEdge(t), new(lockedBuffer)
		startAgent(t, e, func(o *Options) {
			o.Services[0].Hostnames = []string{"app.example.org", "example.org"}
			o.Logger = slog.New(slog.NewTextHandler(log, nil))
		})
		e.accept(1)
		synctest.Wait()
		if said := log.String(); !strings.Contains(said, "msg=registered url=https://") || !strings.Contains(said, " domains=app.example.org,example.org\n") {
			t.Errorf("the log says %q, want the hostnames beside the URL", said)
		}
	})
}

func TestCallbacks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, d := newMemoryEdge(t), new(diary)
		a := startAgent(t, e, func(o *Options) {
			o.Services = []Service{{Path: "/a", Handler: named("a")}, {Path: "/b", Handler: named("b")}}
			d.keep(o)
		})
		l := e.next()
		d.wants(t, "nothing is granted yet")
		l.grant()
		d.wants(t, "half is granted", "+/a")
		l.grant()
		l.serve()
		d.wants(t, "all is granted", "+/b")
		l.cut()
		d.wants(t, "the link is lost", "- tunnel: read from link")

		l = e.next()
		l.cut()
		d.wants(t, "a link is lost that never had a name")

		l = e.next()
		l.grant()
		l.cut()
		d.wants(t, "a link is lost that had one of two names", "+/a", "- tunnel: read from link")

		l = e.accept(2)
		d.wants(t, "it is back", "+/a", "+/b")
		a.end()
		l.farewell()
		if err := a.wait(); err != nil {
			t.Errorf("Run returned %v, want nil", err)
		}
		d.wants(t, "the end was the program's own wish")
	})
}

// A program that shows whether it is published must not hear of a name after it has heard that the link is lost. Whether
// the second name comes too late depends on two goroutines, so there are many rounds.
func TestNoNameAfterDisconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, d := newMemoryEdge(t), new(diary)
		startAgent(t, e, func(o *Options) {
			o.Services = []Service{{Path: "/a", Handler: named("a")}, {Path: "/b", Handler: named("b")}}
			d.keep(o)
		})
		for range 100 {
			l := e.next()
			l.grant()
			l.claim()
			text, err := messages.EncodeRegistrationResponse(messages.RegistrationResponse{Registration: 2, Hostname: "x.example"})
			if err != nil {
				t.Fatal(err)
			}
			_ = l.WriteBinary(messages.AppendDisconnect(nil, messages.Disconnect{Code: messages.DisconnectDraining}))
			_ = l.WriteText(text) // the agent may have gone already
			synctest.Wait()
			d.mu.Lock()
			if n := len(d.lines); n == 0 || !strings.HasPrefix(d.lines[n-1], "- the server asks") {
				t.Errorf("the program was told %q, want the loss of the link last", d.lines)
			}
			d.lines = nil
			d.mu.Unlock()
		}
	})
}
