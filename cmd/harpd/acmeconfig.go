package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/publicsuffix"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
)

// An acmeConfig holds the settings of --tls auto: where certificates come from, and how this server proves its name.
type acmeConfig struct {
	ACMEEmail  string
	ACMECA     string // URL of the directory
	ACMECARoot string // PEM file; empty means the system's roots
	ACMEDNS    string // builtin, rfc2136 or exec

	acmeExec string // program of --acme-dns exec

	DNS         string // address of the embedded DNS server; of use with builtin
	DNSHost     string // its name, for NS records
	DNSAlias    string // name to which _acme-challenge.DOMAIN is a CNAME; empty for none
	PublicIP    []netip.Addr
	Resolver    []string // host:port; empty means the system's
	RFC2136     string   // server, host or host:port
	RFC2136Name string   // of the TSIG key
	RFC2136Key  string   // file

	HSTS time.Duration // 0 means none

	// for tests, which cannot wait a minute or have port 53; 0 means the usual
	acmeRetry, acmeCheckEvery time.Duration
	checkDNSPort              int
}

// declareACME makes the flags of --tls auto set c.
func (c *config) declareACME(f *cli.Flags) {
	f.Group("Certificates by themselves (--tls auto)")
	f.String(&c.ACMEEmail, "acme-email ADDRESS", "", "where the certificate authority may write to")
	f.String(&c.ACMECA, "acme-ca CA", "letsencrypt", "letsencrypt, letsencrypt-staging or the URL of an ACME directory")
	f.String(&c.ACMECARoot, "acme-ca-root FILE", "", "roots to trust the ACME directory by, PEM")
	f.String(&c.ACMEDNS, "acme-dns HOW", "builtin",
		"who answers the DNS challenge: builtin (this server, see --dns), rfc2136 (updates to your DNS server) or 'exec PATH' (a program called with present|cleanup NAME VALUE)")
	f.String(&c.DNS, "dns ADDR", ":53", "where the built-in DNS server listens, UDP and TCP")
	f.String(&c.DNSHost, "dns-host NAME", "", "the name of this machine in NS records (default ns.DOMAIN)")
	f.String(&c.DNSAlias, "dns-alias NAME", "", "name delegated to this server that _acme-challenge.DOMAIN is a CNAME to")
	cli.List(f, &c.PublicIP, "public-ip IP", parseAddr, "address of this server for the built-in DNS; repeatable; default: what is found")
	f.Strings(&c.Resolver, "resolver ADDR", "DNS server to ask instead of the system's; repeatable")
	f.String(&c.RFC2136, "rfc2136-server ADDR", "", "DNS server that takes updates for --acme-dns rfc2136")
	f.String(&c.RFC2136Name, "rfc2136-key-name NAME", "", "name of the TSIG key; default: as the key file says")
	f.String(&c.RFC2136Key, "rfc2136-key-file FILE", "", "file with the TSIG key")
	f.Duration(&c.HSTS, "hsts TIME", 0, "how long browsers must use HTTPS for these names (Strict-Transport-Security), 0 for no rule (default 0s)")
}

// checkedACME returns c in the form that the fields promise. What only --tls auto needs is left as it is otherwise.
func (c config) checkedACME() (config, error) {
	c.Resolver = slices.Clone(c.Resolver)
	for i, r := range c.Resolver {
		c.Resolver[i] = withPort(r, "53")
		if _, err := netip.ParseAddrPort(c.Resolver[i]); err != nil {
			return c, &cli.Error{Err: fmt.Errorf("--resolver %q is not the address of a DNS server", r), Hint: "such as --resolver 192.0.2.53 or --resolver [2001:db8::53]:5353"}
		}
	}
	if c.HSTS < 0 {
		return c, &cli.Error{Err: errors.New("--hsts must be 0 (no rule) or more"), Hint: "such as --hsts 4320h, half a year"}
	}
	if c.TLS != "auto" {
		return c, nil
	}
	if _, err := netip.ParseAddr(c.Domain); err == nil {
		return c, &cli.Error{
			Err:  fmt.Errorf("--tls auto gets certificates for names, and --domain %s is an address", c.Domain),
			Hint: "use a name, or --tls internal, files or off",
		}
	}
	if suffix, public := publicsuffix.PublicSuffix(c.Domain); public && suffix == c.Domain || !strings.Contains(c.Domain, ".") {
		return c, &cli.Error{
			Err:  fmt.Errorf("--tls auto gets certificates for names on the internet, and --domain %s is nobody's own", c.Domain),
			Hint: "use a name below one that is yours, such as tunnels.example.com, or --tls internal, files or off",
		}
	}
	var err error
	if c.ACMECA, err = cli.ACMEDirectory(c.ACMECA); err != nil {
		return c, err
	}
	if c.DNSHost == "" {
		c.DNSHost = "ns." + c.Domain
	}
	return c.checkedChallenge()
}

// checkedChallenge is checkedACME for the way in which the DNS challenge is answered.
func (c config) checkedChallenge() (config, error) {
	how, path, _ := strings.Cut(c.ACMEDNS, " ")
	path = strings.TrimSpace(path)
	switch {
	case how == "exec" && path == "":
		return c, &cli.Error{Err: errors.New("--acme-dns exec needs a program"), Hint: "--acme-dns 'exec /usr/local/bin/set-txt'"}
	case how == "exec":
		c.ACMEDNS, c.acmeExec = how, path
	case path != "" || how != "builtin" && how != "rfc2136":
		return c, &cli.Error{Err: fmt.Errorf("--acme-dns %q is not known", c.ACMEDNS), Hint: "builtin, rfc2136 or 'exec PATH'"}
	case how == "rfc2136" && (c.RFC2136 == "" || c.RFC2136Key == ""):
		return c, &cli.Error{
			Err:  errors.New("--acme-dns rfc2136 needs --rfc2136-server and --rfc2136-key-file"),
			Hint: "--rfc2136-server ns1.example.com --rfc2136-key-file /etc/harpd/tsig.key",
		}
	case how == "builtin":
		return c, checkAddress("dns", c.DNS)
	}
	return c, nil
}

func withPort(addr, port string) string {
	if _, _, err := net.SplitHostPort(addr); err == nil {
		return addr
	}
	return net.JoinHostPort(strings.Trim(addr, "[]"), port)
}

func parseAddr(s string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(s)
	if err != nil || addr.Zone() != "" {
		return netip.Addr{}, &cli.Error{Err: errors.New("not an address"), Hint: "such as 203.0.113.7 or 2001:db8::7"}
	}
	return addr.Unmap(), nil
}
