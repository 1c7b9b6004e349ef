package tls

import (
	"crypto/tls"
	"errors"
)

// serverConfig returns a configuration for visitors whose certificates come from get: HTTP/2 and HTTP/1.1, from TLS 1.2
// on, and there only with forward secrecy and AEAD. Curves are Go's own, with X25519MLKEM768 first. Keys of session
// tickets are Go's own too, new each day and good for a week, which is why the configuration must be used as it is: a
// clone for each connection would make each its own keys.
//
// If get fails with errUnknownName the client gets the alert unrecognized_name (RFC 6066, section 3), and with any other
// error internal_error.
func serverConfig(get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		CipherSuites: []uint16{ // of TLS 1.2; those of 1.3 are not to be chosen
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert, err := get(hello)
			if errors.Is(err, errUnknownName) {
				return nil, nil // crypto/tls says unrecognized_name only where it finds nothing by itself
			}
			return cert, err
		},
	}
}
