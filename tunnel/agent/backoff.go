package agent

import (
	"math/rand/v2"
	"time"
)

const (
	firstWait = 500 * time.Millisecond
	maxWait   = 10 * time.Second // what visitors wait at most when a server is there again
	// steady is how long a link must have lived for the waits to begin anew.
	steady = 10 * time.Second
)

// A backoff says how long to wait before the next dial: anything up to a bound that doubles, so that many agents that
// lost the same server do not come back at the same moment. The zero value is ready.
type backoff struct {
	bound time.Duration
}

func (b *backoff) next() time.Duration {
	b.bound = min(max(2*b.bound, firstWait), maxWait)
	return rand.N(b.bound)
}
