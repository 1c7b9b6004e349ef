package tls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// A Level says how good a Finding is.
type Level string

// The levels.
const (
	LevelOK   Level = "ok"
	LevelWarn Level = "warn" // it may work, or cannot be known from here
	LevelMiss Level = "MISS" // it cannot work
)

// A Finding is one thing that Check looked at.
type Finding struct {
	Level   Level
	Text    string   // one line
	Records []string // DNS records to add, in the form of a zone file
}

// CheckOptions say what a server with certificates by themselves needs.
type CheckOptions struct {
	Domain    string       // without the last dot
	Host      string       // the server's own name in NS records
	Alias     string       // target of a CNAME at _acme-challenge.<Domain>; empty for none
	Addresses []netip.Addr // the server's; empty means that those of Domain are taken for them
	Builtin   bool         // the server's own DNS answers the challenge
	Resolvers []string     // host:port; empty means the system's
	DataDir   string
	CA        string // URL of the ACME directory
	CARoots   *x509.CertPool
	// Issuers are the names by which CAA records allow the authority; empty means that they are not known.
	Issuers []string
	// Ports that must be reachable, by what they are for; DNSPort is where name servers are asked.
	HTTP, HTTPS, DNS int
	// DNSPort is the port of all other name servers; zero means 53.
	DNSPort int
}

const (
	checkTime  = 5 * time.Second // for each thing
	clockError = 5 * time.Minute // beyond which signatures are refused
)

// A check is the state of one Check.
type check struct {
	CheckOptions
	prover Prover // asks the resolvers
}

// Check looks at everything that issuing certificates and serving visitors needs, as far as it can be seen from here.
// It takes some seconds. The findings come in a fixed order.
func Check(ctx context.Context, o CheckOptions) []Finding {
	if o.DNSPort == 0 {
		o.DNSPort = 53
	}
	c := &check{CheckOptions: o, prover: Prover{Domain: o.Domain, Resolvers: o.Resolvers}}
	steps := []func(context.Context) []Finding{c.names, c.delegation, c.caa, c.ports, c.authority, c.dataDir}
	findings := make([][]Finding, len(steps))
	var wg sync.WaitGroup
	for i, step := range steps {
		wg.Go(func() { // ends within a few times checkTime
			ctx, cancel := context.WithTimeout(ctx, 4*checkTime)
			defer cancel()
			findings[i] = step(ctx)
		})
	}
	wg.Wait()
	var all []Finding
	for _, f := range findings {
		all = append(all, f...)
	}
	return all
}

func ok(format string, args ...any) Finding {
	return Finding{Level: LevelOK, Text: fmt.Sprintf(format, args...)}
}

func warn(format string, args ...any) Finding {
	return Finding{Level: LevelWarn, Text: fmt.Sprintf(format, args...)}
}

func miss(records []string, format string, args ...any) Finding {
	return Finding{Level: LevelMiss, Text: fmt.Sprintf(format, args...), Records: records}
}

// ports reports whether the server can be reached at its addresses.
func (c *check) ports(ctx context.Context) (out []Finding) {
	addrs := c.Addresses
	if len(addrs) == 0 {
		addrs = c.lookup(ctx, c.Domain)
	}
	if len(addrs) == 0 {
		return []Finding{miss(nil, "ports: no address of this server is known; give it with --public-ip")}
	}
	for _, p := range []struct {
		port int
		what string
	}{{c.DNS, "DNS"}, {c.HTTP, "HTTP"}, {c.HTTPS, "HTTPS"}} {
		if p.port == 0 {
			continue
		}
		for _, addr := range addrs {
			out = append(out, c.port(ctx, addr, p.port, p.what))
		}
	}
	return out
}

func (c *check) port(ctx context.Context, addr netip.Addr, port int, what string) Finding {
	target := netip.AddrPortFrom(addr, uint16(port)).String()
	d := net.Dialer{Timeout: checkTime}
	conn, err := d.DialContext(ctx, "tcp", target)
	switch {
	case err == nil:
		_ = conn.Close()
		return ok("port: %s answers at %s, seen from this machine; a firewall before it may still block others", what, target)
	case strings.Contains(err.Error(), "refused"):
		return miss(nil, "port: nothing listens at %s (%s): is harpd running?", target, what)
	}
	return miss(nil, "port: %s (%s) cannot be reached: open TCP port %d in the firewall (%v)", target, what, port, err)
}

// authority reports whether the ACME directory answers, and whether the clocks agree.
func (c *check) authority(ctx context.Context) []Finding {
	if c.CA == "" {
		return nil
	}
	client := http.Client{Timeout: checkTime, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: c.CARoots}, Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.CA, nil)
	if err != nil {
		return []Finding{miss(nil, "ACME: %v", err)}
	}
	res, err := client.Do(r)
	if err != nil {
		return []Finding{miss(nil, "ACME: the authority does not answer: %v", err)}
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return []Finding{miss(nil, "ACME: %s answers %s: is it an ACME directory?", c.CA, res.Status)}
	}
	out := []Finding{c.account()}
	if at, err := http.ParseTime(res.Header.Get("Date")); err == nil {
		if off := time.Since(at).Round(time.Second); off.Abs() > clockError {
			out = append(out, miss(nil, "clock: this machine's is %v off: set it, such as with: timedatectl set-ntp true", off.Abs()))
		} else {
			out = append(out, ok("clock: right"))
		}
	}
	return out
}

// account says whether the server has an account with the authority, which it makes by itself.
func (c *check) account() Finding {
	dirs, _ := filepath.Glob(filepath.Join(c.DataDir, "certificates", "acme", "*", "users", "*"))
	if len(dirs) > 0 {
		return ok("ACME: %s answers; there is an account", c.CA)
	}
	return ok("ACME: %s answers; the account will be made with the first certificate", c.CA)
}

func (c *check) dataDir(context.Context) []Finding {
	if c.DataDir == "" {
		return nil
	}
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return []Finding{miss(nil, "data folder: %v", err)}
	}
	f, err := os.CreateTemp(c.DataDir, ".check-")
	if err != nil {
		return []Finding{miss(nil, "data folder: %v", err)}
	}
	_ = f.Close()
	_ = os.Remove(f.Name())
	return []Finding{ok("data folder: %s can be written", c.DataDir)}
}
