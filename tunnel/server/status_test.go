package server

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
)

// admin asks for one of the operator's pages.
func (e *edge) admin(path string) (int, string) {
	e.t.Helper()
	w := httptest.NewRecorder()
	e.Admin().ServeHTTP(w, httptest.NewRequest("GET", "http://localhost"+path, nil))
	return w.Code, w.Body.String()
}

func TestStatusShowsWhatIsThere(t *testing.T) {
	e := newEdge(t, Options{})
	if st := e.Status(); st.Domain != testDomain || st.Links == nil || len(st.Links) != 0 || time.Since(st.Started) > time.Minute {
		t.Errorf("an idle edge: %+v", st)
	}
	pending, _ := e.dialConn()
	defer pending.Close()
	release := make(chan struct{})
	key := newKey(t)
	a, host := e.publishAs(key, identity.Registration{Session: "b", Path: "/x"}, func(w http.ResponseWriter, r *http.Request) { await(r, release) })
	second := a.register(identity.Registration{Session: "a", Mode: identity.ModeShare})
	time.Sleep(2 * time.Millisecond)
	e.publish(saying("x"))
	done := make(chan answer, 1)
	go func() { done <- e.get(host, "/x") }()
	eventually(t, "the request runs", func() bool { return a.session.Streams() == 1 })

	code, body := e.admin("/status")
	var st Status
	if err := json.Unmarshal([]byte(body), &st); err != nil || code != 200 {
		t.Fatalf("/status: %d %v", code, err)
	}
	if len(st.Links) != 2 {
		t.Fatalf("%d links shown, want the two that have registered: %s", len(st.Links), body)
	}
	l := st.Links[0]
	if l.Agent != "127.0.0.1" || l.Streams != 1 || l.Requests != 1 || l.Since.IsZero() || len(l.Registrations) != 2 {
		t.Errorf("the older link: %+v", l)
	}
	names := map[string]RegistrationStatus{l.Registrations[0].Hostname: l.Registrations[0], l.Registrations[1].Hostname: l.Registrations[1]}
	if r := names[host]; r.Path != "/x" || r.Session != "b" || r.Mode != "takeover" || r.Identity != key.Public().Thumbprint().String() || r.Since.IsZero() {
		t.Errorf("its first registration: %+v", r)
	}
	if r := names[second.Hostname]; r.Path != "" || r.Session != "a" || r.Mode != "share" {
		t.Errorf("its second registration: %+v", r)
	}
	if l.Registrations[0].Hostname > l.Registrations[1].Hostname {
		t.Error("registrations are not in order")
	}
	close(release)
	receive(t, "the request", done)
	eventually(t, "it is not shown any more", func() bool { return e.Status().Links[0].Streams == 0 })
	a.session.Disconnect(messages.Disconnect{Code: messages.DisconnectLeaving})
	eventually(t, "nor is a link that has left", func() bool { return len(e.Status().Links) == 1 })
}

func TestReadiness(t *testing.T) {
	e := newEdge(t, Options{})
	if code, body := e.admin("/readyz"); code != 200 {
		t.Errorf("%d %q", code, body)
	}
	if err := e.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code, body := e.admin("/readyz"); code != 503 || !strings.Contains(body, "draining") {
		t.Errorf("after Shutdown: %d %q", code, body)
	}
	if code, _ := e.admin("/healthz"); code != 200 {
		t.Errorf("after Shutdown the process still lives, and /healthz says %d", code)
	}
}

// Whatever visitors and agents do, the metrics have no series that their words name, and what goes up comes down.
func TestMetricsShowWhatHappened(t *testing.T) {
	e := newEdge(t, Options{MaxBody: 1000})
	before := gather(t, e.reg)
	a, host := e.publish(func(w http.ResponseWriter, r *http.Request) {
		var status int
		if _, err := fmt.Sscanf(r.URL.Path, "/%d", &status); err == nil {
			w.WriteHeader(status)
			return
		}
		if r.URL.Path == "/break" {
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		_, _ = io.Copy(w, r.Body)
	})
	for i := range 20 {
		e.get(host, fmt.Sprintf("/%d", 200+i))
		e.get(fmt.Sprintf("evil%d.test", i), fmt.Sprintf("/evil%d", i), "User-Agent", fmt.Sprint("evil", i))
		_, _ = e.ask(fmt.Sprintf("EVIL%d", i), "http://"+host+"/599", nil, "X-Request-Id", fmt.Sprint("evil", i))
	}
	e.get(host, "/777")
	e.get(host, "/break")
	if _, err := e.ask("POST", "http://"+host, strings.NewReader(strings.Repeat("x", 700))); err != nil {
		t.Error(err)
	}
	if _, err := e.ask("POST", "http://"+host, strings.NewReader(strings.Repeat("x", 1001))); err != nil {
		t.Error(err)
	}
	a.ask(identity.Registration{Audience: "evil.test"})
	for name, want := range map[string]float64{
		"harp_links": 1, "harp_registrations": 1, "harp_streams": 0,
		"harp_requests_total{code=200}": 3, "harp_requests_total{code=599}": 20, "harp_requests_total{code=other}": 1,
		"harp_requests_total{code=413}": 1, "harp_requests_total{code=404}": 20, "harp_errors_total{code=no-tunnel}": 20, "harp_errors_total{code=request-too-large}": 1,
		"harp_limits_total{limit=max-body}": 1, "harp_registrations_total{result=ok}": 1, "harp_registrations_total{result=bad-audience}": 1,
		"harp_visitor_bytes_total{direction=in}": 700, "harp_visitor_bytes_total{direction=out}": 700,
		"harp_request_duration_seconds": 44,
	} {
		eventually(t, name+" is right", func() bool { return name != "harp_streams" || e.metric(name) == 0 })
		if got := e.metric(name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	for series := range gather(t, e.reg) {
		if strings.Contains(strings.ToLower(series), "evil") || strings.Contains(series, aLabel[:10]) {
			t.Errorf("a series named by a visitor: %s", series)
		}
		if _, ok := before[series]; !ok && !strings.HasPrefix(series, "harp_requests_total{code=") {
			t.Errorf("a series that was not there from the beginning: %s", series)
		}
	}
	if code, body := e.admin("/metrics"); code != 200 || !strings.Contains(body, "harp_requests_total{code=\"599\"} 20") {
		t.Errorf("/metrics: %d", code)
	}
	_ = a.conn.Close()
	eventually(t, "the gauges are back at zero", func() bool {
		return e.metric("harp_links")+e.metric("harp_registrations")+e.metric("harp_streams") == 0
	})
	if !e.log.has("link up") || !e.log.has("link down") || !e.log.has("registered") || !e.log.has("registration refused") {
		t.Error("the log does not tell of it")
	}
}
