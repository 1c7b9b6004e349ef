package tls

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	mdns "github.com/miekg/dns"
)

const (
	maxCNAMEs    = 8 // in a row
	lookupTime   = 3 * time.Second
	resolvConf   = "/etc/resolv.conf"
	maxResolvers = 3
)

// A NotProvenError says which record is missing for a hostname to be served.
type NotProvenError struct {
	Hostname string
	Found    string // what is there instead, in a few words
	Target   string // where the CNAME must lead, without the last dot
	Label    string
}

func (e *NotProvenError) Error() string {
	return fmt.Sprintf("%s %s: add the record %s. CNAME %s. or, for a name that cannot have one, _harp.%s. TXT \"%s\"",
		e.Hostname, e.Found, e.Hostname, e.Target, e.Hostname, e.Label)
}

// A lookupError is a failure of the DNS, which may pass.
type lookupError struct{ err error }

func (e *lookupError) Error() string   { return e.err.Error() }
func (e *lookupError) Unwrap() error   { return e.err }
func (e *lookupError) Temporary() bool { return true }

// A Prover finds out by DNS to which label a hostname belongs. The label is a hash of a key, so nobody else can take over
// a record that was forgotten.
type Prover struct {
	// Domain is where labels live: a hostname's CNAME leads to <label>.<Domain>.
	Domain string
	// Resolvers are asked, host:port, in turn; empty means the system's.
	Resolvers []string
}

// Prove returns nil if hostname, in lower case without the last dot, leads to label: by CNAME, over at most 8 steps, to
// <label>.<Domain>, or by a TXT record at _harp.<hostname> that holds the label. The error is a *NotProvenError, or has
// a method Temporary where the DNS failed.
func (p Prover) Prove(ctx context.Context, hostname, label string) error {
	if hostname == p.Domain || strings.HasSuffix(hostname, "."+p.Domain) {
		return fmt.Errorf("%s is a name of this server", hostname)
	}
	if strings.Contains(hostname, "*") || !strings.Contains(hostname, ".") || net.ParseIP(hostname) != nil {
		return fmt.Errorf("%s is not a hostname on the internet", hostname)
	}
	missing := &NotProvenError{Hostname: hostname, Target: label + "." + p.Domain, Label: label}
	end, err := p.follow(ctx, hostname, missing.Target)
	if err != nil {
		return err
	}
	if end == missing.Target {
		return nil
	}
	values, err := p.txt(ctx, "_harp."+hostname)
	switch {
	case err != nil:
		return err
	case slices.Contains(values, label):
		return nil
	case len(values) > 0:
		missing.Found = "has another label at _harp." + hostname
	case end != hostname:
		missing.Found = "leads to " + end
	default:
		missing.Found = "has no CNAME"
	}
	return missing
}

// follow returns where the CNAMEs from name lead; it stops at target, whose own records do not matter, and at every name
// below the domain: another tunnel's records prove nothing.
func (p Prover) follow(ctx context.Context, name, target string) (string, error) {
	for range maxCNAMEs {
		m, err := p.ask(ctx, name, mdns.TypeCNAME)
		if err != nil {
			return "", err
		}
		next := ""
		for _, rr := range m.Answer {
			if c, ok := rr.(*mdns.CNAME); ok && mdns.CanonicalName(c.Hdr.Name) == name+"." {
				next = strings.TrimSuffix(mdns.CanonicalName(c.Target), ".")
			}
		}
		if next == "" {
			return name, nil
		}
		if name = next; name == target || strings.HasSuffix(name, "."+p.Domain) {
			return name, nil
		}
	}
	return name, nil
}

func (p Prover) txt(ctx context.Context, name string) (values []string, err error) {
	m, err := p.ask(ctx, name, mdns.TypeTXT)
	if err != nil {
		return nil, err
	}
	for _, rr := range m.Answer {
		if t, ok := rr.(*mdns.TXT); ok {
			values = append(values, strings.Join(t.Txt, ""))
		}
	}
	return values, nil
}

// ask puts one question to the resolvers, in turn until one knows. That a name does not exist is an answer.
func (p Prover) ask(ctx context.Context, name string, kind uint16) (*mdns.Msg, error) {
	resolvers, err := p.resolvers()
	if err != nil {
		return nil, err
	}
	m := new(mdns.Msg).SetQuestion(mdns.Fqdn(name), kind)
	m.SetEdns0(1232, false)
	for _, addr := range resolvers {
		var answer *mdns.Msg
		if answer, err = exchange(ctx, m, addr); err != nil {
			continue
		}
		if answer.Rcode == mdns.RcodeSuccess || answer.Rcode == mdns.RcodeNameError {
			return answer, nil
		}
		err = errors.New(mdns.RcodeToString[answer.Rcode])
	}
	return nil, &lookupError{fmt.Errorf("look up %s %s: %w", name, mdns.TypeToString[kind], err)}
}

// exchange asks one server, by TCP if the answer is cut.
func exchange(ctx context.Context, m *mdns.Msg, addr string) (answer *mdns.Msg, err error) {
	for _, network := range []string{"udp", "tcp"} {
		client := mdns.Client{Net: network, Timeout: lookupTime}
		if answer, _, err = client.ExchangeContext(ctx, m, addr); err != nil || !answer.Truncated {
			break
		}
	}
	return answer, err
}

func (p Prover) resolvers() ([]string, error) {
	if len(p.Resolvers) > 0 {
		return p.Resolvers, nil
	}
	conf, err := mdns.ClientConfigFromFile(resolvConf)
	if err != nil || len(conf.Servers) == 0 {
		return nil, &lookupError{fmt.Errorf("no DNS resolver in %s: %w", resolvConf, err)}
	}
	var addrs []string
	for _, s := range conf.Servers[:min(len(conf.Servers), maxResolvers)] {
		addrs = append(addrs, net.JoinHostPort(s, conf.Port))
	}
	return addrs, nil
}
