package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a server for tunnels.example.com on loopback and returns its address.
func start(t testing.TB, change func(*Options)) (*Server, string) {
	t.Helper()
	o := Options{
		Domain: "tunnels.example.com", Alias: "acme.example.net", CAA: []string{"letsencrypt.org"}, Rate: -1,
		Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8::7")},
	}
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, []net.PacketConn{udp}, []net.Listener{tcp}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s, tcp.Addr().String()
}

func ask(t testing.TB, network, addr string, m *mdns.Msg) *mdns.Msg {
	t.Helper()
	c := mdns.Client{Net: network, Timeout: 5 * time.Second, UDPSize: 4096}
	res, _, err := c.Exchange(m, addr)
	if err != nil {
		t.Fatalf("%v over %s: %v", m.Question, network, err)
	}
	return res
}

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
		{"apex", "tunnels.example.com.", "A", "NOERROR aa: tunnels.example.com. A 203.0.113.7"},
		{"apex", "tunnels.example.com.", "AAAA", "NOERROR aa: tunnels.example.com. AAAA 2001:db8::7"},
		{"every name below exists", "x.tunnels.example.com.", "A", "NOERROR aa: x.tunnels.example.com. A 203.0.113.7"},
		{"also deep ones", "a.b.c.tunnels.example.com.", "AAAA", "NOERROR aa: a.b.c.tunnels.example.com. AAAA 2001:db8::7"},
		{"0x20", "X.tUNNELs.example.COM.", "A", "NOERROR aa: X.tUNNELs.example.COM. A 203.0.113.7"},
		{"RFC 1035 3.3.13", "tunnels.example.com.", "SOA", "NOERROR aa: " + soa},
		{"RFC 1034 4.2.1, with glue", "tunnels.example.com.", "NS", "NOERROR aa: tunnels.example.com. NS ns.tunnels.example.com." + glue},
		{"RFC 8659", "tunnels.example.com.", "CAA", `NOERROR aa: tunnels.example.com. CAA 0 issue "letsencrypt.org", tunnels.example.com. CAA 0 issuewild "letsencrypt.org"`},
		{"resolvers climb to CAA", "x.tunnels.example.com.", "CAA", "NOERROR aa: / " + soa},
		{"RFC 2308 2.2: NODATA has the SOA", "x.tunnels.example.com.", "MX", "NOERROR aa: / " + soa},
		{"a name of a host has no NS", "x.tunnels.example.com.", "NS", "NOERROR aa: / " + soa},
		{"no TXT but challenges", "tunnels.example.com.", "TXT", "NOERROR aa: / " + soa},
		{"the challenge", "_acme-challenge.tunnels.example.com.", "TXT", `NOERROR aa: _acme-challenge.tunnels.example.com. TXT "one", _acme-challenge.tunnels.example.com. TXT "two"`},
		{"0x20 of the challenge", "_AcMe-challenge.tunnels.example.com.", "TXT", `NOERROR aa: _AcMe-challenge.tunnels.example.com. TXT "one", _AcMe-challenge.tunnels.example.com. TXT "two"`},
		{"a zone of its own when only that is delegated", "_acme-challenge.tunnels.example.com.", "SOA", "NOERROR aa: " + subSOA},
		{"likewise", "_acme-challenge.tunnels.example.com.", "NS", "NOERROR aa: _acme-challenge.tunnels.example.com. NS ns.tunnels.example.com." + glue},
		{"likewise", "_acme-challenge.tunnels.example.com.", "A", "NOERROR aa: / " + subSOA},
		{"RFC 2308 2.1: nothing is below a challenge", "x._acme-challenge.tunnels.example.com.", "TXT", "NXDOMAIN aa: / " + subSOA},
		{"a tunnel has none of its own", "_acme-challenge.x.tunnels.example.com.", "TXT", "NOERROR aa: / " + soa},
		{"the alias", "acme.example.net.", "TXT", `NOERROR aa: acme.example.net. TXT "three"`},
		{"RFC 8482", "tunnels.example.com.", "ANY", `NOERROR aa: tunnels.example.com. HINFO "RFC8482" ""`},
		{"not our zone", "example.com.", "A", "REFUSED: "},
		{"nor the root", ".", "NS", "REFUSED: "},
		{"nor one that only ends alike", "xtunnels.example.com.", "A", "REFUSED: "},
		{"no transfers", "tunnels.example.com.", "AXFR", "REFUSED: "},
		{"no transfers", "tunnels.example.com.", "IXFR", "REFUSED: "},
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
	if len(res.Answer) != 1 {
		t.Errorf("after one of two is removed: %v", res.Answer)
	}
	if err := s.AddTXT("_acme-challenge.example.org", "x"); err == nil {
		t.Error("a challenge for a name that is not ours was taken")
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
		{"another class", func(m *mdns.Msg) { m.Question[0].Qclass = mdns.ClassCHAOS }, mdns.RcodeRefused},
		{"NOTIFY", func(m *mdns.Msg) { m.Opcode = mdns.OpcodeNotify }, mdns.RcodeNotImplemented},
		{"UPDATE", func(m *mdns.Msg) { m.Opcode = mdns.OpcodeUpdate }, mdns.RcodeNotImplemented},
		{"two questions", func(m *mdns.Msg) { m.Question = append(m.Question, m.Question[0]) }, mdns.RcodeFormatError},
		{"no question", func(m *mdns.Msg) { m.Question = nil }, mdns.RcodeFormatError},
		{"RFC 6891: a later version", func(m *mdns.Msg) { m.SetEdns0(4096, false); m.IsEdns0().SetVersion(1) }, mdns.RcodeBadVers},
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

// TestRate: a network that asks too much is sent to TCP or not answered, unless it has shown that its address is its own.
func TestRate(t *testing.T) {
	t.Parallel()
	s, addr := start(t, func(o *Options) { o.Rate = 5 })
	m := new(mdns.Msg).SetQuestion("tunnels.example.com.", mdns.TypeA)
	setCookie(m, "0011223344556677")
	cookie := ask(t, "udp", addr, m).IsEdns0().Option[0].(*mdns.EDNS0_COOKIE).Cookie
	if len(cookie) != 48 || !strings.HasPrefix(cookie, "0011223344556677") {
		t.Fatalf("cookie %q", cookie)
	}
	conn, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := &mdns.Conn{Conn: conn}
	plain := new(mdns.Msg).SetQuestion("tunnels.example.com.", mdns.TypeA)
	for range 100 {
		if err := c.WriteMsg(plain); err != nil {
			t.Fatal(err)
		}
	}
	whole, cut := 0, 0
	for {
		_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		res, err := c.ReadMsg()
		if err != nil {
			break
		}
		if res.Truncated {
			if len(res.Answer) != 0 {
				t.Error("an answer over the rate has records")
			}
			cut++
		} else {
			whole++
		}
	}
	if whole < 1 || whole > 20 || cut < 30 || whole+cut > 80 {
		t.Errorf("of 100 queries %d were answered and %d sent to TCP", whole, cut)
	}
	if s.Stats().Dropped == 0 || s.Stats().Queries < 100 {
		t.Errorf("stats %+v", s.Stats())
	}
	setCookie(m, cookie)
	for range 50 {
		if res := ask(t, "udp", addr, m); res.Truncated {
			t.Fatal("a client with a good cookie was sent to TCP")
		}
	}
	forged := cookie[:47] + map[bool]string{true: "0", false: "1"}[cookie[47] != '0']
	if _, known, _ := s.cookies.answer(cookieOPT(forged), netip.MustParseAddr("127.0.0.1")); known {
		t.Error("a forged cookie was believed")
	}
	if _, known, _ := s.cookies.answer(cookieOPT(cookie), netip.MustParseAddr("127.0.0.2")); known {
		t.Error("the cookie of another address was believed")
	}
}

func cookieOPT(cookie string) *mdns.OPT {
	m := new(mdns.Msg)
	setCookie(m, cookie)
	return m.IsEdns0()
}

// TestGarbage: whatever comes, the next question is answered.
func TestGarbage(t *testing.T) {
	t.Parallel()
	_, addr := start(t, nil)
	for _, network := range []string{"udp", "tcp"} {
		for _, b := range []string{"", "\x00", strings.Repeat("\xff", 400), "GET / HTTP/1.1\r\n\r\n", "\x00\x0c\x00\x00\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c"} {
			conn, err := net.Dial(network, addr)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = conn.Write([]byte(b))
			conn.Close()
		}
	}
	answer := new(mdns.Msg).SetQuestion("tunnels.example.com.", mdns.TypeA)
	answer.Response = true
	conn, err := mdns.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.WriteMsg(answer)
	_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if m, err := conn.ReadMsg(); err == nil {
		t.Errorf("an answer was answered: two servers would talk for ever: %v", m)
	}
	for _, network := range []string{"udp", "tcp"} {
		if res := ask(t, network, addr, new(mdns.Msg).SetQuestion("tunnels.example.com.", mdns.TypeA)); len(res.Answer) != 1 {
			t.Errorf("over %s: %v", network, res)
		}
	}
}

// TestManyTCP: connections that say nothing keep nobody else from an answer over UDP, and their number is bounded.
func TestManyTCP(t *testing.T) {
	t.Parallel()
	_, addr := start(t, nil)
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range maxTCP + 50 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	last := conns[len(conns)-1]
	_ = last.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := last.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("connection %d was kept: %v", len(conns), err)
	}
	if res := ask(t, "udp", addr, new(mdns.Msg).SetQuestion("tunnels.example.com.", mdns.TypeA)); len(res.Answer) != 1 {
		t.Error(res)
	}
}

// TestDig asks with the program that people use.
func TestDig(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("dig"); err != nil {
		t.Skip("dig is missing: apt-get install bind9-dnsutils")
	}
	_, addr := start(t, nil)
	host, port, _ := net.SplitHostPort(addr)
	for _, test := range []struct{ args, want string }{
		{"+short x.tunnels.example.com A", "203.0.113.7\n"},
		{"+short +tcp x.tunnels.example.com AAAA", "2001:db8::7\n"},
		{"+noall +comments example.com A", "status: REFUSED"},
		{"+noall +comments +edns=1 +noednsnegotiation tunnels.example.com", "status: BADVERS"},
		{"+noall +comments +cookie tunnels.example.com", "(good)"},
	} {
		args := append([]string{"@" + host, "-p", port, "+time=5"}, strings.Fields(test.args)...)
		out, err := exec.Command("dig", args...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), test.want) {
			t.Errorf("dig %s: %v\n%s", test.args, err, out)
		}
	}
}

func TestBadNames(t *testing.T) {
	t.Parallel()
	for _, o := range []Options{{}, {Domain: strings.Repeat("a", 64) + ".example"}, {Domain: "a.example", Alias: "a..b"}} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}
