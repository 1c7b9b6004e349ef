// Package tls holds the edge's certificates. Importers name it harptls.
package tls

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// checkEvery is how often, at most, the files are looked at for a newer certificate.
const checkEvery = 10 * time.Second

// FromFiles returns a configuration that serves the certificate of two PEM files, for HTTP/2 and HTTP/1.1, from TLS 1.2
// on. When the files change, new connections get the new certificate; files that are broken then leave the old
// one in force, and log says so. A nil log discards.
func FromFiles(cert, key string, log *slog.Logger) (*tls.Config, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f := &fileCertificate{cert: cert, key: key, log: log}
	if err := f.load(); err != nil {
		return nil, err
	}
	return serverConfig(f.get), nil
}

// A fileCertificate is a certificate that follows its files.
type fileCertificate struct {
	cert, key string // paths
	log       *slog.Logger

	mu      sync.Mutex // guards the fields below
	current *tls.Certificate
	stamp   string    // of the files that current, or the last complaint, came from
	checked time.Time // when the files were last looked at
}

func (f *fileCertificate) load() error {
	stamp := f.look()
	c, err := tls.LoadX509KeyPair(f.cert, f.key)
	f.stamp, f.checked = stamp, time.Now()
	if err != nil {
		return fmt.Errorf("load certificate: %w", err)
	}
	f.current = &c
	return nil
}

// look returns something that changes when the files do.
func (f *fileCertificate) look() (stamp string) {
	for _, path := range []string{f.cert, f.key} {
		if info, err := os.Stat(path); err == nil {
			stamp += fmt.Sprint(info.ModTime().UnixNano(), info.Size(), ";")
		}
	}
	return stamp
}

func (f *fileCertificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.checked) >= checkEvery {
		f.checked = time.Now()
		if f.look() != f.stamp {
			if err := f.load(); err != nil {
				f.log.Error("the old certificate stays in force", "error", err)
			} else {
				f.log.Info("certificate loaded anew", "file", f.cert)
			}
		}
	}
	return f.current, nil
}
