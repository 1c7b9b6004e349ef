package tls

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	rootLife = 10 * 365 * 24 * time.Hour
	leafLife = 7 * 24 * time.Hour
	backdate = time.Hour // clocks differ
	maxNames = 1024      // leaves kept at once
)

// An InternalCA is a certificate authority of this machine, for names that no public one knows. It asks nobody. Its root
// has no name constraints, as not all clients understand them; its key never leaves the data folder.
type InternalCA struct {
	root    *x509.Certificate
	rootPEM []byte
	key     crypto.Signer
	leafKey *ecdsa.PrivateKey // of all leaves, new in each process

	mu     sync.Mutex
	leaves map[string]*tls.Certificate // by server name
}

// OpenInternalCA reads the root and its key from the folder, and makes them there if there are none. The error names the
// file that is broken, or says that the root has expired.
func OpenInternalCA(dataDir string) (*InternalCA, error) {
	dir := filepath.Join(dataDir, "internal-ca")
	rootFile, keyFile := filepath.Join(dir, "root.pem"), filepath.Join(dir, "root-key.pem")
	if _, err := os.Stat(rootFile); errors.Is(err, fs.ErrNotExist) {
		if err := createRoot(dir, rootFile, keyFile); err != nil {
			return nil, fmt.Errorf("internal CA: %w", err)
		}
	}
	pair, err := tls.LoadX509KeyPair(rootFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("internal CA in %s: %w", dir, err)
	}
	switch {
	case !pair.Leaf.IsCA:
		return nil, fmt.Errorf("internal CA: %s is not a root", rootFile)
	case time.Now().After(pair.Leaf.NotAfter):
		return nil, fmt.Errorf("internal CA: %s expired on %s", rootFile, pair.Leaf.NotAfter.Format(time.DateOnly))
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("internal CA: %w", err)
	}
	return &InternalCA{
		root: pair.Leaf, rootPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Leaf.Raw}),
		key: pair.PrivateKey.(crypto.Signer), leafKey: leafKey, leaves: make(map[string]*tls.Certificate),
	}, nil
}

func createRoot(dir, rootFile, keyFile string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	host, _ := os.Hostname()
	template := &x509.Certificate{
		SerialNumber: serialNumber(), Subject: pkix.Name{CommonName: strings.TrimSpace("HARP internal CA " + host)},
		NotBefore: time.Now().Add(-backdate), NotAfter: time.Now().Add(rootLife),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600); err != nil {
		return err
	}
	return os.WriteFile(rootFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644) // last: its presence says that all is there
}

// serialNumber is 127 random bits (RFC 5280, section 4.1.2.2).
func serialNumber() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

// RootPEM is the root's certificate, which clients have to trust.
func (ca *InternalCA) RootPEM() []byte { return ca.rootPEM }

// TLSConfig returns the configuration that serves domain, every name right below it, and loopback's names. Leaves live a
// week and are made in memory, one for each name: clients take no wildcard right below the top, such as *.localhost.
func (ca *InternalCA) TLSConfig(domain string) *tls.Config {
	return serverConfig(func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
		if name == "" && hello.Conn != nil { // who dials an address sends no name
			name, _, _ = net.SplitHostPort(hello.Conn.LocalAddr().String())
		}
		_, parent, _ := strings.Cut(name, ".")
		if name != domain && parent != domain && name != "localhost" && net.ParseIP(name) == nil {
			return nil, fmt.Errorf("%q is not a name of this server", name)
		}
		return ca.leaf(name)
	})
}

// leaf returns a certificate for name that lives a day at least.
func (ca *InternalCA) leaf(name string) (*tls.Certificate, error) {
	now := time.Now()
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if cert := ca.leaves[name]; cert != nil && now.Before(cert.Leaf.NotAfter.Add(-leafLife/3)) {
		return cert, nil
	}
	template := &x509.Certificate{
		SerialNumber: serialNumber(), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(leafLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if len(name) > 64 {
		template.Subject.CommonName = "" // RFC 5280, appendix A.1: ub-common-name
	}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.root, ca.leafKey.Public(), ca.key)
	if err != nil {
		return nil, fmt.Errorf("internal CA: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("internal CA: %w", err)
	}
	if len(ca.leaves) >= maxNames {
		clear(ca.leaves) // they are cheap to make again
	}
	cert := &tls.Certificate{Certificate: [][]byte{der, ca.root.Raw}, PrivateKey: ca.leafKey, Leaf: leaf}
	ca.leaves[name] = cert
	return cert, nil
}
