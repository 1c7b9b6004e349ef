package tls

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

const customHost = "app.example.org"

// A failingCA is an authority that answers nothing well.
type failingCA struct {
	*httptest.Server
	asked atomic.Int32
}

func newFailingCA(t *testing.T, h http.HandlerFunc) *failingCA {
	t.Helper()
	ca := new(failingCA)
	ca.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ca.asked.Add(1)
		h(w, r)
	}))
	t.Cleanup(ca.Close)
	return ca
}

// newCustom is a Custom that serves everything that is proven, unless change says otherwise.
func newCustom(t *testing.T, ca *failingCA, change func(*CustomOptions)) *Custom {
	t.Helper()
	o := CustomOptions{
		DataDir: t.TempDir(), CA: ca.URL + "/directory",
		Serves: func(string) bool { return true },
		Prove:  func(context.Context, string) error { return nil },
	}
	if change != nil {
		change(&o)
	}
	c := NewCustom(o)
	t.Cleanup(c.Close)
	return c
}

// keep puts a certificate for a hostname where an earlier run would have left it.
func keep(t *testing.T, c *Custom, hostname string, from, to time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: hostname}, DNSNames: []string{hostname},
		NotBefore: from, NotAfter: to,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	_ = pem.Encode(&file, &pem.Block{Type: "EC PRIVATE KEY", Bytes: private})
	_ = pem.Encode(&file, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := c.cache.Put(t.Context(), hostname, file.Bytes()); err != nil {
		t.Fatal(err)
	}
}

func helloFor(name string, protos ...string) *tls.ClientHelloInfo {
	return &tls.ClientHelloInfo{ServerName: name, SupportedProtos: protos}
}

// attempts waits until nothing is under way, and returns how often in a row a hostname has failed.
func (c *Custom) attempts(t *testing.T, hostname string) (failures int, paused time.Duration) {
	t.Helper()
	eventually(t, "the attempt to end", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		s := c.sites[hostname]
		if s == nil || s.issuing != nil {
			return false
		}
		failures, paused = s.failures, time.Until(s.paused)
		return true
	})
	return failures, paused
}

func missing(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }

// TestCustomServesNothingElse: a name that is not served gets the alert unrecognized_name, and the authority hears nothing.
func TestCustomServesNothingElse(t *testing.T) {
	t.Parallel()
	ca := newFailingCA(t, missing)
	c := newCustom(t, ca, func(o *CustomOptions) { o.Serves = func(name string) bool { return name == customHost } })
	c.Prepare("other.example.org")
	if _, err := c.GetCertificate(helloFor("other.example.org")); !errors.Is(err, errUnknownName) {
		t.Errorf("got %v, want %v", err, errUnknownName)
	}
	own := func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errors.New("own") }
	config := c.TLSConfig(proofDomain, own)
	if cert, err := config.GetCertificate(helloFor("other.example.org")); cert != nil || err != nil {
		t.Errorf("got %v, %v, want nothing, which crypto/tls takes for an unknown name", cert, err)
	}
	for _, name := range []string{proofDomain, "x." + proofDomain} {
		if _, err := config.GetCertificate(helloFor(name)); err == nil || err.Error() != "own" {
			t.Errorf("%s: %v, want the domain's own certificate", name, err)
		}
	}
	if len(c.sites) != 0 || ca.asked.Load() != 0 {
		t.Errorf("%d sites, %d requests, want none", len(c.sites), ca.asked.Load())
	}
}

// TestCustomGate: no request leaves for a hostname that does not lead here any more.
func TestCustomGate(t *testing.T) {
	t.Parallel()
	ca := newFailingCA(t, missing)
	c := newCustom(t, ca, func(o *CustomOptions) {
		o.Prove = func(_ context.Context, name string) error { return errors.New(name + " has no CNAME") }
	})
	_, err := c.GetCertificate(helloFor(customHost))
	if err == nil {
		t.Error("a certificate came from nowhere")
	}
	if n := ca.asked.Load(); n != 0 {
		t.Errorf("%d requests reached the authority, want none", n)
	}
	if failures, _ := c.attempts(t, customHost); failures != 1 {
		t.Errorf("%d failures, want 1", failures)
	}
}

// TestCustomGateAtRenewal: autocert asks no policy before it renews; the gate does.
func TestCustomGateAtRenewal(t *testing.T) {
	t.Parallel()
	ca := newFailingCA(t, missing)
	asked := make(chan string, 10)
	c := newCustom(t, ca, func(o *CustomOptions) {
		o.RenewBefore = 24 * time.Hour
		o.Prove = func(_ context.Context, name string) error {
			asked <- name
			return errors.New(name + " has no CNAME")
		}
	})
	keep(t, c, customHost, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	if _, err := c.GetCertificate(helloFor(customHost)); err != nil {
		t.Fatal(err)
	}
	select {
	case name := <-asked:
		if name != customHost {
			t.Errorf("the proof of %s was asked for", name)
		}
	case <-time.After(patience):
		t.Fatal("a renewal that was due did not ask for a proof")
	}
	if _, err := c.GetCertificate(helloFor(customHost)); err != nil {
		t.Errorf("what is still valid must be served: %v", err)
	}
	if n := ca.asked.Load(); n != 0 {
		t.Errorf("%d requests reached the authority, want none", n)
	}
}

// TestCustomFailingAuthority: it is asked once, whoever comes.
func TestCustomFailingAuthority(t *testing.T) {
	t.Parallel()
	ca := newFailingCA(t, missing)
	c := newCustom(t, ca, nil)
	var wg sync.WaitGroup
	for range 20 {
		c.Prepare(customHost)
		wg.Go(func() {
			if _, err := c.GetCertificate(helloFor(strings.ToUpper(customHost))); err == nil {
				t.Error("a certificate came from nowhere")
			}
		})
	}
	wg.Wait()
	for range 20 {
		c.Prepare(customHost)
	}
	failures, paused := c.attempts(t, customHost)
	if failures != 1 || paused < failurePause-time.Minute || paused > failurePause {
		t.Errorf("%d failures, and a pause of %v, want one and %v", failures, paused, failurePause)
	}
	if n := ca.asked.Load(); n != 1 {
		t.Errorf("the authority was asked %d times, want once", n)
	}
}

// TestCustomRetryAfter: an authority that wants to be left alone is.
func TestCustomRetryAfter(t *testing.T) {
	t.Parallel()
	ca := newFailingCA(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "7200")
		w.WriteHeader(http.StatusTooManyRequests)
	})
	c := newCustom(t, ca, nil)
	c.Prepare(customHost)
	if failures, paused := c.attempts(t, customHost); failures != 1 || paused < 2*time.Hour-time.Minute {
		t.Errorf("%d failures, and a pause of %v, want one and two hours", failures, paused)
	}
	if _, err := c.find(customHost).gate.client().Get(ca.URL); err == nil || !strings.Contains(err.Error(), "takes nothing") {
		t.Errorf("a renewal in that time: %v", err)
	}
	if n := ca.asked.Load(); n != 1 {
		t.Errorf("the authority was asked %d times, want once", n)
	}
}

func TestPauses(t *testing.T) {
	t.Parallel()
	var last time.Duration
	for n := 1; n < 100; n++ {
		pause := pauseAfter(n)
		if pause < last || pause < failurePause || pause > maxPause {
			t.Errorf("a pause of %v after %d failures, after %v before", pause, n, last)
		}
		last = pause
	}
	answer := func(after string) *http.Response {
		return &http.Response{Header: http.Header{"Retry-After": {after}}}
	}
	for _, test := range []struct {
		n     int
		after string
		want  time.Duration
	}{
		{1, "", 500 * time.Millisecond}, {2, "x", time.Second}, {maxTries, "-5", maxTryPause}, {maxTries + 1, "", 0},
		{1, "20", 20 * time.Second}, {1, "31", 0}, {1, "99999999999999", 0},
		{1, time.Now().Add(time.Hour).UTC().Format(http.TimeFormat), 0},
	} {
		if got := retryAuthority(test.n, nil, answer(test.after)); got != test.want {
			t.Errorf("try %d with Retry-After %q waits %v, want %v", test.n, test.after, got, test.want)
		}
	}
}

// TestCustomHangingAuthority: few orders at once, and Close does not wait for them.
func TestCustomHangingAuthority(t *testing.T) {
	t.Parallel()
	ca := newFailingCA(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	c := newCustom(t, ca, nil)
	keep(t, c, customHost, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour))
	for i := range 5 * maxIssuing {
		c.Prepare(fmt.Sprintf("a%d.example.org", i))
	}
	eventually(t, "orders", func() bool { return ca.asked.Load() >= maxIssuing })
	c.Prepare(customHost)
	if _, err := c.GetCertificate(helloFor(customHost)); err != nil {
		t.Errorf("a certificate that is there must not wait for others: %v", err)
	}
	if n := ca.asked.Load(); n != maxIssuing {
		t.Errorf("%d requests at once, want %d", n, maxIssuing)
	}
	began := time.Now()
	c.Close()
	if took := time.Since(began); took > patience/2 {
		t.Errorf("Close took %v", took)
	}
	c.Prepare("late.example.org")
	if _, err := c.GetCertificate(helloFor("late.example.org")); !errors.Is(err, errClosed) {
		t.Errorf("after Close: %v, want %v", err, errClosed)
	}
}

// TestCustomFromDisk: a certificate that is there needs no authority; one that has ended, or is another's, is none.
func TestCustomFromDisk(t *testing.T) {
	t.Parallel()
	ca := newFailingCA(t, missing)
	c := newCustom(t, ca, nil)
	now := time.Now()
	keep(t, c, customHost, now.Add(-time.Hour), now.Add(24*time.Hour))
	keep(t, c, "ended.example.org", now.Add(-2*time.Hour), now.Add(-time.Hour))
	if err := os.WriteFile(filepath.Join(c.options.DataDir, "custom", "broken.example.org"), []byte("not a certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !c.Holds(customHost) {
		t.Error("a valid certificate is not seen")
	}
	for _, name := range []string{"ended.example.org", "broken.example.org", "absent.example.org"} {
		if c.Holds(name) {
			t.Errorf("%s: held", name)
		}
	}
	cert, err := c.GetCertificate(helloFor(customHost))
	if err != nil || cert.Leaf.VerifyHostname(customHost) != nil {
		t.Errorf("got %v, %v", cert, err)
	}
	if n := ca.asked.Load(); n != 0 {
		t.Errorf("the authority was asked %d times, want never", n)
	}
	if _, err := c.GetCertificate(helloFor("ended.example.org")); err == nil {
		t.Error("a certificate that has ended was served")
	}
}

// TestCustomDrops: hostnames that are not served any more take no memory, and their timers no time.
func TestCustomDrops(t *testing.T) {
	t.Parallel()
	ca := newFailingCA(t, missing)
	var served sync.Map
	c := newCustom(t, ca, func(o *CustomOptions) {
		o.Serves = func(name string) bool { _, ok := served.Load(name); return ok }
	})
	served.Store(customHost, true)
	first, err := c.use(customHost)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 * firstSweep {
		s, err := c.use(fmt.Sprintf("a%d.example.org", i))
		if err != nil {
			t.Fatal(err)
		}
		c.leave(s)
	}
	if len(c.sites) > 2*firstSweep {
		t.Errorf("%d sites are kept for one that is served", len(c.sites))
	}
	if again, _ := c.use(customHost); again != first {
		t.Error("the one that is served was dropped")
	}
	c.leave(first)
	c.leave(first)

	served.Delete(customHost)
	c.mu.Lock()
	c.sweepLocked()
	left := len(c.sites)
	c.mu.Unlock()
	if left != 0 {
		t.Errorf("%d sites are left", left)
	}
	if _, err := first.gate.client().Get(ca.URL); err == nil || ca.asked.Load() != 0 {
		t.Errorf("a site that was dropped asked the authority: %v", err)
	}
	ended := make(chan bool)
	go func() { // ends in Get
		defer close(ended)
		_, _ = first.Cache.Get(context.Background(), customHost)
		ended <- true
	}()
	if <-ended {
		t.Error("the renewal of a site that was dropped went on")
	}
}

// TestCustomAfterItsEnd: a certificate that could not be renewed is not given out, and its failures are not forgotten.
func TestCustomAfterItsEnd(t *testing.T) {
	t.Parallel()
	ca := newFailingCA(t, missing)
	c := newCustom(t, ca, nil)
	s, err := c.use(customHost)
	if err != nil {
		t.Fatal(err)
	}
	c.leave(s)
	s.ends, s.failures, s.paused = time.Now().Add(-time.Second), 3, time.Now().Add(time.Hour)
	if _, err := c.GetCertificate(helloFor(customHost)); err == nil || !strings.Contains(err.Error(), "the last attempt failed") {
		t.Errorf("got %v", err)
	}
	if c.sites[customHost] == s || c.sites[customHost].failures != 3 || ca.asked.Load() != 0 {
		t.Errorf("the site is the same, or its %d failures were forgotten", c.sites[customHost].failures)
	}
}

// TestCustomValidation: the authority's own hello gets its answer or an error, and never causes an order.
func TestCustomValidation(t *testing.T) {
	t.Parallel()
	ca := newFailingCA(t, missing)
	c := newCustom(t, ca, nil)
	if _, err := c.GetCertificate(helloFor(customHost, acme.ALPNProto)); err == nil {
		t.Error("a validation that nobody asked for was answered")
	}
	if n := ca.asked.Load(); n != 0 {
		t.Errorf("the authority was asked %d times, want never", n)
	}
}

func TestCustomHTTPHandler(t *testing.T) {
	t.Parallel()
	c := newCustom(t, newFailingCA(t, missing), nil)
	s, err := c.use(customHost)
	if err != nil {
		t.Fatal(err)
	}
	defer c.leave(s)
	token := challengePath + "token"
	if err := c.cache.Put(t.Context(), "token+http-01", []byte("token.thumbprint")); err != nil {
		t.Fatal(err)
	}
	h := c.HTTPHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "next") }))
	for _, test := range []struct{ host, path, want string }{
		{customHost, token, "token.thumbprint"},
		{"APP.example.org.:5002", token, "token.thumbprint"},
		{customHost, "/", "next"},
		{"other.example.org", token, "next"},
		{proofDomain, token, "next"},
	} {
		r := httptest.NewRequest("GET", "http://"+customHost+test.path, nil)
		r.Host = test.host
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Body.String() != test.want {
			t.Errorf("%s%s: %q, want %q", test.host, test.path, w.Body, test.want)
		}
	}
	r := httptest.NewRequest("GET", "http://"+customHost+challengePath+"unknown", nil)
	w := httptest.NewRecorder()
	if h.ServeHTTP(w, r); w.Code != http.StatusNotFound {
		t.Errorf("an unknown token: %d, want 404", w.Code)
	}
}

// TestCustomAccount: all hostnames share one account.
func TestCustomAccount(t *testing.T) {
	t.Parallel()
	c := newCustom(t, newFailingCA(t, missing), nil)
	var wg sync.WaitGroup
	keys := make(chan string, 20)
	for range cap(keys) {
		wg.Go(func() {
			if err := c.ensureAccount(); err != nil {
				t.Error(err)
			}
			key, err := autocert.DirCache(filepath.Join(c.options.DataDir, "custom")).Get(t.Context(), accountName)
			if err != nil {
				t.Error(err)
			}
			keys <- string(key)
		})
	}
	wg.Wait()
	close(keys)
	first := <-keys
	for key := range keys {
		if key != first {
			t.Fatal("there were two keys")
		}
	}
}

// TestCustomAccountLost: a key of the account that a power failure has left empty is replaced.
func TestCustomAccountLost(t *testing.T) {
	t.Parallel()
	ca := newFailingCA(t, missing)
	c := newCustom(t, ca, nil)
	if err := c.cache.Put(t.Context(), accountName, nil); err != nil {
		t.Fatal(err)
	}
	c.Prepare(customHost)
	c.attempts(t, customHost)
	if n := ca.asked.Load(); n != 1 {
		t.Errorf("the authority was asked %d times, want once", n)
	}
}
