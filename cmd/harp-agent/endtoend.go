package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
	"github.com/harp-tunnel/harp/tunnel/agent"
)

// An endConfig holds the settings of --end-to-end.
type endConfig struct {
	EndToEnd        bool
	TLSCert, TLSKey string // PEM files, both or none
	ACMECA          string // a known name, or the URL of a directory
	ACMECARoot      string // PEM file; empty means the system's roots
	ACMEEmail       string
	CertDir         string // empty means beside the key
}

const defaultCA = "letsencrypt"

func (c *endConfig) declare(f *cli.Flags) {
	f.Group("End to end")
	f.Bool(&c.EndToEnd, "end-to-end", false, "end visitors' TLS here: the edge cannot read what passes")
	f.String(&c.TLSCert, "tls-cert FILE", "", "certificate of your own with its chain, PEM; without one, certificates come by ACME")
	f.String(&c.TLSKey, "tls-key FILE", "", "key of the certificate, PEM")
	f.String(&c.ACMECA, "acme-ca CA", defaultCA, "letsencrypt, letsencrypt-staging or the URL of an ACME directory")
	f.String(&c.ACMECARoot, "acme-ca-root FILE", "", "roots to trust the ACME directory by, PEM")
	f.String(&c.ACMEEmail, "acme-email ADDRESS", "", "where the certificate authority may write to")
	f.String(&c.CertDir, "cert-dir FOLDER", "", "where certificates and their keys are kept (default beside --key)")
}

// options returns what the agent needs; nil without --end-to-end.
func (c endConfig) options(keyFile string) (*agent.EndToEnd, error) {
	if !c.EndToEnd {
		if flag := c.useless(); flag != "" {
			return nil, &cli.Error{Err: fmt.Errorf("%s is of no use without --end-to-end", flag), Hint: "add --end-to-end, or leave it out"}
		}
		return nil, nil
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return nil, &cli.Error{Err: errors.New("--tls-cert and --tls-key go together"), Hint: "give both, or none for a certificate by ACME"}
	}
	if c.TLSCert != "" {
		if err := checkPrivate(c.TLSKey); err != nil {
			return nil, err
		}
		files := &keyPair{cert: c.TLSCert, key: c.TLSKey}
		if _, err := files.get(nil); err != nil {
			return nil, &cli.Error{Err: fmt.Errorf("--tls-cert and --tls-key: %w", err), Hint: "both are PEM files, and the key is the certificate's own"}
		}
		return &agent.EndToEnd{GetCertificate: files.get}, nil
	}
	e := &agent.EndToEnd{Email: c.ACMEEmail, CertDir: c.CertDir}
	if e.CertDir == "" {
		e.CertDir = filepath.Join(filepath.Dir(keyFile), "certificates")
	}
	var err error
	if e.Directory, err = cli.ACMEDirectory(c.ACMECA); err != nil {
		return nil, err
	}
	if e.Roots, err = cli.ACMERoots(c.ACMECARoot); err != nil {
		return nil, err
	}
	if err := makeWritable(e.CertDir); err != nil {
		return nil, &cli.Error{Err: fmt.Errorf("--cert-dir: %w", err), Hint: "give a folder that this user may write to: certificates have to outlive a restart"}
	}
	return e, nil
}

// useless returns the first flag that was given and means nothing without --end-to-end; empty if there is none.
func (c endConfig) useless() string {
	ca := c.ACMECA
	if ca == defaultCA {
		ca = ""
	}
	for _, f := range []struct{ flag, value string }{
		{"--tls-cert", c.TLSCert}, {"--tls-key", c.TLSKey}, {"--acme-ca", ca}, {"--acme-ca-root", c.ACMECARoot},
		{"--acme-email", c.ACMEEmail}, {"--cert-dir", c.CertDir},
	} {
		if f.value != "" {
			return f.flag
		}
	}
	return ""
}

// checkPrivate returns an error if everybody on the machine can read the key. A group may: that is how programs share
// certificates.
func checkPrivate(keyFile string) error {
	info, err := os.Stat(keyFile)
	if err != nil || runtime.GOOS == "windows" || info.Mode().Perm()&0o007 == 0 { // reading it says what is wrong
		return nil
	}
	return &cli.Error{
		Err:  fmt.Errorf("--tls-key: %s has mode %04o: everybody can read the key", keyFile, info.Mode().Perm()),
		Hint: "chmod 600 " + keyFile,
	}
}

// distrusted returns why visitors of name will not trust the certificate of --tls-cert at the time now. It is nil if they
// may, if the files cannot be read now, and without --tls-cert.
func (c endConfig) distrusted(name string, now time.Time) error {
	if !c.EndToEnd || c.TLSCert == "" {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSKey)
	switch {
	case err != nil:
		return nil
	case now.After(pair.Leaf.NotAfter):
		return fmt.Errorf("%s expired on %s", c.TLSCert, pair.Leaf.NotAfter.Format(time.DateOnly))
	case pair.Leaf.VerifyHostname(name) != nil:
		return fmt.Errorf("%s is not for %s", c.TLSCert, name)
	}
	return nil
}

// makeWritable makes the folder, for this user alone, if it is not there, and tries whether it can be written.
func makeWritable(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".try-*")
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// A keyPair is a certificate that follows its files. Files that are broken leave the old one in force.
type keyPair struct {
	cert, key string // paths

	mu      sync.Mutex // guards the fields below
	current *tls.Certificate
	stamp   string // of the files that current came from
	checked time.Time
}

// checkEvery is how often, at most, the files are looked at.
const checkEvery = 10 * time.Second

func (p *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current != nil && time.Since(p.checked) < checkEvery {
		return p.current, nil
	}
	p.checked = time.Now()
	stamp := ""
	for _, path := range []string{p.cert, p.key} {
		if info, err := os.Stat(path); err == nil {
			stamp += fmt.Sprint(info.ModTime().UnixNano(), info.Size(), ";")
		}
	}
	if p.current != nil && stamp == p.stamp {
		return p.current, nil
	}
	pair, err := tls.LoadX509KeyPair(p.cert, p.key)
	if err != nil && p.current == nil {
		return nil, err
	}
	if err == nil {
		p.current, p.stamp = &pair, stamp
	}
	return p.current, nil
}
