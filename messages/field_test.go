package messages_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/harp-tunnel/harp/messages"
)

func TestFieldsKeepOrderAndRepetition(t *testing.T) {
	want := []string{"Set-Cookie: a", "x-lower: ", "Set-Cookie: b", "Set-Cookie: a", "A: " + strings.Repeat("v", 70_000)}
	var b []byte
	for _, f := range want {
		name, value, _ := strings.Cut(f, ": ")
		b = messages.AppendField(b, name, value)
	}
	f, err := messages.ParseTrailers(string(b))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for name, value := range f.All() {
		got = append(got, name+": "+value)
	}
	if !slices.Equal(got, want) {
		t.Errorf("fields come back as %.200q, want %.200q", got, want)
	}
	for name := range f.All() {
		if name != "Set-Cookie" {
			t.Errorf("first field is %q", name)
		}
		break // a loop may end early
	}
	for name := range messages.Fields("").All() {
		t.Errorf("no fields, yet there is one called %q", name)
	}
}

// TestEveryByteOfAField tries each byte in a name and in a value: what RFC 9110 forbids there is refused, so that no
// field can end early and become two.
func TestEveryByteOfAField(t *testing.T) {
	const tokens = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	for c := range 256 {
		s := string([]byte{byte(c)})
		_, err := messages.ParseTrailers(string(messages.AppendField(nil, "X"+s, "v")))
		if got, want := err == nil, strings.Contains(tokens, s); got != want {
			t.Errorf("byte 0x%02x in a name: accepted %v, want %v", c, got, want)
		}
		_, err = messages.ParseTrailers(string(messages.AppendField(nil, "X", s)))
		if got, want := err == nil, c == '\t' || c >= ' ' && c != 0x7f; got != want {
			t.Errorf("byte 0x%02x in a value: accepted %v, want %v", c, got, want)
		}
	}
}
