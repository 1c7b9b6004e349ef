package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/net/html"
)

// answerError runs writeError for a request with these fields, given in pairs.
func answerError(method string, e visitorError, fields ...string) *http.Response {
	r := httptest.NewRequest(method, "/some/where", nil)
	for i := 0; i < len(fields); i += 2 {
		r.Header.Add(fields[i], fields[i+1])
	}
	w := httptest.NewRecorder()
	w.Header().Set("X-Request-Id", `id-1<b>`)
	w.Header().Set("Content-Encoding", "br")
	writeError(w, r, e)
	return w.Result()
}

func bodyOf(t *testing.T, resp *http.Response) string {
	t.Helper()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		t.Fatalf("read the body: %v", err)
	}
	return b.String()
}

func TestEveryErrorSaysWhatIsDocumented(t *testing.T) {
	tests := []struct {
		e          visitorError
		status     int
		code       string
		retryAfter string
	}{
		{noTunnelError(), 404, "no-tunnel", ""},
		{agentAwayError(), 503, "agent-away", "5"},
		{upstreamUnreachableError("dial tcp 127.0.0.1:3000: connection refused"), 502, "upstream-unreachable", ""},
		{upstreamBrokeError("unexpected EOF"), 502, "upstream-broke", ""},
		{responseTooLargeError(512_000), 502, "response-too-large", ""},
		{requestTooLargeError(512_000), 413, "request-too-large", ""},
		{rateLimitedError(), 429, "rate-limited", "1"},
		{timeoutError(30 * time.Second), 504, "timeout", ""},
		{headTooLargeError(), 431, "head-too-large", ""},
		{busyError(), 503, "busy", "1"},
		{linkLostError(), 502, "link-lost", ""},
		{badRequestError("two Host fields"), 400, "bad-request", ""},
		{connectRefusedError(), 405, "method-not-allowed", ""},
	}
	for _, tt := range tests {
		for _, accept := range []string{"text/html", "application/json", "text/plain"} {
			resp := answerError("GET", tt.e, "Accept", accept)
			if resp.StatusCode != tt.status {
				t.Errorf("%s as %s: status %d, want %d", tt.code, accept, resp.StatusCode, tt.status)
			}
			body := bodyOf(t, resp)
			for name, want := range map[string]string{
				"Harp-Error": tt.code, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
				"Retry-After": tt.retryAfter, "Content-Length": strconv.Itoa(len(body)), "Content-Encoding": "",
			} {
				if got := resp.Header.Get(name); got != want {
					t.Errorf("%s as %s: %s is %q, want %q", tt.code, accept, name, got, want)
				}
			}
			if !strings.HasPrefix(resp.Header.Get("Content-Type"), strings.TrimSuffix(accept, "json")) {
				t.Errorf("%s as %s: Content-Type %q", tt.code, accept, resp.Header.Get("Content-Type"))
			}
			if !strings.Contains(body, tt.e.Title) || !strings.Contains(body, "id-1") || !strings.Contains(body, tt.code) {
				t.Errorf("%s as %s lacks title, code or request id:\n%s", tt.code, accept, body)
			}
		}
		if got := answerError("GET", tt.e).Header.Get("Allow") != ""; got != (tt.status == 405) {
			t.Errorf("%s: Allow is there: %v, but it belongs to 405 and to nothing else", tt.code, got)
		}
	}
}

func TestErrorToHEADHasNoBody(t *testing.T) {
	get, head := answerError("GET", busyError()), answerError("HEAD", busyError())
	if got := bodyOf(t, head); got != "" {
		t.Errorf("HEAD got a body: %q", got)
	}
	if got, want := head.Header.Get("Content-Length"), get.Header.Get("Content-Length"); got != want {
		t.Errorf("Content-Length of HEAD is %s, that of GET %s: they have to agree", got, want)
	}
}

func TestErrorRetryAfterIsWholeSeconds(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "", 0: "", 1: "1", time.Second: "1", time.Second + 1: "2", time.Minute: "60",
	} {
		if got := answerError("GET", visitorError{Status: 503, RetryAfter: d}).Header.Get("Retry-After"); got != want {
			t.Errorf("Retry-After for %v is %q, want %q", d, got, want)
		}
	}
}

func TestErrorProblemJSON(t *testing.T) {
	var got map[string]any
	body := bodyOf(t, answerError("GET", visitorError{Status: 404, Code: "c", Title: "T", Detail: `"<d>`}, "Accept", "application/json"))
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatalf("not JSON: %v\n%s", err, body)
	}
	for member, want := range map[string]any{"type": "urn:harp:error:c", "title": "T", "status": 404.0,
		"detail": `"<d>`, "code": "c", "request_id": "id-1<b>"} {
		if got[member] != want {
			t.Errorf("member %s is %v, want %v", member, got[member], want)
		}
	}
}

func TestErrorPageEscapesAndLoadsNothing(t *testing.T) {
	reason := "dial tcp <script>alert(1)</script>&\"'"
	resp := answerError("GET", upstreamUnreachableError(reason), "Accept", "text/html")
	if got, want := resp.Header.Get("Content-Security-Policy"), "default-src 'none'; style-src 'unsafe-inline'"; got != want {
		t.Errorf("Content-Security-Policy %q, want %q", got, want)
	}
	body := bodyOf(t, resp)
	if len(body) > 4<<10 {
		t.Errorf("the page has %d bytes: it is to stay under 4 KiB", len(body))
	}
	root, err := html.Parse(strings.NewReader(body))
	if err != nil {
		t.Fatalf("parse the page: %v", err)
	}
	text := ""
	for n := range root.Descendants() {
		if n.Type == html.TextNode {
			text += n.Data
		}
		if n.Type == html.ElementNode && strings.Contains(" script img link iframe a form b ", " "+n.Data+" ") {
			t.Errorf("the page has an element <%s>", n.Data)
		}
	}
	if !strings.Contains(text, reason) {
		t.Errorf("the agent's words %q are not in the page as they are: %s", reason, text)
	}
}

func TestErrorReasonIsCleaned(t *testing.T) {
	tests := []struct{ in, want string }{
		{"", ""},
		{"  a\r\n\tb  ", "a b"},
		{"a\x00\x1b[31mb\x7f", "a[31mb"},
		{"evil\u202egnp.exe\u2066", "evilgnp.exe"},
		{"line\u2028sep", "line sep"},
		{"bad\xff\xfeutf8", "badutf8"},
		{strings.Repeat("\x00", 1<<20) + "x", ""},
		{strings.Repeat("ab ", 1000), strings.TrimSpace(strings.Repeat("ab ", 1000)[:299])},
	}
	for _, tt := range tests {
		if got := clean(tt.in, maxReason); got != tt.want {
			t.Errorf("clean(%.40q) = %q, want %q", tt.in, got, tt.want)
		}
	}
	long := clean(strings.Repeat("é", 4000), maxReason)
	if len(long) > maxReason || !utf8.ValidString(long) {
		t.Errorf("%d bytes, valid %v: want whole characters, at most %d bytes", len(long), utf8.ValidString(long), maxReason)
	}
	if got := upstreamUnreachableError("\x00").Detail; strings.Contains(got, ": .") || !strings.Contains(got, "behind it. ") {
		t.Errorf("an empty reason leaves a hole: %s", got)
	}
	if got := upstreamUnreachableError(strings.Repeat("x", 1000)).Detail; strings.Count(got, "x") > maxReason {
		t.Errorf("a page repeats %d bytes of another's words, want at most %d", strings.Count(got, "x"), maxReason)
	}
}

// TestRefusalKeepsItsRecord: the record that a person is to add is at the end of the sentence, and a part of it is of no use.
func TestRefusalKeepsItsRecord(t *testing.T) {
	label, host := strings.Repeat("l", 52), strings.Repeat("h.", 126)+"h"
	target := label + "." + strings.Repeat("d.", 99) + "d"
	says := host + " leads to " + strings.Repeat(`\255`, 253) + ": add the record " + host + ". CNAME " + target +
		". or, for a name that cannot have one, _harp." + host + `. TXT "` + label + `"`
	if refusal := refuseUnproven([]error{errors.New(says)}); refusal == nil || refusal.Message != says {
		t.Errorf("the refusal is %+v, want all of %q", refusal, says)
	}
	if n := len(cleanReason(strings.Repeat("x", 100_000))); n > maxRefusal {
		t.Errorf("a refusal has %d bytes, want at most %d", n, maxRefusal)
	}
}

func TestErrorFormByAccept(t *testing.T) {
	tests := []struct {
		accept string
		want   errorForm
	}{
		{"", formText},
		{"*/*", formText},
		{"text/*", formText},
		{"image/avif,image/webp,*/*;q=0.8", formText},
		{"text/event-stream", formText},
		{"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", formHTML},
		{"TEXT/HTML", formHTML},
		{"text/html;q=0.4, text/plain;q=0.5", formText},
		{"text/html;q=0.001, */*;q=0", formHTML},
		{"text/html;q=0, */*", formText},
		{"text/plain;q=0, */*", formJSON},
		{"application/json", formJSON},
		{"application/problem+json, */*;q=0.1", formJSON},
		{"application/vnd.api+json", formJSON},
		{"application/*", formJSON},
		{"application/json, text/plain, */*", formJSON},
		{"text/plain, application/json", formText},
		{"application/json, text/html", formJSON},
		{"text/html, application/json", formHTML},
		{`text/html;x="a,text/plain;q=1";q=0.1, application/json;q=0.2`, formJSON},
		{`text/html;x="\",q=0", application/json;q=0.5`, formHTML},
		{"text/html;q=1.5, application/json;q=0.1", formJSON},
		{"text/html;q=, application/json;q=0.1", formJSON},
		{"text/html ; Q=0.9 , application/json ; q=0.95", formJSON},
		{"text/html; level=1; q=0.3, application/json;q=0.2", formHTML},
		{"application/json;q=0, application/*;q=0.5, text/html;q=0.1", formHTML},
		{",,;q=1,/", formText},
	}
	for _, tt := range tests {
		if got := acceptedForm([]string{tt.accept}); got != tt.want {
			t.Errorf("Accept: %s gives form %d, want %d", tt.accept, got, tt.want)
		}
	}
	if got := acceptedForm([]string{"image/png", "text/html"}); got != formHTML {
		t.Errorf("the second of two Accept fields was passed over: form %d", got)
	}
}

func TestErrorWeight(t *testing.T) {
	for s, want := range map[string]int{"0": 0, "1": 1000, "0.": 0, "0.5": 500, "0.123": 123, "1.000": 1000, "1.": 1000,
		"": -1, "1.001": -1, "0.1234": -1, "2": -1, ".5": -1, "-0": -1, "0.+1": -1, "0.x": -1} {
		got, ok := parseWeight(s)
		if ok != (want >= 0) || ok && got != want {
			t.Errorf("parseWeight(%q) = %d, %v, want %d", s, got, ok, want)
		}
	}
}

func TestErrorToGRPC(t *testing.T) {
	for status, want := range map[int]string{400: "13", 404: "12", 405: "2", 413: "8", 429: "14", 431: "8",
		502: "14", 503: "14", 504: "4"} {
		e := visitorError{Status: status, Code: "some-code", Title: "100%", Detail: "é\n", RetryAfter: time.Second}
		resp := answerError("POST", e, "Content-Type", "application/grpc+proto", "Te", "trailers")
		if resp.StatusCode != 200 {
			t.Errorf("HTTP status %d for %d: gRPC wants 200", resp.StatusCode, status)
		}
		for name, want := range map[string]string{"Grpc-Status": want, "Grpc-Message": "100%25: %C3%A9%0A",
			"Harp-Error": "some-code", "Content-Type": "application/grpc", "Content-Length": "0", "Retry-After": "1"} {
			if got := resp.Header.Get(name); got != want {
				t.Errorf("%d: %s is %q, want %q", status, name, got, want)
			}
		}
		if got := bodyOf(t, resp); got != "" {
			t.Errorf("%d: a trailers-only answer has a body: %q", status, got)
		}
	}
	for ct, want := range map[string]string{"application/grpc": "application/grpc", "Application/GRPC; a=b": "application/grpc",
		"application/grpc-web-text": "application/grpc-web+proto", "application/grpcx": "", "application/json": "", "": ""} {
		if got, _ := grpcContentType(ct); got != want {
			t.Errorf("grpcContentType(%q) = %q, want %q", ct, got, want)
		}
	}
}

func FuzzAcceptedForm(f *testing.F) {
	for _, s := range []string{"text/html;q=0.5,*/*", `a/b;x="\"`, ";,;=,q=", "application/problem+json;q=1.000"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		form := acceptedForm([]string{s})
		if form == formHTML && !strings.Contains(strings.ToLower(s), "text/html") {
			t.Errorf("HTML for %q, which does not ask for it", s)
		}
		if c := clean(s, maxReason); len(c) > maxReason || clean(c, maxReason) != c {
			t.Errorf("clean(%q) = %q: too long, or unclean yet", s, c)
		}
	})
}
