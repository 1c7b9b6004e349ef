package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

const (
	// issueWait is how long a visitor's handshake waits for a certificate that is being obtained.
	issueWait = 8 * time.Second
	// firstRetry, secondRetry and maxRetry are the pauses after a certificate could not be obtained: the second doubles up to
	// the last. Public authorities allow a name about five failures an hour.
	firstRetry, secondRetry, maxRetry = 2 * time.Minute, 10 * time.Minute, time.Hour
)

// certificates gets certificates by ACME for names that the edge has granted. Visitors get what there is: no handshake
// of theirs makes an order, so that nobody can use up what the authority allows the name.
type certificates struct {
	manager *autocert.Manager
	log     *slog.Logger
	life    context.Context // of Run; set before the first link

	mu    sync.Mutex // guards the field below and what it holds
	names map[string]*ownName
}

// An ownName is a name that the edge has granted.
type ownName struct {
	ready    bool          // there is a certificate, which autocert renews
	attempt  chan struct{} // closed when the attempt that is under way has ended; nil if there is none
	failures int           // in a row
	next     time.Time     // nothing is attempted before
}

func newCertificates(e *EndToEnd, log *slog.Logger) (*certificates, error) {
	if e.CertDir == "" {
		return nil, errors.New("agent: no folder for certificates")
	}
	c := &certificates{log: log, names: make(map[string]*ownName)}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: e.Roots}
	transport.DisableKeepAlives = true // there are few requests, months apart
	directory := e.Directory
	if directory == "" {
		directory = autocert.DefaultACMEDirectory
	}
	c.manager = &autocert.Manager{
		Prompt: autocert.AcceptTOS, Cache: certDir{autocert.DirCache(e.CertDir)}, HostPolicy: c.allow, Email: e.Email,
		Client: &acme.Client{DirectoryURL: directory, HTTPClient: &http.Client{Transport: whileUp{c, transport}, Timeout: time.Minute}},
	}
	return c, nil
}

// A certDir is the folder of certificates and of the account's key. Autocert does not flush what it writes there: a file
// that a power failure has left empty counts as none, where autocert itself would refuse the key for ever.
type certDir struct{ autocert.DirCache }

func (d certDir) Get(ctx context.Context, name string) ([]byte, error) {
	data, err := d.DirCache.Get(ctx, name)
	if block, _ := pem.Decode(data); err == nil && block == nil {
		return nil, autocert.ErrCacheMiss
	}
	return data, err
}

// whileUp carries requests to the authority as long as the agent runs: autocert knows no end of its own.
type whileUp struct {
	certificates *certificates
	inner        http.RoundTripper
}

func (w whileUp) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(r.Context())
	context.AfterFunc(w.certificates.life, cancel) // stays until then, as the body is read later; requests are few
	return w.inner.RoundTrip(r.WithContext(ctx))
}

// allow is the policy of autocert: names that the edge has granted, and no others.
func (c *certificates) allow(_ context.Context, host string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.names[host] == nil {
		return errors.New(host + " is not a name of this agent")
	}
	return nil
}

// get is GetCertificate of tls.Config.
func (c *certificates) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if slices.Equal(hello.SupportedProtos, []string{acme.ALPNProto}) { // the authority itself (RFC 8737)
		return c.manager.GetCertificate(hello)
	}
	name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	if !c.awaits(name) {
		return nil, errors.New("no certificate for " + name)
	}
	return c.manager.GetCertificate(helloFor(name))
}

// awaits reports whether there is a certificate for a name, after an attempt that is under way.
func (c *certificates) awaits(name string) bool {
	c.mu.Lock()
	n := c.names[name]
	if n == nil || n.ready || n.attempt == nil {
		defer c.mu.Unlock()
		return n != nil && n.ready
	}
	attempt := n.attempt
	c.mu.Unlock()
	timer := time.NewTimer(issueWait)
	defer timer.Stop()
	select {
	case <-attempt:
	case <-timer.C:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return n.ready
}

// helloFor is what makes autocert use an ECDSA key, which every client of today takes; it would make an order for a key of
// each kind.
func helloFor(name string) *tls.ClientHelloInfo {
	return &tls.ClientHelloInfo{
		ServerName:       name,
		SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256},
		SupportedCurves:  []tls.CurveID{tls.CurveP256},
		CipherSuites:     []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
	}
}

// grant notes a name that is served from now on.
func (c *certificates) grant(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.names[name] == nil {
		c.names[name] = new(ownName)
	}
}

// obtain tries until there is a certificate for a granted name, so that the first visitor finds it. It ends with ctx, at the
// latest after the attempt that is under way. Several may run for one name.
func (c *certificates) obtain(ctx context.Context, name string) {
	for ctx.Err() == nil {
		c.mu.Lock()
		n := c.names[name]
		ready, attempt, pause := n.ready, n.attempt, time.Until(n.next)
		mine := !ready && attempt == nil && pause <= 0
		if mine {
			n.attempt = make(chan struct{})
		}
		c.mu.Unlock()
		switch {
		case ready:
			return
		case mine:
			c.try(name, n)
			continue
		case attempt == nil:
			timer := time.NewTimer(pause)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
			}
			continue
		}
		select {
		case <-attempt:
		case <-ctx.Done():
		}
	}
}

// try makes one attempt, for which n.attempt is set.
func (c *certificates) try(name string, n *ownName) {
	_, err := c.manager.GetCertificate(helloFor(name))
	c.mu.Lock()
	defer c.mu.Unlock()
	close(n.attempt)
	n.attempt = nil
	if n.ready = err == nil; n.ready {
		n.failures = 0
		c.log.Info("certificate ready: only this agent has its key", "hostname", name)
		return
	}
	n.failures++
	pause := firstRetry
	if n.failures > 1 {
		pause = min(secondRetry<<min(n.failures-2, 8), maxRetry)
	}
	n.next = time.Now().Add(pause)
	if c.life.Err() == nil {
		c.log.Error("no certificate", "hostname", name, "reason", printable(err.Error()), "hint", issueHint(name, err), "again in", pause)
	}
}

// issueHint is what to do about a certificate that could not be obtained.
func issueHint(name string, err error) string {
	var problem *acme.Error
	var unknown x509.UnknownAuthorityError
	var file *fs.PathError
	var unreachable *url.Error
	var network net.Error
	switch {
	case errors.As(err, &problem) && problem.ProblemType == "urn:ietf:params:acme:error:rateLimited":
		return "the authority has had enough of this name for now; while you test, --acme-ca letsencrypt-staging has higher limits"
	case errors.As(err, &problem) && problem.ProblemType == "urn:ietf:params:acme:error:caa":
		return "CAA records of the domain forbid this authority: allow it there, or choose another by --acme-ca"
	case errors.As(err, &unknown):
		return "if the authority is your own: --acme-ca-root FILE"
	case errors.As(err, &file):
		return "--cert-dir must be a folder that this user may write to"
	case errors.As(err, &unreachable), errors.As(err, &network):
		return "does this machine reach the authority of --acme-ca?"
	}
	return "the authority must reach https://" + name + " at port 443 from the internet, and CAA records must allow it"
}
