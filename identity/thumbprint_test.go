package identity_test

import (
	"strings"
	"testing"

	"github.com/harp-tunnel/harp/identity"
)

func TestLabelVectors(t *testing.T) {
	for _, v := range readVectors(t, "labels.json", "labels") {
		tp, err := identity.ParseThumbprint(v.Thumbprint)
		if err != nil {
			t.Errorf("%s: %v", v.Thumbprint, err)
			continue
		}
		if got := tp.String(); got != v.Thumbprint {
			t.Errorf("thumbprint %s is written %s", v.Thumbprint, got)
		}
		if got := tp.Label(v.Session); got != v.Label {
			t.Errorf("label of %s with session %q is %s, want %s", v.Thumbprint, v.Session, got, v.Label)
		}
		if !identity.ValidLabel(v.Label) {
			t.Errorf("label %s is not valid", v.Label)
		}
	}
}

func TestLabelLeavesThumbprintAlone(t *testing.T) {
	tp := parseKey(t, rfcKey).Public().Thumbprint()
	if first := tp.Label("api"); tp.Label("api") != first || tp.String() != rfcThumbprint {
		t.Error("asking for a label changed the thumbprint")
	}
}

func TestParseThumbprintRefuses(t *testing.T) {
	for reason, s := range map[string]string{
		"empty":                  "",
		"one character too few":  rfcThumbprint[:42],
		"one character too many": rfcThumbprint + "A",
		"padding":                rfcThumbprint[:42] + "=",
		"standard alphabet":      strings.Replace(rfcThumbprint, "_", "/", 1),
		"unused bits set":        rfcThumbprint[:42] + "l",
		"line break":             rfcThumbprint[:42] + "\n",
	} {
		if tp, err := identity.ParseThumbprint(s); err == nil {
			t.Errorf("%s: %q was read as %s", reason, s, tp)
		}
	}
}

func TestValidLabelRefuses(t *testing.T) {
	label := parseKey(t, rfcKey).Public().Thumbprint().Label("")
	for reason, s := range map[string]string{
		"empty":                  "",
		"one character too few":  label[:51],
		"one character too many": label + "a",
		"upper case":             strings.ToUpper(label),
		"not in the alphabet":    "1" + label[1:],
		"unused bits set":        label[:51] + "b",
		"a dot":                  label[:20] + "." + label[21:],
		"not ASCII":              label[:50] + "é",
	} {
		if identity.ValidLabel(s) {
			t.Errorf("%s: %q is valid", reason, s)
		}
	}
}
