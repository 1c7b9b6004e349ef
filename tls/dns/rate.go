package dns

import (
	"net/netip"
	"sync"
	"time"
)

// maxNets is how many networks are counted at once; beyond it all that are new share one count.
const maxNets = 16 << 10

// A verdict is what becomes of an answer.
type verdict int

const (
	send verdict = iota
	slip         // say no more than that the client shall ask again
	drop
)

// rates bounds the answers that one network gets: a server that answers forged questions at any rate is somebody's
// weapon against the owner of the address.
type rates struct {
	perSecond float64 // negative: no limit
	burst     float64 // what a bucket holds: one second's answers, at least one

	mu   sync.Mutex // guards the fields below
	nets map[netip.Prefix]*bucket
	next time.Time // when full ones are forgotten
	rest bucket
}

type bucket struct {
	tokens float64
	at     time.Time
	slip   bool // what comes next over the rate is dropped, if the one before slipped
}

func newRates(perSecond float64) *rates {
	return &rates{perSecond: perSecond, burst: max(1, perSecond), nets: make(map[netip.Prefix]*bucket)}
}

// take says what becomes of one more answer to addr at a time. Over the rate every second is dropped.
func (r *rates) take(addr netip.Addr, now time.Time) verdict {
	if r.perSecond < 0 {
		return send
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.bucketLocked(netOf(addr), now)
	if since := now.Sub(b.at).Seconds(); since > 0 {
		b.tokens = min(r.burst, b.tokens+since*r.perSecond)
		b.at = now
	}
	if b.tokens >= 1 {
		b.tokens--
		return send
	}
	if b.slip = !b.slip; b.slip {
		return slip
	}
	return drop
}

func (r *rates) bucketLocked(net netip.Prefix, now time.Time) *bucket {
	if now.After(r.next) {
		full := time.Duration(r.burst / r.perSecond * float64(time.Second))
		for net, b := range r.nets {
			if now.Sub(b.at) > full {
				delete(r.nets, net)
			}
		}
		r.next = now.Add(time.Second)
	}
	b := r.nets[net]
	switch {
	case b != nil:
		return b
	case len(r.nets) >= maxNets:
		return &r.rest
	}
	b = &bucket{tokens: r.burst, at: now}
	r.nets[net] = b
	return b
}

// netOf is the network that is counted as one client: what one site commonly holds. It is the zero Prefix for no address.
func netOf(addr netip.Addr) netip.Prefix {
	bits := 24
	if addr.Is6() {
		bits = 56
	}
	net, _ := addr.Prefix(bits)
	return net
}
