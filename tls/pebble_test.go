package tls

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const patience = 20 * time.Second

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); !cond(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// A pebble is Let's Encrypt's test server in a process of its own. It takes every challenge for answered.
type pebble struct {
	Directory string // URL
	Roots     *x509.CertPool
}

var pebbleProgram = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "tool", "-n", "pebble").Output()
	return strings.TrimSpace(string(out)), err
})

// startPebble starts one at addr whose certificates live that long.
func startPebble(t *testing.T, addr string, validity time.Duration) *pebble {
	t.Helper()
	program, err := pebbleProgram()
	if err != nil {
		t.Fatalf("go tool pebble: %v", err)
	}
	dir := t.TempDir()
	ca, err := OpenInternalCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ca.leaf([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile, config := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "config.json")
	writeChain(t, leaf, certFile, keyFile)
	text, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": addr, "managementListenAddress": freeAddr(t), "certificate": certFile, "privateKey": keyFile,
		"keyAlgorithm": "ecdsa", "retryAfter": map[string]any{"authz": 1, "order": 1},
		"profiles": map[string]any{"default": map[string]any{"description": "default", "validityPeriod": int(validity / time.Second)}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-config", config)
	cmd.Env = append(os.Environ(), "PEBBLE_VA_ALWAYS_VALID=1", "PEBBLE_VA_NOSLEEP=1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	p := &pebble{Directory: "https://" + addr + "/dir", Roots: x509.NewCertPool()}
	p.Roots.AppendCertsFromPEM(ca.RootPEM())
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: p.Roots}}}
	eventually(t, "the authority to answer", func() bool {
		res, err := client.Get(p.Directory)
		if err != nil {
			return false
		}
		_ = res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	return p
}

// freeAddr is an address where nobody listens.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// writeChain writes a certificate and its key as PEM files.
func writeChain(t *testing.T, cert *tls.Certificate, certFile, keyFile string) {
	t.Helper()
	var chain []byte
	for _, der := range cert.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string][]byte{certFile: chain, keyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})} {
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
