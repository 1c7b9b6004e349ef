package main

import (
	"net"
	"strings"
	"sync"
	"testing"

	mdns "github.com/miekg/dns"
)

// names is the DNS of a test's internet: what it was told, and below testDomain what the edge's own server says.
type names struct {
	Addr string // host:port, UDP and TCP

	mu      sync.Mutex
	edge    string               // host:port of the edge's DNS server
	records map[string][]mdns.RR // by lower-case name
}

func startNames(t *testing.T, edge string) *names {
	t.Helper()
	n := &names{edge: edge, records: make(map[string][]mdns.RR)}
	addr := freeAddr(t)
	udp, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	n.Addr = udp.LocalAddr().String()
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait) // after the servers were told
	for _, s := range []*mdns.Server{{PacketConn: udp, Handler: n}, {Listener: tcp, Handler: n}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		wg.Go(func() { _ = s.ActivateAndServe() })
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return n
}

// set replaces the records of name by the given ones, in zone-file form.
func (n *names) set(t *testing.T, name string, records ...string) {
	t.Helper()
	var rrs []mdns.RR
	for _, text := range records {
		rr, err := mdns.NewRR(name + " 1 IN " + text)
		if err != nil {
			t.Fatal(err)
		}
		rrs = append(rrs, rr)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.records[mdns.CanonicalName(name)] = rrs
}

// setTXT replaces the TXT records of the given names.
func (n *names) setTXT(records map[string][]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, values := range records {
		var rrs []mdns.RR
		for _, v := range values {
			rrs = append(rrs, &mdns.TXT{
				Hdr: mdns.RR_Header{Name: mdns.Fqdn(name), Rrtype: mdns.TypeTXT, Class: mdns.ClassINET, Ttl: 1}, Txt: []string{v},
			})
		}
		n.records[mdns.CanonicalName(name)] = rrs
	}
}

// alone makes the names of testDomain this test's own, too.
func (n *names) alone() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.edge = ""
}

func (n *names) ServeDNS(w mdns.ResponseWriter, r *mdns.Msg) {
	n.mu.Lock()
	edge := n.edge
	n.mu.Unlock()
	m := new(mdns.Msg).SetReply(r)
	m.RecursionAvailable = true
	q := r.Question[0]
	name := q.Name
	for range 8 {
		if lower := mdns.CanonicalName(name); edge != "" && (lower == testDomain+"." || strings.HasSuffix(lower, "."+testDomain+".")) {
			ask := new(mdns.Msg).SetQuestion(name, q.Qtype)
			if answer, err := mdns.Exchange(ask, edge); err == nil {
				m.Answer = append(m.Answer, answer.Answer...)
				m.Ns, m.Rcode = answer.Ns, answer.Rcode
			} else {
				m.Rcode = mdns.RcodeServerFailure
			}
			break
		}
		next := ""
		n.mu.Lock()
		records, known := n.records[mdns.CanonicalName(name)]
		n.mu.Unlock()
		for _, rr := range records {
			if c, ok := rr.(*mdns.CNAME); ok && q.Qtype != mdns.TypeCNAME {
				m.Answer, next = append(m.Answer, rr), c.Target
			} else if rr.Header().Rrtype == q.Qtype {
				m.Answer = append(m.Answer, rr)
			}
		}
		if !known && len(m.Answer) == 0 {
			m.Rcode = mdns.RcodeNameError
		}
		if next == "" {
			break
		}
		name = next
	}
	_ = w.WriteMsg(m)
}
