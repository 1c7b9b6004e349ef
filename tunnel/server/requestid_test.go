package server

import (
	"net/http"
	"regexp"
	"strings"
	"testing"
)

func TestRequestID(t *testing.T) {
	made := regexp.MustCompile(`^[0-9a-f]{32}$`)
	tests := []struct {
		own  []string
		kept bool
	}{
		{nil, false},
		{[]string{""}, false},
		{[]string{"a"}, true},
		{[]string{strings.Repeat("x", 128)}, true},
		{[]string{strings.Repeat("x", 129)}, false},
		{[]string{"!~/+=:<>"}, true},
		{[]string{"a b"}, false},
		{[]string{"a\tb"}, false},
		{[]string{"a\r\nSet-Cookie: x"}, false},
		{[]string{"é"}, false},
		{[]string{"a\x7f"}, false},
		{[]string{"a", "b"}, false},
	}
	for _, tt := range tests {
		got := requestID(&http.Request{Header: http.Header{"X-Request-Id": tt.own}})
		if tt.kept && got != tt.own[0] {
			t.Errorf("requestID with %q = %q, want the visitor's own", tt.own, got)
		}
		if !tt.kept && !made.MatchString(got) {
			t.Errorf("requestID with %q = %q, want a new one", tt.own, got)
		}
	}
	r := &http.Request{Header: http.Header{}}
	if first := requestID(r); first == requestID(r) {
		t.Error("two requests got the same id")
	}
	if n := testing.AllocsPerRun(100, func() { requestID(r) }); n > 1 {
		t.Errorf("%v allocations for a new id, want one", n)
	}
}

func BenchmarkRequestID(b *testing.B) {
	r := &http.Request{Header: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		requestID(r)
	}
}
