package tls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
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
	maxIssuing    = 4                // certificates that are being obtained at once
	maxCustom     = 10000            // hostnames at once
	firstSweep    = 64               // hostnames, before those that are not served are looked for
	failurePause  = 10 * time.Minute // after a first failure; doubles
	maxPause      = 6 * time.Hour
	challengePath = "/.well-known/acme-challenge/"
)

var errClosed = errors.New("no certificates are obtained any more")

// CustomOptions say how certificates for names other than the edge's own are obtained.
type CustomOptions struct {
	DataDir string         // certificates and the account's key are kept below it
	Email   string         // for the authority; may be empty
	CA      string         // URL of the ACME directory; empty means Let's Encrypt
	CARoots *x509.CertPool // to trust the directory by; nil means the system's
	// Serves reports whether a hostname is served here and its TLS ends here. It is asked at each handshake, must not wait
	// and must not call the Custom.
	Serves func(hostname string) bool
	// Prove returns nil if the hostname still leads here. It is asked before each order, of renewals too.
	Prove func(ctx context.Context, hostname string) error
	// RenewBefore is how long before its end a certificate is renewed; zero means a third of its life, at most 30 days.
	RenewBefore time.Duration
	Logger      *slog.Logger // nil discards
}

// A Custom holds certificates for the hostnames of others, by TLS-ALPN-01 (RFC 8737) and HTTP-01 (RFC 8555, section 8.3).
// One that was obtained is kept below the data folder. Methods may be called from any goroutine.
type Custom struct {
	options   CustomOptions
	cache     autocert.DirCache
	authority http.RoundTripper
	slots     chan struct{}
	ctx       context.Context // ends with Close
	cancel    context.CancelFunc
	wg        sync.WaitGroup // certificates that are being obtained
	account   sync.Mutex     // held while the account's key is looked for

	mu      sync.Mutex // guards the field below and what is said to be in site
	sites   map[string]*site
	sweepAt int // how many sites there are when those that are not served are looked for
}

// NewCustom returns a Custom. Close ends it.
func NewCustom(o CustomOptions) *Custom {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.CA == "" {
		o.CA = autocert.DefaultACMEDirectory
	}
	c := &Custom{
		options: o, cache: autocert.DirCache(filepath.Join(o.DataDir, "custom")), authority: rootedTransport(o.CARoots),
		slots: make(chan struct{}, maxIssuing), sites: make(map[string]*site), sweepAt: firstSweep,
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// Close ends requests to the authority, lets no further one leave, and waits for what is under way: some seconds at most.
func (c *Custom) Close() {
	c.mu.Lock()
	c.cancel()
	for _, s := range c.sites {
		s.again.stop()
	}
	c.mu.Unlock()
	c.wg.Wait()
}

// Prepare obtains the certificate for a hostname in the background, if there is none yet, so that the first visitor does
// not wait. After a failure it is tried again: after ten minutes, then after twice as long each time, up to six hours.
func (c *Custom) Prepare(hostname string) {
	if !c.options.Serves(hostname) {
		return
	}
	s, err := c.use(hostname)
	if err != nil {
		return
	}
	defer c.leave(s)
	_, _ = c.begin(s) // a pause is no news: it was logged
}

// Holds reports whether a certificate for the hostname, in lower case, is on disk and has not ended: then serving it asks
// nothing of the authority's limits today.
func (c *Custom) Holds(hostname string) bool {
	ctx, cancel := context.WithTimeout(c.ctx, time.Second)
	defer cancel()
	data, err := c.cache.Get(ctx, hostname)
	if err != nil {
		return false
	}
	leaf := firstCertificate(data)
	return leaf != nil && time.Now().Before(leaf.NotAfter) && leaf.VerifyHostname(hostname) == nil
}

// GetCertificate answers a visitor of a hostname, and the authority's TLS-ALPN-01 validation of it. A visitor waits for a
// certificate that is being obtained, and causes an attempt unless there was one a short while ago.
func (c *Custom) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := strings.ToLower(hello.ServerName)
	if !c.options.Serves(name) {
		return nil, fmt.Errorf("%s: %w", name, errUnknownName)
	}
	s, err := c.use(name)
	if err != nil {
		return nil, err
	}
	defer c.leave(s)
	if isValidation(hello) {
		return s.GetCertificate(hello)
	}
	if !c.ready(s) {
		over, err := c.begin(s)
		if err != nil {
			return nil, err
		}
		ctx := hello.Context()
		if ctx == nil { // a hello that no handshake made
			ctx = c.ctx
		}
		select {
		case <-over:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if !c.ready(s) {
			return nil, fmt.Errorf("no certificate for %s: it could not be obtained", name)
		}
	}
	return c.certificate(s)
}

// isValidation reports whether a hello is the authority's (RFC 8737, section 4).
func isValidation(hello *tls.ClientHelloInfo) bool {
	return len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acme.ALPNProto
}

// HTTPHandler answers HTTP-01 validations of the hostnames and hands everything else to next.
func (c *Custom) HTTPHandler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, challengePath) {
			next.ServeHTTP(w, r)
			return
		}
		s := c.find(bareHost(r.Host))
		if s == nil {
			next.ServeHTTP(w, r)
			return
		}
		defer c.leave(s)
		s.HTTPHandler(next).ServeHTTP(w, r)
	})
}

// bareHost is a Host field in lower case, without port and last dot.
func bareHost(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
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
