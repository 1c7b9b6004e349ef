package tls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

const (
	firstRetry  = time.Minute
	lastRetry   = time.Hour
	attemptTime = 10 * time.Minute
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
	// Retry is the first pause after a failure; they double up to 60 times that. Zero means one minute.
	Retry time.Duration
	// CheckEvery is how often it is seen whether a certificate is to be renewed; zero means 10 minutes.
	CheckEvery time.Duration

	Logger *slog.Logger // nil discards
}

// A Wildcard holds the certificates of a domain and of all names right below it, and renews them (ACME, RFC 8555).
type Wildcard struct {
	options WildcardOptions
	cache   *certmagic.Cache
	config  *certmagic.Config
	names   []string

	mu       sync.Mutex
	failures map[string]error              // the last one by name, until it succeeds
	attempts map[string]context.CancelFunc // of the attempt that is under way, by name
}

// NewWildcard returns a Wildcard that holds what is on disk once Run has begun. Close ends it.
func NewWildcard(o WildcardOptions) *Wildcard {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Retry == 0 {
		o.Retry = firstRetry
	}
	w := &Wildcard{
		options: o, names: []string{o.Domain, "*." + o.Domain},
		failures: make(map[string]error), attempts: make(map[string]context.CancelFunc),
	}
	log := zapLogger(o.Logger)
	w.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert:   func(certmagic.Certificate) (*certmagic.Config, error) { return w.config, nil },
		RenewCheckInterval: o.CheckEvery,
		Logger:             log,
	})
	w.config = certmagic.New(w.cache, certmagic.Config{
		Storage: &certmagic.FileStorage{Path: filepath.Join(o.DataDir, "certificates")},
		OnEvent: w.onEvent,
		Logger:  log,
	})
	solver := o.Solver
	if solver == nil {
		solver = &certmagic.DNS01Solver{DNSManager: certmagic.DNSManager{DNSProvider: o.Provider, Resolvers: o.Resolvers, Logger: log}}
	}
	ca := o.CA
	if ca == "" {
		ca = certmagic.LetsEncryptProductionCA
	}
	w.config.Issuers = []certmagic.Issuer{certmagic.NewACMEIssuer(w.config, certmagic.ACMEIssuer{
		CA: ca, Email: o.Email, Agreed: true, TrustedRoots: o.CARoots,
		DisableHTTPChallenge: true, DisableTLSALPNChallenge: true, DNS01Solver: solver,
		Logger: log,
	})}
	return w
}

// Close ends the renewals.
func (w *Wildcard) Close() { w.cache.Stop() }

// Run loads the certificates from disk, obtains those that are missing or due, and returns when ctx ends. Failures are
// tried again, after pauses that grow from a minute to an hour.
func (w *Wildcard) Run(ctx context.Context) {
	for _, name := range w.names { // all at once, whatever the authority does
		if _, err := w.config.CacheManagedCertificate(ctx, name); err == nil {
			w.options.Logger.Info("certificate found", "name", name)
		}
	}
	var wg sync.WaitGroup
	for _, name := range w.names {
		wg.Go(func() { w.obtain(ctx, name) }) // ends with ctx at the latest
	}
	wg.Wait()
	<-ctx.Done()
}

// obtain tries until name has a certificate that is not due for renewal; after that the cache renews it.
func (w *Wildcard) obtain(ctx context.Context, name string) {
	for pause := w.options.Retry; ctx.Err() == nil; pause = min(2*pause, 60*w.options.Retry, lastRetry) {
		err := w.attempt(ctx, name)
		if err == nil {
			w.note(name, nil)
			return
		}
		if ctx.Err() != nil {
			return
		}
		var refused acme.Problem
		if errors.As(err, &refused) && refused.Type == acme.ProblemTypeRateLimited {
			pause = max(pause, 15*w.options.Retry)
		}
		w.note(name, err)
		w.options.Logger.Error("no certificate", "name", name, "reason", Explain(err), "again", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// attempt makes one try. Certmagic, where it may not ask a person at the terminal, would try again by itself for a month;
// so the first failure, of which onEvent hears, ends it.
func (w *Wildcard) attempt(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	w.mu.Lock()
	w.attempts[name] = cancel
	delete(w.failures, name)
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.attempts, name)
	}()
	cert, err := w.config.CacheManagedCertificate(ctx, name)
	switch {
	case err != nil:
		err = w.config.ObtainCertAsync(ctx, name)
	case cert.NeedsRenewal(w.config):
		err = w.config.RenewCertAsync(ctx, name, false)
	default:
		return nil
	}
	w.mu.Lock()
	if failure := w.failures[name]; failure != nil {
		err = failure
	}
	w.mu.Unlock()
	if err != nil {
		return err
	}
	if _, err := w.config.CacheManagedCertificate(ctx, name); err != nil {
		return fmt.Errorf("load the new certificate: %w", err)
	}
	w.options.Logger.Info("certificate obtained", "name", name)
	return nil
}

// onEvent hears what certmagic does.
func (w *Wildcard) onEvent(_ context.Context, event string, data map[string]any) error {
	name, _ := data["identifier"].(string)
	switch event {
	case "cert_failed":
		err, _ := data["error"].(error)
		if err == nil || errors.Is(err, context.Canceled) {
			return nil
		}
		w.note(name, err)
		w.mu.Lock()
		cancel := w.attempts[name]
		w.mu.Unlock()
		if cancel != nil {
			cancel()
			return nil
		}
		w.options.Logger.Error("certificate not renewed", "name", name, "reason", Explain(err))
	case "cert_obtained":
		w.note(name, nil)
		if renewal, _ := data["renewal"].(bool); renewal {
			w.options.Logger.Info("certificate renewed", "name", name)
		}
	}
	return nil
}

// note keeps what became of the last attempt for name.
func (w *Wildcard) note(name string, err error) {
	w.mu.Lock()
	if err == nil {
		delete(w.failures, name)
	} else {
		w.failures[name] = err
	}
	attempting := w.attempts[name] != nil
	w.mu.Unlock()
	if err != nil && !attempting && w.options.OnFailure != nil {
		w.options.OnFailure(fmt.Errorf("%s: %w", name, err))
	}
}

// TLSConfig returns the configuration that serves the certificates.
func (w *Wildcard) TLSConfig() *tls.Config { return serverConfig(w.GetCertificate) }

// GetCertificate is for tls.Config. A certificate that has expired is better than none: the visitor sees the reason.
func (w *Wildcard) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	return w.config.GetCertificate(hello)
}

// Ready returns nil once there are certificates for all names that have not expired, and else why not.
func (w *Wildcard) Ready() error {
	for _, name := range w.names {
		if w.valid(name) {
			continue
		}
		w.mu.Lock()
		err := w.failures[name]
		w.mu.Unlock()
		if err == nil {
			return fmt.Errorf("the certificate for %s is being obtained", name)
		}
		return fmt.Errorf("no certificate for %s: %s", name, Explain(err))
	}
	return nil
}

func (w *Wildcard) valid(name string) bool {
	for _, cert := range w.cache.AllMatchingCertificates(name) {
		if !cert.Expired() && len(cert.Names) > 0 && cert.Names[0] == name {
			return true
		}
	}
	return false
}

// Explain says in one line why an authority gave no certificate.
func Explain(err error) string {
	var p acme.Problem
	if errors.As(err, &p) {
		text := p.Detail
		for _, sub := range p.Subproblems {
			text += "; " + sub.Detail
		}
		return strings.TrimSpace(strings.TrimPrefix(p.Type, "urn:ietf:params:acme:error:") + ": " + text)
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	return text
}
