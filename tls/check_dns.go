package tls

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	mdns "github.com/miekg/dns"
)

// names checks the addresses of the domain and of the names below it.
func (c *check) names(ctx context.Context) []Finding {
	apex := c.lookup(ctx, c.Domain)
	below := c.lookup(ctx, "check-"+strings.ToLower(rand.Text()[:8])+"."+c.Domain)
	var out []Finding
	for _, n := range []struct {
		name  string
		addrs []netip.Addr
	}{{c.Domain, apex}, {"*." + c.Domain, below}} {
		switch {
		case len(n.addrs) == 0:
			out = append(out, miss(c.addressRecords(n.name), "address: %s leads nowhere", n.name))
		case len(c.Addresses) == 0:
			out = append(out, warn("address: %s is %s; give this server's own with --public-ip to have it compared", n.name, join(n.addrs)))
		case !shares(n.addrs, c.Addresses):
			out = append(out, miss(c.addressRecords(n.name), "address: %s is %s, and this server is %s", n.name, join(n.addrs), join(c.Addresses)))
		default:
			out = append(out, ok("address: %s is %s", n.name, join(n.addrs)))
		}
	}
	return out
}

// addressRecords are the records that give name the server's addresses.
func (c *check) addressRecords(name string) (records []string) {
	addrs := c.Addresses
	if len(addrs) == 0 {
		return []string{name + ". A <this server's address>"}
	}
	for _, addr := range addrs {
		records = append(records, fmt.Sprintf("%s. %s %s", name, map[bool]string{true: "A", false: "AAAA"}[addr.Is4()], addr))
	}
	return records
}

// lookup returns the addresses of a name; none if the DNS does not know any.
func (c *check) lookup(ctx context.Context, name string) (addrs []netip.Addr) {
	for _, kind := range []uint16{mdns.TypeA, mdns.TypeAAAA} {
		m, err := c.prover.ask(ctx, name, kind)
		if err != nil {
			continue
		}
		addrs = append(addrs, addressesIn(m.Answer)...)
	}
	return addrs
}

func addressesIn(rrs []mdns.RR) (addrs []netip.Addr) {
	for _, rr := range rrs {
		switch rr := rr.(type) {
		case *mdns.A:
			if addr, ok := netip.AddrFromSlice(rr.A); ok {
				addrs = append(addrs, addr.Unmap())
			}
		case *mdns.AAAA:
			if addr, ok := netip.AddrFromSlice(rr.AAAA); ok {
				addrs = append(addrs, addr)
			}
		}
	}
	return addrs
}

// delegation checks that challenges are looked up at this server: the domain or its challenge name is delegated here, or
// the challenge name is a CNAME to the alias, which is.
func (c *check) delegation(ctx context.Context) []Finding {
	if !c.Builtin {
		return nil
	}
	challenge := "_acme-challenge." + c.Domain
	parent, servers, err := c.parent(ctx)
	if err != nil {
		return []Finding{miss(nil, "delegation: %v", err)}
	}
	for _, name := range []string{challenge, c.Domain} {
		hosts, glue, err := c.referral(ctx, servers, name)
		if err != nil {
			return []Finding{warn("delegation: the name servers of %s cannot be asked from here: %v", parent, err)}
		}
		if len(hosts) > 0 {
			return c.delegated(ctx, name, hosts, glue)
		}
	}
	if c.Alias != "" {
		if end, err := c.prover.follow(ctx, challenge, c.Alias); err == nil && end == c.Alias {
			return []Finding{ok("delegation: %s is a CNAME to %s", challenge, c.Alias), c.answers(ctx, c.Alias)}
		}
		return []Finding{miss([]string{challenge + ". CNAME " + c.Alias + "."}, "delegation: %s does not lead to %s", challenge, c.Alias)}
	}
	return []Finding{miss(c.delegationRecords(), "delegation: nothing below %s is delegated to this server: at the DNS of %s add", c.Domain, parent)}
}

// delegationRecords are those that delegate the challenge, and no more, to this server.
func (c *check) delegationRecords() []string {
	return []string{c.nsRecord("_acme-challenge." + c.Domain)}
}

// nsRecord delegates name to this server: by the domain, whose address is set in any case, unless the server has a name
// of its own or the domain itself is delegated.
func (c *check) nsRecord(name string) string {
	host := c.nsHost()
	if host == "ns."+c.Domain && name != c.Domain {
		host = c.Domain
	}
	return name + ". NS " + host + "."
}

// nsHost is the name to delegate to: one that the provider's own records answer for.
func (c *check) nsHost() string {
	if c.Host != "" {
		return c.Host
	}
	return "ns." + c.Domain
}

// delegated checks a delegation of name that was found.
func (c *check) delegated(ctx context.Context, name string, hosts []string, glue []mdns.RR) []Finding {
	var out []Finding
	for _, host := range hosts {
		addrs := addressesIn(slices.DeleteFunc(slices.Clone(glue), func(rr mdns.RR) bool {
			return mdns.CanonicalName(rr.Header().Name) != host+"."
		}))
		inside := host == name || strings.HasSuffix(host, "."+name)
		if len(addrs) == 0 && !inside {
			addrs = c.lookup(ctx, host)
		}
		switch {
		case len(addrs) == 0 && inside:
			out = append(out, miss(c.addressRecords(host), "glue: %s NS %s, which lies within it, needs its address at the parent", name, host))
		case len(addrs) == 0:
			out = append(out, miss(c.addressRecords(host), "delegation: %s NS %s, which has no address", name, host))
		case len(c.Addresses) > 0 && !shares(addrs, c.Addresses):
			out = append(out, miss([]string{c.nsRecord(name)}, "delegation: %s NS %s is %s, and this server is %s: replace it by", name, host, join(addrs), join(c.Addresses)))
		default:
			out = append(out, ok("delegation: %s NS %s (%s)", name, host, join(addrs)))
		}
	}
	return append(out, c.answers(ctx, "_acme-challenge."+c.Domain))
}

// answers asks this server's own DNS for a zone, over UDP and TCP.
func (c *check) answers(ctx context.Context, zone string) Finding {
	addrs := c.Addresses
	if len(addrs) == 0 {
		addrs = c.lookup(ctx, c.nsHost())
	}
	if len(addrs) == 0 {
		return warn("DNS: no address of this server is known; give it with --public-ip")
	}
	for _, network := range []string{"udp", "tcp"} {
		m := new(mdns.Msg).SetQuestion(zone+".", mdns.TypeSOA)
		client := mdns.Client{Net: network, Timeout: checkTime}
		answer, _, err := client.ExchangeContext(ctx, m, netip.AddrPortFrom(addrs[0], uint16(c.DNS)).String())
		switch {
		case err != nil:
			return miss(nil, "DNS: this server's own does not answer over %s at %s: is harpd running, and is port %d open? (%v)", network, addrs[0], c.DNS, err)
		case !answer.Authoritative || len(answer.Answer) != 1 || answer.Answer[0].Header().Rrtype != mdns.TypeSOA:
			return miss(nil, "DNS: what answers at %s is not harpd: %s for %s", addrs[0], mdns.RcodeToString[answer.Rcode], zone)
		}
	}
	return ok("DNS: this server's own answers for %s", zone)
}

// parent returns the zone that holds the domain's delegation, and its servers' addresses.
func (c *check) parent(ctx context.Context) (zone string, servers []string, err error) {
	_, name, _ := strings.Cut(c.Domain, ".")
	for ; name != ""; _, name, _ = strings.Cut(name, ".") {
		m, err := c.prover.ask(ctx, name, mdns.TypeNS)
		if err != nil {
			return "", nil, err
		}
		for _, rr := range m.Answer {
			ns, ok := rr.(*mdns.NS)
			if !ok || mdns.CanonicalName(ns.Hdr.Name) != name+"." {
				continue
			}
			for _, addr := range c.lookup(ctx, strings.TrimSuffix(ns.Ns, ".")) {
				servers = append(servers, net.JoinHostPort(addr.String(), fmt.Sprint(c.DNSPort)))
			}
		}
		if len(servers) > 0 {
			return name, servers, nil
		}
	}
	return "", nil, fmt.Errorf("no zone above %s can be found", c.Domain)
}

// referral asks the parent's servers themselves, in turn until one knows, where name is delegated to. Among glue are the
// hosts' addresses, as far as the parent has them.
func (c *check) referral(ctx context.Context, servers []string, name string) (hosts []string, glue []mdns.RR, err error) {
	m := new(mdns.Msg).SetQuestion(name+".", mdns.TypeNS)
	m.RecursionDesired = false
	for _, s := range servers {
		var answer *mdns.Msg
		if answer, err = exchange(ctx, m, s); err != nil {
			continue
		}
		if answer.Rcode != mdns.RcodeSuccess && answer.Rcode != mdns.RcodeNameError {
			err = fmt.Errorf("%s says %s", s, mdns.RcodeToString[answer.Rcode])
			continue
		}
		for _, rr := range slices.Concat(answer.Answer, answer.Ns) {
			if ns, ok := rr.(*mdns.NS); ok && mdns.CanonicalName(ns.Hdr.Name) == name+"." {
				hosts = append(hosts, strings.TrimSuffix(mdns.CanonicalName(ns.Ns), "."))
			}
		}
		return hosts, answer.Extra, nil
	}
	return nil, nil, err
}

// caa checks that no CAA record forbids the authority; the closest name that has any counts (RFC 8659, section 3).
func (c *check) caa(ctx context.Context) []Finding {
	if len(c.Issuers) == 0 {
		return nil
	}
	for name := c.Domain; name != ""; _, name, _ = strings.Cut(name, ".") {
		m, err := c.prover.ask(ctx, name, mdns.TypeCAA)
		if err != nil {
			return []Finding{warn("CAA: %v", err)}
		}
		issue, wild, any := caaValues(m.Answer)
		if !any {
			continue
		}
		if len(wild) == 0 {
			wild = issue // RFC 8659, section 4.3
		}
		var records []string
		for tag, values := range map[string][]string{"issue": issue, "issuewild": wild} {
			if len(values) > 0 && !c.permitted(values) { // none at all forbid nothing (RFC 8659, section 4.2)
				records = append(records, fmt.Sprintf("%s. CAA 0 %s %q", name, tag, c.Issuers[0]))
			}
		}
		if slices.Sort(records); len(records) > 0 {
			return []Finding{miss(records, "CAA: the records of %s forbid %s", name, c.Issuers[0])}
		}
		return []Finding{ok("CAA: the records of %s permit %s", name, c.Issuers[0])}
	}
	return []Finding{ok("CAA: no record forbids any authority")}
}

// permitted reports whether one of the values lets the authority issue by DNS-01.
func (c *check) permitted(values []string) bool {
	for _, v := range values {
		issuer, parameters, _ := strings.Cut(v, ";")
		methods := true
		for p := range strings.SplitSeq(parameters, ";") { // RFC 8657
			if list, ok := strings.CutPrefix(strings.TrimSpace(p), "validationmethods="); ok {
				methods = slices.Contains(strings.Split(list, ","), "dns-01")
			}
		}
		if slices.Contains(c.Issuers, strings.TrimSpace(issuer)) && methods {
			return true
		}
	}
	return false
}

func caaValues(rrs []mdns.RR) (issue, wild []string, any bool) {
	for _, rr := range rrs {
		if r, ok := rr.(*mdns.CAA); ok {
			switch any = true; strings.ToLower(r.Tag) {
			case "issue":
				issue = append(issue, r.Value)
			case "issuewild":
				wild = append(wild, r.Value)
			}
		}
	}
	return issue, wild, any
}

func shares(a, b []netip.Addr) bool {
	return slices.ContainsFunc(a, func(addr netip.Addr) bool { return slices.Contains(b, addr) })
}

func join(addrs []netip.Addr) string {
	var text []string
	for _, a := range addrs {
		text = append(text, a.String())
	}
	return strings.Join(text, ", ")
}
