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
	"runtime"
	"strings"
	"sync"
	"time"
)

const (
	rootLife = 10 * 365 * 24 * time.Hour
	leafLife = 7 * 24 * time.Hour
	backdate = time.Hour // clocks differ
	maxNames = 1024      // leaves kept at once

	rootName, rootKeyName = "root.pem", "root-key.pem" // files
)

// An InternalCA is a certificate authority of this machine, for names that no public one knows. It asks nobody. Its root
// has no name constraints, as not all clients understand them; its key never leaves the data folder.
type InternalCA struct {
	root    *x509.Certificate
	rootPEM []byte
	key     crypto.Signer
	leafKey *ecdsa.PrivateKey // of all leaves, new in each process

	mu     sync.Mutex
	leaves map[string]*tls.Certificate // by their first name
}

// OpenInternalCA reads the root and its key from the folder, and makes them there if there are none. The error names the
// file that is broken, or says that the root has expired.
func OpenInternalCA(dataDir string) (*InternalCA, error) {
	dir := filepath.Join(dataDir, "internal-ca")
	rootFile, keyFile := filepath.Join(dir, rootName), filepath.Join(dir, rootKeyName)
	if _, err := os.Stat(rootFile); errors.Is(err, fs.ErrNotExist) {
		if err := createRoot(dir); err != nil {
			return nil, fmt.Errorf("internal CA: %w", err)
		}
	}
	pair, err := tls.LoadX509KeyPair(rootFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("internal CA in %s: %w", dir, err)
	}
	info, err := os.Stat(keyFile)
	if err != nil {
		return nil, fmt.Errorf("internal CA: %w", err)
	}
	switch {
	case info.Mode().Perm()&0o077 != 0 && runtime.GOOS != "windows":
		return nil, fmt.Errorf("internal CA: others may read %s: its mode must be 0600", keyFile)
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

// createRoot makes the folder with a root and its key, as a whole or not at all. If another process makes it, too, both
// have that of the first.
func createRoot(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	unfinished, err := os.MkdirTemp(filepath.Dir(dir), ".internal-ca-*") // for the owner alone
	if err != nil {
		return err
	}
	defer os.RemoveAll(unfinished) // nothing is there once it has its name
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
	if err := writePEM(filepath.Join(unfinished, rootKeyName), "PRIVATE KEY", keyDER, 0o600); err != nil {
		return err
	}
	if err := writePEM(filepath.Join(unfinished, rootName), "CERTIFICATE", der, 0o644); err != nil {
		return err
	}
	_ = os.Remove(dir) // of use if it is empty
	err = os.Rename(unfinished, dir)
	if _, missing := os.Stat(filepath.Join(dir, rootName)); missing == nil {
		return nil // this one's, or another's
	}
	return err
}

// writePEM writes a new file.
func writePEM(file, kind string, der []byte, mode os.FileMode) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	err = pem.Encode(f, &pem.Block{Type: kind, Bytes: der})
	return errors.Join(err, f.Sync(), f.Close())
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

// TLSConfig returns the configuration that serves domain, every name right below it, and loopback's names; a client that
// dials an address and sends no name gets a certificate for that address. Leaves live a week and are made in memory, anew
// when two thirds of that are over.
func (ca *InternalCA) TLSConfig(domain string) *tls.Config {
	domain = strings.ToLower(domain)
	return serverConfig(func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		names := internalNames(domain, strings.ToLower(strings.TrimSuffix(hello.ServerName, ".")), hello.Conn)
		if len(names) == 0 {
			return nil, errUnknownName
		}
		return ca.leaf(names)
	})
}

// internalNames returns what the certificate for a client that wants name is to hold; none if that is not ours. Right
// below the top, as in *.localhost, clients take no wildcard, so each name there gets a certificate of its own.
func internalNames(domain, name string, conn net.Conn) []string {
	if name == "" && conn != nil {
		host, _, _ := net.SplitHostPort(conn.LocalAddr().String())
		host, _, _ = strings.Cut(host, "%")
		names := []string{host}
		if net.ParseIP(host) == nil {
			names = nil
		}
		if net.ParseIP(domain) != nil && domain != host { // this machine may have it only as its router sees it
			names = append(names, domain)
		}
		return names
	}
	first, parent, _ := strings.Cut(name, ".")
	switch {
	case name == "":
		return nil
	case name == "localhost":
		return []string{name}
	case name != domain && (parent != domain || !isLabel(first)):
		return nil
	case strings.Contains(domain, ".") && net.ParseIP(domain) == nil:
		return []string{domain, "*." + domain}
	}
	return []string{name}
}

// isLabel says whether s can be a label of a host name (RFC 1123, section 2.1); underscores are seen as well.
func isLabel(s string) bool {
	return s != "" && len(s) <= 63 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-_") == ""
}

// leaf returns a certificate for the names with a third of its life before it, at least.
func (ca *InternalCA) leaf(names []string) (*tls.Certificate, error) {
	now := time.Now()
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if cert := ca.leaves[names[0]]; cert != nil && now.Before(renewAt(cert.Leaf)) {
		return cert, nil
	}
	if now.After(ca.root.NotAfter) {
		return nil, errors.New("internal CA: the root has expired")
	}
	template := &x509.Certificate{
		SerialNumber: serialNumber(), NotBefore: now.Add(-backdate), NotAfter: now.Add(leafLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if template.NotAfter.After(ca.root.NotAfter) {
		template.NotAfter = ca.root.NotAfter
	}
	if len(names[0]) <= 64 { // RFC 5280, appendix A.1: ub-common-name
		template.Subject = pkix.Name{CommonName: names[0]}
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
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
	ca.leaves[names[0]] = cert
	return cert, nil
}

// renewAt is when two thirds of a leaf's life are over.
func renewAt(leaf *x509.Certificate) time.Time {
	made := leaf.NotBefore.Add(backdate)
	return made.Add(leaf.NotAfter.Sub(made) * 2 / 3)
}
