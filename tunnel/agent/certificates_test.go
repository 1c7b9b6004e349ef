package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/acme"
)

// A lockedBuffer is a log of several goroutines.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// startCertificates returns certificates from an authority that answers as h does; asked counts its requests.
func startCertificates(t *testing.T, dir string, h http.HandlerFunc) (c *certificates, log *lockedBuffer, asked *atomic.Int32) {
	t.Helper()
	asked = new(atomic.Int32)
	ca := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		h(w, r)
	}))
	t.Cleanup(ca.Close)
	roots := x509.NewCertPool()
	roots.AddCert(ca.Certificate())
	log = new(lockedBuffer)
	c, err := newCertificates(&EndToEnd{CertDir: dir, Directory: ca.URL + "/dir", Roots: roots}, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	c.life = ctx
	return c, log, asked
}

func helloOf(name string, protocols ...string) *tls.ClientHelloInfo {
	h := helloFor(name)
	h.SupportedProtos = protocols
	return h
}

// TestCertificateFailures: an attempt is made at once, then after longer and longer pauses, and visitors cause none.
func TestCertificateFailures(t *testing.T) {
	t.Parallel()
	c, log, asked := startCertificates(t, t.TempDir(), func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "closed", http.StatusForbidden) })
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	c.grant("app.example.org")
	go func() {
		c.obtain(ctx, "app.example.org")
		close(over)
	}()
	for deadline := time.Now().Add(patience); !strings.Contains(log.String(), "no certificate"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing is said of a certificate that cannot be obtained")
		}
	}
	if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "hint=") || !strings.Contains(text, "hostname=app.example.org") {
		t.Errorf("the log says %q, want one line with the name and a hint", text)
	}
	n := asked.Load()
	if n == 0 {
		t.Error("the authority was not asked")
	}
	for range 20 {
		if _, err := c.get(helloOf("app.example.org", "h2")); err == nil {
			t.Error("there is a certificate")
		}
		if _, err := c.get(helloOf("other.example.org")); err == nil {
			t.Error("there is a certificate for a name that was not granted")
		}
		if _, err := c.get(helloOf("app.example.org", acme.ALPNProto)); err == nil {
			t.Error("there is a challenge")
		}
	}
	if asked.Load() != n {
		t.Errorf("visitors made the agent ask the authority %d times more", asked.Load()-n)
	}
	name := c.names["app.example.org"]
	for _, want := range []time.Duration{10 * time.Minute, 20 * time.Minute, 40 * time.Minute, time.Hour, time.Hour} {
		name.attempt = make(chan struct{})
		c.try("app.example.org", name) // autocert itself fails at once for a minute
		if got := time.Until(name.next); got > want || got < want-time.Minute {
			t.Errorf("after %d failures the next attempt is in %v, want %v", name.failures, got, want)
		}
	}
	cancel()
	select {
	case <-over:
	case <-time.After(patience):
		t.Error("a link that has ended still wants a certificate")
	}
}

// TestCertificateWait: a visitor who comes while the first certificate is being obtained waits for it.
func TestCertificateWait(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	c, _, _ := startCertificates(t, t.TempDir(), func(w http.ResponseWriter, _ *http.Request) {
		once.Do(func() { close(entered) })
		<-release
		http.Error(w, "no", http.StatusForbidden)
	})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c.grant("app.example.org")
	var wg sync.WaitGroup
	for range 3 { // as many links
		wg.Go(func() { c.obtain(ctx, "app.example.org") }) // ends with ctx
	}
	<-entered
	answered := make(chan error, 1)
	go func() {
		_, err := c.get(helloOf("APP.example.org."))
		answered <- err
	}()
	select {
	case err := <-answered:
		t.Errorf("the visitor did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	if err := <-answered; err == nil {
		t.Error("there is a certificate")
	}
	cancel()
	wg.Wait()
}

// TestCertificateKept: what is in the folder is used without the authority.
func TestCertificateKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	keepCertificate(t, dir, "app.example.org")
	c, log, asked := startCertificates(t, dir, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "down", http.StatusForbidden) })
	if _, err := c.get(helloOf("app.example.org")); err == nil {
		t.Error("a certificate is used for a name that was not granted")
	}
	c.grant("app.example.org")
	c.obtain(context.Background(), "app.example.org")
	cert, err := c.get(helloOf("app.example.org"))
	if err != nil || cert.Leaf.DNSNames[0] != "app.example.org" {
		t.Errorf("%+v, %v; want the certificate of the folder", cert, err)
	}
	if !strings.Contains(log.String(), "certificate ready") || asked.Load() != 0 {
		t.Errorf("the authority was asked %d times; the log says %q", asked.Load(), log)
	}
}

// TestCertificateAccountLost: a key of the account that a power failure has left empty is replaced.
func TestCertificateAccountLost(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "acme_account+key")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c, log, asked := startCertificates(t, dir, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "closed", http.StatusForbidden) })
	c.grant("app.example.org")
	n := c.names["app.example.org"]
	n.attempt = make(chan struct{})
	c.try("app.example.org", n)
	if asked.Load() == 0 {
		t.Errorf("the authority was not asked: %s", log)
	}
	if key, err := os.ReadFile(file); err != nil || !strings.Contains(string(key), "PRIVATE KEY") {
		t.Errorf("the file holds %q, %v", key, err)
	}
}

// keepCertificate puts a certificate where autocert finds it.
func keepCertificate(t *testing.T, dir, name string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw})
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestIssueHint: each way to fail that a person can mend is named.
func TestIssueHint(t *testing.T) {
	for _, test := range []struct {
		err  error
		says string
	}{
		{&acme.Error{ProblemType: "urn:ietf:params:acme:error:rateLimited"}, "letsencrypt-staging"},
		{&acme.Error{ProblemType: "urn:ietf:params:acme:error:caa"}, "CAA"},
		{&url.Error{Err: x509.UnknownAuthorityError{}}, "--acme-ca-root"},
		{&url.Error{Err: errors.New("refused")}, "reach the authority"},
		{&fs.PathError{Err: fs.ErrPermission}, "--cert-dir"},
		{errors.New("no viable challenge type found"), "https://app.example.org at port 443"},
	} {
		if got := issueHint("app.example.org", test.err); !strings.Contains(got, test.says) {
			t.Errorf("%v: %q, want a word about %s", test.err, got, test.says)
		}
	}
}
