package tls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

const (
	issueTime    = 5 * time.Minute
	maxIssuing   = 4     // certificates that are being obtained at once
	maxCustom    = 10000 // hostnames at once
	failurePause = 10 * time.Minute
)

// CustomOptions say how certificates for names other than the edge's own are obtained.
type CustomOptions struct {
	DataDir string         // certificates and the account's key are kept below it
	Email   string         // for the authority; may be empty
	CA      string         // URL of the ACME directory; empty means Let's Encrypt
	CARoots *x509.CertPool // to trust the directory by; nil means the system's
	// Serves reports whether a hostname is served here. It is asked at each handshake.
	Serves func(hostname string) bool
	// Prove returns nil if the hostname still leads here. It is asked before each order, of renewals too.
	Prove func(ctx context.Context, hostname string) error
	// RenewBefore is how long before its end a certificate is renewed; zero means 30 days.
	RenewBefore time.Duration
	Logger      *slog.Logger // nil discards
}

// A Custom holds certificates for the hostnames of others, by TLS-ALPN-01 (RFC 8737) and HTTP-01 (RFC 8555, section 8.3).
// One that was obtained is kept below the data folder.
type Custom struct {
	options CustomOptions
	slots   chan struct{}
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup // certificates that are being obtained

	mu       sync.Mutex
	managers map[string]*manager // by hostname
}

// A manager is one hostname's. Autocert asks its policy for first certificates only and renews by a timer of its own, so
// what it may do is decided where its requests leave: see RoundTrip.
type manager struct {
	*autocert.Manager
	custom   *Custom
	hostname string
	inner    http.RoundTripper

	// guarded by Custom.mu
	paused  time.Time // until then no certificate is asked for
	issuing bool
	proven  time.Time // when the hostname last led here
}

// NewCustom returns a Custom. Close ends it.
func NewCustom(o CustomOptions) *Custom {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Custom{options: o, slots: make(chan struct{}, maxIssuing), managers: make(map[string]*manager)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// Close lets no further request leave, and waits for what is under way.
func (c *Custom) Close() {
	c.cancel()
	c.wg.Wait()
}

// manager returns the one of hostname, in lower case; nil if there are too many.
func (c *Custom) manager(hostname string) *manager {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m := c.managers[hostname]; m != nil {
		return m
	}
	if len(c.managers) >= maxCustom {
		return nil
	}
	m := &manager{custom: c, hostname: hostname, inner: rootedTransport(c.options.CARoots)}
	directory := c.options.CA
	if directory == "" {
		directory = autocert.DefaultACMEDirectory
	}
	m.Manager = &autocert.Manager{
		Prompt:      autocert.AcceptTOS,
		Cache:       autocert.DirCache(filepath.Join(c.options.DataDir, "custom")),
		HostPolicy:  autocert.HostWhitelist(hostname),
		Email:       c.options.Email,
		RenewBefore: c.options.RenewBefore,
		Client:      &acme.Client{DirectoryURL: directory, HTTPClient: &http.Client{Transport: m, Timeout: time.Minute}},
	}
	m.HTTPHandler(nil) // makes it accept HTTP-01, too
	c.managers[hostname] = m
	return m
}

// rootedTransport trusts roots, or the system's if they are nil. It keeps no connections: there are few requests.
func rootedTransport(roots *x509.CertPool) http.RoundTripper {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{RootCAs: roots}
	t.DisableKeepAlives = true
	return t
}

// RoundTrip carries a request to the authority if the hostname is served here and has led here within the last minutes.
func (m *manager) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := m.custom.ctx.Err(); err != nil {
		return nil, err
	}
	if !m.custom.options.Serves(m.hostname) {
		return nil, fmt.Errorf("%s is not served here any more", m.hostname)
	}
	m.custom.mu.Lock()
	fresh := time.Since(m.proven) < issueTime
	m.custom.mu.Unlock()
	if !fresh {
		if err := m.custom.options.Prove(r.Context(), m.hostname); err != nil {
			return nil, err
		}
		m.custom.mu.Lock()
		m.proven = time.Now()
		m.custom.mu.Unlock()
	}
	return m.inner.RoundTrip(r)
}

// Prepare obtains the certificate for a hostname in the background, if there is none yet, so that the first visitor does
// not wait. After a failure nothing is asked for during ten minutes.
func (c *Custom) Prepare(hostname string) {
	m := c.manager(hostname)
	if m == nil || !c.begin(m) {
		return
	}
	c.wg.Go(func() { // ends after issueTime at the latest
		var err error
		defer func() { c.done(m, err) }()
		select {
		case c.slots <- struct{}{}:
			defer func() { <-c.slots }()
		case <-c.ctx.Done():
			return
		}
		if _, err = m.GetCertificate(modernHello(hostname)); err != nil {
			c.options.Logger.Warn("no certificate for a hostname", "hostname", hostname, "reason", err, "again", failurePause)
			return
		}
		c.options.Logger.Info("certificate ready", "hostname", hostname)
	})
}

func (c *Custom) begin(m *manager) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.issuing || time.Now().Before(m.paused) || c.ctx.Err() != nil {
		return false
	}
	m.issuing = true
	return true
}

func (c *Custom) done(m *manager, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m.issuing = false
	if err != nil {
		m.paused = time.Now().Add(failurePause)
	}
}

// modernHello is the hello of a client that takes an ECDSA certificate.
func modernHello(hostname string) *tls.ClientHelloInfo {
	return &tls.ClientHelloInfo{
		ServerName:       hostname,
		SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256},
		SupportedCurves:  []tls.CurveID{tls.CurveP256},
		CipherSuites:     []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
	}
}

// GetCertificate answers a visitor of a hostname, and the authority's TLS-ALPN-01 validation of it. A certificate that is
// not there yet is obtained, unless that failed a short while ago.
func (c *Custom) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := strings.ToLower(hello.ServerName)
	if !c.options.Serves(name) {
		return nil, fmt.Errorf("%s is not served here", name)
	}
	m := c.manager(name)
	if m == nil {
		return nil, fmt.Errorf("too many hostnames: no certificate for %s", name)
	}
	if isValidation(hello) {
		return m.GetCertificate(hello)
	}
	c.mu.Lock()
	paused := time.Now().Before(m.paused)
	c.mu.Unlock()
	if paused {
		return nil, fmt.Errorf("no certificate for %s: the last attempt failed", name)
	}
	return m.GetCertificate(hello)
}

// isValidation reports whether a hello is the authority's (RFC 8737, section 4).
func isValidation(hello *tls.ClientHelloInfo) bool {
	return len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acme.ALPNProto
}

// HTTPHandler answers HTTP-01 validations of the hostnames and hands everything else to next.
func (c *Custom) HTTPHandler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/.well-known/acme-challenge/") {
			next.ServeHTTP(w, r)
			return
		}
		host := strings.ToLower(r.Host)
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		c.mu.Lock()
		m := c.managers[host]
		c.mu.Unlock()
		if m == nil {
			next.ServeHTTP(w, r)
			return
		}
		m.HTTPHandler(next).ServeHTTP(w, r)
	})
}

// TLSConfig returns a configuration that asks own for the certificates of the domain and names below it, and c for all
// others.
func (c *Custom) TLSConfig(domain string, own func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	config := serverConfig(func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if name := strings.ToLower(hello.ServerName); name == domain || strings.HasSuffix(name, "."+domain) {
			return own(hello)
		}
		return c.GetCertificate(hello)
	})
	config.NextProtos = append(config.NextProtos, acme.ALPNProto)
	return config
}
