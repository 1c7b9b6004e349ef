package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// serving returns a target that h answers at.
func serving(t *testing.T, h http.HandlerFunc) target {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return target{addr: s.Listener.Addr().String(), host: domain}
}

func page(w http.ResponseWriter) { _, _ = io.WriteString(w, strings.Repeat("x", pageSize)) }

func TestLoadCounts(t *testing.T) {
	var asked atomic.Int64
	where := serving(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Host != domain || r.URL.Path != pagePath {
			t.Errorf("asked for %s of %s", r.URL, r.Host)
		}
		asked.Add(1)
		page(w)
	})
	for _, l := range []load{
		{target: where, connections: 3, length: 50 * time.Millisecond},
		{target: where, connections: 3, length: 100 * time.Millisecond, rate: 300},
	} {
		asked.Store(0)
		got, err := l.make(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got.Requests == 0 || int64(got.Requests) != asked.Load() || got.Median <= 0 || got.P99 < got.Median || got.Length < l.length/2 {
			t.Errorf("rate %v: %+v, and the server was asked %d times", l.rate, got, asked.Load())
		}
		if l.rate > 0 && got.Requests != 30 {
			t.Errorf("%d requests in a tenth of a second at 300 a second, want 30", got.Requests)
		}
	}
}

// TestLoadKeepsTime: what has to wait because an answer before it was late counts as late itself.
func TestLoadKeepsTime(t *testing.T) {
	var asked atomic.Int64
	where := serving(t, func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) == 1 {
			time.Sleep(150 * time.Millisecond)
		}
		page(w)
	})
	got, err := load{target: where, connections: 1, length: 200 * time.Millisecond, rate: 100}.make(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// The others were due at 10, 20… 190 ms, so that fourteen of them waited for 140, 130… 10 ms.
	if got.Requests != 20 || got.P99 < 150*time.Millisecond || got.Median < 40*time.Millisecond {
		t.Errorf("%+v, want 20 requests, the slowest of 150 ms, the middle one of 60", got)
	}
}

// TestLoadFails: an answer that is not the page makes the figures worthless.
func TestLoadFails(t *testing.T) {
	for why, h := range map[string]http.HandlerFunc{
		"an error":        func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "x", http.StatusBadGateway) },
		"another length":  func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "short") },
		"no length":       func(w http.ResponseWriter, _ *http.Request) { page(w); w.(http.Flusher).Flush() },
		"a broken answer": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"a length of text": func(w http.ResponseWriter, _ *http.Request) {
			hijack(w, "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n")
		},
	} {
		l := load{target: serving(t, h), connections: 2, length: 50 * time.Millisecond}
		if got, err := l.make(t.Context()); err == nil {
			t.Errorf("%s: %+v, want an error", why, got)
		}
	}
}

func hijack(w http.ResponseWriter, answer string) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = io.WriteString(c, answer)
}

// TestTransfersAreWhole: bytes that are missing are an error, on the way down and up.
func TestTransfersAreWhole(t *testing.T) {
	s := httptest.NewServer(upstream())
	defer s.Close()
	good := target{addr: s.Listener.Addr().String(), host: domain}
	short := serving(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			n, _ := io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(w, strconv.FormatInt(n-1, 10))
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(3<<20))
		_, _ = w.Write(make([]byte, 1<<20))
	})
	for name, move := range map[string]transfer{"download": download, "upload": upload} {
		if err := move(t.Context(), good, 3); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := move(t.Context(), short, 3); err == nil {
			t.Errorf("%s: a byte is missing, and nobody noticed", name)
		}
	}
}
