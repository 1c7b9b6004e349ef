package tls

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
)

const testDomain = "tunnels.test"

// A txtRecords is a DNS server as far as challenges go.
type txtRecords struct {
	mu       sync.Mutex
	standing map[string]int
	added    []string // names
}

func (r *txtRecords) solver() TXTSolver {
	change := func(by int) func(name, value string) error {
		return func(name, value string) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.standing == nil {
				r.standing = make(map[string]int)
			}
			if r.standing[name+" "+value] += by; r.standing[name+" "+value] == 0 {
				delete(r.standing, name+" "+value)
			}
			if by > 0 {
				r.added = append(r.added, name)
			}
			return nil
		}
	}
	return TXTSolver{Add: change(1), Remove: change(-1)}
}

// run starts a Wildcard; the returned function ends it and waits.
func run(t *testing.T, o WildcardOptions) (w *Wildcard, stop func()) {
	t.Helper()
	o.Domain = testDomain
	if o.Solver == nil {
		o.Solver = new(txtRecords).solver()
	}
	if o.Retry == 0 {
		o.Retry = 20 * time.Millisecond
	}
	w = NewWildcard(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Run(ctx)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(patience):
			t.Error("Run goes on without its context")
		}
	})
	t.Cleanup(stop)
	return w, stop
}

// served is the certificate that a visitor of name sees.
func served(t *testing.T, w *Wildcard, name string) (*x509.Certificate, error) {
	t.Helper()
	state, err := dial(t, w.TLSConfig(), &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err != nil {
		return nil, err
	}
	return state.PeerCertificates[0], nil
}

// store puts a certificate for name where a Wildcard looks for it. Who asks about its state (OCSP) gets no answer.
func store(t *testing.T, dir, ca, name string, notAfter time.Time) {
	t.Helper()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // connections are made, and nobody accepts them
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	authority, err := OpenInternalCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serialNumber(), DNSNames: []string{name}, NotBefore: notAfter.Add(-90 * 24 * time.Hour), NotAfter: notAfter,
		OCSPServer: []string{"http://" + silent.Addr().String()},
	}, authority.root, authority.leafKey.Public(), authority.key)
	if err != nil {
		t.Fatal(err)
	}
	key := (&certmagic.ACMEIssuer{CA: ca}).IssuerKey()
	storage := &certmagic.FileStorage{Path: filepath.Join(dir, "certificates")}
	cert := &tls.Certificate{Certificate: [][]byte{der, authority.root.Raw}, PrivateKey: authority.leafKey}
	writeChain(t, cert, storage.Filename(certmagic.StorageKeys.SiteCert(key, name)), storage.Filename(certmagic.StorageKeys.SitePrivateKey(key, name)))
	meta, err := json.Marshal(certmagic.CertificateResource{SANs: []string{name}})
	if err != nil {
		t.Fatal(err)
	}
	if err := storage.Store(context.Background(), certmagic.StorageKeys.SiteMeta(key, name), meta); err != nil {
		t.Fatal(err)
	}
}

func TestWildcard(t *testing.T) {
	t.Parallel()
	ca, dir, records := startPebble(t, freeAddr(t), 90*24*time.Hour), t.TempDir(), new(txtRecords)
	w, stop := run(t, WildcardOptions{DataDir: dir, CA: ca.Directory, CARoots: ca.Roots, Solver: records.solver()})
	eventually(t, "both certificates", func() bool { return w.Ready() == nil })
	for name, want := range map[string]string{testDomain: testDomain, "x." + testDomain: "*." + testDomain, "X." + testDomain: "*." + testDomain} {
		cert, err := served(t, w, name)
		if err != nil || cert.VerifyHostname(name) != nil || cert.DNSNames[0] != want {
			t.Errorf("%s: %v, %v", name, err, cert)
		}
	}
	for _, name := range []string{"a.b." + testDomain, "example.com"} {
		if _, err := served(t, w, name); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
			t.Errorf("%s is not ours, and got %v", name, err)
		}
	}
	stop()
	for _, name := range records.added {
		if name != "_acme-challenge."+testDomain {
			t.Errorf("a challenge was answered at %s", name)
		}
	}
	if len(records.added) < 2 || len(records.standing) != 0 {
		t.Errorf("%d challenges were answered, and %v is left of them", len(records.added), records.standing)
	}
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if info, _ := d.Info(); info.Mode().Perm()&0o077 != 0 && !d.IsDir() && strings.HasSuffix(path, ".key") {
			t.Errorf("%s can be read by others", path)
		}
		return err
	})
	first, err := served(t, w, testDomain) // connections that drain are served on
	if err != nil {
		t.Fatal(err)
	}
	again, _ := run(t, WildcardOptions{DataDir: dir, CA: ca.Directory, CARoots: x509.NewCertPool()}) // nobody is trusted
	eventually(t, "what is on disk", func() bool { return again.Ready() == nil })
	if second, err := served(t, again, testDomain); err != nil || !second.Equal(first) {
		t.Errorf("after a restart: %v, want the same certificate", err)
	}
}

// TestWildcardWithoutAuthority: nothing on disk, and nobody to ask.
func TestWildcardWithoutAuthority(t *testing.T) {
	t.Parallel()
	failures := make(chan error, 100)
	addr := freeAddr(t)
	w, stop := run(t, WildcardOptions{
		DataDir: t.TempDir(), CA: "https://" + addr + "/dir",
		OnFailure: func(err error) {
			select {
			case failures <- err:
			default:
			}
		},
	})
	if _, err := served(t, w, testDomain); err == nil || !strings.Contains(err.Error(), "internal error") {
		t.Errorf("without a certificate a visitor got %v, want an alert", err)
	}
	for range 4 { // two attempts for two names
		select {
		case err := <-failures:
			if !strings.Contains(err.Error(), addr) {
				t.Errorf("the failure is %v", err)
			}
		case <-time.After(3 * patience): // certmagic asks three times in an attempt
			t.Fatal("no failure was reported")
		}
	}
	err := w.Ready()
	if err == nil || !strings.HasPrefix(err.Error(), "there is no certificate for "+testDomain+" yet: "+addr+" cannot be reached: ") {
		t.Errorf("Ready says %v", err)
	}
	t.Logf("Ready says: %v", err)
	stop()
}

// TestWildcardFromDisk: nobody to ask, neither for certificates nor for their state.
func TestWildcardFromDisk(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		notAfter time.Time
		ready    string
	}{
		{"valid", time.Now().Add(80 * 24 * time.Hour), ""},
		{"due", time.Now().Add(24 * time.Hour), ""},
		{"expired", time.Now().Add(-24 * time.Hour), "the certificate for " + testDomain + " expired on "},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir, directory := t.TempDir(), "https://"+freeAddr(t)+"/dir"
			for _, name := range []string{testDomain, "*." + testDomain} {
				store(t, dir, directory, name, c.notAfter)
			}
			start := time.Now()
			w, _ := run(t, WildcardOptions{DataDir: dir, CA: directory})
			eventually(t, "what is on disk", func() bool {
				_, err := served(t, w, "x."+testDomain)
				return err == nil
			})
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("it was served after %v", took)
			}
			if cert, err := served(t, w, testDomain); err != nil || cert.DNSNames[0] != testDomain {
				t.Errorf("%v, %v", cert, err)
			}
			if err := w.Ready(); (err == nil) != (c.ready == "") || err != nil && !strings.HasPrefix(err.Error(), c.ready) {
				t.Errorf("Ready says %v, want %q", err, c.ready)
			}
		})
	}
}

// TestWildcardRepairs: files that are broken, and one that has expired, are replaced as soon as the authority is there.
func TestWildcardRepairs(t *testing.T) {
	t.Parallel()
	addr, dir := freeAddr(t), t.TempDir()
	directory := "https://" + addr + "/dir"
	store(t, dir, directory, testDomain, time.Now().Add(-time.Hour))
	store(t, dir, directory, "*."+testDomain, time.Now().Add(time.Hour))
	files, err := filepath.Glob(filepath.Join(dir, "certificates", "certificates", "*", "wildcard*", "*.crt"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	if err := os.WriteFile(files[0], []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	ca := startPebble(t, addr, 90*24*time.Hour)
	w, _ := run(t, WildcardOptions{DataDir: dir, CA: directory, CARoots: ca.Roots})
	eventually(t, "new certificates", func() bool { return w.Ready() == nil })
	if held := w.held(testDomain); len(held) != 1 {
		t.Errorf("%d certificates are held, want the new one alone", len(held))
	}
}

// TestWildcardRepairsMetadata: it is replaced, too, when what is broken is what certmagic notes beside a certificate.
func TestWildcardRepairsMetadata(t *testing.T) {
	t.Parallel()
	addr, dir := freeAddr(t), t.TempDir()
	directory := "https://" + addr + "/dir"
	for name, text := range map[string]string{testDomain: "", "*." + testDomain: "{{"} {
		store(t, dir, directory, name, time.Now().Add(60*24*time.Hour))
		key := (&certmagic.ACMEIssuer{CA: directory}).IssuerKey()
		file := filepath.Join(dir, "certificates", filepath.FromSlash(certmagic.StorageKeys.SiteMeta(key, name)))
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ca := startPebble(t, addr, 90*24*time.Hour)
	w, _ := run(t, WildcardOptions{DataDir: dir, CA: directory, CARoots: ca.Roots})
	eventually(t, "new certificates", func() bool { return w.Ready() == nil })
}

// TestWildcardRenews: a certificate is renewed before it ends, and visitors notice nothing.
func TestWildcardRenews(t *testing.T) {
	t.Parallel()
	ca := startPebble(t, freeAddr(t), time.Hour)
	w, _ := run(t, WildcardOptions{
		DataDir: t.TempDir(), CA: ca.Directory, CARoots: ca.Roots,
		CheckEvery: 500 * time.Millisecond, RenewalWindowRatio: 0.9995, // so that an hour's is due after 2 s
	})
	eventually(t, "a certificate", func() bool { return w.Ready() == nil })
	first, err := served(t, w, testDomain)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "another certificate", func() bool {
		now, err := served(t, w, testDomain)
		if err != nil {
			t.Fatalf("while it was renewed: %v", err)
		}
		return !now.Equal(first)
	})
}
