package identity_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/harp-tunnel/harp/identity"
)

func TestAuthorizedKeysVectors(t *testing.T) {
	for _, v := range readVectors(t, "authorized_keys.json", "accept") {
		keys, err := identity.ParseAuthorizedKeys([]byte(v.File))
		if err != nil {
			t.Errorf("%s: %v", v.Name, err)
			continue
		}
		if len(keys) != len(v.Thumbprints) {
			t.Errorf("%s: %d identities, want %d", v.Name, len(keys), len(v.Thumbprints))
		}
		for _, s := range v.Thumbprints {
			tp, err := identity.ParseThumbprint(s)
			if err != nil {
				t.Fatal(err)
			}
			if !keys.Has(tp) {
				t.Errorf("%s: %s is missing", v.Name, s)
			}
		}
	}
	for _, v := range readVectors(t, "authorized_keys.json", "refuse") {
		keys, err := identity.ParseAuthorizedKeys([]byte(v.File))
		if err == nil || !strings.Contains(err.Error(), v.Says) {
			t.Errorf("%s: error %v does not say %q", v.Name, err, v.Says)
		}
		if keys != nil {
			t.Errorf("%s: a set was returned with the error", v.Name)
		}
	}
}

func TestAuthorizedKeysBounds(t *testing.T) {
	if _, err := identity.ParseAuthorizedKeys(bytes.Repeat([]byte("\n"), 16<<20)); err != nil {
		t.Errorf("16 MiB: %v", err)
	}
	if _, err := identity.ParseAuthorizedKeys(bytes.Repeat([]byte("\n"), 16<<20+1)); err == nil {
		t.Error("more than 16 MiB were accepted")
	}
	if (identity.AuthorizedKeys)(nil).Has(identity.Thumbprint{}) {
		t.Error("a nil set holds an identity")
	}
}
