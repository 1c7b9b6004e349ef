package main

import (
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"testing"

	"github.com/harp-tunnel/harp/tunnel/agent"
)

// TestHostHeader wants the three values of --host-header on the wire: development servers refuse hosts unknown to them.
func TestHostHeader(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, nil)
	for value, want := range map[string]func(*tunnel) string{
		"":            func(tn *tunnel) string { return tn.Host },
		"preserve":    func(tn *tunnel) string { return tn.Host },
		"rewrite":     func(tn *tunnel) string { return tn.Upstream },
		"app.example": func(*tunnel) string { return "app.example" },
	} {
		tn := publish(t, r.Target, withForward(func(o *agent.ForwardOptions) { o.HostHeader = value }))
		tn.needsTunnel(t)
		tn.dial(t).do("GET", "/x")
		m := r.next(t)
		if got := m.values("Host"); !slices.Equal(got, []string{want(tn)}) {
			t.Errorf("--host-header %q: the upstream saw Host %q, want %q", value, got, want(tn))
		}
		if got := m.get("X-Forwarded-Host"); got != tn.Host {
			t.Errorf("--host-header %q: the upstream saw X-Forwarded-Host %q, want what the visitor asked for", value, got)
		}
	}
}

// TestHeaderAdd wants the agent's own fields in place of the visitor's.
func TestHeaderAdd(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, nil)
	tn := publish(t, r.Target, withForward(func(o *agent.ForwardOptions) {
		o.HeaderAdd = http.Header{"Authorization": {"Bearer secret"}}
	}))
	tn.needsTunnel(t)
	tn.dial(t).do("GET", "/x", "authorization: Bearer forged")
	if got := r.next(t).values("Authorization"); !slices.Equal(got, []string{"Bearer secret"}) {
		t.Errorf("the upstream saw Authorization %q, want the agent's alone", got)
	}
}

// TestPathPrefix publishes a part of the hostname only, and strips the prefix without touching the rest.
func TestPathPrefix(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, nil)
	tn := publish(t, r.Target,
		withService(func(s *agent.Service) { s.Path, s.Session = "/app", "api" }),
		withForward(func(o *agent.ForwardOptions) { o.StripPath = "/app" }))
	tn.needsTunnel(t)
	c := tn.dial(t)
	for target, want := range map[string]string{
		"/app": "/", "/app/": "/", "/app/a%2Fb//c?x;y": "/a%2Fb//c?x;y", "/app//x": "//x", "/app?q": "/?q",
	} {
		if m := c.do("GET", target); m.status() != 200 {
			t.Errorf("%s got %q", target, m.Line)
			continue
		}
		if got := r.next(t).target(); got != want {
			t.Errorf("%s reached the upstream as %q, want %q", target, got, want)
		}
	}
	for _, target := range []string{"/", "/apple", "/other", "/APP", "//app"} {
		if m := c.do("GET", target); m.status() != 404 || len(r.complete()) > 0 {
			t.Errorf("%s got %q, want 404: only /app is published", target, m.Line)
		}
	}
}

// TestUnixUpstream publishes a service that listens on a socket of the file system.
func TestUnixUpstream(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte(r.Host + r.RequestURI))
	})}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ln) }() // ends when srv closes
	t.Cleanup(func() {
		srv.Close()
		<-ended
	})
	tn := publish(t, "unix:"+path)
	if m := tn.dial(t).do("GET", "/a%2Fb"); m.status() != 200 || string(m.Body) != tn.Host+"/a%2Fb" {
		t.Errorf("got %q %q", m.Line, m.Body)
	}
}
