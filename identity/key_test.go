package identity_test

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/harp-tunnel/harp/identity"
)

func TestParseKeyVectors(t *testing.T) {
	for _, v := range readVectors(t, "keys.json", "accept") {
		k, err := identity.ParseKey([]byte(v.Key))
		if err != nil {
			t.Errorf("%s: %v", v.Name, err)
			continue
		}
		if got := k.Public().Thumbprint().String(); got != v.Thumbprint {
			t.Errorf("%s: thumbprint %s, want %s", v.Name, got, v.Thumbprint)
		}
	}
	for _, v := range readVectors(t, "keys.json", "refuse") {
		_, err := identity.ParseKey([]byte(v.Key))
		if !errors.Is(err, identity.ErrNotKey) {
			t.Errorf("%s: error %v does not wrap ErrNotKey", v.Name, err)
			continue
		}
		if !strings.Contains(err.Error(), v.Says) {
			t.Errorf("%s: error %q does not say %q", v.Name, err, v.Says)
		}
		if strings.Contains(err.Error(), rfcSecret[:20]) {
			t.Errorf("%s: the error shows the secret: %v", v.Name, err)
		}
	}
}

func TestParsePublicKeyVectors(t *testing.T) {
	for _, v := range readVectors(t, "publickeys.json", "accept") {
		p, err := identity.ParsePublicKey([]byte(v.Key))
		if err != nil {
			t.Errorf("%s: %v", v.Name, err)
			continue
		}
		if got := p.Thumbprint().String(); got != v.Thumbprint {
			t.Errorf("%s: thumbprint %s, want %s", v.Name, got, v.Thumbprint)
		}
		if p != parseKey(t, rfcKey).Public() {
			t.Errorf("%s: the same key from two sources is not equal", v.Name)
		}
	}
	for _, v := range readVectors(t, "publickeys.json", "refuse") {
		p, err := identity.ParsePublicKey([]byte(v.JWK))
		if err == nil || !strings.Contains(err.Error(), v.Says) {
			t.Errorf("%s: error %v does not say %q", v.Name, err, v.Says)
		}
		if p != (identity.PublicKey{}) {
			t.Errorf("%s: a refused key was returned", v.Name)
		}
	}
}

func TestGenerate(t *testing.T) {
	a, err := identity.Generate()
	if err != nil {
		t.Fatal(err)
	}
	b, err := identity.Generate()
	if err != nil {
		t.Fatal(err)
	}
	if a.Public() == b.Public() {
		t.Error("two generated keys are the same")
	}
	data, err := a.MarshalJWK()
	if err != nil {
		t.Fatal(err)
	}
	if parseKey(t, string(data)).Public() != a.Public() {
		t.Error("a generated key does not survive its JWK")
	}
}

// The library must agree with what is computed here by hand.
func TestAgreesWithJose(t *testing.T) {
	k := parseKey(t, rfcKey)
	for _, marshal := range []func() ([]byte, error){k.MarshalJWK, k.Public().MarshalJSON} {
		data, err := marshal()
		if err != nil {
			t.Fatal(err)
		}
		var j jose.JSONWebKey
		if err := json.Unmarshal(data, &j); err != nil {
			t.Fatalf("the library refuses our JWK: %v", err)
		}
		sum, err := j.Thumbprint(crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		if got := k.Public().Thumbprint(); !bytes.Equal(got[:], sum) {
			t.Errorf("thumbprint %x, the library says %x", got, sum)
		}
	}
}

func TestKeyNeverPrintsSecret(t *testing.T) {
	k := parseKey(t, rfcKey)
	type holder struct {
		k   identity.Key
		Key identity.Key
		P   *identity.Key
	}
	h := holder{k, k, &k}
	var b strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%b", "%o", "%t", "%p", "%y"} {
		for _, v := range []any{k, &k, h, &h, []identity.Key{k}, []holder{h}, map[string]*holder{"h": &h}} {
			fmt.Fprintf(&b, verb+"\n", v)
		}
	}
	slog.New(slog.NewTextHandler(&b, nil)).Info("", "key", k, "holder", h)
	slog.New(slog.NewJSONHandler(&b, nil)).Info("", "key", k, "holder", h, "pointer", &h)
	if err := json.NewEncoder(&b).Encode(h); err != nil {
		t.Fatal(err)
	}
	// Base64, hex either way, and the first bytes in decimal.
	raw := []byte{0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd}
	for _, secret := range []string{rfcSecret[:8], hex.EncodeToString(raw), "9D61B19DEFFD", "157 97 177", "0x9d, 0x61, 0xb1"} {
		if strings.Contains(b.String(), secret) {
			t.Errorf("%s, a piece of the secret, was printed", secret)
		}
	}
	if want := "private key of " + rfcThumbprint; !strings.Contains(b.String(), want) {
		t.Errorf("%q was not printed", want)
	}
}

func TestZeroKey(t *testing.T) {
	var k identity.Key
	if _, err := k.MarshalJWK(); !errors.Is(err, identity.ErrNotKey) {
		t.Errorf("MarshalJWK of the zero Key: error %v, want ErrNotKey", err)
	}
	if _, err := k.Sign(identity.Registration{Audience: "a", Challenge: "c"}); !errors.Is(err, identity.ErrNotKey) {
		t.Errorf("Sign with the zero Key: error %v, want ErrNotKey", err)
	}
	if k.Public() != (identity.PublicKey{}) {
		t.Error("the zero Key has a public key")
	}
	if data, err := k.Public().MarshalJSON(); err == nil {
		t.Errorf("the zero PublicKey was marshalled: %s", data)
	}
	if got := fmt.Sprint(k); got != "private key (none)" {
		t.Errorf("the zero Key prints %q", got)
	}
}
