package dns

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

// TestRate: a network that asks too much is sent to TCP or not answered, unless it has shown that its address is its own.
func TestRate(t *testing.T) {
	t.Parallel()
	s, addr := start(t, func(o *Options) { o.ResponseRate = 5 })
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
}

// TestBadCookie: who is over the rate and speaks of cookies is told to use the one it gets (RFC 7873, section 5.2.3).
func TestBadCookie(t *testing.T) {
	t.Parallel()
	s, err := New(Options{Domain: "tunnels.example.com", ResponseRate: 0.001})
	if err != nil {
		t.Fatal(err)
	}
	m := new(mdns.Msg).SetQuestion("tunnels.example.com.", mdns.TypeSOA)
	setCookie(m, "0011223344556677")
	var w sink
	for i, want := range []int{mdns.RcodeSuccess, mdns.RcodeBadCookie, -1, mdns.RcodeBadCookie, -1} {
		w.m = nil
		s.ServeDNS(&w, m)
		got := -1
		if w.m != nil {
			got = w.m.Rcode
		}
		if got != want {
			t.Errorf("query %d: code %d, want %d", i, got, want)
		}
	}
	w.m = nil
	s.ServeDNS(&w, m)
	setCookie(m, w.m.IsEdns0().Option[0].(*mdns.EDNS0_COOKIE).Cookie)
	if s.ServeDNS(&w, m); len(w.m.Answer) != 1 {
		t.Errorf("with the cookie: %v", w.m)
	}
	w.remote = new(net.TCPAddr)
	setCookie(m, "0011223344556677")
	if s.ServeDNS(&w, m); len(w.m.Answer) != 1 {
		t.Errorf("over TCP: %v", w.m)
	}
}

// TestRates: each network has its own count, a /24 or a /56, and the table is bounded.
func TestRates(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	r := newRates(2)
	for i, test := range []struct {
		after time.Duration
		addr  string
		want  verdict
	}{
		{0, "192.0.2.1", send}, {0, "192.0.2.200", send}, {0, "192.0.2.3", slip}, {0, "192.0.2.3", drop}, {0, "192.0.2.3", slip},
		{0, "192.0.3.1", send}, {0, "2001:db8::1", send}, {0, "2001:db8:0:ff::1", send}, {0, "2001:db8::1", slip},
		{0, "2001:db8:0:100::1", send}, {time.Second / 2, "192.0.2.1", send}, {0, "192.0.2.1", drop},
		{time.Hour, "192.0.2.1", send}, {0, "192.0.2.1", send}, {0, "192.0.2.1", slip},
	} {
		now = now.Add(test.after)
		if got := r.take(netip.MustParseAddr(test.addr), now); got != test.want {
			t.Errorf("answer %d, to %s: %d, want %d", i, test.addr, got, test.want)
		}
	}
	addr := netip.MustParseAddr("10.0.0.1")
	for range 2 * maxNets {
		r.take(addr, now)
		b := addr.As4()
		b[2]++
		if b[2] == 0 {
			b[1]++
		}
		addr = netip.AddrFrom4(b)
	}
	if len(r.nets) > maxNets {
		t.Errorf("%d networks are kept, at most %d are to be", len(r.nets), maxNets)
	}
	r.take(addr, now.Add(time.Minute))
	if len(r.nets) > 1 {
		t.Errorf("%d networks are kept after a silent minute", len(r.nets))
	}
	slow := newRates(0.1)
	if slow.take(addr, now) != send || slow.take(addr, now.Add(5*time.Second)) == send || slow.take(addr, now.Add(11*time.Second)) != send {
		t.Error("a rate of one in ten seconds is not kept")
	}
}
