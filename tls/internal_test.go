package tls

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// dial makes a connection to a server with config, and returns what the client saw.
func dial(t *testing.T, server, client *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go func() { _ = tls.Server(b, server).Handshake() }() // ends with b
	conn := tls.Client(a, client)
	err := conn.Handshake()
	return conn.ConnectionState(), err
}

func TestInternalCA(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca, err := OpenInternalCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "internal-ca", "root-key.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v %v, want 0600", info, err)
	}
	again, err := OpenInternalCA(dir)
	if err != nil || string(again.RootPEM()) != string(ca.RootPEM()) {
		t.Fatalf("opened again: %v; want the same root", err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.RootPEM())
	for _, name := range []string{"localhost", "a.localhost", strings.Repeat("a", 52) + ".localhost", "127.0.0.1", "A.localhost"} {
		state, err := dial(t, again.TLSConfig("localhost"), &tls.Config{ServerName: name, RootCAs: roots})
		if name == "127.0.0.1" { // a pipe has no address to go by
			continue
		}
		if err != nil || state.Version != tls.VersionTLS13 {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"a.b.localhost", "example.com"} {
		if _, err := dial(t, ca.TLSConfig("localhost"), &tls.Config{ServerName: name, RootCAs: roots}); err == nil {
			t.Errorf("%s got a certificate, and is not ours", name)
		}
	}
	for i := range maxNames + 10 { // names that visitors make up take no memory for ever
		if _, err := ca.leaf(strings.Repeat("x", i%50+1) + string(rune('a'+i%26)) + ".localhost"); err != nil {
			t.Fatal(err)
		}
	}
	if len(ca.leaves) > maxNames {
		t.Errorf("%d leaves are kept", len(ca.leaves))
	}
}

func TestInternalCABroken(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := OpenInternalCA(dir); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "internal-ca", "root-key.pem")
	if err := os.WriteFile(file, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenInternalCA(dir); err == nil || !strings.Contains(err.Error(), filepath.Dir(file)) {
		t.Errorf("got %v, want an error that names the folder", err)
	}
	if _, err := OpenInternalCA(file); err == nil {
		t.Error("a file was taken for a folder")
	}
}
