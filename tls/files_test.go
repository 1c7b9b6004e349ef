package tls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// writePair writes a self-signed certificate with the serial number, and its key.
func writePair(t *testing.T, cert, key string, serial int64) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), DNSNames: []string{"a.test"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	write(t, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	write(t, key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// serial is the serial number of the certificate that a new connection gets.
func serial(t *testing.T, c *tls.Config) int64 {
	t.Helper()
	got, err := c.GetCertificate(&tls.ClientHelloInfo{ServerName: "a.test"})
	if err != nil {
		t.Fatalf("no certificate: %v", err)
	}
	leaf, err := x509.ParseCertificate(got.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return leaf.SerialNumber.Int64()
}

func TestFromFilesFollowsThem(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writePair(t, cert, key, 1)
	synctest.Test(t, func(t *testing.T) {
		c, err := FromFiles(cert, key, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := serial(t, c); got != 1 {
			t.Errorf("serial %d, want 1", got)
		}
		writePair(t, cert, key, 2)
		if got := serial(t, c); got != 1 {
			t.Errorf("serial %d at once: the files are looked at for each connection", got)
		}
		time.Sleep(checkEvery)
		if got := serial(t, c); got != 2 {
			t.Errorf("serial %d after a change, want 2", got)
		}
		write(t, key, []byte("broken, and of another length"))
		time.Sleep(checkEvery)
		if got := serial(t, c); got != 2 {
			t.Errorf("serial %d with a broken key, want that the old one stays", got)
		}
		writePair(t, cert, key, 3)
		time.Sleep(checkEvery)
		if got := serial(t, c); got != 3 {
			t.Errorf("serial %d after the repair, want 3", got)
		}
	})
}

// TestFromFilesTriesAgain: what keeps new files from being read may pass without a change of their size and time, such as a
// mode, or too many open files. It is said once.
func TestFromFilesTriesAgain(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writePair(t, cert, key, 1)
	var log strings.Builder
	synctest.Test(t, func(t *testing.T) {
		c, err := FromFiles(cert, key, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		writePair(t, cert, key, 2)
		good, err := os.ReadFile(key)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		for _, text := range [][]byte{make([]byte, len(good)), good} {
			write(t, key, text)
			if err := os.Chtimes(key, now, now); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				time.Sleep(checkEvery)
				serial(t, c)
			}
		}
		if got := serial(t, c); got != 2 {
			t.Errorf("serial %d once the files can be read, want 2", got)
		}
	})
	if n := strings.Count(log.String(), "stays in force"); n != 1 {
		t.Errorf("said %d times, want once:\n%s", n, log.String())
	}
}

func TestFromFilesRefuses(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if _, err := FromFiles(cert, key, nil); err == nil || !strings.Contains(err.Error(), "cert.pem") {
		t.Errorf("missing files: %v, want an error that names one", err)
	}
	writePair(t, cert, key, 1)
	writePair(t, cert, filepath.Join(dir, "other.pem"), 2)
	if _, err := FromFiles(cert, key, nil); err == nil {
		t.Error("a key of another certificate was taken")
	}
}
