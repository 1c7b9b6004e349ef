package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func testAdmin() adminView {
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "harp_test_gauge", Help: "x"}))
	return adminView{Gatherer: reg, Status: func() any { return map[string]int{"links": 3} }, Hosts: []string{"ops.example"}}
}

// askAdmin sends a request with fields, given in pairs; a Host among them is the request's.
func askAdmin(a adminView, method, target, body string, fields ...string) *http.Response {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Host = "127.0.0.1:9090"
	for i := 0; i < len(fields); i += 2 {
		if fields[i] == "Host" {
			r.Host = fields[i+1]
			continue
		}
		r.Header.Set(fields[i], fields[i+1])
	}
	w := httptest.NewRecorder()
	adminHandler(a).ServeHTTP(w, r)
	return w.Result()
}

func TestAdminPages(t *testing.T) {
	tests := []struct {
		target string
		status int
		has    string
	}{
		{"/healthz", 200, "ok"},
		{"/readyz", 200, "ready"},
		{"/metrics", 200, "harp_test_gauge 0"},
		{"/status", 200, "{\n  \"links\": 3\n}\n"},
		{"/debug/pprof/", 200, "goroutine"},
		{"/debug/pprof/goroutine?debug=1", 200, "TestAdminPages"},
		{"/debug/pprof/heap?gc=1", 200, ""},
		{"/debug/pprof/cmdline", 200, "test"},
		{"/debug/pprof/nonsense", 404, "no such profile"},
		{"/debug/pprof/heap?debug=x", 400, "debug"},
		{"/debug/pprof/profile?seconds=-1", 400, "seconds"},
		{"/debug/pprof/profile?seconds=NaN", 400, "seconds"},
		{"/debug/pprof/profile?seconds=0.01", 200, "\x1f\x8b"},
		{"/debug/pprof/trace?seconds=0.01", 200, "go 1."},
		{"/", 404, "/debug/pprof/"},
		{"/nonsense", 404, "/metrics"},
	}
	for _, tt := range tests {
		resp := askAdmin(testAdmin(), "GET", tt.target, "")
		body := bodyOf(t, resp)
		if resp.StatusCode != tt.status || !strings.Contains(body, tt.has) {
			t.Errorf("GET %s: %d and %.200q, want %d and %q in it", tt.target, resp.StatusCode, body, tt.status, tt.has)
		}
		if got := resp.Header.Get("Cache-Control"); got != "no-store" {
			t.Errorf("GET %s: Cache-Control %q", tt.target, got)
		}
		if resp.Header.Get("X-Content-Type-Options") != "nosniff" || resp.Header.Get("Content-Type") == "" {
			t.Errorf("GET %s: the type can be guessed: %v", tt.target, resp.Header)
		}
	}
}

func TestAdminReadiness(t *testing.T) {
	a := testAdmin()
	a.Ready = func() error { return errors.New("draining") }
	resp := askAdmin(a, "GET", "/readyz", "")
	if body := bodyOf(t, resp); resp.StatusCode != 503 || !strings.Contains(body, "draining") {
		t.Errorf("not ready: %d %q, want 503 and the reason", resp.StatusCode, body)
	}
	a.Ready = func() error { return nil }
	if resp := askAdmin(a, "GET", "/readyz", ""); resp.StatusCode != 200 {
		t.Errorf("ready: %d, want 200", resp.StatusCode)
	}
}

func TestAdminWithNothingToShow(t *testing.T) {
	for target, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/status": 200, "/metrics": 404} {
		if resp := askAdmin(adminView{}, "GET", target, ""); resp.StatusCode != want {
			t.Errorf("GET %s: %d, want %d", target, resp.StatusCode, want)
		}
	}
	broken := adminView{Status: func() any { return func() {} }}
	if resp := askAdmin(broken, "GET", "/status", ""); resp.StatusCode != 500 {
		t.Errorf("a status that is no JSON: %d, want 500", resp.StatusCode)
	}
}

func TestAdminMethods(t *testing.T) {
	for _, target := range []string{"/healthz", "/metrics", "/status", "/debug/pprof/", "/debug/pprof/heap", "/nonsense"} {
		resp := askAdmin(testAdmin(), "POST", target, "")
		if resp.StatusCode != 405 || resp.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("POST %s: %d, Allow %q, want 405 and GET, HEAD", target, resp.StatusCode, resp.Header.Get("Allow"))
		}
	}
	if resp := askAdmin(testAdmin(), "HEAD", "/healthz", ""); resp.StatusCode != 200 {
		t.Errorf("HEAD /healthz: %d, want 200", resp.StatusCode)
	}
	if resp := askAdmin(testAdmin(), "HEAD", "/debug/pprof/profile", ""); resp.StatusCode != 200 {
		t.Errorf("HEAD of a profile: %d, want 200 at once", resp.StatusCode)
	}
	if resp := askAdmin(testAdmin(), "DELETE", "/debug/pprof/symbol", ""); resp.Header.Get("Allow") != "GET, HEAD, POST" {
		t.Errorf("Allow of symbol: %q", resp.Header.Get("Allow"))
	}
}

func TestAdminSymbol(t *testing.T) {
	pc, _, _, _ := runtime.Caller(0)
	counters := fmt.Sprintf("0x1+nonsense+%#x", pc)
	for method, target := range map[string]string{"GET": "/debug/pprof/symbol?" + counters, "POST": "/debug/pprof/symbol"} {
		body := bodyOf(t, askAdmin(testAdmin(), method, target, counters))
		if !strings.Contains(body, "TestAdminSymbol") || !strings.HasPrefix(body, "num_symbols: 1\n") {
			t.Errorf("%s: %q, want this function's name", method, body)
		}
	}
	if resp := askAdmin(testAdmin(), "POST", "/debug/pprof/symbol", strings.Repeat("1+", 1<<20)); resp.StatusCode != 413 {
		t.Errorf("2 MiB of counters: %d, want 413", resp.StatusCode)
	}
}

func TestAdminRefusesForeignNames(t *testing.T) {
	for host, want := range map[string]int{
		"127.0.0.1:9090": 200, "127.0.0.1": 200, "[::1]:9090": 200, "[::1]": 200, "10.1.2.3:80": 200,
		"localhost": 200, "LocalHost:9090": 200, "localhost.:9090": 200, "ops.example": 200, "OPS.example:9090": 200, "": 200,
		"evil.example": 403, "evil.example:9090": 403, "localhost.evil.example": 403, "127.0.0.1.evil.example": 403,
		"sub.ops.example": 403, "1.2.3": 403, "127.0.0.1:80:80": 403, "[evil]": 403,
	} {
		resp := askAdmin(testAdmin(), "GET", "/healthz", "", "Host", host)
		if body := bodyOf(t, resp); resp.StatusCode != want || want == 403 && !strings.Contains(body, "hint: ") {
			t.Errorf("Host %q: %d %q, want %d", host, resp.StatusCode, body, want)
		}
	}
}

func TestAdminRefusesOtherSites(t *testing.T) {
	tests := []struct {
		fields []string
		want   int
	}{
		{[]string{"Sec-Fetch-Site", "none", "Sec-Fetch-Mode", "navigate"}, 200},
		{[]string{"Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "cors"}, 200},
		{[]string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"}, 200},
		{[]string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"}, 403},
		{[]string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "no-cors"}, 403},
		{[]string{"Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "cors"}, 403},
		{[]string{"Origin", "http://127.0.0.1:9090"}, 200},
		{[]string{"Origin", "http://evil.example"}, 403},
		{[]string{"Origin", "null"}, 403},
	}
	for _, tt := range tests {
		if resp := askAdmin(testAdmin(), "GET", "/status", "", tt.fields...); resp.StatusCode != tt.want {
			t.Errorf("%v: %d, want %d", tt.fields, resp.StatusCode, tt.want)
		}
	}
}

func TestAdminLeavesTheDefaultMuxAlone(t *testing.T) {
	_, pattern := http.DefaultServeMux.Handler(httptest.NewRequest("GET", "/debug/pprof/", nil))
	if pattern != "" {
		t.Errorf("http.DefaultServeMux serves %s: a program that embeds the edge would publish its profiles", pattern)
	}
}

func TestAdminStatusIsJSON(t *testing.T) {
	resp := askAdmin(testAdmin(), "GET", "/status", "")
	var got map[string]int
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || got["links"] != 3 {
		t.Errorf("status %v, %v, want links 3", got, err)
	}
	if ct := resp.Header.Get("Content-Type"); ct != "application/json" {
		t.Errorf("Content-Type %q", ct)
	}
}
