package identity

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

const (
	thumbprintLen = 43 // characters of 32 bytes in base64url
	labelLen      = 52 // characters of 32 bytes in base32
	labelAlphabet = "abcdefghijklmnopqrstuvwxyz234567"
)

// A Thumbprint is the SHA-256 JWK thumbprint (RFC 7638, RFC 8037 section 2) of a public key: the name of an identity.
type Thumbprint [sha256.Size]byte

// Thumbprint returns the name of the identity that holds the key.
func (p PublicKey) Thumbprint() Thumbprint {
	x := base64.RawURLEncoding.EncodeToString(p.point[:])
	return sha256.Sum256([]byte(`{"crv":"Ed25519","kty":"OKP","x":"` + x + `"}`))
}

// ParseThumbprint reads what String writes: 43 characters of unpadded base64url, the unused last bits zero.
func ParseThumbprint(s string) (Thumbprint, error) {
	if len(s) != thumbprintLen {
		return Thumbprint{}, fmt.Errorf("not a thumbprint: %d characters, not %d", len(s), thumbprintLen)
	}
	b, err := decodeBase64(s)
	if err != nil {
		return Thumbprint{}, fmt.Errorf("not a thumbprint: %w", err)
	}
	if len(b) != sha256.Size {
		return Thumbprint{}, errors.New("not a thumbprint: wrong number of bytes")
	}
	return Thumbprint(b), nil
}

// String is the thumbprint in unpadded base64url, 43 characters.
func (t Thumbprint) String() string { return base64.RawURLEncoding.EncodeToString(t[:]) }

// Label returns the first label of the identity's hostname: base32(sha256(thumbprint || session)) in lower case without
// padding, 52 characters. An empty session gives the identity's main name.
func (t Thumbprint) Label(session string) string {
	sum := sha256.Sum256(append(t[:], session...))
	return base32.NewEncoding(labelAlphabet).WithPadding(base32.NoPadding).EncodeToString(sum[:])
}

// ValidLabel reports whether s is a string that Label could return: 52 characters of a-z and 2-7 whose unused last
// bits are zero. Upper case is not valid; a caller lowers a host name first.
func ValidLabel(s string) bool {
	if len(s) != labelLen {
		return false
	}
	for i := range len(s) {
		if strings.IndexByte(labelAlphabet, s[i]) < 0 {
			return false
		}
	}
	last := s[labelLen-1]
	return last == 'a' || last == 'q' // 256 bits leave one bit for the last character
}
