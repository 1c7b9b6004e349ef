package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
	"github.com/harp-tunnel/harp/identity"
)

// writePair writes a certificate for SERIAL.example.org, and its key, with the given file time.
func writePair(t *testing.T, certFile, keyFile string, serial int64, at time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{fmt.Sprint(serial) + ".example.org"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: raw},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, at, at); err != nil {
			t.Fatal(err)
		}
	}
}

// TestEndToEndOptions: the flags become what the agent needs, or one line and a hint.
func TestEndToEndOptions(t *testing.T) {
	dir := t.TempDir()
	cert, key, broken := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "broken.pem")
	writePair(t, cert, key, 1, time.Now())
	if err := os.WriteFile(broken, []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(dir, "open.pem")
	if err := os.WriteFile(open, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o644); err != nil { // whatever the umask is
		t.Fatal(err)
	}
	keyFile := filepath.Join(dir, "harp", "key.jwk")
	for _, test := range []struct {
		why  string
		cfg  endConfig
		says string
	}{
		{"files without the mode", endConfig{TLSCert: cert, TLSKey: key}, "of no use without --end-to-end"},
		{"an authority without the mode", endConfig{ACMECA: "letsencrypt-staging"}, "--acme-ca is of no use without --end-to-end"},
		{"a key that everybody can read", endConfig{EndToEnd: true, TLSCert: cert, TLSKey: open}, "has mode 0644"},
		{"one file of two", endConfig{EndToEnd: true, TLSCert: cert}, "go together"},
		{"a key of another kind", endConfig{EndToEnd: true, TLSCert: cert, TLSKey: broken}, "--tls-cert and --tls-key"},
		{"an unknown authority", endConfig{EndToEnd: true, ACMECA: "mine"}, "--acme-ca"},
		{"no roots", endConfig{EndToEnd: true, ACMECA: "letsencrypt", ACMECARoot: broken}, "--acme-ca-root"},
		{"a folder that is a file", endConfig{EndToEnd: true, ACMECA: "letsencrypt", CertDir: broken}, "--cert-dir"},
	} {
		_, err := test.cfg.options(keyFile)
		shown, ok := errors.AsType[*cli.Error](err)
		if !ok || !strings.Contains(shown.Error(), test.says) || shown.Hint == "" || strings.Contains(shown.Error(), "\n") {
			t.Errorf("%s: %v, want one line with %q, and a hint", test.why, err, test.says)
		}
	}
	if e, err := (endConfig{ACMECA: defaultCA}).options(keyFile); e != nil || err != nil {
		t.Errorf("without --end-to-end: %+v, %v", e, err)
	}
	e, err := endConfig{EndToEnd: true, ACMECA: "letsencrypt-staging", ACMEEmail: "me@example.com"}.options(keyFile)
	if err != nil || e.Email != "me@example.com" || !strings.Contains(e.Directory, "staging") || e.GetCertificate != nil {
		t.Fatalf("by ACME: %+v, %v", e, err)
	}
	if want := filepath.Join(dir, "harp", "certificates"); e.CertDir != want {
		t.Errorf("certificates are kept in %s, want %s, beside the key", e.CertDir, want)
	}
	if info, err := os.Stat(e.CertDir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder of keys: %v, %v; want it for this user alone", info, err)
	}
	if left, _ := os.ReadDir(e.CertDir); len(left) != 0 {
		t.Errorf("the folder holds %v", left)
	}
}

// TestKeyPairFollowsFiles: a new certificate is used when its files are complete, and broken ones change nothing.
func TestKeyPairFollowsFiles(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	day := time.Now().Add(-24 * time.Hour)
	writePair(t, cert, key, 1, day)
	e, err := endConfig{EndToEnd: true, TLSCert: cert, TLSKey: key}.options("")
	if err != nil {
		t.Fatal(err)
	}
	files := &keyPair{cert: cert, key: key}
	wants := func(why string, serial int64) {
		t.Helper()
		files.checked = time.Time{} // as after checkEvery
		got, err := files.get(&tls.ClientHelloInfo{})
		if err != nil || got.Leaf.SerialNumber.Int64() != serial {
			t.Errorf("%s: %v, %v; want certificate %d", why, got, err, serial)
		}
	}
	wants("at first", 1)
	other := filepath.Join(dir, "other.pem")
	writePair(t, cert, other, 2, day.Add(time.Hour))
	wants("a certificate whose key is not there yet", 1)
	if err := os.Rename(other, key); err != nil {
		t.Fatal(err)
	}
	wants("with its key", 2)
	if err := os.Remove(cert); err != nil {
		t.Fatal(err)
	}
	wants("files that are gone", 2)
	copied := time.Now().Add(time.Hour)
	writePair(t, cert, key, 3, copied)
	wants("files that are back", 3)
	writePair(t, cert, key, 4, copied.Add(-time.Minute))
	if err := os.Chtimes(key, copied, copied); err != nil {
		t.Fatal(err)
	}
	wants("a certificate whose file is older than the key's", 4)
	if got, err := e.GetCertificate(nil); err != nil || got.Leaf.SerialNumber.Int64() != 1 {
		t.Errorf("within %v files are not read again: %v, %v", checkEvery, got, err)
	}
}

// TestUpServices: --domain asks for names, and --end-to-end has no path.
func TestUpServices(t *testing.T) {
	cfg := upConfig{config: config{Server: "x.example"}, Domains: []string{"app.example.org", "example.org"}}
	if got := cfg.options(edgeURL{scheme: "https", host: "x.example"}, identity.Key{}, nil, nil).Services[0].Hostnames; len(got) != 2 || got[1] != "example.org" {
		t.Errorf("the agent asks for %q", got)
	}
	cfg.EndToEnd, cfg.Path = true, "/api"
	if _, err := cfg.checked(); err == nil || !strings.Contains(err.Error(), "--end-to-end") {
		t.Errorf("a path with --end-to-end: %v, want that it is refused", err)
	}
}
