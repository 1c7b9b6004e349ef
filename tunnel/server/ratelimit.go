package server

import (
	"math"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// defaultLimiters is how many keys a limiterSet remembers; each costs about 250 bytes.
const defaultLimiters = 100_000

// A limiterSet holds one token bucket per key, all of the same rate and burst. Methods may be called from any
// goroutine; a nil set allows everything.
//
// Its memory is bounded: when all places are taken, a new key gets the place of a bucket that is full, or else of
// the fullest among a few. Forgetting a full bucket changes nothing, because it would start full again. Tokens
// left, and not age, decide, so nobody gets a drained bucket forgotten by staying away from it; and who has keys
// enough to fill all places has a fresh bucket for each of them anyway.
type limiterSet[K comparable] struct {
	limit rate.Limit
	burst int
	max   int // of entries

	mu      sync.RWMutex // guards the fields below
	byKey   map[K]*limiter[K]
	entries []*limiter[K] // the values of byKey, in no order
	hand    int           // index of the entry to look at next when room is made
}

type limiter[K comparable] struct {
	key K
	*rate.Limiter
}

// newLimiterSet returns a set that allows each key perSecond events a second and burst at once. With perSecond
// zero, negative or NaN it returns nil, which allows everything. burst below 1 means what a second allows, at least
// 1; max is how many keys are remembered, and 0 or less means 100,000.
func newLimiterSet[K comparable](perSecond float64, burst, max int) *limiterSet[K] {
	if !(perSecond > 0) {
		return nil
	}
	if burst < 1 {
		burst = int(min(math.Ceil(perSecond), 1<<30))
	}
	if max < 1 {
		max = defaultLimiters
	}
	return &limiterSet[K]{limit: rate.Limit(perSecond), burst: burst, max: max, byKey: make(map[K]*limiter[K])}
}

// allow takes a token from key's bucket and reports whether there was one. It allocates only for a new key.
func (s *limiterSet[K]) allow(key K) bool {
	if s == nil {
		return true
	}
	now := time.Now()
	s.mu.RLock()
	l := s.byKey[key]
	s.mu.RUnlock()
	if l == nil {
		l = s.add(key, now)
	}
	return l.AllowN(now, 1)
}

// add returns key's entry, a new one if there is none yet.
func (s *limiterSet[K]) add(key K, now time.Time) *limiter[K] {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.byKey[key]; l != nil {
		return l // another goroutine was faster
	}
	if host, ok := any(key).(string); ok {
		key = any(strings.Clone(host)).(K) // the caller's may be a slice of a whole request head
	}
	l := &limiter[K]{key: key, Limiter: rate.NewLimiter(s.limit, s.burst)}
	s.makeRoomLocked(now)
	s.byKey[key] = l
	s.entries = append(s.entries, l)
	return l
}

// makeRoomLocked looks at the next few entries and drops the buckets that were full a minute ago and have not been
// used since, so that idle keys go as new ones come. If there are max entries it drops those that are full now, and
// at least one: the fullest of those few.
func (s *limiterSet[K]) makeRoomLocked(now time.Time) {
	look, then := 2, now.Add(-time.Minute) // two for each new key keep up with the keys that went idle
	if len(s.entries) >= s.max {
		look, then = 16, now
	}
	fullest, most := -1, -1.0
	for range min(look, len(s.entries)) {
		if s.hand >= len(s.entries) {
			s.hand = 0
		}
		tokens := s.entries[s.hand].TokensAt(then) // of a time before its last use: what that use left
		if tokens >= float64(s.burst) {
			s.dropLocked(s.hand) // which puts another entry there
			continue
		}
		if tokens > most {
			fullest, most = s.hand, tokens
		}
		s.hand++
	}
	if len(s.entries) >= s.max { // then nothing was dropped, and fullest still stands
		s.dropLocked(fullest)
	}
}

// dropLocked forgets entry i and puts the last one in its place.
func (s *limiterSet[K]) dropLocked(i int) {
	delete(s.byKey, s.entries[i].key)
	last := len(s.entries) - 1
	s.entries[i], s.entries[last] = s.entries[last], nil
	s.entries = s.entries[:last]
}

// visitorKey returns what counts as one visitor: an IPv4 address, or the /64 of an IPv6 address, since one
// subscriber can use all of its addresses. An IPv4-mapped address is the IPv4 address. The zero Addr stays.
func visitorKey(addr netip.Addr) netip.Addr {
	addr = addr.Unmap().WithZone("")
	if !addr.Is6() {
		return addr
	}
	p, err := addr.Prefix(64)
	if err != nil {
		return addr // cannot be: every IPv6 address has 64 bits
	}
	return p.Addr()
}
