package identity

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/go-jose/go-jose/v4/json" // case-sensitive and refuses an object that names a member twice
)

// jwk holds the members of a JWK (RFC 7517, RFC 8037) that decide about an Ed25519 key; others, such as kid, use and
// key_ops, are ignored.
type jwk struct {
	Kty *string `json:"kty"`
	Crv string  `json:"crv"`
	X   string  `json:"x"`
	D   *string `json:"d"` // set in a private key
}

func decodeJWK(data []byte) (jwk, error) {
	var j jwk
	if err := json.Unmarshal(data, &j); err != nil {
		return jwk{}, fmt.Errorf("found JSON that is not a JWK: %.80q", err.Error())
	}
	if j.Kty == nil {
		return jwk{}, errors.New("found JSON that is not a JWK: it has no kty")
	}
	return j, nil
}

// isEd25519 reports whether j claims to be an Ed25519 key, public or private.
func (j jwk) isEd25519() bool { return *j.Kty == "OKP" && j.Crv == "Ed25519" }

// kind is what j is in words, with its article.
func (j jwk) kind() string {
	part := "public"
	if j.D != nil {
		part = "private"
	}
	switch *j.Kty {
	case "RSA":
		return fmt.Sprintf("an RSA %s key", part)
	case "EC", "OKP":
		return fmt.Sprintf("a %s key of curve %.20q", part, j.Crv)
	case "oct":
		return "a symmetric key"
	default:
		return fmt.Sprintf("a key of type %.20q", *j.Kty)
	}
}

func parsePrivateJWK(data []byte) (Key, error) {
	j, err := decodeJWK(data)
	if err != nil {
		return Key{}, fmt.Errorf("%w: %w", ErrNotKey, err)
	}
	if !j.isEd25519() {
		return Key{}, fmt.Errorf("%w: found %s", ErrNotKey, j.kind())
	}
	if j.D == nil {
		return Key{}, fmt.Errorf("%w: found an Ed25519 public key, its private part d is missing", ErrNotKey)
	}
	seed, err := decodeBase64(*j.D)
	if err != nil {
		return Key{}, fmt.Errorf("%w: d: %w", ErrNotKey, err)
	}
	public, err := decodeBase64(j.X)
	if err != nil {
		return Key{}, fmt.Errorf("%w: x: %w", ErrNotKey, err)
	}
	return keyFromSeed(seed, public)
}

// ParsePublicKey reads a public Ed25519 JWK (RFC 8037): kty OKP, crv Ed25519 and x; other members are ignored. It
// refuses other key types, a JWK with the private part d, and the encodings of x named at PublicKey; the error says
// what was found.
func ParsePublicKey(data []byte) (PublicKey, error) {
	j, err := decodeJWK(data)
	if err != nil {
		return PublicKey{}, fmt.Errorf("not a public Ed25519 key: %w", err)
	}
	if !j.isEd25519() || j.D != nil {
		return PublicKey{}, fmt.Errorf("not a public Ed25519 key: found %s", j.kind())
	}
	x, err := decodeBase64(j.X)
	if err != nil {
		return PublicKey{}, fmt.Errorf("not a public Ed25519 key: x: %w", err)
	}
	if len(x) != ed25519.PublicKeySize {
		return PublicKey{}, fmt.Errorf("not a public Ed25519 key: x has %d bytes, not %d", len(x), ed25519.PublicKeySize)
	}
	return newPublicKey([ed25519.PublicKeySize]byte(x))
}

// decodeBase64 decodes base64url without padding (RFC 7515 section 2) and accepts only the one canonical spelling of
// each value; the standard decoder alone skips line breaks.
func decodeBase64(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("line break in base64url")
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, errors.New("not unpadded base64url")
	}
	return b, nil
}
