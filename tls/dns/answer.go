package dns

import (
	"net"
	"net/netip"
	"time"

	mdns "github.com/miekg/dns"
)

// ServeDNS answers one query. What it says over UDP has at most 512 bytes, or what the query's OPT record allows and at
// most udpSize.
func (s *Server) ServeDNS(w mdns.ResponseWriter, r *mdns.Msg) {
	if r.Response {
		return // two servers that answer answers never end
	}
	s.stats.queries.Add(1)
	client := clientAddr(w.RemoteAddr())
	_, overTCP := w.RemoteAddr().(*net.TCPAddr)
	opt := r.IsEdns0()
	m, cookie := s.reply(r, opt, client)
	size := mdns.MaxMsgSize
	if !overTCP {
		size = mdns.MinMsgSize
		if opt != nil {
			size = max(mdns.MinMsgSize, min(int(opt.UDPSize()), udpSize))
		}
		if !cookie.known && !s.withinRate(m, cookie, client) {
			return
		}
	}
	if opt != nil {
		m.Extra = append(m.Extra, ownOPT(m.Rcode, cookie.reply))
	}
	m.Truncate(size)
	m.Compress = true // Truncate takes it back where it is not needed to fit
	if m.Truncated {
		s.stats.truncated.Add(1)
	}
	_ = w.WriteMsg(m) // a client that is gone asks no more
}

// reply makes the answer to r, without its OPT record.
func (s *Server) reply(r *mdns.Msg, opt *mdns.OPT, client netip.Addr) (*mdns.Msg, cookie) {
	m := new(mdns.Msg)
	m.SetReply(r) // keeps the question as it was written, and RD (RFC 1034, section 4.3.1)
	var c cookie
	if opt != nil {
		var err error
		if c, err = s.cookies.read(opt, client, time.Now()); err != nil {
			m.Rcode = mdns.RcodeFormatError // RFC 7873, section 5.2.2
		}
		if opt.Version() != 0 {
			m.Rcode = mdns.RcodeBadVers // RFC 6891, section 6.1.3
		}
	}
	if len(r.Question) != 1 || countOPT(r.Extra) > 1 { // RFC 9619; RFC 6891, section 6.1.1
		m.Rcode = mdns.RcodeFormatError
	}
	if r.Opcode != mdns.OpcodeQuery {
		m.Rcode = mdns.RcodeNotImplemented
	}
	if m.Rcode == mdns.RcodeSuccess {
		s.fill(m)
	}
	return m, c
}

// withinRate reports whether m may be sent. Beyond the client's rate it is dropped, or emptied and asks the client to show
// that its address is its own: with the cookie that comes with it (RFC 7873, section 5.2.3), or by TCP.
func (s *Server) withinRate(m *mdns.Msg, c cookie, client netip.Addr) bool {
	switch s.rates.take(client, time.Now()) {
	case drop:
		s.stats.dropped.Add(1)
		return false
	case slip:
		m.Answer, m.Ns, m.Extra, m.Authoritative = nil, nil, nil, false
		if c.reply != "" {
			m.Rcode = mdns.RcodeBadCookie
			s.stats.truncated.Add(1)
		} else {
			m.Rcode, m.Truncated = mdns.RcodeSuccess, true
		}
	}
	return true
}

// fill answers m's question.
func (s *Server) fill(m *mdns.Msg) {
	q := m.Question[0]
	zone := s.zones.zoneOf(q)
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

func countOPT(extra []mdns.RR) (n int) {
	for _, rr := range extra {
		if rr.Header().Rrtype == mdns.TypeOPT {
			n++
		}
	}
	return n
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
