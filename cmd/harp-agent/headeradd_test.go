package main

import (
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestParseHeaders(t *testing.T) {
	dir := t.TempDir()
	token, lines := filepath.Join(dir, "token"), filepath.Join(dir, "lines")
	if err := os.WriteFile(token, []byte("Bearer hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(lines, []byte("# secrets\n\nX-A: 1, 2\r\nX-B: @"+token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := parseHeaders([]string{"x-one:  a: b, c ", "X-One: d", "X-Empty:", "Authorization: @" + token, "X-At: @@home", "@" + lines})
	if err != nil {
		t.Fatal(err)
	}
	want := http.Header{
		"X-One": {"a: b, c", "d"}, "X-Empty": {""}, "Authorization": {"Bearer hunter2"}, "X-At": {"@home"},
		"X-A": {"1, 2"}, "X-B": {"Bearer hunter2"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("fields %q, want %q", got, want)
	}
}

func TestParseHeadersRefuses(t *testing.T) {
	for _, value := range []string{"Authorization hunter2", ": hunter2", "X Y: hunter2", "X-A: @/nonexistent/file", "@/nonexistent/file"} {
		if _, err := parseHeaders([]string{value}); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: error %v, want one that does not show the value", value, err)
		}
	}
}
