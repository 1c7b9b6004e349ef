// Package identity holds the Ed25519 keys that name tunnels: key files, the thumbprint and the hostname label
// computed from a key, the signed registration an agent sends, and the list of keys an edge accepts.
//
// Nothing here opens a connection or keeps state. Every function that takes data from the network or from a file
// bounds its work and answers bad input with an error.
package identity

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/go-jose/go-jose/v4"
)

// ErrNotKey is wrapped by the errors of ParseKey and ReadKeyFile when the data was read but is not a usable private
// Ed25519 key. The text says what was found instead.
var ErrNotKey = errors.New("not a private Ed25519 key")

// A Key is a private Ed25519 key. It is an immutable value: copies are cheap and share the secret, and any goroutine
// may use them. The zero Key holds no key: it marshals and signs nothing. Compare two keys by Public.
//
// Printing or logging a Key, alone or inside another struct, shows its thumbprint or an address and never the secret;
// only MarshalJWK gives the secret away.
type Key struct {
	secret *secret // nil in the zero Key
}

// A secret keeps the private key in a function, the one kind of value that fmt never looks into: where a Key is an
// unexported field, Format is out of reach, and a plain pointer is followed when the verb does not fit.
type secret struct {
	reveal func() ed25519.PrivateKey
}

func newKey(private ed25519.PrivateKey) Key {
	return Key{secret: &secret{reveal: func() ed25519.PrivateKey { return private }}}
}

// Generate returns a new key from the system's random source.
func Generate() (Key, error) {
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return Key{}, fmt.Errorf("generate key: %w", err)
	}
	return newKey(private), nil
}

// ParseKey reads one private Ed25519 key: a JWK (RFC 8037, with d and x), a PKCS#8 PEM block, or an OpenSSH PEM block
// without passphrase. Text before a PEM block is ignored, anything but white space after the key is refused.
// Every error wraps ErrNotKey and says what was found.
func ParseKey(data []byte) (Key, error) {
	data = bytes.TrimSpace(data)
	switch {
	case len(data) == 0:
		return Key{}, fmt.Errorf("%w: found nothing", ErrNotKey)
	case data[0] == '{':
		return parsePrivateJWK(data)
	case bytes.HasPrefix(data, []byte("ssh-")), bytes.HasPrefix(data, []byte("ecdsa-")):
		return Key{}, fmt.Errorf("%w: found an OpenSSH public key; the private key is the file without .pub", ErrNotKey)
	default:
		return parsePEM(data)
	}
}

// keyFromSeed returns the key of a seed, the 32 bytes of RFC 8032 section 5.1.5, if public is what belongs to it.
func keyFromSeed(seed, public []byte) (Key, error) {
	if len(seed) != ed25519.SeedSize {
		return Key{}, fmt.Errorf("%w: the secret has %d bytes, not %d", ErrNotKey, len(seed), ed25519.SeedSize)
	}
	private := ed25519.NewKeyFromSeed(seed)
	if !bytes.Equal(public, private[ed25519.SeedSize:]) {
		return Key{}, fmt.Errorf("%w: the public part does not belong to the private part", ErrNotKey)
	}
	return newKey(private), nil
}

// Public returns the key that verifies what k signs; for the zero Key it is the zero PublicKey, which verifies nothing.
func (k Key) Public() PublicKey {
	if k.secret == nil {
		return PublicKey{}
	}
	return PublicKey{point: [ed25519.PublicKeySize]byte(k.secret.reveal()[ed25519.SeedSize:])}
}

// MarshalJWK returns the private JWK (RFC 8037 section 2), the secret included. ParseKey reads it back; the same key
// gives the same bytes. There is no MarshalJSON on purpose: a secret must be asked for by name, not slip out with the
// struct that holds it.
func (k Key) MarshalJWK() ([]byte, error) {
	if k.secret == nil {
		return nil, fmt.Errorf("marshal key: %w: it is the zero Key", ErrNotKey)
	}
	data, err := jose.JSONWebKey{Key: k.secret.reveal()}.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("marshal key: %w", err)
	}
	return data, nil
}

// String names the key by its thumbprint.
func (k Key) String() string {
	if k.secret == nil {
		return "private key (none)"
	}
	return "private key of " + k.Public().Thumbprint().String()
}

// Format prints String for every verb, so that %#v and %d do not show the secret either.
func (k Key) Format(f fmt.State, _ rune) { io.WriteString(f, k.String()) }

// LogValue is String.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }
