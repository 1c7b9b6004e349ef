package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
)

func TestParseDomains(t *testing.T) {
	typed := []string{"app.example.org", "app.example.org.", "APP.example.org", "https://app.example.org/", "http://Two.example.org", "bücher.example"}
	want := []string{"app.example.org", "two.example.org", "xn--bcher-kva.example"}
	if got, err := parseDomains(typed); err != nil || !slices.Equal(got, want) {
		t.Errorf("%q are %q, %v; want %q", typed, got, err, want)
	}
	if got, err := parseDomains(nil); got != nil || err != nil {
		t.Errorf("nothing is %q, %v", got, err)
	}
}

// What an edge would refuse for its form is refused here, where a hint can be given.
func TestParseDomainsRefuses(t *testing.T) {
	for typed, hint := range map[string]string{
		"":                              "--domain app.example.org",
		"app_example.org":               "--domain app.example.org",
		"two words.example.org":         "--domain app.example.org",
		"a..example.org":                "--domain app.example.org",
		"*.example.org":                 "--domain app.example.org",
		"localhost":                     "--domain app.example.org",
		"192.0.2.1":                     "--domain app.example.org",
		"[::1]":                         "--domain app.example.org",
		"ftp://app.example.org":         "--domain app.example.org",
		"https://app.example.org/x":     "write --domain app.example.org, and serve a part of it with --path",
		"app.example.org:8443":          "write --domain app.example.org",
		strings.Repeat("a.", 200) + "a": "--domain app.example.org",
	} {
		got, err := parseDomains([]string{typed})
		shown, ok := errors.AsType[*cli.Error](err)
		if !ok || !strings.Contains(shown.Hint, hint) || shown.Code != 0 || !strings.Contains(shown.Error(), "--domain") {
			t.Errorf("%.40q is %q, %v; want that it is refused, with %q for a hint", typed, got, err, hint)
		}
	}
	var many []string
	for i := range 17 {
		many = append(many, fmt.Sprintf("a%d.example.org", i))
	}
	if _, err := parseDomains(many); err == nil {
		t.Error("17 names were taken, and an edge takes 16")
	}
}
