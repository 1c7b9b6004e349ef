package tls

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
)

const (
	firstRetry  = time.Minute
	lastRetry   = time.Hour
	attemptTime = 10 * time.Minute
	rateLimited = 15 // times the first pause, at least, for an authority that had enough
)

// obtain tries until every name has a certificate that is not due for renewal; after that the cache renews them. The
// names come one after the other: a program that answers challenges may be able to keep one TXT record only.
func (w *Wildcard) obtain(ctx context.Context) {
	todo := w.names
	for pause := w.options.Retry; ; pause = nextPause(pause, w.options.Retry, nil) {
		var failed []string
		for _, name := range todo {
			err := w.attempt(ctx, name)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				failed = append(failed, name)
				pause = nextPause(pause, w.options.Retry, err)
			}
			w.note(name, err)
		}
		if todo = failed; len(todo) == 0 {
			return
		}
		w.options.Logger.Warn("certificates are missing or due, and will be tried again", "names", todo, "in", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// nextPause returns what to wait after the pause before: twice that if err is nil, and else the same, but longer if the
// authority said that it was asked too often.
func nextPause(pause, first time.Duration, err error) time.Duration {
	if err == nil {
		return min(2*pause, 60*first, lastRetry)
	}
	var p acme.Problem
	if errors.As(err, &p) && p.Type == acme.ProblemTypeRateLimited {
		return max(pause, min(rateLimited*first, lastRetry))
	}
	return pause
}

// attempt makes one try to have a certificate for name that is not due.
func (w *Wildcard) attempt(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	w.setTrying(name)
	defer w.setTrying("")
	cert, err := w.offline.CacheManagedCertificate(ctx, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = w.config.ObtainCertSync(ctx, name)
	case err != nil: // where the files cannot be read at all, this fails without asking the authority
		w.options.Logger.Warn("the certificate on disk is of no use", "name", name, "reason", err)
		w.forget(ctx, name, err)
		err = w.config.RenewCertSync(ctx, name, true)
	case cert.NeedsRenewal(w.config):
		err = w.config.RenewCertSync(ctx, name, false)
	default:
		w.drop(name, cert.Hash())
		return nil
	}
	if err != nil {
		return err
	}
	if cert, err = w.offline.CacheManagedCertificate(ctx, name); err != nil {
		return fmt.Errorf("load the new certificate: %w", err)
	}
	w.drop(name, cert.Hash())
	w.options.Logger.Info("certificate obtained", "name", name, "expires", cert.Leaf.NotAfter)
	return nil
}

// forget removes what is noted on disk beside a certificate that is broken, unless it cannot be read at all: certmagic would
// read it to renew, and without it takes the certificate for one that is missing.
func (w *Wildcard) forget(ctx context.Context, name string, broken error) {
	var unreadable *fs.PathError
	if errors.As(broken, &unreadable) || ctx.Err() != nil {
		return
	}
	for _, issuer := range w.config.Issuers {
		_ = w.config.Storage.Delete(ctx, certmagic.StorageKeys.SiteMeta(issuer.IssuerKey(), name))
	}
}

// drop forgets the certificates for name but one.
func (w *Wildcard) drop(name, but string) {
	var old []string
	for _, cert := range w.held(name) {
		if cert.Hash() != but {
			old = append(old, cert.Hash())
		}
	}
	w.cache.Remove(old)
}

func (w *Wildcard) setTrying(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trying = name
}

// onEvent hears what becomes of the cache's own renewals, which obey a back-off of their own.
func (w *Wildcard) onEvent(_ context.Context, event string, data map[string]any) error {
	if event != "cert_failed" && event != "cert_obtained" { // there is one for each handshake
		return nil
	}
	name, _ := data["identifier"].(string)
	w.mu.Lock()
	trying := w.trying == name
	w.mu.Unlock()
	if trying {
		return nil // obtain tells
	}
	err, _ := data["error"].(error)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	w.note(name, err)
	if err == nil {
		w.options.Logger.Info("certificate renewed", "name", name)
	}
	return nil
}

// note keeps and tells what became of an attempt for name.
func (w *Wildcard) note(name string, err error) {
	w.mu.Lock()
	if err == nil {
		delete(w.failures, name)
	} else {
		w.failures[name] = err
	}
	w.mu.Unlock()
	if err == nil {
		return
	}
	w.options.Logger.Error("no new certificate", "name", name, "reason", Explain(err))
	if w.options.OnFailure != nil {
		w.options.OnFailure(fmt.Errorf("%s: %w", name, err))
	}
}
