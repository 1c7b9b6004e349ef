package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/idna"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
	"github.com/harp-tunnel/harp/identity"
)

// maxDomain leaves room for a label of 52 characters and a dot in the 253 bytes of a name (RFC 1035, section 2.3.4).
const maxDomain = 253 - 53

// checkDomain returns domain in ASCII (RFC 5891), lower case and without the last dot. An address is a domain only if
// tunnels need no names below it.
func checkDomain(domain string, byHost bool) (string, error) {
	fail := func(why, hint string) (string, error) {
		return "", &cli.Error{Err: fmt.Errorf("--domain %q %s", domain, why), Hint: hint}
	}
	if _, rest, ok := strings.Cut(domain, "://"); ok {
		host, _, _ := strings.Cut(rest, "/")
		return fail("is a URL, not a name", "harpd --domain "+host)
	}
	if _, err := netip.ParseAddr(domain); err == nil {
		if byHost {
			return fail("is an address, which has no names below it", "use a name, or with one path for each tunnel: --route path")
		}
		return domain, nil
	}
	if host, _, ok := strings.Cut(domain, ":"); ok {
		return fail("has a port", "harpd --domain "+host+"; ports are set by --http and --https")
	}
	name := strings.TrimSuffix(domain, ".")
	if parent, ok := strings.CutPrefix(name, "*."); ok {
		return fail("is a wildcard", "harpd --domain "+parent+"; all names below it are served anyway")
	}
	profile := idna.New(idna.MapForLookup(), idna.StrictDomainName(true), idna.VerifyDNSLength(true))
	name, err := profile.ToASCII(name)
	if err != nil {
		return fail("is not a domain name", "a name has letters, digits, hyphens and dots, such as tunnels.example.com")
	}
	if len(name) > maxDomain {
		return fail("is too long", fmt.Sprintf("at most %d characters leave room for the tunnels' own", maxDomain))
	}
	return name, nil
}

func checkRoute(c config) error {
	if !c.RouteHost && !c.RoutePath && !c.RouteHeader {
		return &cli.Error{Err: errors.New("--route is empty"), Hint: "harpd --route host"}
	}
	return nil
}

func checkTLS(c config) error {
	switch c.TLS {
	case "auto", "internal":
		if c.DataDir == "" {
			return &cli.Error{
				Err:  errors.New("this system has no folder for certificates"),
				Hint: "give one: --data-dir FOLDER",
			}
		}
	case "files":
		if c.Cert == "" || c.CertKey == "" {
			return &cli.Error{
				Err:  errors.New("--tls files needs both --cert and --cert-key"),
				Hint: "harpd --tls files --cert cert.pem --cert-key key.pem",
			}
		}
		return nil
	}
	if c.Cert != "" || c.CertKey != "" {
		return &cli.Error{
			Err:  fmt.Errorf("--cert and --cert-key are of no use with --tls %s", c.TLS),
			Hint: "use --tls files, or leave them out",
		}
	}
	return nil
}

func checkAddresses(c config) error {
	if err := checkAddress("http", c.HTTP); err != nil {
		return err
	}
	if c.TLS != "off" {
		if err := checkAddress("https", c.HTTPS); err != nil {
			return err
		}
		if c.HTTPS == c.HTTP && !strings.HasSuffix(c.HTTP, ":0") {
			return &cli.Error{Err: fmt.Errorf("--http and --https are both %s", c.HTTP), Hint: "give each its own port"}
		}
	}
	if c.Admin == "off" {
		return nil
	}
	return checkAddress("admin", c.Admin)
}

// checkAddress accepts HOST:PORT and :PORT, with the port as a number; 0 lets the system choose.
func checkAddress(flag, addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err == nil {
		if _, err = strconv.ParseUint(port, 10, 16); err == nil {
			return nil
		}
	}
	hint := fmt.Sprintf("write :PORT or HOST:PORT, such as --%s 127.0.0.1:8080", flag)
	if _, err := strconv.ParseUint(addr, 10, 16); err == nil {
		hint = fmt.Sprintf("--%s :%s for all addresses, or --%s 127.0.0.1:%s for this machine alone", flag, addr, flag, addr)
	}
	return &cli.Error{Err: fmt.Errorf("--%s %q is not an address", flag, addr), Hint: hint}
}

func checkLimits(c config) error {
	fail := func(flag, want string) error {
		return &cli.Error{Err: fmt.Errorf("--%s must be %s", flag, want), Hint: "see harpd --help"}
	}
	switch {
	case c.RequestTimeout <= 0:
		return fail("request-timeout", "more than 0")
	case c.PingInterval <= 0:
		return fail("ping-interval", "more than 0")
	case c.RateLimit < 0:
		return fail("rate-limit", "0 (no limit) or more")
	case c.RateLimit > 0 && c.RateBurst < 1:
		return fail("rate-burst", "1 or more")
	case c.VisitorRateLimit < 0:
		return fail("visitor-rate-limit", "0 (no limit) or more")
	case c.VisitorRateLimit > 0 && c.VisitorRateBurst < 1:
		return fail("visitor-rate-burst", "1 or more")
	case c.MaxStreams < 1:
		return fail("max-streams", "1 or more")
	}
	return nil
}

// checkFiles reads the files that a checked c names, and returns what would keep the edge from starting with them or
// visitors from trusting it.
func (c config) checkFiles() error {
	if c.TLS == "files" {
		if err := c.checkCertificate(time.Now()); err != nil {
			return err
		}
	}
	if c.TLS == "auto" {
		if _, err := cli.ACMERoots(c.ACMECARoot); err != nil {
			return err
		}
		if c.ACMEDNS == "rfc2136" {
			if _, err := c.openRFC2136(); err != nil {
				return err
			}
		}
		if err := c.checkProgram(); err != nil {
			return err
		}
	}
	return c.checkAuthorizedKeys()
}

// checkProgram returns an error if --acme-dns exec names no program that can be run.
func (c config) checkProgram() error {
	if c.ACMEDNS != "exec" {
		return nil
	}
	if _, err := exec.LookPath(c.acmeExec); err != nil {
		return &cli.Error{Err: fmt.Errorf("--acme-dns exec: %w", err), Hint: "give the path of a program that this user may run"}
	}
	return nil
}

// checkAuthorizedKeys reads the file of --authorized-keys, if there is one.
func (c config) checkAuthorizedKeys() error {
	if c.AuthorizedKeys == "" {
		return nil
	}
	data, err := os.ReadFile(c.AuthorizedKeys)
	if err != nil {
		return &cli.Error{Err: fmt.Errorf("--authorized-keys: %w", err), Hint: "make the file; a line of it can be the thumbprint that harp-agent id prints"}
	}
	if _, err := identity.ParseAuthorizedKeys(data); err != nil {
		return &cli.Error{Err: fmt.Errorf("--authorized-keys %s: %w", c.AuthorizedKeys, err), Hint: "a line is an OpenSSH ssh-ed25519 public key, or a thumbprint without the word before it"}
	}
	return nil
}

func (c config) checkCertificate(now time.Time) error {
	pair, err := tls.LoadX509KeyPair(c.Cert, c.CertKey)
	if err != nil {
		return &cli.Error{Err: fmt.Errorf("--cert and --cert-key: %w", err), Hint: "both are PEM files, and the key is the certificate's own"}
	}
	return checkLeaf(pair.Leaf, c, now)
}

// checkLeaf returns what would keep a visitor of c's names from trusting cert at the time now.
func checkLeaf(cert *x509.Certificate, c config, now time.Time) error {
	if now.After(cert.NotAfter) {
		return &cli.Error{
			Err:  fmt.Errorf("--cert %s: expired on %s", c.Cert, cert.NotAfter.Format(time.DateOnly)),
			Hint: "get a new certificate from whoever issued it",
		}
	}
	label := strings.Repeat("a", 52) // stands for all
	missing := ""
	if cert.VerifyHostname(c.Domain) != nil {
		missing = c.Domain
	} else if c.RouteHost && cert.VerifyHostname(label+"."+c.Domain) != nil {
		missing = "*." + c.Domain
	}
	if missing == "" {
		return nil
	}
	return &cli.Error{
		Err:  fmt.Errorf("--cert %s: not for %s", c.Cert, missing),
		Hint: fmt.Sprintf("the certificate must name %s and *.%s", c.Domain, c.Domain),
	}
}

// parsePrefix reads a CIDR, or an address as the CIDR that holds it alone.
func parsePrefix(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, &cli.Error{Err: errors.New("neither an address nor a CIDR"), Hint: "such as 10.0.0.0/8, fd00::/8 or 127.0.0.1"}
	}
	return prefix.Masked(), nil
}
