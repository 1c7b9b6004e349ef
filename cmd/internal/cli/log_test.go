package cli

import (
	"bytes"
	"log/slog"
	"regexp"
	"strings"
	"testing"
)

func TestTerminalHandler(t *testing.T) {
	var b bytes.Buffer
	log := slog.New(newTerminalHandler(&b, slog.LevelInfo)).With("link", 3)
	log.Debug("unseen")
	log.Info("registered", "host", "a.example", "level", "gold")
	log.WithGroup("g").Warn("odd", "text", "a\x1b[0m\nb", "msg", "kept")
	log.Error("no attributes \x07")
	want := []string{
		`^\d\d:\d\d:\d\d registered  link=3 host=a\.example level=gold$`,
		`^\d\d:\d\d:\d\d WARN odd  link=3 g\.text="a\\x1b\[0m\\nb" g\.msg=kept$`,
		`^\d\d:\d\d:\d\d ERROR no attributes \\a  link=3$`,
	}
	got := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if len(got) != len(want) {
		t.Fatalf("%d lines, want %d: one a record, none for debug:\n%s", len(got), len(want), b.String())
	}
	for i := range want {
		if !regexp.MustCompile(want[i]).MatchString(got[i]) {
			t.Errorf("line %q, want %s", got[i], want[i])
		}
	}
}

func TestNewLogger(t *testing.T) {
	var b bytes.Buffer
	NewLogger(&b, "warn", "json").Info("unseen")
	NewLogger(&b, "debug", "json").Debug("seen")
	if !strings.HasPrefix(b.String(), `{"time":`) || strings.Contains(b.String(), "unseen") {
		t.Errorf("json log %q, want one record", b.String())
	}
	b.Reset()
	NewLogger(&b, "info", "text").Info("seen")
	if !strings.Contains(b.String(), "level=INFO msg=seen") {
		t.Errorf("text log away from a terminal %q, want key=value", b.String())
	}
}
