// Package dns is the edge's own authoritative DNS server, which makes wildcard certificates possible without an account
// at a DNS provider, and a client for dynamic updates (RFC 2136) of other servers.
package dns

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"
)

const (
	// udpSize is the largest answer over UDP, in bytes: it passes every path without fragments (DNS flag day 2020).
	udpSize = 1232
	// udpBuffer is how many bytes of queries may wait in a socket.
	udpBuffer = 1 << 20
	// tcpIdle is how long a query over TCP may take to arrive, and tcpQueries how many may come over one connection.
	tcpIdle    = 10 * time.Second
	tcpQueries = 128
)

// Options say what a Server answers.
type Options struct {
	// Domain is the zone's apex, without the last dot. Every name below it exists.
	Domain string
	// Host is this server's own name, for NS and SOA records. Empty means ns.<Domain>.
	Host string
	// Alias is one more name at which challenges are answered: the target of a CNAME at _acme-challenge.<Domain>. Empty
	// means none.
	Alias string
	// Addresses are the A and AAAA records of the apex and of every name below it.
	Addresses []netip.Addr
	// CAA are the issuers that may issue for the domain, such as letsencrypt.org. Empty means no CAA records: any may.
	CAA []string
	// ResponseRate is how many answers a second one network (/24, /56) gets over UDP without a cookie. Beyond it every
	// second query is dropped, and the others are told to ask again: over TCP, or with the cookie that they get. Zero means
	// 100, negative no limit.
	ResponseRate float64
	// Logger gets what an operator should know. Nil discards.
	Logger *slog.Logger
}

// A Server answers for its zones and nothing else: it is no resolver. Its methods may be called from any goroutine.
type Server struct {
	log     *slog.Logger
	zones   *zones
	cookies *cookies
	rates   *rates
	stats   counters
}

// Stats counts queries by what became of them, since the start.
type Stats struct {
	Queries   uint64 // all that were parsed
	Refused   uint64 // for other zones, classes, or transfers
	Truncated uint64 // sent to TCP because of the size, or told to ask again because of the rate
	Dropped   uint64 // not answered, because of the rate
}

type counters struct{ queries, refused, truncated, dropped atomic.Uint64 }

// New returns a Server for the options. The error is about a name that is none, or an alias that is the domain itself.
func New(o Options) (*Server, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.ResponseRate == 0 {
		o.ResponseRate = 100
	}
	if o.Host == "" {
		o.Host = "ns." + o.Domain
	}
	names := []string{o.Domain, challengeLabel + o.Domain, o.Host}
	if o.Alias != "" {
		names = append(names, o.Alias)
	}
	for _, name := range names {
		if !isName(name) {
			return nil, fmt.Errorf("dns: %q is not a domain name", name)
		}
	}
	if mdns.CanonicalName(o.Alias) == mdns.CanonicalName(o.Domain) {
		return nil, fmt.Errorf("dns: the alias %s is the domain itself", o.Alias)
	}
	return &Server{log: o.Logger, zones: newZones(o), cookies: newCookies(time.Now()), rates: newRates(o.ResponseRate)}, nil
}

// isName reports whether name can be a zone or a host: ASCII, without spaces and escapes.
func isName(name string) bool {
	_, ok := mdns.IsDomainName(name)
	return ok && name != "" && name != "." && !strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '\\' })
}

// SetAddresses replaces the addresses of all names.
func (s *Server) SetAddresses(addrs []netip.Addr) { s.zones.setAddresses(addrs) }

// AddTXT adds a challenge value at name, which must be _acme-challenge.<Domain> or the alias. Several may stand there. The
// error is about another name, or a value that is too long or one too many.
func (s *Server) AddTXT(name, value string) error {
	s.log.Debug("a challenge is to be answered", "name", name)
	return s.zones.addTXT(name, value)
}

// RemoveTXT removes a challenge value; one that is not there is no error.
func (s *Server) RemoveTXT(name, value string) error {
	s.log.Debug("a challenge is over", "name", name)
	return s.zones.removeTXT(name, value)
}

// Stats returns the counts so far.
func (s *Server) Stats() Stats {
	return Stats{
		Queries: s.stats.queries.Load(), Refused: s.stats.refused.Load(),
		Truncated: s.stats.truncated.Load(), Dropped: s.stats.dropped.Load(),
	}
}

// Serve answers on the given sockets until ctx ends, then closes them and returns nil. The error is about a socket that
// broke before. Each UDP socket is a *net.UDPConn where the answer must come from the address that was asked.
func (s *Server) Serve(ctx context.Context, udp []net.PacketConn, tcp []net.Listener) error {
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	servers := s.servers(udp, tcp)
	var wg, started sync.WaitGroup
	for _, server := range servers {
		started.Add(1)
		once := sync.OnceFunc(started.Done)
		server.NotifyStartedFunc = once
		wg.Go(func() { // ends with Shutdown, or when its socket breaks
			if err := server.ActivateAndServe(); err != nil {
				cancel(fmt.Errorf("dns: %w", err))
			}
			once()
		})
	}
	started.Wait() // Shutdown of a server that has not started does nothing
	<-inner.Done()
	for _, server := range servers {
		wg.Go(func() { _ = server.Shutdown() }) // ends when the last answer is written, at most tcpWrite later
	}
	wg.Wait()
	for _, c := range udp { // those that never started
		_ = c.Close()
	}
	for _, l := range tcp {
		_ = l.Close()
	}
	if ctx.Err() != nil {
		return nil
	}
	return context.Cause(inner)
}

// servers makes a server for each socket.
func (s *Server) servers(udp []net.PacketConn, tcp []net.Listener) []*mdns.Server {
	var servers []*mdns.Server
	for _, c := range udp {
		if u, ok := c.(*net.UDPConn); ok {
			_ = u.SetReadBuffer(udpBuffer) // the system may give less
		}
		servers = append(servers, &mdns.Server{PacketConn: c, Handler: s, UDPSize: udpSize, MsgAcceptFunc: accept})
	}
	for _, l := range tcp {
		servers = append(servers, &mdns.Server{
			Listener: newBounded(l), Handler: s, MsgAcceptFunc: accept,
			ReadTimeout: tcpIdle, MaxTCPQueries: tcpQueries, IdleTimeout: func() time.Duration { return tcpIdle },
		})
	}
	return servers
}

// accept is asked before a message is parsed (RFC 1035, section 4.1.1): answers are ignored, so that two servers never
// talk to each other for ever.
func accept(h mdns.Header) mdns.MsgAcceptAction {
	const response = 1 << 15
	opcode := int(h.Bits>>11) & 0xf
	switch {
	case h.Bits&response != 0:
		return mdns.MsgIgnore
	case opcode != mdns.OpcodeQuery:
		return mdns.MsgRejectNotImplemented
	case h.Qdcount != 1, h.Ancount > 1, h.Nscount > 1, h.Arcount > 2:
		return mdns.MsgReject
	}
	return mdns.MsgAccept
}
