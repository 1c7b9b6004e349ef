package cli

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"os"
)

// authorities are the ACME directories (RFC 8555, section 7.1.1) that --acme-ca knows by name.
var authorities = map[string]string{
	"letsencrypt":         "https://acme-v02.api.letsencrypt.org/directory",
	"letsencrypt-staging": "https://acme-staging-v02.api.letsencrypt.org/directory",
}

// ACMEDirectory returns the URL of the directory that --acme-ca names.
func ACMEDirectory(ca string) (string, error) {
	if directory, ok := authorities[ca]; ok {
		return directory, nil
	}
	u, err := url.Parse(ca)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return "", &Error{
			Err:  fmt.Errorf("--acme-ca %q is neither a known name nor an https URL", ca),
			Hint: "letsencrypt, letsencrypt-staging, or such as https://acme.example.com/directory",
		}
	}
	return ca, nil
}

// ACMERoots reads the PEM file of --acme-ca-root; nil, for the system's roots, if there is none.
func ACMERoots(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	pool := x509.NewCertPool()
	if err == nil && !pool.AppendCertsFromPEM(text) {
		err = fmt.Errorf("no certificate in %s", file)
	}
	if err != nil {
		return nil, &Error{Err: fmt.Errorf("--acme-ca-root: %w", err), Hint: "give a PEM file"}
	}
	return pool, nil
}
