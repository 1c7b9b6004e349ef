package tls

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
)

// rootedTransport carries requests to an authority that it trusts by roots, or by the system's if they are nil. It keeps
// no connections: there are few requests, months apart.
func rootedTransport(roots *x509.CertPool) http.RoundTripper {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{RootCAs: roots}
	t.DisableKeepAlives = true
	return t
}
