package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	mdns "github.com/miekg/dns"
)

// challengeLabel stands before a domain where authorities look for its challenges (RFC 8555, section 8.4).
const challengeLabel = "_acme-challenge."

const (
	hostTTL      = 300 // seconds, of addresses
	zoneTTL      = 3600
	negativeTTL  = 60 // how long a resolver may remember that there is no such record (RFC 2308, section 5)
	challengeTTL = 1
	maxTXT       = 64 // challenge values at one name
)

// zones are what the server answers for: the domain, and the challenge names, each a zone of its own, so that the server
// can be delegated either.
type zones struct {
	apex, host string // canonical, with the last dot
	caa        []string
	challenges map[string]*challenge // by canonical name

	mu      sync.RWMutex // guards the fields below, and the values of the challenges
	a, aaaa []netip.Addr
	serial  uint32
}

// A challenge is a name at which an authority looks for values that prove the domain.
type challenge struct{ values []string }

func newZones(o Options) *zones {
	z := &zones{
		apex: mdns.CanonicalName(o.Domain), host: mdns.CanonicalName(o.Host), caa: o.CAA,
		challenges: make(map[string]*challenge),
	}
	z.challenges[challengeLabel+z.apex] = new(challenge)
	if o.Alias != "" {
		z.challenges[mdns.CanonicalName(o.Alias)] = new(challenge)
	}
	z.setAddresses(o.Addresses)
	return z
}

func (z *zones) setAddresses(addrs []netip.Addr) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.serial++
	z.a, z.aaaa = nil, nil
	for _, addr := range addrs {
		if addr = addr.Unmap(); addr.Is4() {
			z.a = append(z.a, addr)
		} else {
			z.aaaa = append(z.aaaa, addr.WithZone(""))
		}
	}
}

func (z *zones) addTXT(name, value string) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	name = mdns.CanonicalName(name)
	c := z.challenges[name]
	switch {
	case c == nil:
		return fmt.Errorf("dns: %s is not a challenge name of this server", name)
	case len(value) > 255:
		return fmt.Errorf("dns: a TXT value of %d bytes is too long", len(value))
	case slices.Contains(c.values, value):
		return nil
	case len(c.values) >= maxTXT:
		return fmt.Errorf("dns: too many TXT values at %s", name)
	}
	c.values = append(c.values, value)
	z.serial++
	return nil
}

func (z *zones) removeTXT(name, value string) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	name = mdns.CanonicalName(name)
	c := z.challenges[name]
	if c == nil {
		return fmt.Errorf("dns: %s is not a challenge name of this server", name)
	}
	c.values = slices.DeleteFunc(c.values, func(v string) bool { return v == value })
	z.serial++
	return nil
}

// zoneOf returns the zone that answers a question, empty for none. The DS of a zone is its parent's (RFC 4035, section
// 3.1.4.1), if that is here too.
func (z *zones) zoneOf(q mdns.Question) string {
	name := mdns.CanonicalName(q.Name)
	zone := z.find(name)
	if q.Qtype == mdns.TypeDS && name == zone {
		if at, end := mdns.NextLabel(name, 0); !end {
			if parent := z.find(name[at:]); parent != "" {
				return parent
			}
		}
	}
	return zone
}

// find returns the zone of a canonical name: the apex of the longest that holds it, empty for none.
func (z *zones) find(name string) string {
	for at, end := 0, false; !end; at, end = mdns.NextLabel(name, at) {
		if _, ok := z.challenges[name[at:]]; ok || name[at:] == z.apex {
			return name[at:]
		}
	}
	return ""
}

// answer fills in the answer to m's question, which is within zone.
func (z *zones) answer(m *mdns.Msg, zone string) {
	q := m.Question[0]
	name := mdns.CanonicalName(q.Name)
	z.mu.RLock()
	defer z.mu.RUnlock()
	challenge := z.challenges[zone]
	header := func(kind uint16, ttl uint32) mdns.RR_Header {
		return mdns.RR_Header{Name: q.Name, Rrtype: kind, Class: mdns.ClassINET, Ttl: ttl} // in the case that was asked
	}
	m.Authoritative = true
	if challenge != nil && !z.exists(name, zone) {
		m.Rcode = mdns.RcodeNameError // RFC 2308, section 2.1
	}
	switch {
	case m.Rcode != mdns.RcodeSuccess:
	case q.Qtype == mdns.TypeANY: // RFC 8482, section 4.2
		m.Answer = append(m.Answer, &mdns.HINFO{Hdr: header(mdns.TypeHINFO, zoneTTL), Cpu: "RFC8482"})
	case q.Qtype == mdns.TypeSOA && name == zone:
		m.Answer = append(m.Answer, z.soa(q.Name, zone, zoneTTL))
	case q.Qtype == mdns.TypeNS && name == zone:
		m.Answer = append(m.Answer, &mdns.NS{Hdr: header(mdns.TypeNS, zoneTTL), Ns: z.host})
		if z.find(z.host) != "" {
			z.addresses(z.host, func(rr mdns.RR) { m.Extra = append(m.Extra, rr) })
		}
	case challenge != nil && name == zone && q.Qtype == mdns.TypeTXT:
		for _, v := range challenge.values {
			m.Answer = append(m.Answer, &mdns.TXT{Hdr: header(mdns.TypeTXT, challengeTTL), Txt: []string{v}})
		}
	case challenge != nil && name != z.host:
	case q.Qtype == mdns.TypeA || q.Qtype == mdns.TypeAAAA:
		z.addresses(q.Name, func(rr mdns.RR) {
			if rr.Header().Rrtype == q.Qtype {
				m.Answer = append(m.Answer, rr)
			}
		})
	case q.Qtype == mdns.TypeCAA && name == z.apex: // resolvers climb to it from below (RFC 8659, section 3)
		for _, tag := range []string{"issue", "issuewild"} {
			for _, issuer := range z.caa {
				m.Answer = append(m.Answer, &mdns.CAA{Hdr: header(mdns.TypeCAA, zoneTTL), Tag: tag, Value: issuer})
			}
		}
	}
	if len(m.Answer) == 0 {
		m.Ns = append(m.Ns, z.soa(zone, zone, negativeTTL)) // RFC 2308, section 3
	}
}

// exists reports whether there is a canonical name in a challenge's zone. One above a name that exists does too (RFC 8020).
func (z *zones) exists(name, zone string) bool {
	return name == zone || mdns.IsSubDomain(name, z.host) || mdns.IsSubDomain(name, z.apex)
}

// addresses hands over the address records of name.
func (z *zones) addresses(name string, add func(mdns.RR)) {
	header := func(kind uint16) mdns.RR_Header {
		return mdns.RR_Header{Name: name, Rrtype: kind, Class: mdns.ClassINET, Ttl: hostTTL}
	}
	for _, addr := range z.a {
		add(&mdns.A{Hdr: header(mdns.TypeA), A: addr.AsSlice()})
	}
	for _, addr := range z.aaaa {
		add(&mdns.AAAA{Hdr: header(mdns.TypeAAAA), AAAA: addr.AsSlice()})
	}
}

func (z *zones) soa(name, zone string, ttl uint32) mdns.RR {
	return &mdns.SOA{
		Hdr: mdns.RR_Header{Name: name, Rrtype: mdns.TypeSOA, Class: mdns.ClassINET, Ttl: ttl},
		Ns:  z.host, Mbox: "hostmaster." + strings.TrimPrefix(zone, challengeLabel),
		Serial: z.serial, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: negativeTTL,
	}
}
