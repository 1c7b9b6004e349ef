package dns

import (
	"encoding/binary"
	"net"
	"strings"
	"testing"

	mdns "github.com/miekg/dns"
)

// A sink keeps the last message written to it.
type sink struct {
	mdns.ResponseWriter
	m      *mdns.Msg
	remote net.Addr
}

func (w *sink) WriteMsg(m *mdns.Msg) error { w.m = m; return nil }

func (w *sink) RemoteAddr() net.Addr {
	if w.remote == nil {
		return &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 53}
	}
	return w.remote
}

// FuzzServeDNS gives the server any packet, as the library hands it on: it never panics, answers nothing that is an answer,
// and what it says has the question's ID and question and fits in the size that is allowed: 512 bytes without EDNS, else
// what the client said, and never more than udpSize.
func FuzzServeDNS(f *testing.F) {
	for _, name := range []string{"tunnels.example.com.", "_acme-challenge.tunnels.example.com.", "x.y.tunnels.example.com.", "acme.example.net.", "."} {
		for _, kind := range []uint16{mdns.TypeA, mdns.TypeNS, mdns.TypeANY, mdns.TypeTXT, mdns.TypeAXFR, mdns.TypeDS} {
			m := new(mdns.Msg).SetQuestion(name, kind)
			setCookie(m, "0011223344556677")
			b, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	s, err := New(Options{Domain: "tunnels.example.com", Alias: "acme.example.net", CAA: []string{"letsencrypt.org"}, ResponseRate: -1})
	if err != nil {
		f.Fatal(err)
	}
	for i := range 20 {
		if err := s.AddTXT("acme.example.net", strings.Repeat(string(rune('a'+i)), 200)); err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 12 {
			return // the library drops it
		}
		word := func(i int) uint16 { return binary.BigEndian.Uint16(b[i:]) }
		action := accept(mdns.Header{
			Id: word(0), Bits: word(2), Qdcount: word(4), Ancount: word(6), Nscount: word(8), Arcount: word(10),
		})
		r := new(mdns.Msg)
		if r.Unpack(b) != nil {
			return // the library answers FORMERR
		}
		if r.Response != (action == mdns.MsgIgnore) {
			t.Fatalf("response %v, action %d", r.Response, action)
		}
		if action != mdns.MsgAccept {
			return
		}
		w := &sink{}
		s.ServeDNS(w, r)
		out, err := w.m.Pack()
		if err != nil {
			return // WriteMsg would return it; a question that cannot be packed again gets no answer
		}
		size := mdns.MinMsgSize
		if opt := r.IsEdns0(); opt != nil {
			size = max(size, min(int(opt.UDPSize()), udpSize))
		}
		if len(out) > size {
			t.Errorf("an answer of %d bytes, at most %d are allowed", len(out), size)
		}
		back := new(mdns.Msg)
		if err := back.Unpack(out); err != nil {
			t.Fatalf("an answer that cannot be read: %v", err)
		}
		if back.Id != r.Id || !back.Response || back.RecursionAvailable || len(r.Question) > 0 && back.Question[0] != r.Question[0] {
			t.Errorf("%v\nis answered with\n%v", r, back)
		}
	})
}
