package tls

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

// accountName is where autocert looks for the key of the account.
const accountName = "acme_account+key"

// A site is one hostname's. Autocert asks its policy for first certificates only and renews by a timer of its own, so
// what it may do is decided where its requests leave: see gate.
type site struct {
	*autocert.Manager
	hostname string
	gate     *gate
	dropped  *atomic.Bool

	// guarded by Custom.mu
	users    int           // who hold it; while there are any it is not dropped
	issuing  chan struct{} // closed when the attempt is over; nil if there is none
	ends     time.Time     // of the certificate that was last given out; zero if there was none
	failures int           // attempts in a row
	paused   time.Time     // until then nothing is attempted
	again    timer         // makes the next attempt
}

// A timer is a time.Timer or nothing.
type timer struct{ *time.Timer }

func (t timer) stop() {
	if t.Timer != nil {
		t.Stop()
	}
}

// find returns the site of a hostname, which the caller must leave; nil if there is none.
func (c *Custom) find(hostname string) *site {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sites[hostname]
	if s != nil {
		s.users++
	}
	return s
}

// use returns the site of a hostname in lower case, which the caller must leave. The error is for Close and for too many.
func (c *Custom) use(hostname string) (*site, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return nil, errClosed
	}
	s := c.sites[hostname]
	if s != nil && s.users == 0 && !s.ends.IsZero() && time.Now().After(s.ends) {
		s = c.renewedLocked(s)
	}
	if s == nil {
		if len(c.sites) >= c.sweepAt {
			c.sweepLocked()
		}
		if len(c.sites) >= maxCustom {
			return nil, fmt.Errorf("too many hostnames: no certificate for %s", hostname)
		}
		s = c.newSite(hostname)
		c.sites[hostname] = s
	}
	s.users++
	return s, nil
}

func (c *Custom) leave(s *site) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.users--
}

// renewedLocked puts a new site in the place of one whose certificate has ended, as autocert would go on to give it out.
func (c *Custom) renewedLocked(old *site) *site {
	c.dropLocked(old)
	s := c.newSite(old.hostname)
	s.failures, s.paused = old.failures, old.paused
	c.sites[s.hostname] = s
	return s
}

// sweepLocked drops the hostnames that are not served any more.
func (c *Custom) sweepLocked() {
	for name, s := range c.sites {
		if s.users == 0 && !c.options.Serves(name) {
			c.dropLocked(s)
		}
	}
	c.sweepAt = min(max(firstSweep, 2*len(c.sites)), maxCustom)
}

// dropLocked forgets a site that nobody uses.
func (c *Custom) dropLocked(s *site) {
	s.again.stop()
	s.dropped.Store(true)
	delete(c.sites, s.hostname)
}

func (c *Custom) newSite(hostname string) *site {
	dropped := new(atomic.Bool)
	s := &site{hostname: hostname, dropped: dropped, gate: &gate{custom: c, hostname: hostname, dropped: dropped}}
	s.Manager = &autocert.Manager{
		Prompt: autocert.AcceptTOS,
		Cache:  siteCache{c.cache, dropped},
		HostPolicy: func(_ context.Context, host string) error {
			if bareHost(host) != hostname {
				return errUnknownName
			}
			return nil
		},
		Email:       c.options.Email,
		RenewBefore: c.options.RenewBefore,
		Client:      &acme.Client{DirectoryURL: c.options.CA, HTTPClient: s.gate.client(), RetryBackoff: retryAuthority},
	}
	s.HTTPHandler(nil) // makes it accept HTTP-01, too
	return s
}

// A siteCache is the folder of certificates as one site sees it.
type siteCache struct {
	autocert.DirCache
	dropped *atomic.Bool
}

// Get ends the goroutine if the site was dropped. Nobody but autocert's renewal, which looks here before it does anything
// else, can call it then; and that would otherwise wake up twice an hour for ever, as there is no way to stop it.
func (s siteCache) Get(ctx context.Context, name string) ([]byte, error) {
	if s.dropped.Load() {
		runtime.Goexit()
	}
	return s.DirCache.Get(ctx, name)
}

// ready reports whether s has a certificate at hand.
func (c *Custom) ready(s *site) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Before(s.ends)
}

// certificate returns s's from memory or disk, and otherwise obtains it, which takes up to five minutes. It is an ECDSA one
// whatever a visitor says: else a visitor could cause orders of a second one.
func (c *Custom) certificate(s *site) (*tls.Certificate, error) {
	cert, err := s.GetCertificate(&tls.ClientHelloInfo{
		ServerName:       s.hostname,
		SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256},
		SupportedCurves:  []tls.CurveID{tls.CurveP256},
		CipherSuites:     []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
	})
	if err != nil {
		return nil, err
	}
	if cert.Leaf == nil {
		return nil, fmt.Errorf("the certificate for %s cannot be read", s.hostname)
	}
	c.mu.Lock()
	s.ends = cert.Leaf.NotAfter
	c.mu.Unlock()
	if !time.Now().Before(cert.Leaf.NotAfter) {
		return nil, fmt.Errorf("the certificate for %s has ended, and there is no newer one", s.hostname)
	}
	return cert, nil
}

// begin starts an attempt at a certificate unless one is under way; over is closed at its end. The error is for the time
// after a failure.
func (c *Custom) begin(s *site) (over <-chan struct{}, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.ctx.Err() != nil:
		return nil, errClosed
	case s.issuing != nil:
		return s.issuing, nil
	case time.Now().Before(s.paused):
		return nil, fmt.Errorf("no certificate for %s: the last attempt failed", s.hostname)
	}
	s.issuing = make(chan struct{})
	s.users++
	over = s.issuing
	c.wg.Go(func() { c.end(s, c.obtain(s)) }) // ends with Close
	return over, nil
}

func (c *Custom) obtain(s *site) error {
	if !c.Holds(s.hostname) {
		select {
		case c.slots <- struct{}{}:
			defer func() { <-c.slots }()
		case <-c.ctx.Done():
			return errClosed
		}
		if err := c.ensureAccount(); err != nil {
			return err
		}
	}
	_, err := c.certificate(s)
	return err
}

// end notes how an attempt went, and sees to the next one.
func (c *Custom) end(s *site, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(s.issuing)
	s.issuing = nil
	s.users--
	if c.ctx.Err() != nil {
		return
	}
	if err == nil {
		s.failures = 0
		c.options.Logger.Info("certificate ready", "hostname", s.hostname, "until", s.ends)
		return
	}
	s.failures++
	pause := max(pauseAfter(s.failures), time.Until(s.gate.closedUntil()))
	s.paused = time.Now().Add(pause)
	s.again.stop()
	s.again = timer{time.AfterFunc(pause, func() { c.Prepare(s.hostname) })}
	c.options.Logger.Warn("no certificate for a hostname", "hostname", s.hostname, "reason", err, "again_in", pause.Round(time.Second))
}

// pauseAfter is how long nothing is attempted after so many failures in a row, at least 1.
func pauseAfter(failures int) time.Duration {
	return min(failurePause<<min(failures-1, 10), maxPause)
}

// ensureAccount creates the account's key, which all hostnames share, if there is none, or if a power failure has left its
// file empty.
func (c *Custom) ensureAccount() error {
	c.account.Lock()
	defer c.account.Unlock()
	held, err := c.cache.Get(c.ctx, accountName)
	if block, _ := pem.Decode(held); block != nil || err != nil && !errors.Is(err, autocert.ErrCacheMiss) {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make an account's key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode an account's key: %w", err)
	}
	return c.cache.Put(c.ctx, accountName, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
}

// firstCertificate is the first of a file; nil if there is none.
func firstCertificate(data []byte) *x509.Certificate {
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			leaf, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil
			}
			return leaf
		}
	}
	return nil
}
