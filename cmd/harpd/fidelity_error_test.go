package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// A failure is a way to get an answer of the edge's own.
type failure struct {
	name   string
	status int
	opts   []option
	start  func(t *testing.T, opts ...option) *tunnel // nil publishes a recorder
	fields []string                                   // of the request
	host   string                                     // in place of the tunnel's
	body   int                                        // bytes of body, sent with their length
	says   func(*tunnel) string                       // what a person has to read; nil for nothing in particular
	retry  bool                                       // Retry-After is wanted
	again  bool                                       // repeat until the status is that one
}

// pages are the three forms of an error, by what the visitor accepts.
var pages = map[string]string{ // Accept -> Content-Type
	"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8": "text/html",
	"application/json":              "application/problem+json",
	"application/problem+json":      "application/problem+json",
	"text/plain":                    "text/plain",
	"text/plain;q=0.5, text/html":   "text/html",
	"application/json, text/*;q=.1": "application/problem+json",
}

func silent(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func startSilent(t *testing.T, opts ...option) *tunnel {
	return publish(t, serveUpstream(t, http.HandlerFunc(silent)), opts...)
}

func startRefused(t *testing.T, opts ...option) *tunnel {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() // nobody listens there now
	return publish(t, "http://"+ln.Addr().String(), opts...)
}

func startAway(t *testing.T, opts ...option) *tunnel {
	tn := publish(t, recordUpstream(t, nil).Target, opts...)
	tn.stopAgent()
	return tn
}

func timeout(d time.Duration) option {
	return withConfig(func(c *config) { c.RequestTimeout = d })
}

// TestErrorPages makes each error happen and reads it as a browser, a program and a terminal would.
func TestErrorPages(t *testing.T) {
	t.Parallel()
	for _, f := range []failure{
		{name: "no such tunnel", status: 404, host: strings.Repeat("a", 52) + "." + testDomain},
		{name: "no label", status: 404, host: "nobody." + testDomain},
		{name: "agent away", status: 503, start: startAway, retry: true, again: true},
		{name: "no answer in time", status: 504, start: startSilent, opts: []option{timeout(300 * time.Millisecond)}},
		{name: "visitor's own time", status: 504, start: startSilent, fields: []string{"Harp-Request-Timeout: 200ms"}},
		{name: "not above the server's time", status: 504, start: startSilent, opts: []option{timeout(300 * time.Millisecond)},
			fields: []string{"Harp-Request-Timeout: 1h"}},
		{name: "nonsense for a time", status: 400, start: startSilent, fields: []string{"Harp-Request-Timeout: -1h"}},
		{name: "upstream refused", status: 502, start: startRefused, says: func(tn *tunnel) string { return tn.Upstream }},
		{name: "request too large", status: 413, body: maxBody + 1, says: func(*tunnel) string { return "512" }},
		{name: "too many requests", status: 429, retry: true, again: true,
			opts: []option{withConfig(func(c *config) { c.RateLimit, c.RateBurst = 1, 2 })}},
		{name: "too many from one visitor", status: 429, retry: true, again: true,
			opts: []option{withConfig(func(c *config) { c.VisitorRateLimit, c.VisitorRateBurst = 1, 2 })}},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			if direct() {
				t.Skip("only the tunnel does this")
			}
			if f.start == nil {
				f.start = func(t *testing.T, opts ...option) *tunnel { return publish(t, recordUpstream(t, nil).Target, opts...) }
			}
			tn := f.start(t, f.opts...)
			for accept, kind := range pages {
				m := f.happen(t, tn, "GET", accept)
				f.check(t, tn, m, accept, kind)
			}
			if f.body > 0 {
				return
			}
			c := tn.dial(t)
			if f.host != "" {
				c.host = f.host
			}
			for range 2 {
				if m := c.do("HEAD", "/x", f.fields...); m.status() != f.status || len(m.Body) > 0 {
					t.Errorf("HEAD got %q, want %d, no body and the connection kept", m.Line, f.status)
				}
			}
		})
	}
}

// happen sends the request, again and again if it takes that, and returns the answer.
func (f failure) happen(t *testing.T, tn *tunnel, method, accept string) message {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		c := tn.dial(t)
		if f.host != "" {
			c.host = f.host
		}
		fields := append([]string{"Accept: " + accept}, f.fields...)
		if f.body > 0 {
			fields = append(fields, fmt.Sprintf("Content-Length: %d", f.body))
			method = "POST"
		}
		sent := make(chan struct{})
		go func() { // ends when the edge took all or c is closed
			defer close(sent)
			c.write(c.request(method, "/x", fields...) + strings.Repeat("x", f.body))
		}()
		m := c.final(method)
		c.Close()
		<-sent
		if m.status() == f.status || !f.again || time.Now().After(deadline) {
			return m
		}
	}
}

func (f failure) check(t *testing.T, tn *tunnel, m message, accept, kind string) {
	t.Helper()
	body := string(m.Body)
	if m.status() != f.status {
		t.Fatalf("Accept: %s: got %q %.200q, want %d", accept, m.Line, body, f.status)
	}
	if got, _, _ := strings.Cut(m.get("Content-Type"), ";"); got != kind {
		t.Errorf("Accept: %s: Content-Type is %q, want %s", accept, m.get("Content-Type"), kind)
	}
	if code := m.get("Harp-Error"); code == "" || strings.ContainsAny(code, " \t") {
		t.Errorf("Harp-Error is %q, want a code: it tells this answer from the upstream's own", code)
	}
	if len(m.values("X-Request-ID")) != 1 {
		t.Errorf("X-Request-ID is %q, want one", m.values("X-Request-ID"))
	}
	if f.retry && m.get("Retry-After") == "" {
		t.Errorf("Retry-After is missing: programs do not know when to come back")
	}
	if f.says != nil && !strings.Contains(body, f.says(tn)) {
		t.Errorf("%s page does not name %q: %.300q", kind, f.says(tn), body)
	}
	switch kind {
	case "text/html":
		if !strings.Contains(body, "<html") || !strings.Contains(body, "</html>") {
			t.Errorf("not a whole page: %.200q", body)
		}
	case "text/plain":
		if strings.Contains(body, "<") || len(body) < 20 {
			t.Errorf("not a sentence: %.200q", body)
		}
	default:
		var problem struct {
			Title, Detail string
			Status        int
		}
		if err := json.Unmarshal(m.Body, &problem); err != nil || problem.Status != f.status || problem.Title == "" || problem.Detail == "" {
			t.Errorf("not a problem document with status %d, title and detail (RFC 9457): %.200q, %v", f.status, body, err)
		}
	}
}

// TestTimeoutTellsUpstream wants a request that nobody waits for any more to end at the upstream too.
func TestTimeoutTellsUpstream(t *testing.T) {
	t.Parallel()
	gone := make(chan struct{}, 1)
	tn := publish(t, serveUpstream(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		gone <- struct{}{}
	})), timeout(300*time.Millisecond))
	tn.needsTunnel(t)
	if m := tn.dial(t).do("GET", "/x"); m.status() != 504 {
		t.Errorf("got %q, want 504", m.Line)
	}
	await(t, gone, "the upstream to see that the request has ended", func(struct{}) {})
}

// TestTimeoutSparesStreams wants the time limit to end with the head: what moves is never cut.
func TestTimeoutSparesStreams(t *testing.T) {
	t.Parallel()
	const limit = time.Second
	tn := publish(t, serveUpstream(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for range 4 {
			fmt.Fprint(w, "data\n\n")
			http.NewResponseController(w).Flush()
			<-time.After(limit / 2)
		}
	})), timeout(limit))
	m := tn.dial(t).do("GET", "/x")
	if want := strings.Repeat("data\n\n", 4); m.status() != 200 || string(m.Body) != want {
		t.Errorf("got %q %q, want all four pieces", m.Line, m.Body)
	}
}

// TestTimeoutSparesUploads wants the wait for a head to begin when the request is all there: a large upload over a
// slow line takes longer than any server should think.
func TestTimeoutSparesUploads(t *testing.T) {
	t.Parallel()
	const limit = time.Second
	r := recordUpstream(t, nil)
	c := publish(t, r.Target, timeout(limit)).dial(t)
	c.send(c.request("POST", "/x", "Content-Length: 4"))
	for range 4 {
		<-time.After(limit / 3)
		c.send("x")
	}
	if m := c.final("POST"); m.status() != 200 {
		t.Errorf("an upload that was moving all the time got %q", m.Line)
	}
}
