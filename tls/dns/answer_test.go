package dns

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	mdns "github.com/miekg/dns"
)

// TestAnswers asks as dig would, over UDP and TCP. An answer is written as its code, then the records of the answer, of
// the authority and of the additional section, without times.
func TestAnswers(t *testing.T) {
	t.Parallel()
	s, addr := start(t, nil)
	for _, v := range []string{"one", "two"} { // the domain and its wildcard are challenged at one name
		if err := s.AddTXT("_ACME-challenge.tunnels.example.com.", v); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.AddTXT("acme.example.net", "three"); err != nil {
		t.Fatal(err)
	}
	const (
		soa    = "tunnels.example.com. SOA ns.tunnels.example.com. hostmaster.tunnels.example.com. 4 3600 600 86400 60"
		subSOA = "_acme-challenge." + soa
		glue   = " + ns.tunnels.example.com. A 203.0.113.7, ns.tunnels.example.com. AAAA 2001:db8::7"
	)
	for _, test := range []struct{ why, name, kind, want string }{
		{"RFC 1034 4.3.2: the apex", "tunnels.example.com.", "A", "NOERROR aa: tunnels.example.com. A 203.0.113.7"},
		{"RFC 3596: the apex", "tunnels.example.com.", "AAAA", "NOERROR aa: tunnels.example.com. AAAA 2001:db8::7"},
		{"every name below exists", "x.tunnels.example.com.", "A", "NOERROR aa: x.tunnels.example.com. A 203.0.113.7"},
		{"also deep ones", "a.b.c.tunnels.example.com.", "AAAA", "NOERROR aa: a.b.c.tunnels.example.com. AAAA 2001:db8::7"},
		{"RFC 4343: the case that was asked", "X.tUNNELs.example.COM.", "A", "NOERROR aa: X.tUNNELs.example.COM. A 203.0.113.7"},
		{"RFC 1035 3.3.13", "tunnels.example.com.", "SOA", "NOERROR aa: " + soa},
		{"RFC 1034 4.2.1, with glue", "tunnels.example.com.", "NS", "NOERROR aa: tunnels.example.com. NS ns.tunnels.example.com." + glue},
		{"RFC 8659", "tunnels.example.com.", "CAA", `NOERROR aa: tunnels.example.com. CAA 0 issue "letsencrypt.org", tunnels.example.com. CAA 0 issuewild "letsencrypt.org"`},
		{"RFC 8659 3: resolvers climb to the apex", "x.tunnels.example.com.", "CAA", "NOERROR aa: / " + soa},
		{"RFC 2308 2.2: NODATA has the SOA", "x.tunnels.example.com.", "MX", "NOERROR aa: / " + soa},
		{"a name of a host has no NS", "x.tunnels.example.com.", "NS", "NOERROR aa: / " + soa},
		{"no TXT but challenges", "tunnels.example.com.", "TXT", "NOERROR aa: / " + soa},
		{"the challenge", "_acme-challenge.tunnels.example.com.", "TXT", `NOERROR aa: _acme-challenge.tunnels.example.com. TXT "one", _acme-challenge.tunnels.example.com. TXT "two"`},
		{"0x20 of the challenge", "_AcMe-challenge.tunnels.example.com.", "TXT", `NOERROR aa: _AcMe-challenge.tunnels.example.com. TXT "one", _AcMe-challenge.tunnels.example.com. TXT "two"`},
		{"a zone of its own when only that is delegated", "_acme-challenge.tunnels.example.com.", "SOA", "NOERROR aa: " + subSOA},
		{"likewise", "_acme-challenge.tunnels.example.com.", "NS", "NOERROR aa: _acme-challenge.tunnels.example.com. NS ns.tunnels.example.com." + glue},
		{"likewise", "_acme-challenge.tunnels.example.com.", "A", "NOERROR aa: / " + subSOA},
		{"RFC 2308 2.1: nothing is below a challenge", "x._acme-challenge.tunnels.example.com.", "TXT", "NXDOMAIN aa: / " + subSOA},
		{"RFC 4592: an asterisk is a name like others", "*.tunnels.example.com.", "A", "NOERROR aa: *.tunnels.example.com. A 203.0.113.7"},
		{"its own name server", "ns.tunnels.example.com.", "A", "NOERROR aa: ns.tunnels.example.com. A 203.0.113.7"},
		{"RFC 4035 3.1.4.1: the DS is the parent's", "_acme-challenge.tunnels.example.com.", "DS", "NOERROR aa: / " + soa},
		{"of the apex the parent is elsewhere", "tunnels.example.com.", "DS", "NOERROR aa: / " + soa},
		{"a tunnel has none of its own", "_acme-challenge.x.tunnels.example.com.", "TXT", "NOERROR aa: / " + soa},
		{"the alias", "acme.example.net.", "TXT", `NOERROR aa: acme.example.net. TXT "three"`},
		{"RFC 8482 4.2", "tunnels.example.com.", "ANY", `NOERROR aa: tunnels.example.com. HINFO "RFC8482" ""`},
		{"RFC 1035 4.1.1: not our zone", "example.com.", "A", "REFUSED: "},
		{"nor the root", ".", "NS", "REFUSED: "},
		{"nor one that only ends alike", "xtunnels.example.com.", "A", "REFUSED: "},
		{"RFC 5936 2.2.1: no transfers", "tunnels.example.com.", "AXFR", "REFUSED: "},
		{"RFC 1995: no transfers", "tunnels.example.com.", "IXFR", "REFUSED: "},
	} {
		for _, network := range []string{"udp", "tcp"} {
			m := new(mdns.Msg).SetQuestion(test.name, mdns.StringToType[test.kind])
			res := ask(t, network, addr, m)
			if got := shape(res); got != test.want {
				t.Errorf("%s: %s %s over %s\n got %s\nwant %s", test.why, test.name, test.kind, network, got, test.want)
			}
			if res.RecursionAvailable || !res.RecursionDesired || res.Question[0] != m.Question[0] {
				t.Errorf("%s: %v", test.why, res)
			}
		}
	}
	if err := s.RemoveTXT("_acme-challenge.tunnels.example.com", "one"); err != nil {
		t.Error(err)
	}
	res := ask(t, "udp", addr, new(mdns.Msg).SetQuestion("_acme-challenge.tunnels.example.com.", mdns.TypeTXT))
	if len(res.Answer) != 1 || res.Answer[0].Header().Ttl < 1 || res.Answer[0].Header().Ttl > 60 {
		t.Errorf("after one of two is removed: %v; want one, for at most a minute", res.Answer)
	}
	if err := s.AddTXT("_acme-challenge.example.org", "x"); err == nil {
		t.Error("a challenge for a name that is not ours was taken")
	}
}

// TestNegativeTTL: that there is no record is remembered for the SOA's minimum at most (RFC 2308, section 5).
func TestNegativeTTL(t *testing.T) {
	t.Parallel()
	_, addr := start(t, nil)
	res := ask(t, "udp", addr, new(mdns.Msg).SetQuestion("x.tunnels.example.com.", mdns.TypeTXT))
	if len(res.Ns) != 1 || res.Ns[0].Header().Ttl != 60 {
		t.Errorf("authority %v, want the SOA for 60 s", res.Ns)
	}
}

// TestHostInAlias: the name server may be below the alias, and then has its addresses there.
func TestHostInAlias(t *testing.T) {
	t.Parallel()
	s, addr := start(t, func(o *Options) { o.Host = "a.b.acme.example.net" })
	s.SetAddresses([]netip.Addr{netip.MustParseAddr("::ffff:203.0.113.9")})
	for name, want := range map[string]string{
		"a.b.acme.example.net.": "NOERROR aa: a.b.acme.example.net. A 203.0.113.9",
		"b.acme.example.net.":   "NOERROR aa: / acme.example.net. SOA a.b.acme.example.net. hostmaster.acme.example.net. 2 3600 600 86400 60",
		"c.acme.example.net.":   "NXDOMAIN aa: / acme.example.net. SOA a.b.acme.example.net. hostmaster.acme.example.net. 2 3600 600 86400 60",
	} {
		if got := shape(ask(t, "udp", addr, new(mdns.Msg).SetQuestion(name, mdns.TypeA))); got != want {
			t.Errorf("%s\n got %s\nwant %s", name, got, want)
		}
	}
}

// shape writes an answer in one line.
func shape(m *mdns.Msg) string {
	section := func(rrs []mdns.RR) string {
		var out []string
		for _, rr := range rrs {
			if rr.Header().Rrtype != mdns.TypeOPT {
				h := rr.Header()
				out = append(out, h.Name+" "+mdns.TypeToString[h.Rrtype]+" "+strings.TrimPrefix(rr.String(), h.String()))
			}
		}
		return strings.Join(out, ", ")
	}
	text := mdns.RcodeToString[m.Rcode]
	if m.Authoritative {
		text += " aa"
	}
	text += ": " + section(m.Answer)
	if len(m.Ns) > 0 {
		text += "/ " + section(m.Ns)
	}
	if extra := section(m.Extra); extra != "" {
		text += " + " + extra
	}
	return text
}

// TestForms checks messages that are not plain questions.
func TestForms(t *testing.T) {
	t.Parallel()
	_, addr := start(t, nil)
	for _, test := range []struct {
		why    string
		change func(*mdns.Msg)
		want   int
	}{
		{"RFC 1035 3.2.4: another class", func(m *mdns.Msg) { m.Question[0].Qclass = mdns.ClassCHAOS }, mdns.RcodeRefused},
		{"RFC 1035 4.1.1: NOTIFY", func(m *mdns.Msg) { m.Opcode = mdns.OpcodeNotify }, mdns.RcodeNotImplemented},
		{"RFC 1035 4.1.1: UPDATE", func(m *mdns.Msg) { m.Opcode = mdns.OpcodeUpdate }, mdns.RcodeNotImplemented},
		{"RFC 9619: two questions", func(m *mdns.Msg) { m.Question = append(m.Question, m.Question[0]) }, mdns.RcodeFormatError},
		{"RFC 9619: no question", func(m *mdns.Msg) { m.Question = nil }, mdns.RcodeFormatError},
		{"RFC 6891: a later version", func(m *mdns.Msg) { m.SetEdns0(4096, false); m.IsEdns0().SetVersion(1) }, mdns.RcodeBadVers},
		{"RFC 6891 6.1.1: two OPT records", func(m *mdns.Msg) { m.SetEdns0(4096, false).SetEdns0(4096, false) }, mdns.RcodeFormatError},
		{"RFC 7873: a cookie of seven bytes", func(m *mdns.Msg) { setCookie(m, "00112233445566") }, mdns.RcodeFormatError},
		{"RFC 7873: a server's part of seven bytes", func(m *mdns.Msg) { setCookie(m, "001122334455667700112233445566") }, mdns.RcodeFormatError},
	} {
		for _, network := range []string{"udp", "tcp"} {
			m := new(mdns.Msg).SetQuestion("tunnels.example.com.", mdns.TypeA)
			test.change(m)
			res := ask(t, network, addr, m)
			if res.Rcode != test.want {
				t.Errorf("%s over %s: %s, want %s", test.why, network, mdns.RcodeToString[res.Rcode], mdns.RcodeToString[test.want])
			}
		}
	}
}

func setCookie(m *mdns.Msg, cookie string) {
	m.Extra = nil
	m.SetEdns0(4096, false)
	m.IsEdns0().Option = []mdns.EDNS0{&mdns.EDNS0_COOKIE{Code: mdns.EDNS0COOKIE, Cookie: cookie}}
}

// TestEDNS: an OPT is answered by an OPT (RFC 6891, section 7), and none by none.
func TestEDNS(t *testing.T) {
	t.Parallel()
	_, addr := start(t, nil)
	m := new(mdns.Msg).SetQuestion("tunnels.example.com.", mdns.TypeA)
	if res := ask(t, "udp", addr, m); res.IsEdns0() != nil {
		t.Error("an OPT that was not asked for")
	}
	m.SetEdns0(4096, true)
	if opt := ask(t, "udp", addr, m).IsEdns0(); opt == nil || opt.UDPSize() != udpSize || opt.Version() != 0 {
		t.Errorf("OPT %v", opt)
	}
}

// TestRecursionBits: RD and CD are what was asked, RA is never set (RFC 1035, section 4.1.1).
func TestRecursionBits(t *testing.T) {
	t.Parallel()
	_, addr := start(t, nil)
	for _, rd := range []bool{false, true} {
		m := new(mdns.Msg).SetQuestion("tunnels.example.com.", mdns.TypeA)
		m.RecursionDesired = rd
		if res := ask(t, "udp", addr, m); res.RecursionDesired != rd || res.RecursionAvailable {
			t.Errorf("RD %v was answered with %v", rd, res.MsgHdr)
		}
	}
}

// TestAmplification: an answer to one who may have a forged address is not much more than the question. With the rate, that
// bounds what anybody can be hit with. The factor of 6 is for a wildcard's two challenge values and a question without EDNS;
// the certain bound is udpSize.
func TestAmplification(t *testing.T) {
	t.Parallel()
	s, err := New(Options{
		Domain: "tunnels.example.com", CAA: []string{"letsencrypt.org"}, ResponseRate: -1,
		Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8::7")},
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		_ = s.AddTXT("_acme-challenge.tunnels.example.com", fmt.Sprintf("%043d", i))
	}
	for _, name := range []string{"tunnels.example.com.", "_acme-challenge.tunnels.example.com.", "x.tunnels.example.com.", "com."} {
		for kind := range uint16(260) {
			m := new(mdns.Msg).SetQuestion(name, kind)
			w := new(sink)
			s.ServeDNS(w, m)
			if asked, said := packed(t, m), packed(t, w.m); said > 6*asked {
				t.Errorf("%s %s: %d bytes are answered with %d", name, mdns.TypeToString[kind], asked, said)
			}
			if kind == mdns.TypeNS && !w.m.Compress {
				t.Error("an answer is not compressed")
			}
		}
	}
}

// TestTruncation: what does not fit is cut, says so, and comes whole over TCP (RFC 2181, section 9).
func TestTruncation(t *testing.T) {
	t.Parallel()
	s, addr := start(t, nil)
	for i := range 30 {
		if err := s.AddTXT("acme.example.net", fmt.Sprintf("%043d", i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		edns uint16
		size int
	}{{0, 512}, {100, 512}, {1000, 1000}, {4096, udpSize}} {
		m := new(mdns.Msg).SetQuestion("acme.example.net.", mdns.TypeTXT)
		if test.edns > 0 {
			m.SetEdns0(test.edns, false)
		}
		res := ask(t, "udp", addr, m)
		if n := packed(t, res); !res.Truncated || n > test.size {
			t.Errorf("EDNS %d: %d bytes, truncated %v; want at most %d", test.edns, n, res.Truncated, test.size)
		}
		if res := ask(t, "tcp", addr, m); res.Truncated || len(res.Answer) != 30 {
			t.Errorf("over TCP: %d of 30 records, truncated %v", len(res.Answer), res.Truncated)
		}
	}
}

func packed(t *testing.T, m *mdns.Msg) int {
	t.Helper()
	m.Compress = true
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return len(b)
}
