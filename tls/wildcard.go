package tls

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
)

// WildcardOptions say how the certificates of a domain and its wildcard are obtained.
type WildcardOptions struct {
	Domain  string // without the last dot
	DataDir string // certificates, keys and the account are kept below it
	Email   string // for the authority; may be empty

	CA      string         // URL of the ACME directory; empty means Let's Encrypt
	CARoots *x509.CertPool // to trust the directory by; nil means the system's

	// Solver answers the DNS-01 challenges. If it is nil, Provider does, which is any libdns provider.
	Solver   acmez.Solver
	Provider certmagic.DNSProvider
	// Resolvers are asked instead of the system's, host:port, for what Provider needs to know.
	Resolvers []string

	// OnFailure is called after each attempt that failed. It must not wait. Nil does nothing.
	OnFailure func(error)
	// Retry is the first pause after a failure; they double up to 60 times that, and an hour. Zero means one minute.
	Retry time.Duration
	// CheckEvery is how often it is seen whether a certificate is to be renewed; zero means 10 minutes.
	CheckEvery time.Duration
	// RenewalWindowRatio is the last part of a certificate's life, in which it is renewed; zero means a third. The
	// authority may ask for another time (ARI, RFC 9773).
	RenewalWindowRatio float64

	Logger *slog.Logger // nil discards
}

// A Wildcard holds the certificates of a domain and of all names right below it, and renews them (ACME, RFC 8555).
type Wildcard struct {
	options WildcardOptions
	cache   *certmagic.Cache
	config  *certmagic.Config
	offline *certmagic.Config // loads a certificate without OCSP, which can hang for minutes; the cache adds that each hour
	names   []string
	stop    func() // of the cache's maintenance

	mu       sync.Mutex
	failures map[string]error // of the last attempt by name, until one succeeds
	trying   string           // the name that obtain is at; empty for none
}

// NewWildcard returns a Wildcard that holds what is on disk once Run has begun. Close ends it if Run never does.
func NewWildcard(o WildcardOptions) *Wildcard {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Domain = strings.ToLower(o.Domain)
	o.Retry = cmp.Or(o.Retry, firstRetry)
	w := &Wildcard{options: o, names: []string{o.Domain, "*." + o.Domain}, failures: make(map[string]error)}
	log := zapLogger(o.Logger)
	w.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert:   func(certmagic.Certificate) (*certmagic.Config, error) { return w.config, nil },
		RenewCheckInterval: o.CheckEvery,
		Logger:             log,
	})
	w.stop = sync.OnceFunc(w.cache.Stop)
	template := certmagic.Config{
		Storage:            &certmagic.FileStorage{Path: filepath.Join(o.DataDir, "certificates")},
		RenewalWindowRatio: o.RenewalWindowRatio,
		OnEvent:            w.onEvent,
		Logger:             log,
	}
	w.config = certmagic.New(w.cache, template)
	w.config.Issuers = []certmagic.Issuer{w.issuer()}
	template.OCSP.DisableStapling = true
	template.Issuers = w.config.Issuers
	w.offline = certmagic.New(w.cache, template)
	return w
}

func (w *Wildcard) issuer() *certmagic.ACMEIssuer {
	o, log := w.options, w.config.Logger
	solver := o.Solver
	if solver == nil {
		solver = &certmagic.DNS01Solver{DNSManager: certmagic.DNSManager{DNSProvider: o.Provider, Resolvers: o.Resolvers, Logger: log}}
	}
	return certmagic.NewACMEIssuer(w.config, certmagic.ACMEIssuer{
		CA: cmp.Or(o.CA, certmagic.LetsEncryptProductionCA), TrustedRoots: o.CARoots, Agreed: true,
		Email:                cmp.Or(o.Email, " "), // for an empty one certmagic asks whoever is at the terminal
		DisableHTTPChallenge: true, DisableTLSALPNChallenge: true, DNS01Solver: solver,
		Logger: log,
	})
}

// Close ends the renewals, as Run does when it returns. What is held is served on.
func (w *Wildcard) Close() { w.stop() }

// Run loads the certificates from disk at once, whatever the authority does, obtains those that are missing or due, and
// renews them until ctx ends. Failures are tried again, after pauses that grow from a minute to an hour.
func (w *Wildcard) Run(ctx context.Context) {
	defer w.Close()
	for _, name := range w.names {
		w.load(ctx, name)
	}
	w.obtain(ctx)
	<-ctx.Done()
}

// load holds what is on disk for name. A certificate that has expired is better than none: the visitor sees the reason.
func (w *Wildcard) load(ctx context.Context, name string) {
	cert, err := w.offline.CacheManagedCertificate(ctx, name)
	switch {
	case err != nil: // obtain makes another attempt, and tells
	case cert.Expired():
		w.options.Logger.Warn("the certificate has expired, and is served until there is a new one", "name", name, "expired", cert.Leaf.NotAfter)
	default:
		w.options.Logger.Info("certificate found", "name", name, "expires", cert.Leaf.NotAfter)
	}
}

// TLSConfig returns the configuration that serves the certificates.
func (w *Wildcard) TLSConfig() *tls.Config { return serverConfig(w.GetCertificate) }

// GetCertificate is for tls.Config. The error says why there is none.
func (w *Wildcard) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	_, parent, _ := strings.Cut(name, ".")
	if name != w.options.Domain && parent != w.options.Domain {
		return nil, errUnknownName
	}
	return w.config.GetCertificate(hello)
}

// Ready returns nil once there are certificates for all names that have not expired, and else a sentence that says why
// not.
func (w *Wildcard) Ready() error {
	for _, name := range w.names {
		state := "there is no certificate for " + name + " yet"
		if held := w.held(name); len(held) > 0 {
			newest := held[0].Leaf.NotAfter
			for _, cert := range held {
				if cert.Leaf.NotAfter.After(newest) {
					newest = cert.Leaf.NotAfter
				}
			}
			if time.Now().Before(newest) {
				continue
			}
			state = "the certificate for " + name + " expired on " + newest.UTC().Format(time.DateOnly)
		}
		w.mu.Lock()
		err := w.failures[name]
		w.mu.Unlock()
		if err == nil {
			return fmt.Errorf("%s: it is being obtained", state)
		}
		return fmt.Errorf("%s: %s", state, Explain(err))
	}
	return nil
}

// held returns the certificates for exactly that name.
func (w *Wildcard) held(name string) (certs []certmagic.Certificate) {
	seen := make(map[string]bool)
	for _, cert := range w.cache.AllMatchingCertificates(name) {
		if len(cert.Names) > 0 && cert.Names[0] == name && !seen[cert.Hash()] {
			seen[cert.Hash()] = true
			certs = append(certs, cert)
		}
	}
	return certs
}
