package dns

import (
	"net"
	"net/netip"

	mdns "github.com/miekg/dns"
)

// ServeDNS answers one query.
func (s *Server) ServeDNS(w mdns.ResponseWriter, r *mdns.Msg) {
	s.stats.queries.Add(1)
	_, overTCP := w.RemoteAddr().(*net.TCPAddr)
	m, known := s.reply(r, clientAddr(w.RemoteAddr()))
	if !overTCP && !known && !s.rates.allow(clientAddr(w.RemoteAddr())) {
		if s.rates.slip() {
			s.stats.dropped.Add(1)
			return
		}
		m.Answer, m.Ns, m.Truncated = nil, nil, true // the client comes back by TCP, if its address is its own
		m.Extra = onlyOPT(m.Extra)
	}
	m.Compress = true
	size := mdns.MaxMsgSize
	if !overTCP {
		size = mdns.MinMsgSize
		if opt := r.IsEdns0(); opt != nil {
			size = max(mdns.MinMsgSize, min(int(opt.UDPSize()), udpSize))
		}
	}
	m.Truncate(size)
	if m.Truncated {
		s.stats.truncated.Add(1)
	}
	_ = w.WriteMsg(m) // a client that is gone asks no more
}

// reply makes the answer to r. known says that the client has shown by a cookie that its address is its own.
func (s *Server) reply(r *mdns.Msg, client netip.Addr) (m *mdns.Msg, known bool) {
	m = new(mdns.Msg)
	m.SetReply(r) // keeps the question as it was written, and RD (RFC 1034, section 4.3.1)
	m.RecursionAvailable = false
	var cookie string
	if opt := r.IsEdns0(); opt != nil {
		var err error
		if cookie, known, err = s.cookies.answer(opt, client); err != nil {
			m.Rcode = mdns.RcodeFormatError // RFC 7873, section 5.2.2
		}
		if opt.Version() != 0 {
			m.Rcode = mdns.RcodeBadVers // RFC 6891, section 6.1.3
		}
	}
	if m.Rcode == mdns.RcodeSuccess {
		s.fill(m)
	}
	if opt := r.IsEdns0(); opt != nil {
		m.Extra = append(m.Extra, ownOPT(m.Rcode, cookie))
	}
	return m, known
}

// fill answers m's question.
func (s *Server) fill(m *mdns.Msg) {
	if len(m.Question) != 1 {
		m.Rcode = mdns.RcodeFormatError
		return
	}
	q := m.Question[0]
	zone := s.zones.find(mdns.CanonicalName(q.Name))
	switch {
	case q.Qclass != mdns.ClassINET, zone == "",
		q.Qtype == mdns.TypeAXFR, q.Qtype == mdns.TypeIXFR, q.Qtype == mdns.TypeMAILA, q.Qtype == mdns.TypeMAILB:
		s.stats.refused.Add(1)
		m.Rcode = mdns.RcodeRefused
	default:
		s.zones.answer(m, zone)
	}
}

// ownOPT is the OPT record of an answer (RFC 6891, section 6.1.1).
func ownOPT(rcode int, cookie string) *mdns.OPT {
	opt := &mdns.OPT{Hdr: mdns.RR_Header{Name: ".", Rrtype: mdns.TypeOPT}}
	opt.SetUDPSize(udpSize)
	opt.SetExtendedRcode(uint16(rcode))
	if cookie != "" {
		opt.Option = append(opt.Option, &mdns.EDNS0_COOKIE{Code: mdns.EDNS0COOKIE, Cookie: cookie})
	}
	return opt
}

func onlyOPT(extra []mdns.RR) []mdns.RR {
	for _, rr := range extra {
		if rr.Header().Rrtype == mdns.TypeOPT {
			return []mdns.RR{rr}
		}
	}
	return nil
}

// clientAddr is the address of a peer; the zero Addr if it has none.
func clientAddr(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap()
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
