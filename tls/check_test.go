package tls

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

// zoneFile is a DNS server of a test: it answers with the records it was given, and nothing else. Below a name that has
// NS records, other than those that are asked for, it refers to them.
type zoneFile struct {
	port int

	mu      sync.Mutex
	records []mdns.RR
}

func serveZone(t *testing.T, records ...string) *zoneFile {
	t.Helper()
	z := new(zoneFile)
	for _, text := range records {
		rr, err := mdns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		z.records = append(z.records, rr)
	}
	var udp net.PacketConn
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	for range 20 { // the same port may be taken for UDP
		if err != nil {
			t.Fatal(err)
		}
		if udp, err = net.ListenPacket("udp", tcp.Addr().String()); err == nil {
			break
		}
		tcp.Close()
		tcp, err = net.Listen("tcp", "127.0.0.1:0")
	}
	z.port = tcp.Addr().(*net.TCPAddr).Port
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	for _, s := range []*mdns.Server{{PacketConn: udp, Handler: z}, {Listener: tcp, Handler: z}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		wg.Go(func() { _ = s.ActivateAndServe() })
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return z
}

func (z *zoneFile) ServeDNS(w mdns.ResponseWriter, r *mdns.Msg) {
	m := new(mdns.Msg).SetReply(r)
	m.Authoritative = true
	q := r.Question[0]
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, rr := range z.records {
		h := rr.Header()
		wild := strings.HasPrefix(h.Name, "*.") && strings.HasSuffix(strings.ToLower(q.Name), h.Name[1:]) && strings.Count(q.Name, ".") == strings.Count(h.Name, ".")
		if (strings.EqualFold(h.Name, q.Name) || wild && !strings.HasPrefix(q.Name, "_")) && h.Rrtype == q.Qtype {
			rr = mdns.Copy(rr)
			rr.Header().Name = q.Name
			m.Answer = append(m.Answer, rr)
			if ns, ok := rr.(*mdns.NS); ok { // its glue
				for _, a := range z.records {
					if a.Header().Name == ns.Ns && a.Header().Rrtype == mdns.TypeA && strings.HasSuffix(ns.Ns, h.Name) {
						m.Extra = append(m.Extra, a)
					}
				}
			}
		}
	}
	_ = w.WriteMsg(m)
}

func (z *zoneFile) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(z.port)) }

const (
	challengeZone = "_acme-challenge.tunnels.example.com."
	soaRecord     = " SOA ns.tunnels.example.com. hostmaster.tunnels.example.com. 1 1 1 1 1"
)

// TestCheck looks at set-ups that are right and at each way in which they are not. Everything is on one address: the
// resolver and the DNS of example.com are one server, harpd's own another.
func TestCheck(t *testing.T) {
	t.Parallel()
	addresses := []string{"tunnels.example.com. A 127.0.0.1", "*.tunnels.example.com. A 127.0.0.1"}
	parent := []string{"example.com. NS ns1.example.com.", "ns1.example.com. A 127.0.0.1"}
	own := []string{challengeZone + soaRecord, "tunnels.example.com." + soaRecord, "acme.example.net." + soaRecord}
	for _, test := range []struct {
		why     string
		records []string
		own     []string
		change  func(*CheckOptions)
		want    []string // findings that must be there, as "LEVEL text"; "…" stands for anything
		add     []string // all records to add
	}{
		{
			why: "the challenge is delegated", records: append([]string{challengeZone + " NS tunnels.example.com."}, addresses...), own: own,
			want: []string{
				"ok address: tunnels.example.com is 127.0.0.1", "ok address: *.tunnels.example.com is 127.0.0.1",
				"ok delegation: _acme-challenge.tunnels.example.com NS tunnels.example.com (127.0.0.1)",
				"ok DNS: this server's own answers for _acme-challenge.tunnels.example.com", "ok CAA: no record forbids any authority",
				"ok clock: right", "ok port: HTTP answers …", "ok data folder: …",
			},
		},
		{
			why: "the whole is delegated, with glue", own: own,
			records: append([]string{"tunnels.example.com. NS ns.tunnels.example.com.", "ns.tunnels.example.com. A 127.0.0.1"}, addresses...),
			want:    []string{"ok delegation: tunnels.example.com NS ns.tunnels.example.com (127.0.0.1)"},
		},
		{
			why: "a CNAME to the alias", own: own, change: func(o *CheckOptions) { o.Alias = "acme.example.net" },
			records: append([]string{challengeZone + " CNAME acme.example.net."}, addresses...),
			want:    []string{"ok delegation: _acme-challenge.tunnels.example.com is a CNAME to acme.example.net", "ok DNS: this server's own answers for acme.example.net"},
		},
		{
			why: "no delegation", records: addresses, own: own,
			want: []string{"MISS delegation: nothing below tunnels.example.com is delegated to this server: at the DNS of example.com add"},
			add:  []string{"_acme-challenge.tunnels.example.com. NS tunnels.example.com."},
		},
		{
			why: "no CNAME to the alias", records: addresses, own: own, change: func(o *CheckOptions) { o.Alias = "acme.example.net" },
			want: []string{"MISS delegation: _acme-challenge.tunnels.example.com does not lead to acme.example.net"},
			add:  []string{"_acme-challenge.tunnels.example.com. CNAME acme.example.net."},
		},
		{
			why: "delegated to another machine", own: own,
			records: append([]string{challengeZone + " NS ns9.example.com.", "ns9.example.com. A 192.0.2.9"}, addresses...),
			want:    []string{"MISS delegation: _acme-challenge.tunnels.example.com NS ns9.example.com is 192.0.2.9, and this server is 127.0.0.1: replace it by"},
			add:     []string{"_acme-challenge.tunnels.example.com. NS tunnels.example.com."},
		},
		{
			why: "delegated to a name without an address", own: own,
			records: append([]string{challengeZone + " NS ns9.example.com."}, addresses...),
			want:    []string{"MISS delegation: _acme-challenge.tunnels.example.com NS ns9.example.com, which has no address"},
			add:     []string{"ns9.example.com. A 127.0.0.1"},
		},
		{
			why: "no glue", own: own, records: append([]string{"tunnels.example.com. NS ns.sub.tunnels.example.com."}, addresses...),
			want: []string{"MISS glue: tunnels.example.com NS ns.sub.tunnels.example.com, which lies within it, needs its address at the parent"},
			add:  []string{"ns.sub.tunnels.example.com. A 127.0.0.1"},
		},
		{
			why: "what answers is another server", own: []string{"example.org." + soaRecord},
			records: append([]string{challengeZone + " NS tunnels.example.com."}, addresses...),
			want:    []string{"MISS DNS: what answers at 127.0.0.1 is not harpd: …"},
		},
		{
			why: "one of two name servers is another machine", own: own,
			records: append([]string{
				"tunnels.example.com. NS ns.tunnels.example.com.", "tunnels.example.com. NS ns2.tunnels.example.com.",
				"ns.tunnels.example.com. A 127.0.0.1", "ns2.tunnels.example.com. A 192.0.2.9",
			}, addresses...),
			want: []string{
				"ok delegation: tunnels.example.com NS ns.tunnels.example.com (127.0.0.1)",
				"MISS delegation: tunnels.example.com NS ns2.tunnels.example.com is 192.0.2.9, and this server is 127.0.0.1: replace it by",
			},
			add: []string{"tunnels.example.com. NS ns.tunnels.example.com."},
		},
		{
			why: "no wildcard", records: []string{challengeZone + " NS tunnels.example.com.", addresses[0]}, own: own,
			want: []string{"MISS address: *.tunnels.example.com leads nowhere"},
			add:  []string{"*.tunnels.example.com. A 127.0.0.1"},
		},
		{
			why: "addresses of another machine", own: own,
			records: []string{challengeZone + " NS ns1.example.com.", "tunnels.example.com. A 192.0.2.9", "*.tunnels.example.com. A 192.0.2.9"},
			want:    []string{"MISS address: tunnels.example.com is 192.0.2.9, and this server is 127.0.0.1"},
			add:     []string{"tunnels.example.com. A 127.0.0.1", "*.tunnels.example.com. A 127.0.0.1"},
		},
		{
			why: "CAA of the parent forbids", own: own,
			records: append([]string{challengeZone + " NS tunnels.example.com.", `example.com. CAA 0 issue "other.example"`}, addresses...),
			want:    []string{"MISS CAA: the records of example.com forbid ca.example"},
			add:     []string{`example.com. CAA 0 issue "ca.example"`, `example.com. CAA 0 issuewild "ca.example"`},
		},
		{
			why: "CAA permits wildcards by another method only", own: own,
			records: append([]string{
				challengeZone + " NS tunnels.example.com.", `tunnels.example.com. CAA 0 issue "ca.example"`,
				`tunnels.example.com. CAA 0 issuewild "ca.example; validationmethods=http-01"`,
			}, addresses...),
			want: []string{"MISS CAA: the records of tunnels.example.com forbid ca.example"},
			add:  []string{`tunnels.example.com. CAA 0 issuewild "ca.example"`},
		},
		{
			why: "CAA permits", own: own,
			records: append([]string{challengeZone + " NS tunnels.example.com.", `example.com. CAA 0 issue "ca.example; validationmethods=dns-01"`}, addresses...),
			want:    []string{"ok CAA: the records of example.com permit ca.example"},
		},
		{
			why: "CAA says where to report and nothing about issuing", own: own,
			records: append([]string{challengeZone + " NS tunnels.example.com.", `example.com. CAA 0 iodef "mailto:security@example.com"`}, addresses...),
			want:    []string{"ok CAA: the records of example.com permit ca.example"},
		},
		{
			why: "CAA is about wildcards alone", own: own,
			records: append([]string{challengeZone + " NS tunnels.example.com.", `example.com. CAA 0 issuewild ";"`}, addresses...),
			want:    []string{"MISS CAA: the records of example.com forbid ca.example"},
			add:     []string{`example.com. CAA 0 issuewild "ca.example"`},
		},
		{
			why: "nothing listens, the authority is away", own: own,
			records: append([]string{challengeZone + " NS tunnels.example.com."}, addresses...),
			change:  func(o *CheckOptions) { o.HTTP, o.CA = 1, "https://127.0.0.1:1/dir" },
			want:    []string{"MISS port: nothing listens at 127.0.0.1:1 (HTTP): is harpd running?", "MISS ACME: the authority does not answer: …"},
		},
		{
			why: "the challenge is not ours to answer", records: addresses, change: func(o *CheckOptions) { o.Builtin = false; o.DNS = 0 },
			want: []string{"ok address: tunnels.example.com is 127.0.0.1"},
		},
	} {
		t.Run(test.why, func(t *testing.T) {
			t.Parallel()
			internet, server := serveZone(t, append(test.records, parent...)...), serveZone(t, test.own...)
			ca := authority(t, time.Now())
			o := CheckOptions{
				Domain: "tunnels.example.com", Host: "ns.tunnels.example.com", Builtin: true,
				Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Resolvers: []string{internet.addr()}, DNSPort: internet.port,
				DNS: server.port, HTTP: server.port, HTTPS: server.port, // something listens there
				DataDir: t.TempDir(), CA: ca.URL, CARoots: ca.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, Issuers: []string{"ca.example"},
			}
			if test.change != nil {
				test.change(&o)
			}
			findings := Check(context.Background(), o)
			var lines, add []string
			misses := 0
			for _, f := range findings {
				lines = append(lines, string(f.Level)+" "+f.Text)
				add = append(add, f.Records...)
				if f.Level == LevelMiss {
					misses++
				}
			}
			for _, want := range test.want {
				head, rest, _ := strings.Cut(want, "…")
				if !slices.ContainsFunc(lines, func(l string) bool {
					return strings.HasPrefix(l, head) && (rest != "" || strings.Contains(want, "…") || l == want)
				}) {
					t.Errorf("no finding %q among\n%s", want, strings.Join(lines, "\n"))
				}
			}
			wantMiss := slices.ContainsFunc(test.want, func(w string) bool { return strings.HasPrefix(w, "MISS") })
			if (misses > 0) != wantMiss {
				t.Errorf("%d are missing, in\n%s", misses, strings.Join(lines, "\n"))
			}
			if !slices.Equal(add, test.add) {
				t.Errorf("records to add %q, want %q", add, test.add)
			}
		})
	}
}

// TestReferralLame: a server of the parent that does not know the zone is no reason to say that nothing is delegated.
func TestReferralLame(t *testing.T) {
	t.Parallel()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	up, done := make(chan struct{}), make(chan error, 1)
	lame := &mdns.Server{PacketConn: conn, NotifyStartedFunc: func() { close(up) }, Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, r *mdns.Msg) {
		_ = w.WriteMsg(new(mdns.Msg).SetRcode(r, mdns.RcodeRefused))
	})}
	go func() { done <- lame.ActivateAndServe() }() // ends with Shutdown
	<-up
	defer func() { _ = lame.Shutdown(); <-done }()
	good := serveZone(t, challengeZone+" NS tunnels.example.com.")
	servers := []string{conn.LocalAddr().String(), good.addr()}
	name := strings.TrimSuffix(challengeZone, ".")
	hosts, _, err := new(check).referral(context.Background(), servers, name)
	if err != nil || !slices.Equal(hosts, []string{"tunnels.example.com"}) {
		t.Errorf("got %q, %v, want what the second server says", hosts, err)
	}
	if hosts, _, err := new(check).referral(context.Background(), servers[:1], name); err == nil || hosts != nil {
		t.Errorf("from the first alone got %q and no error: it is not known what is delegated", hosts)
	}
}

// authority is an ACME directory whose clock shows now.
func authority(t *testing.T, now time.Time) *httptest.Server {
	t.Helper()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
		_, _ = w.Write([]byte("{}"))
	}))
	t.Cleanup(s.Close)
	return s
}

func TestCheckClock(t *testing.T) {
	t.Parallel()
	ca := authority(t, time.Now().Add(-time.Hour))
	c := &check{CheckOptions: CheckOptions{CA: ca.URL, CARoots: ca.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}}
	findings := c.authority(context.Background())
	last := findings[len(findings)-1]
	if last.Level != LevelMiss || !strings.HasPrefix(last.Text, "clock: this machine's is 1h0m") {
		t.Errorf("%+v", last)
	}
}
