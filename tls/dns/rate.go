package dns

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// maxNets is how many networks are counted at once; beyond it all that are new share one count.
const maxNets = 16 << 10

// rates bounds the answers that one network gets: a server that answers forged questions at any rate is somebody's
// weapon against the owner of the address.
type rates struct {
	perSecond float64 // negative: no limit
	slips     atomic.Uint64

	mu   sync.Mutex
	nets map[netip.Prefix]*bucket
	next time.Time // when idle ones are forgotten
	rest bucket
}

// A bucket holds up to one second's answers.
type bucket struct {
	tokens float64
	at     time.Time
}

func newRates(perSecond float64) *rates {
	return &rates{perSecond: perSecond, nets: make(map[netip.Prefix]*bucket)}
}

// allow reports whether the network of addr may have one more answer.
func (r *rates) allow(addr netip.Addr) bool {
	if r.perSecond < 0 {
		return true
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.After(r.next) {
		for net, b := range r.nets {
			if now.Sub(b.at) > time.Second {
				delete(r.nets, net)
			}
		}
		r.next = now.Add(time.Second)
	}
	bits := 24
	if addr.Is6() {
		bits = 56
	}
	net, _ := addr.Prefix(bits) // the zero Prefix for no address
	b := r.nets[net]
	switch {
	case b != nil:
	case len(r.nets) >= maxNets:
		b = &r.rest
	default:
		b = &bucket{tokens: r.perSecond, at: now}
		r.nets[net] = b
	}
	b.tokens = min(r.perSecond, b.tokens+now.Sub(b.at).Seconds()*r.perSecond)
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// slip reports whether the next answer over the rate is to be dropped: every other.
func (r *rates) slip() bool { return r.slips.Add(1)%2 == 0 }
