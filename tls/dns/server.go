// Package dns is the edge's own authoritative DNS server, which makes wildcard certificates possible without an account
// at a DNS provider, and a client for dynamic updates (RFC 2136) of other servers.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	mdns "github.com/miekg/dns"
)

const (
	// udpSize is the largest answer over UDP, in bytes: it passes every path without fragments (DNS flag day 2020).
	udpSize = 1232
	// tcpIdle is how long a TCP connection may be silent, and tcpQueries how much may be asked over one.
	tcpIdle    = 10 * time.Second
	tcpQueries = 128
	// maxTCP is how many TCP connections may be open at once.
	maxTCP = 512
	// tcpWrite bounds one answer to a peer that does not read.
	tcpWrite = 5 * time.Second
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
	// Rate is how many answers a second one network (/24, /56) gets over UDP without a cookie; then every second query is
	// dropped and every other is sent to TCP. Zero means 100, negative no limit.
	Rate float64
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
	Truncated uint64 // sent to TCP, because of the size or the rate
	Dropped   uint64 // not answered, because of the rate
}

type counters struct{ queries, refused, truncated, dropped atomic.Uint64 }

// New returns a Server for the options. The error is about a name that is none.
func New(o Options) (*Server, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Rate == 0 {
		o.Rate = 100
	}
	if o.Host == "" {
		o.Host = "ns." + o.Domain
	}
	for _, name := range []string{o.Domain, o.Host} {
		if _, ok := mdns.IsDomainName(name); !ok || name == "" {
			return nil, fmt.Errorf("dns: %q is not a domain name", name)
		}
	}
	if _, ok := mdns.IsDomainName(o.Alias); o.Alias != "" && !ok {
		return nil, fmt.Errorf("dns: %q is not a domain name", o.Alias)
	}
	return &Server{log: o.Logger, zones: newZones(o), cookies: newCookies(), rates: newRates(o.Rate)}, nil
}

// SetAddresses replaces the addresses of all names.
func (s *Server) SetAddresses(addrs []netip.Addr) { s.zones.setAddresses(addrs) }

// AddTXT adds a challenge value at name, which must be _acme-challenge.<Domain> or the alias. Several may stand there.
func (s *Server) AddTXT(name, value string) error { return s.zones.addTXT(name, value) }

// RemoveTXT removes a challenge value; one that is not there is no error.
func (s *Server) RemoveTXT(name, value string) error { return s.zones.removeTXT(name, value) }

// Stats returns the counts so far.
func (s *Server) Stats() Stats {
	return Stats{
		Queries: s.stats.queries.Load(), Refused: s.stats.refused.Load(),
		Truncated: s.stats.truncated.Load(), Dropped: s.stats.dropped.Load(),
	}
}

// Serve answers on the given sockets until ctx ends, and closes them. Each UDP socket is a *net.UDPConn where the answer
// must come from the address that was asked.
func (s *Server) Serve(ctx context.Context, udp []net.PacketConn, tcp []net.Listener) error {
	var servers []*mdns.Server
	for _, c := range udp {
		servers = append(servers, &mdns.Server{PacketConn: c, Handler: s, UDPSize: udpSize, MsgAcceptFunc: accept})
	}
	for _, l := range tcp {
		servers = append(servers, &mdns.Server{
			Listener: newBounded(l, maxTCP), Handler: s, MsgAcceptFunc: accept,
			ReadTimeout: tcpIdle, WriteTimeout: tcpWrite, MaxTCPQueries: tcpQueries,
			IdleTimeout: func() time.Duration { return tcpIdle },
		})
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
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
	<-ctx.Done()
	for _, server := range servers {
		_ = server.Shutdown()
	}
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
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

// bounded is a listener with at most so many connections open.
type bounded struct {
	net.Listener
	slots chan struct{}
}

func newBounded(l net.Listener, n int) *bounded {
	return &bounded{Listener: l, slots: make(chan struct{}, n)}
}

// Accept closes connections that are too many: their peers ask again, by UDP or later.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		conn, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case b.slots <- struct{}{}:
			return &boundedConn{Conn: conn, release: sync.OnceFunc(func() { <-b.slots })}, nil
		default:
			_ = conn.Close()
		}
	}
}

type boundedConn struct {
	net.Conn
	release func()
}

func (c *boundedConn) Close() error {
	c.release()
	return c.Conn.Close()
}
