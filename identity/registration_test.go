package identity_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/harp-tunnel/harp/identity"
)

func TestCleanPathVectors(t *testing.T) {
	for _, v := range readVectors(t, "paths.json", "accept") {
		got, err := identity.CleanPath(v.Path)
		if err != nil {
			t.Errorf("%q: %v", v.Path, err)
		}
		if got != v.Clean {
			t.Errorf("%q becomes %q, want %q", v.Path, got, v.Clean)
		}
	}
	for _, v := range readVectors(t, "paths.json", "refuse") {
		got, err := identity.CleanPath(v.Path)
		if err == nil || !strings.Contains(err.Error(), v.Says) {
			t.Errorf("%q: error %v does not say %q", v.Path, err, v.Says)
		}
		if got != "" {
			t.Errorf("%q was refused and returned as %q", v.Path, got)
		}
	}
	if _, err := identity.CleanPath("/\xff"); err == nil { // JSON can not carry this one
		t.Error("a path that is not UTF-8 was accepted")
	}
}

func TestValidate(t *testing.T) {
	hostnames := make([]string, 16)
	for i := range hostnames {
		hostnames[i] = fmt.Sprintf("h%d.example.com", i)
	}
	long := strings.Repeat(strings.Repeat("a", 62)+".", 4) + "b" // 253 bytes
	tests := []struct {
		reason string
		change func(*identity.Registration)
		says   string // empty if valid
	}{
		{"the least", func(*identity.Registration) {}, ""},
		{"everything as large as can be", func(r *identity.Registration) {
			r.Audience, r.Challenge = strings.Repeat("a", 300), strings.Repeat("c", 300)
			r.Session, r.Instance = strings.Repeat("é", 32), strings.Repeat("i", 64)
			r.Path, r.Mode, r.Hostnames, r.EndToEnd = "/"+strings.Repeat("p", 255), identity.ModeStandby, hostnames, true
		}, ""},
		{"takeover by name", func(r *identity.Registration) { r.Mode = "takeover" }, ""},
		{"mode in capitals", func(r *identity.Registration) { r.Mode = "Share" }, "mode"},
		{"audience not UTF-8", func(r *identity.Registration) { r.Audience = "\xff" }, "audience: not UTF-8"},
		{"session not UTF-8", func(r *identity.Registration) { r.Session = "\xff" }, "session"},
		{"unusual space in session", func(r *identity.Registration) { r.Session = "a\u3000b" }, "session"},
		{"invisible character in session", func(r *identity.Registration) { r.Session = "a\u202eb" }, "session"},
		{"name of 253 bytes", func(r *identity.Registration) { r.Hostnames = []string{long} }, ""},
		{"name of 254 bytes", func(r *identity.Registration) { r.Hostnames = []string{long + "b"} }, "254 bytes"},
		{"one label", func(r *identity.Registration) { r.Hostnames = []string{"intranet"} }, ""},
		{"empty name", func(r *identity.Registration) { r.Hostnames = []string{""} }, "0 characters"},
		{"empty label", func(r *identity.Registration) { r.Hostnames = []string{"a..b"} }, "0 characters"},
		{"label of 64", func(r *identity.Registration) { r.Hostnames = []string{strings.Repeat("a", 64) + ".b"} }, "64 characters"},
		{"hyphen first", func(r *identity.Registration) { r.Hostnames = []string{"-a.b"} }, "hyphen"},
		{"hyphen last", func(r *identity.Registration) { r.Hostnames = []string{"a-.b"} }, "hyphen"},
		{"underscore", func(r *identity.Registration) { r.Hostnames = []string{"a_b.c"} }, "only a-z"},
		{"not ASCII", func(r *identity.Registration) { r.Hostnames = []string{"é.c"} }, "only a-z"},
		{"port", func(r *identity.Registration) { r.Hostnames = []string{"a.b:80"} }, "only a-z"},
		{"IPv6 address", func(r *identity.Registration) { r.Hostnames = []string{"::1"} }, "only a-z"},
	}
	for _, test := range tests {
		r := identity.Registration{Audience: "a", Challenge: "c"}
		test.change(&r)
		err := r.Validate()
		if test.says == "" && err != nil {
			t.Errorf("%s: %v", test.reason, err)
		}
		if test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)) {
			t.Errorf("%s: error %v does not say %q", test.reason, err, test.says)
		}
	}
}

func TestHasChallenge(t *testing.T) {
	r := identity.Registration{Challenge: "abc"}
	if !r.HasChallenge("abc") {
		t.Error("the right challenge is not recognised")
	}
	for _, wrong := range []string{"", "ab", "abcd", "abd", "ABC"} {
		if r.HasChallenge(wrong) {
			t.Errorf("%q passes for abc", wrong)
		}
	}
	if (identity.Registration{}).HasChallenge("") {
		t.Error("no challenge passes for an empty one")
	}
}
