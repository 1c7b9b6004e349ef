package tls

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"
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
	// Domain is where labels live, in lower case: a hostname's CNAME leads to <label>.<Domain>.
	Domain string
	// Resolvers are asked, host:port, in turn; empty means the system's.
	Resolvers []string
}

// Prove returns nil if hostname, in lower case without the last dot, leads to label: by CNAME, over at most 8 steps, to
// <label>.<Domain>, or, unless its CNAME leads to another name of the domain, by a TXT record at _harp.<hostname> that is
// the label and nothing else. The error is a *NotProvenError, or has a method Temporary where the DNS failed, or says why
// nobody can prove such a name.
func (p Prover) Prove(ctx context.Context, hostname, label string) error {
	if err := p.provable(hostname); err != nil {
		return err
	}
	missing := &NotProvenError{Hostname: hostname, Target: label + "." + p.Domain, Label: label}
	end, steps, err := p.chain(ctx, hostname, missing.Target)
	switch {
	case err != nil:
		return err
	case end == missing.Target:
		return nil
	case p.holds(end): // two records that name two labels would let both keys take the hostname from each other
		missing.Found = "leads to " + end
		return missing
	}
	values, err := p.txt(ctx, "_harp."+hostname)
	switch {
	case err != nil:
		return err
	case slices.Contains(values, label):
		return nil
	case len(values) > 0:
		missing.Found = "has another label at _harp." + hostname
	case steps == maxCNAMEs:
		missing.Found = fmt.Sprintf("leads on over more than %d CNAMEs", maxCNAMEs)
	case steps > 0:
		missing.Found = "leads to " + end
	default:
		missing.Found = "has no CNAME"
	}
	return missing
}

// provable returns why a hostname can belong to nobody here.
func (p Prover) provable(hostname string) error {
	if p.holds(hostname) {
		return fmt.Errorf("%s is a name of this server", hostname)
	}
	ascii, err := idna.Lookup.ToASCII(hostname) // as autocert has it; also refuses wildcards
	_, ip := netip.ParseAddr(hostname)
	_, valid := mdns.IsDomainName("_harp." + hostname)
	dotted := strings.Contains(hostname, ".") && !strings.HasPrefix(hostname, ".") && !strings.HasSuffix(hostname, ".")
	if err != nil || ascii != hostname || ip == nil || !valid || !dotted {
		return fmt.Errorf("%q is not a hostname on the internet, in lower case", hostname)
	}
	if suffix, public := publicsuffix.PublicSuffix(hostname); public && suffix == hostname {
		return fmt.Errorf("%s is nobody's own: names are registered below it", hostname)
	}
	return nil
}

// holds reports whether name is the domain or below it.
func (p Prover) holds(name string) bool {
	return name == p.Domain || strings.HasSuffix(name, "."+p.Domain)
}

// follow returns where the CNAMEs from name lead.
func (p Prover) follow(ctx context.Context, name, target string) (end string, err error) {
	end, _, err = p.chain(ctx, name, target)
	return end, err
}

// chain returns where the CNAMEs from name lead, and over how many; it stops at target, whose own records do not matter,
// and at every name below the domain: another tunnel's records prove nothing.
func (p Prover) chain(ctx context.Context, name, target string) (end string, steps int, err error) {
	for ; steps < maxCNAMEs; steps++ {
		m, err := p.ask(ctx, name, mdns.TypeCNAME)
		if err != nil {
			return "", 0, err
		}
		next := ""
		for _, rr := range m.Answer {
			if c, ok := rr.(*mdns.CNAME); ok && mdns.CanonicalName(c.Hdr.Name) == mdns.Fqdn(name) {
				next = strings.TrimSuffix(mdns.CanonicalName(c.Target), ".")
			}
		}
		if next == "" {
			return name, steps, nil
		}
		if name = next; name == target || p.holds(name) {
			return name, steps + 1, nil
		}
	}
	return name, steps, nil
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
		if answer, err = exchangeBy(ctx, network, m, addr); err != nil || !answer.Truncated {
			break
		}
	}
	return answer, err
}

func exchangeBy(ctx context.Context, network string, m *mdns.Msg, addr string) (*mdns.Msg, error) {
	client := mdns.Client{Net: network, Timeout: lookupTime}
	conn, err := client.DialContext(ctx, addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // the library heeds a deadline only
	defer stop()
	answer, _, err := client.ExchangeWithConnContext(ctx, m, conn)
	if err != nil {
		return nil, err
	}
	if q := answer.Question; len(q) != 1 || q[0].Qtype != m.Question[0].Qtype || !strings.EqualFold(q[0].Name, m.Question[0].Name) {
		return nil, errors.New("the answer is to another question")
	}
	return answer, nil
}

func (p Prover) resolvers() ([]string, error) {
	if len(p.Resolvers) > 0 {
		return p.Resolvers, nil
	}
	conf, err := mdns.ClientConfigFromFile(resolvConf)
	if err == nil && len(conf.Servers) == 0 {
		err = errors.New("it names none")
	}
	if err != nil {
		return nil, &lookupError{fmt.Errorf("find DNS resolvers in %s: %w", resolvConf, err)}
	}
	var addrs []string
	for _, s := range conf.Servers[:min(len(conf.Servers), maxResolvers)] {
		addrs = append(addrs, net.JoinHostPort(s, conf.Port))
	}
	return addrs, nil
}
