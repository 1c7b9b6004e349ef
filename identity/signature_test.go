package identity_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/harp-tunnel/harp/identity"
)

func TestVerifyVectors(t *testing.T) {
	public := parseKey(t, rfcKey).Public()
	signed := 0
	for _, v := range readVectors(t, "registrations.json", "accept") {
		p, r, err := identity.Verify(v.JWS)
		if err != nil {
			t.Errorf("%s: %v", v.Name, err)
			continue
		}
		if p != public {
			t.Errorf("%s: signed by %s, want %s", v.Name, p, public)
		}
		if !reflect.DeepEqual(r, v.Registration) {
			t.Errorf("%s: got %+v, want %+v", v.Name, r, v.Registration)
		}
		if v.Key == "" {
			continue
		}
		signed++
		jws, err := parseKey(t, v.Key).Sign(v.Registration)
		if err != nil {
			t.Errorf("%s: %v", v.Name, err)
		}
		if jws != v.JWS {
			t.Errorf("%s: signing gives other bytes\n got %s\nwant %s", v.Name, jws, v.JWS)
		}
	}
	if signed == 0 {
		t.Error("no vector fixes the bytes that Sign writes")
	}
}

func TestVerifyRefusalVectors(t *testing.T) {
	kinds := map[string]error{"signature": identity.ErrSignature, "request": identity.ErrRequest}
	for _, v := range readVectors(t, "registrations.json", "refuse") {
		p, r, err := identity.Verify(v.JWS)
		if err == nil {
			t.Errorf("%s: accepted", v.Name)
			continue
		}
		for kind, sentinel := range kinds {
			if got, want := errors.Is(err, sentinel), kind == v.Error; got != want {
				t.Errorf("%s: error %v is of kind %s: %v, want %v", v.Name, err, kind, got, want)
			}
		}
		if !strings.Contains(err.Error(), v.Says) {
			t.Errorf("%s: error %q does not say %q", v.Name, err, v.Says)
		}
		if len(err.Error()) > 400 {
			t.Errorf("%s: the error has %d bytes; a peer can flood the log", v.Name, len(err.Error()))
		}
		if p != (identity.PublicKey{}) || !reflect.DeepEqual(r, identity.Registration{}) {
			t.Errorf("%s: something was returned with the error", v.Name)
		}
	}
}

// Whatever single character of a signed registration is changed, it is refused.
func TestVerifyRefusesEveryChange(t *testing.T) {
	jws, err := parseKey(t, rfcKey).Sign(identity.Registration{Audience: "a", Challenge: "c", Session: "s"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(jws) {
		for _, c := range []byte("AB._-=\n ") {
			if c == jws[i] {
				continue
			}
			changed := jws[:i] + string(c) + jws[i+1:]
			if _, _, err := identity.Verify(changed); err == nil {
				t.Errorf("accepted with %q at %d", c, i)
			}
		}
	}
}

func TestSignRefuses(t *testing.T) {
	k := parseKey(t, rfcKey)
	if _, err := k.Sign(identity.Registration{Audience: "a"}); err == nil || !strings.Contains(err.Error(), "challenge") {
		t.Errorf("a registration without challenge: error %v", err)
	}
	r := identity.Registration{Audience: "a", Challenge: "c"}
	for range 16 {
		r.Hostnames = append(r.Hostnames, strings.Repeat(strings.Repeat("a", 62)+".", 4)+"b")
	}
	if err := r.Validate(); err != nil {
		t.Fatal(err)
	}
	if jws, err := k.Sign(r); err == nil {
		t.Errorf("a payload over 4 KiB was signed, %d bytes in all", len(jws))
	}
}
