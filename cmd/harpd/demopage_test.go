package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
)

func demoRequest(t *testing.T, method, target, accept string, body io.Reader) *http.Request {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	r := httptest.NewRequestWithContext(ctx, method, target, body)
	r.Header.Set("Accept", accept)
	return r
}

func TestDemoPageEscapesTheRequest(t *testing.T) {
	r := demoRequest(t, "GET", "/a%2Fb?q=<script>", "text/html,*/*", nil)
	r.Header.Set("X-Evil", `<script>alert(1)</script>`)
	r.Header.Set("Cookie", "secret=1")
	w := httptest.NewRecorder()
	demoHandler().ServeHTTP(w, r)
	page := w.Body.String()
	if strings.Contains(page, "<script>alert") || strings.Contains(page, "q=<script>") {
		t.Error("the request got into the page unescaped")
	}
	if !strings.Contains(page, "&lt;script&gt;alert(1)&lt;/script&gt;") || !strings.Contains(page, "GET /a%2Fb?q=&lt;script&gt; HTTP/1.1") {
		t.Errorf("the page does not show the request:\n%s", page)
	}
	if strings.Contains(page, "secret") {
		t.Error("the page shows a cookie")
	}
	policy := w.Header().Get("Content-Security-Policy")
	if _, nonce, _ := strings.Cut(policy, "script-src 'nonce-"); !strings.Contains(page, `<script nonce="`+strings.SplitN(nonce, "'", 2)[0]+`">`) {
		t.Errorf("the policy %q does not admit the page's own script", policy)
	}
	if strings.Contains(page, "http://") || strings.Contains(page, "//cdn") {
		t.Error("the page is not self-contained")
	}
}

func TestDemoPageInText(t *testing.T) {
	w := httptest.NewRecorder()
	demoHandler().ServeHTTP(w, demoRequest(t, "GET", "/x", "*/*", nil))
	if want := "The tunnel works. It brought this request:\n\nGET /x HTTP/1.1\nHost: example.com\nAccept: */*\n"; w.Body.String() != want {
		t.Errorf("curl gets %q, want %q", w.Body.String(), want)
	}
}

func TestDemoClockIsFlushed(t *testing.T) {
	server := httptest.NewServer(demoHandler())
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel() // ends the clock, which Close waits for
	r, err := http.NewRequestWithContext(ctx, "GET", server.URL+"/below/a/path/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	line, err := bufio.NewReader(answer.Body).ReadString('\n') // returns only if the first event was flushed
	if err != nil || !strings.HasPrefix(line, "data: ") {
		t.Errorf("first line %q, %v; want an event", line, err)
	}
	if got := answer.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("content type %q", got)
	}
}

func TestDemoUploadReportsWhileItArrives(t *testing.T) {
	server := httptest.NewServer(demoHandler())
	defer server.Close()
	body, feed := io.Pipe()
	r, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+"/upload", body)
	if err != nil {
		t.Fatal(err)
	}
	first := strings.Repeat("a", 32<<10)
	go io.WriteString(feed, first) // ends when the body is read
	answer, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	lines := json.NewDecoder(answer.Body)
	var report uploadReport
	for report.Received < int64(len(first)) {
		if err := lines.Decode(&report); err != nil || report.SHA256 != "" {
			t.Fatalf("report %+v, %v; want one before the body has ended", report, err)
		}
	}
	io.WriteString(feed, "rest")
	feed.Close()
	for report.SHA256 == "" {
		if err := lines.Decode(&report); err != nil {
			t.Fatal(err)
		}
	}
	sum := sha256.Sum256([]byte(first + "rest"))
	if report.Received != int64(len(first)+4) || report.SHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("last report %+v, want all bytes and their hash", report)
	}
}

func TestDemoUploadThatBreaksOff(t *testing.T) {
	defer func() {
		if got := recover(); got != http.ErrAbortHandler {
			t.Errorf("the answer ended with %v, want it aborted: it must not look whole", got)
		}
	}()
	body := io.MultiReader(strings.NewReader("half"), iotest.ErrReader(io.ErrUnexpectedEOF))
	demoHandler().ServeHTTP(httptest.NewRecorder(), demoRequest(t, "POST", "/upload", "*/*", body))
}

func TestDemoUploadOfNothing(t *testing.T) {
	w := httptest.NewRecorder()
	demoHandler().ServeHTTP(w, demoRequest(t, "POST", "/upload", "*/*", strings.NewReader("")))
	if want := `"sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"`; !strings.Contains(w.Body.String(), want) {
		t.Errorf("report %q, want %s", w.Body.String(), want)
	}
}
