package identity_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/harp-tunnel/harp/identity"
)

func FuzzParseKey(f *testing.F) {
	for _, list := range []string{"accept", "refuse"} {
		for _, v := range readVectors(f, "keys.json", list) {
			f.Add([]byte(v.Key))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := identity.ParseKey(data)
		if err != nil {
			if !errors.Is(err, identity.ErrNotKey) {
				t.Fatalf("error %v does not wrap ErrNotKey", err)
			}
			return
		}
		first, err := k.MarshalJWK()
		if err != nil {
			t.Fatalf("a key that was read can not be written: %v", err)
		}
		again, err := identity.ParseKey(first)
		if err != nil || again.Public() != k.Public() {
			t.Fatalf("a key that was written is not read back: %v, %v", again, err)
		}
		if second, _ := again.MarshalJWK(); !bytes.Equal(first, second) {
			t.Fatalf("written differently the second time:\n%s\n%s", first, second)
		}
		public, err := k.Public().MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		if p, err := identity.ParsePublicKey(public); err != nil || p != k.Public() {
			t.Fatalf("the public key is not read back: %v, %v", p, err)
		}
	})
}

// FuzzVerify tries jws as it is, and a header and payload that are rightly signed: without a signature hardly any
// input would come as far as the payload.
func FuzzVerify(f *testing.F) {
	for _, list := range []string{"accept", "refuse"} {
		for _, v := range readVectors(f, "registrations.json", list) {
			parts := strings.Split(v.JWS, ".")
			if len(parts) < 2 {
				f.Add(v.JWS, []byte(v.Header), []byte(v.Payload))
				continue
			}
			header, _ := base64.RawURLEncoding.DecodeString(parts[0])
			payload, _ := base64.RawURLEncoding.DecodeString(parts[1])
			f.Add(v.JWS, header, payload)
		}
	}
	seed, err := base64.RawURLEncoding.DecodeString(rfcSecret)
	if err != nil {
		f.Fatal(err)
	}
	private := ed25519.NewKeyFromSeed(seed)
	signer := parseKey(f, rfcKey)
	f.Fuzz(func(t *testing.T, jws string, header, payload []byte) {
		checkVerify(t, signer, jws)
		in := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(payload)
		checkVerify(t, signer, in+"."+base64.RawURLEncoding.EncodeToString(ed25519.Sign(private, []byte(in))))
	})
}

func checkVerify(t *testing.T, signer identity.Key, jws string) {
	t.Helper()
	public, r, err := identity.Verify(jws)
	if err != nil {
		if errors.Is(err, identity.ErrSignature) == errors.Is(err, identity.ErrRequest) {
			t.Fatalf("error %v wraps both or neither of ErrSignature and ErrRequest", err)
		}
		return
	}
	if public != signer.Public() {
		t.Fatalf("signed by %s, a key that nobody here has", public)
	}
	if err := r.Validate(); err != nil {
		t.Fatalf("what was verified is not valid: %v", err)
	}
	again, err := signer.Sign(r)
	if err != nil {
		t.Fatalf("what was verified can not be signed: %v", err)
	}
	_, r2, err := identity.Verify(again)
	if err != nil {
		t.Fatalf("what was signed can not be verified: %v", err)
	}
	if len(r.Hostnames) == 0 {
		r.Hostnames = nil // an empty list is not written
	}
	if !reflect.DeepEqual(r, r2) {
		t.Fatalf("verified %+v, signed and verified again %+v", r, r2)
	}
}

func FuzzParseAuthorizedKeys(f *testing.F) {
	for _, list := range []string{"accept", "refuse"} {
		for _, v := range readVectors(f, "authorized_keys.json", list) {
			f.Add([]byte(v.File))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, err := identity.ParseAuthorizedKeys(data)
		if err != nil {
			if keys != nil {
				t.Fatal("a set was returned with an error")
			}
			return
		}
		var list strings.Builder
		for tp := range keys {
			list.WriteString(tp.String() + "\n")
		}
		again, err := identity.ParseAuthorizedKeys([]byte(list.String()))
		if err != nil || !reflect.DeepEqual(keys, again) {
			t.Fatalf("written as thumbprints the list is not the same: %v", err)
		}
	})
}

func FuzzCleanPath(f *testing.F) {
	for _, list := range []string{"accept", "refuse"} {
		for _, v := range readVectors(f, "paths.json", list) {
			f.Add(v.Path)
		}
	}
	f.Fuzz(func(t *testing.T, path string) {
		clean, err := identity.CleanPath(path)
		if err != nil {
			return
		}
		if again, err := identity.CleanPath(clean); err != nil || again != clean {
			t.Fatalf("%q becomes %q and then %q, %v", path, clean, again, err)
		}
		if clean != path && clean+"/" != path {
			t.Fatalf("%q becomes %q, more than a slash was taken away", path, clean)
		}
		if clean != "" && (clean[0] != '/' || strings.HasSuffix(clean, "/") || strings.Contains(clean, "//")) {
			t.Fatalf("%q becomes %q", path, clean)
		}
	})
}
