package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
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

// A pebble is a real certificate authority: Let's Encrypt's test server in a process of its own. One in twenty of its
// answers is a badNonce.
type pebble struct {
	Directory string // URL
	RootFile  string // roots of its own HTTPS, PEM
	Output    *syncBuffer

	management string // URL
	files      [2]string
	stop       func()
}

// pebbleOptions says how a pebble validates.
type pebbleOptions struct {
	Addr      string // to listen on; empty for a free port
	HTTP, TLS int    // ports of HTTP-01 and TLS-ALPN-01
	DNS       string // resolver
	Validity  time.Duration
	BadNonces int       // percent; 0 for the server's own 5
	Files     [2]string // certificate and key of its own HTTPS, for one that comes back; empty for new ones
}

// pebbleProgram builds the server, or finds it in the build cache.
var pebbleProgram = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "tool", "-n", "pebble").Output()
	return strings.TrimSpace(string(out)), err
})

func startPebble(t *testing.T, o pebbleOptions) *pebble {
	t.Helper()
	program, err := pebbleProgram()
	if err != nil {
		t.Fatalf("go tool pebble: %v", err)
	}
	certFile, keyFile := o.Files[0], o.Files[1]
	if certFile == "" {
		certFile, keyFile, _ = writeCertificate(t)
	}
	if o.Addr == "" {
		o.Addr = freeAddr(t)
	}
	p := &pebble{Directory: "https://" + o.Addr + "/dir", RootFile: certFile, Output: new(syncBuffer), files: [2]string{certFile, keyFile}}
	management := freeAddr(t)
	p.management = "https://" + management
	if o.Validity == 0 {
		o.Validity = 90 * 24 * time.Hour
	}
	type object = map[string]any
	text, err := json.Marshal(object{"pebble": object{
		"listenAddress": o.Addr, "managementListenAddress": management, "certificate": certFile, "privateKey": keyFile,
		"httpPort": o.HTTP, "tlsPort": o.TLS, "keyAlgorithm": "ecdsa",
		"retryAfter": object{"authz": 1, "order": 1},
		"profiles":   object{"default": object{"description": "default", "validityPeriod": int(o.Validity / time.Second)}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "pebble.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-config", file, "-dnsserver", o.DNS)
	cmd.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_AUTHZREUSE=0")
	if o.BadNonces > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprint("PEBBLE_WFE_NONCEREJECT=", o.BadNonces))
	}
	cmd.Stdout, cmd.Stderr = p.Output, p.Output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("the authority said:\n%s", p.Output.tail(60))
		}
	})
	eventually(t, "the authority to answer", func() bool {
		res, err := p.client().Get(p.Directory)
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	return p
}

func (p *pebble) client() *http.Client {
	pool := x509.NewCertPool()
	text, _ := os.ReadFile(p.RootFile)
	pool.AppendCertsFromPEM(text)
	return &http.Client{
		Timeout:   patience,
		Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool}},
	}
}

// roots are those of the certificates that it issues; every start of the server makes new ones.
func (p *pebble) roots(t *testing.T) *x509.CertPool {
	t.Helper()
	res, err := p.client().Get(p.management + "/roots/0")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(text) {
		t.Fatalf("roots: %v, %.100q", err, text)
	}
	return pool
}

// freeAddr is an address of loopback that is free, for UDP and TCP. It lies below the ports that the system gives to others
// (on Linux, 32768 and up): nobody takes it before it is used.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 12_000+rand.IntN(20_000))
		if _, used := givenAddrs.LoadOrStore(addr, true); used {
			continue
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		u, err := net.ListenPacket("udp", addr)
		l.Close()
		if err == nil {
			u.Close()
			return addr
		}
	}
	t.Fatal("no port is free for both UDP and TCP")
	return ""
}

var givenAddrs sync.Map // what freeAddr has returned

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(4 * patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", 4*patience, what)
		}
	}
}

// A syncBuffer takes what a process or a log says.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// tail is the last n lines.
func (s *syncBuffer) tail(n int) string {
	lines := strings.Split(s.String(), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// handshake makes a TLS connection to addr for name, and ends it.
func handshake(addr, name string, roots *x509.CertPool) (tls.ConnectionState, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	d := tls.Dialer{Config: &tls.Config{ServerName: name, RootCAs: roots, NextProtos: []string{"h2", "http/1.1"}}}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState(), nil
}
