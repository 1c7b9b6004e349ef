package identity

import (
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"
)

// A PublicKey is a public Ed25519 key. It can be compared with == and used as a map key. One that this package
// returned without an error is never a point of small order, which would verify signatures that nobody made, and never
// a second spelling of another key. It may still be no point of the curve at all; such a key verifies nothing, as the
// zero PublicKey does.
type PublicKey struct {
	point [ed25519.PublicKeySize]byte // the encoding of RFC 8032 section 5.1.2
}

func newPublicKey(point [ed25519.PublicKeySize]byte) (PublicKey, error) {
	y := point
	y[31] &= 0x7f // without the sign of x
	if !canonical(y) {
		return PublicKey{}, errors.New("not a public Ed25519 key: found an encoding that is not canonical")
	}
	if smallOrder(y) {
		return PublicKey{}, errors.New("not a public Ed25519 key: found a point of small order")
	}
	return PublicKey{point: point}, nil
}

// canonical reports whether y, little-endian, is below 2^255-19.
func canonical(y [ed25519.PublicKeySize]byte) bool {
	if y[0] < 0xed || y[31] != 0x7f {
		return true
	}
	for _, b := range y[1:31] {
		if b != 0xff {
			return true
		}
	}
	return false
}

// smallOrder reports whether y is that of one of the eight points whose order divides 8. With either sign of x these
// five values cover all of them; the all-zero key is one.
func smallOrder(y [ed25519.PublicKeySize]byte) bool {
	switch hex.EncodeToString(y[:]) {
	case "0000000000000000000000000000000000000000000000000000000000000000", // order 4
		"0100000000000000000000000000000000000000000000000000000000000000", // order 1
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // order 2
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", // order 8
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a": // order 8
		return true
	}
	return false
}

// MarshalJSON returns the public JWK (RFC 8037 section 2), which ParsePublicKey reads back. It fails for the zero
// PublicKey.
func (p PublicKey) MarshalJSON() ([]byte, error) {
	data, err := jose.JSONWebKey{Key: ed25519.PublicKey(p.point[:])}.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("marshal public key: %w", err)
	}
	return data, nil
}

// String is the thumbprint, the short name of the key.
func (p PublicKey) String() string { return p.Thumbprint().String() }
