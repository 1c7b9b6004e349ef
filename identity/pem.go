package identity

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"
)

// parsePEM reads a PKCS#8 (RFC 5958) or an unencrypted OpenSSH private key (OpenSSH's PROTOCOL.key).
func parsePEM(data []byte) (Key, error) {
	block, rest := pem.Decode(data)
	if block == nil {
		return Key{}, fmt.Errorf("%w: found neither a JWK nor a PEM block", ErrNotKey)
	}
	if block.Headers["Proc-Type"] != "" {
		return Key{}, fmt.Errorf("%w: found an encrypted PEM block", ErrNotKey)
	}
	switch block.Type {
	case "PRIVATE KEY", "OPENSSH PRIVATE KEY":
		if len(bytes.TrimSpace(rest)) > 0 {
			return Key{}, fmt.Errorf("%w: found more data after the key", ErrNotKey)
		}
	case "ENCRYPTED PRIVATE KEY":
		return Key{}, fmt.Errorf("%w: found an encrypted PKCS#8 key", ErrNotKey)
	case "RSA PRIVATE KEY":
		return Key{}, fmt.Errorf("%w: found an RSA private key", ErrNotKey)
	case "EC PRIVATE KEY", "EC PARAMETERS":
		return Key{}, fmt.Errorf("%w: found an elliptic curve key of another kind", ErrNotKey)
	default:
		return Key{}, fmt.Errorf("%w: found a PEM block %.40q", ErrNotKey, block.Type)
	}

	var private any
	var err error
	if block.Type == "PRIVATE KEY" {
		private, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	} else {
		private, err = ssh.ParseRawPrivateKey(data)
	}
	if _, ok := errors.AsType[*ssh.PassphraseMissingError](err); ok {
		return Key{}, fmt.Errorf("%w: found an OpenSSH key with a passphrase", ErrNotKey)
	}
	if err != nil {
		return Key{}, fmt.Errorf("%w: found a damaged or unknown key: %w", ErrNotKey, err)
	}
	return keyFromParsed(private)
}

// keyFromParsed takes what x509 or ssh made of a private key.
func keyFromParsed(private any) (Key, error) {
	switch p := private.(type) {
	case ed25519.PrivateKey:
		return keyFromSeed(p.Seed(), p[ed25519.SeedSize:])
	case *ed25519.PrivateKey: // from ssh, which does not check that the two halves belong together
		return keyFromSeed(p.Seed(), (*p)[ed25519.SeedSize:])
	case *rsa.PrivateKey:
		return Key{}, fmt.Errorf("%w: found an RSA private key", ErrNotKey)
	case *ecdsa.PrivateKey:
		return Key{}, fmt.Errorf("%w: found an ECDSA private key of curve %s", ErrNotKey, p.Curve.Params().Name)
	case *ecdh.PrivateKey:
		return Key{}, fmt.Errorf("%w: found a key of curve %s, which can not sign", ErrNotKey, p.Curve())
	default:
		return Key{}, fmt.Errorf("%w: found a %T", ErrNotKey, private)
	}
}
