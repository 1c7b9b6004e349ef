package tls

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
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
	for _, name := range []string{"localhost", "a.localhost", "A.localhost", strings.Repeat("a", 52) + ".localhost"} {
		state, err := dial(t, again.TLSConfig("localhost"), &tls.Config{ServerName: name, RootCAs: roots})
		if err != nil || state.Version != tls.VersionTLS13 {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := state.PeerCertificates[0].DNSNames; len(got) != 1 || !strings.EqualFold(got[0], name) {
			t.Errorf("%s got a certificate for %q, want its own: no client takes *.localhost", name, got)
		}
	}
	for _, name := range []string{"a.b.localhost", "example.com", "*.localhost", strings.Repeat("a", 64) + ".localhost"} {
		_, err := dial(t, ca.TLSConfig("localhost"), &tls.Config{ServerName: name, RootCAs: roots})
		if err == nil || !strings.Contains(err.Error(), "unrecognized name") {
			t.Errorf("%s is not ours, and got %v", name, err)
		}
	}
	for _, name := range []string{"tunnels.test", "x.tunnels.test", "y.tunnels.test"} {
		state, err := dial(t, ca.TLSConfig("tunnels.test"), &tls.Config{ServerName: name, RootCAs: roots})
		if err != nil || strings.Join(state.PeerCertificates[0].DNSNames, " ") != "tunnels.test *.tunnels.test" {
			t.Errorf("%s: %v, want the one certificate for all", name, err)
		}
	}
}

// TestInternalCAByAddress: who dials an address sends no name.
func TestInternalCAByAddress(t *testing.T) {
	t.Parallel()
	ca, err := OpenInternalCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.RootPEM())
	for domain, names := range map[string][]string{"localhost": {"127.0.0.1"}, "203.0.113.7": {"127.0.0.1", "203.0.113.7"}} {
		l, err := tls.Listen("tcp", "127.0.0.1:0", ca.TLSConfig(domain))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for conn, err := l.Accept(); err == nil; conn, err = l.Accept() { // ends with l
				_ = conn.(*tls.Conn).Handshake()
				_ = conn.Close()
			}
		}()
		for _, name := range names {
			conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{ServerName: name, RootCAs: roots})
			if err != nil {
				t.Errorf("%s with domain %s: %v", name, domain, err)
				continue
			}
			_ = conn.Close()
		}
		_ = l.Close()
		ca.leaves = make(map[string]*tls.Certificate)
	}
}

func TestInternalCALeaves(t *testing.T) {
	t.Parallel()
	ca, err := OpenInternalCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxNames + 10 { // names that visitors make up take no memory for ever
		if _, err := ca.leaf([]string{fmt.Sprint(i, ".localhost")}); err != nil {
			t.Fatal(err)
		}
	}
	if len(ca.leaves) > maxNames {
		t.Errorf("%d leaves are kept", len(ca.leaves))
	}
	first, err := ca.leaf([]string{"localhost"})
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := ca.leaf([]string{"localhost"}); again != first {
		t.Error("a fresh leaf was made anew")
	}
	if left := time.Until(renewAt(first.Leaf)); left < leafLife/2 || left > leafLife*3/4 {
		t.Errorf("it is renewed in %v, want two thirds of a week", left)
	}
	old := *first.Leaf
	old.NotBefore, old.NotAfter = time.Now().Add(-leafLife*3/4), time.Now().Add(leafLife/4)
	ca.leaves["localhost"] = &tls.Certificate{Leaf: &old}
	if renewed, err := ca.leaf([]string{"localhost"}); err != nil || renewed.Leaf == &old {
		t.Errorf("a leaf past two thirds of its life was kept, %v", err)
	}
	root := *ca.root
	root.NotAfter = time.Now().Add(time.Hour)
	ca.root = &root
	if leaf, err := ca.leaf([]string{"a.localhost"}); err != nil || leaf.Leaf.NotAfter.After(root.NotAfter) {
		t.Errorf("a leaf outlives its root, %v", err)
	}
	root.NotAfter = time.Now().Add(-time.Hour)
	if _, err := ca.leaf([]string{"b.localhost"}); err == nil {
		t.Error("an expired root signed")
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
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenInternalCA(dir); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("without its key: %v, want an error that names the file; clients trust the root that is there", err)
	}
}

// TestInternalCAAtOnce: processes that make the root at the same time, such as harpd and harpd ca, have the same one.
func TestInternalCAAtOnce(t *testing.T) {
	t.Parallel()
	for range 20 {
		dir := t.TempDir()
		var roots [4][]byte
		var wg sync.WaitGroup
		for i := range roots {
			wg.Go(func() {
				ca, err := OpenInternalCA(dir)
				if err != nil {
					t.Errorf("one of several: %v", err)
					return
				}
				roots[i] = ca.RootPEM()
			})
		}
		wg.Wait()
		ca, err := OpenInternalCA(dir)
		if err != nil {
			t.Fatalf("afterwards: %v", err)
		}
		for _, root := range roots {
			if !bytes.Equal(root, ca.RootPEM()) {
				t.Fatal("one has another root than what is on disk")
			}
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
			t.Fatalf("left behind: %v, %v, want the folder alone", left, err)
		}
	}
}

// TestInternalCAFolder: one that is there and empty is taken, one with other things is not touched.
func TestInternalCAFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	own := filepath.Join(dir, "internal-ca")
	if err := os.Mkdir(own, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenInternalCA(dir); err != nil {
		t.Errorf("an empty folder: %v", err)
	}
	if err := os.Remove(filepath.Join(own, "root.pem")); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenInternalCA(dir); err == nil || !strings.Contains(err.Error(), own) {
		t.Errorf("a key without its root: %v, want an error that names the folder", err)
	}
}

func TestInternalCAKeyForOthers(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("no modes")
	}
	dir := t.TempDir()
	if _, err := OpenInternalCA(dir); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "internal-ca", "root-key.pem")
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenInternalCA(dir); err == nil || !strings.Contains(err.Error(), "0600") {
		t.Errorf("a key that others may read was used, %v", err)
	}
}
