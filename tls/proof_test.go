package tls

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

const (
	proofDomain = "tunnels.example.com"
	proofLabel  = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	otherLabel  = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	proofTarget = proofLabel + "." + proofDomain
)

// serveDNS answers on a port of its own, by UDP and TCP, with what answer makes of each question.
func serveDNS(t *testing.T, answer func(m *mdns.Msg, q mdns.Question, tcp bool)) (addr string) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", pc.LocalAddr().String())
	if err != nil {
		t.Skip("no port for both UDP and TCP:", err)
	}
	h := mdns.HandlerFunc(func(w mdns.ResponseWriter, r *mdns.Msg) {
		m := new(mdns.Msg).SetReply(r)
		_, tcp := w.LocalAddr().(*net.TCPAddr)
		answer(m, r.Question[0], tcp)
		_ = w.WriteMsg(m)
	})
	for _, s := range []*mdns.Server{{PacketConn: pc, Handler: h}, {Listener: ln, Handler: h}} {
		started, ended := make(chan struct{}), make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { // ends with Shutdown
			defer close(ended)
			_ = s.ActivateAndServe()
		}()
		<-started
		t.Cleanup(func() { _ = s.Shutdown(); <-ended })
	}
	return pc.LocalAddr().String()
}

// fromZone answers with the zone's records at the very name; a name that is not there does not exist, and SERVFAIL in the
// place of a record is an error.
func fromZone(zone map[string][]string) func(*mdns.Msg, mdns.Question, bool) {
	return func(m *mdns.Msg, q mdns.Question, _ bool) {
		records, ok := zone[strings.ToLower(strings.TrimSuffix(q.Name, "."))]
		if !ok {
			m.Rcode = mdns.RcodeNameError
		}
		for _, text := range records {
			if text == "SERVFAIL" {
				m.Rcode = mdns.RcodeServerFailure
				return
			}
			rr, err := mdns.NewRR(q.Name + " 60 IN " + text)
			if err == nil && (rr.Header().Rrtype == q.Qtype || rr.Header().Rrtype == mdns.TypeCNAME) {
				m.Answer = append(m.Answer, rr)
			}
		}
	}
}

func TestProve(t *testing.T) {
	t.Parallel()
	zone := map[string][]string{
		"app.example.org":         {"CNAME " + proofTarget + "."},
		"shout.example.org":       {"CNAME " + strings.ToUpper(proofTarget) + "."},
		"far.example.org":         {"CNAME app.example.org."},
		"example.org":             {"A 192.0.2.1"},
		"_harp.example.org":       {`TXT "v=spf1 -all"`, `TXT "` + proofLabel + `"`},
		"split.example.org":       {},
		"_harp.split.example.org": {`TXT "` + proofLabel[:20] + `" "` + proofLabel[20:] + `"`},
		"away.example.org":        {"CNAME www.example.net."},
		"both.example.org":        {"CNAME www.example.net."},
		"_harp.both.example.org":  {`TXT "` + proofLabel + `"`},

		"nothing.example.org":               {"A 192.0.2.1"},
		"theirs.example.org":                {"CNAME " + otherLabel + "." + proofDomain + "."},
		otherLabel + ".tunnels.example.com": {"CNAME " + proofTarget + "."},
		"old.example.org":                   {"CNAME " + otherLabel + "." + proofDomain + "."},
		"_harp.old.example.org":             {`TXT "` + proofLabel + `"`},
		"apex.example.org":                  {"CNAME " + proofDomain + "."},
		"below.example.org":                 {"CNAME x." + proofTarget + "."},
		"tricky.example.org":                {`CNAME x\.` + proofTarget + "."},
		"near.example.org":                  {"CNAME " + proofTarget + ".example.net."},
		"wrong.example.org":                 {"A 192.0.2.1"},
		"_harp.wrong.example.org":           {`TXT "` + otherLabel + `"`},
		"prefix.example.org":                {"A 192.0.2.1"},
		"_harp.prefix.example.org":          {`TXT "harp=` + proofLabel + `"`},
		"loop.example.org":                  {"CNAME loop.example.org."},
		"broken.example.org":                {"SERVFAIL"},
		"half.example.org":                  {"A 192.0.2.1"},
		"_harp.half.example.org":            {"SERVFAIL"},
	}
	for i := range 12 { // h8 needs 8 steps
		zone[fmt.Sprintf("h%d.example.org", i+1)] = []string{fmt.Sprintf("CNAME h%d.example.org.", i)}
	}
	zone["h0.example.org"] = nil
	zone["h1.example.org"] = []string{"CNAME " + proofTarget + "."}

	p := Prover{Domain: proofDomain, Resolvers: []string{serveDNS(t, fromZone(zone))}}
	for _, name := range []string{"app", "shout", "far", "split", "both", "h8"} {
		if err := p.Prove(t.Context(), name+".example.org", proofLabel); err != nil {
			t.Errorf("%s: %v, want it proven", name, err)
		}
	}
	if err := p.Prove(t.Context(), "example.org", proofLabel); err != nil {
		t.Errorf("an apex with one TXT of several: %v", err)
	}
	for name, found := range map[string]string{
		"nothing": "has no CNAME",
		"absent":  "has no CNAME",
		"theirs":  "leads to " + otherLabel + ".tunnels.example.com",
		"old":     "leads to " + otherLabel + ".tunnels.example.com", // the CNAME is for another; the TXT was forgotten
		"apex":    "leads to tunnels.example.com",
		"below":   "leads to x." + proofTarget,
		"tricky":  `leads to x\.` + proofTarget,
		"near":    "leads to " + proofTarget + ".example.net",
		"away":    "leads to www.example.net",
		"wrong":   "has another label at _harp.wrong.example.org",
		"prefix":  "has another label at _harp.prefix.example.org",
		"loop":    "leads on over more than 8 CNAMEs",
		"h9":      "leads on over more than 8 CNAMEs",
	} {
		host := name + ".example.org"
		err := p.Prove(t.Context(), host, proofLabel)
		var missing *NotProvenError
		want := host + " " + found + ": add the record " + host + ". CNAME " + proofTarget +
			". or, for a name that cannot have one, _harp." + host + `. TXT "` + proofLabel + `"`
		if !errors.As(err, &missing) || err.Error() != want {
			t.Errorf("%s: %v\nwant %s", name, err, want)
		}
		if isTemporary(err) {
			t.Errorf("%s: what is missing does not come by waiting", name)
		}
	}
	for _, name := range []string{"broken", "half"} {
		if err := p.Prove(t.Context(), name+".example.org", proofLabel); !isTemporary(err) || !strings.Contains(err.Error(), "SERVFAIL") {
			t.Errorf("%s: %v, want SERVFAIL, which may pass", name, err)
		}
	}
}

func isTemporary(err error) bool {
	var passing interface{ Temporary() bool }
	return errors.As(err, &passing) && passing.Temporary()
}

// TestProveUnprovable: what can be nobody's is refused before the DNS is asked.
func TestProveUnprovable(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	p := Prover{Domain: proofDomain, Resolvers: []string{serveDNS(t, func(*mdns.Msg, mdns.Question, bool) { asked.Add(1) })}}
	for name, want := range map[string]string{
		proofDomain:                       "a name of this server",
		proofTarget:                       "a name of this server",
		"a.b." + proofDomain:              "a name of this server",
		"*.example.org":                   "not a hostname",
		"App.example.org":                 "not a hostname",
		"bücher.example":                  "not a hostname",
		"xn--0.example.org":               "not a hostname",
		"app.example.org.":                "not a hostname",
		".example.org":                    "not a hostname",
		"app..example.org":                "not a hostname",
		"app example.org":                 "not a hostname",
		"localhost":                       "not a hostname",
		"":                                "not a hostname",
		"192.0.2.1":                       "not a hostname",
		"2001:db8::1":                     "not a hostname",
		strings.Repeat("a.", 125) + "org": "not a hostname",
		"co.uk":                           "nobody's own",
	} {
		err := p.Prove(t.Context(), name, proofLabel)
		if err == nil || !strings.Contains(err.Error(), want) || isTemporary(err) {
			t.Errorf("%q: %v, want %q", name, err, want)
		}
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("%d questions were asked", n)
	}
}

// TestProveResolvers: the next one is asked where one fails, in whatever way.
func TestProveResolvers(t *testing.T) {
	t.Parallel()
	good := fromZone(map[string][]string{"app.example.org": {"CNAME " + proofTarget + "."}})
	dead, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := dead.LocalAddr().String()
	dead.Close()
	for why, bad := range map[string]string{
		"refuses": serveDNS(t, func(m *mdns.Msg, _ mdns.Question, _ bool) { m.Rcode = mdns.RcodeRefused }),
		"answers another question": serveDNS(t, func(m *mdns.Msg, q mdns.Question, tcp bool) {
			good(m, q, tcp)
			m.Question[0].Name = "other.example.org."
		}),
		"is not there": gone,
	} {
		p := Prover{Domain: proofDomain, Resolvers: []string{bad}}
		if err := p.Prove(t.Context(), "app.example.org", proofLabel); !isTemporary(err) {
			t.Errorf("the only resolver %s: %v, want an error that may pass", why, err)
		}
		p.Resolvers = append(p.Resolvers, serveDNS(t, good))
		if err := p.Prove(t.Context(), "app.example.org", proofLabel); err != nil {
			t.Errorf("the first resolver %s, and the second knows: %v", why, err)
		}
	}
	cut := serveDNS(t, func(m *mdns.Msg, q mdns.Question, tcp bool) {
		if m.Truncated = !tcp; tcp {
			good(m, q, tcp)
		}
	})
	if err := (Prover{Domain: proofDomain, Resolvers: []string{cut}}).Prove(t.Context(), "app.example.org", proofLabel); err != nil {
		t.Errorf("an answer that is cut over UDP: %v", err)
	}
}

// TestProveEndsWithContext: a resolver that never answers holds nobody up.
func TestProveEndsWithContext(t *testing.T) {
	t.Parallel()
	mute, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	began := time.Now()
	err = Prover{Domain: proofDomain, Resolvers: []string{mute.LocalAddr().String()}}.Prove(ctx, "app.example.org", proofLabel)
	if !isTemporary(err) {
		t.Errorf("got %v, want an error that may pass", err)
	}
	if took := time.Since(began); took > lookupTime/2 {
		t.Errorf("it took %v to give up", took)
	}
}
