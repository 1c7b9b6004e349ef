package identity

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/crypto/ssh"
)

const maxAuthorizedKeys = 16 << 20 // bytes

// AuthorizedKeys is a set of identities. A nil set is empty and may be asked.
type AuthorizedKeys map[Thumbprint]struct{}

// Has reports whether the identity is in the set.
func (a AuthorizedKeys) Has(t Thumbprint) bool {
	_, ok := a[t]
	return ok
}

// ParseAuthorizedKeys reads a list of identities, one to a line: a line of OpenSSH's authorized_keys of type ssh-ed25519
// (sshd(8); options before the type are allowed and have no effect), or a bare thumbprint; a comment may follow either.
// Blank lines and lines that begin with # are skipped; a key that is named twice counts once. The first line that is
// none of these gives an error with its number and the reason, and no set. At most 16 MiB are read.
func ParseAuthorizedKeys(data []byte) (AuthorizedKeys, error) {
	if len(data) > maxAuthorizedKeys {
		return nil, fmt.Errorf("authorized keys: %d bytes, at most %d are allowed", len(data), maxAuthorizedKeys)
	}
	keys := make(AuthorizedKeys)
	n := 0
	for line := range bytes.Lines(data) {
		n++
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		t, err := parseAuthorizedKey(line)
		if err != nil {
			return nil, fmt.Errorf("authorized keys: line %d: %w", n, err)
		}
		keys[t] = struct{}{}
	}
	return keys, nil
}

// parseAuthorizedKey reads a line without line break that is neither blank nor a comment.
func parseAuthorizedKey(line []byte) (Thumbprint, error) {
	first := line
	if i := bytes.IndexAny(line, " \t"); i >= 0 {
		first = line[:i]
	}
	if len(first) == thumbprintLen {
		if t, err := ParseThumbprint(string(first)); err == nil {
			return t, nil
		}
	}
	key, _, options, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		return Thumbprint{}, fmt.Errorf("neither a thumbprint nor an OpenSSH public key (%w)", err)
	}
	if key.Type() != ssh.KeyAlgoED25519 {
		return Thumbprint{}, fmt.Errorf("this is a key of type %s, not Ed25519", key.Type())
	}
	if slices.Contains(options, "cert-authority") {
		return Thumbprint{}, errors.New("cert-authority: certificates are not supported, and the line names no user's key")
	}
	crypto, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return Thumbprint{}, errors.New("this Ed25519 key can not be read")
	}
	point, ok := crypto.CryptoPublicKey().(ed25519.PublicKey)
	if !ok || len(point) != ed25519.PublicKeySize {
		return Thumbprint{}, errors.New("this Ed25519 key can not be read")
	}
	public, err := newPublicKey([ed25519.PublicKeySize]byte(point))
	if err != nil {
		return Thumbprint{}, err
	}
	return public.Thumbprint(), nil
}
