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
	stamp   string    // of the files that current came from
	broken  string    // stamp of the files that the last complaint was about
	checked time.Time // when the files were last looked at
}

func (f *fileCertificate) load() error {
	stamp := f.look()
	c, err := tls.LoadX509KeyPair(f.cert, f.key)
	f.checked = time.Now()
	if err != nil {
		return fmt.Errorf("load certificate: %w", err)
	}
	f.current, f.stamp = &c, stamp
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
		if stamp := f.look(); stamp != f.stamp {
			f.reload(stamp)
		}
	}
	return f.current, nil
}

// reload reads files that have changed. It tries for as long as they are broken, as their rights may be mended without a new
// stamp, and complains once.
func (f *fileCertificate) reload(stamp string) {
	err := f.load()
	if err == nil {
		f.broken = ""
		f.log.Info("certificate loaded anew", "file", f.cert)
	} else if stamp != f.broken {
		f.broken = stamp
		f.log.Error("the old certificate stays in force", "error", err)
	}
}
