package agent

import (
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	var b backoff
	bounds := []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second,
		10 * time.Second, 10 * time.Second}
	for i, bound := range bounds {
		wait := b.next()
		if wait < 0 || wait >= bound {
			t.Errorf("wait %d is %v, want one from 0 to %v", i, wait, bound)
		}
	}
}

// Full jitter: the waits cover everything from nothing to the bound, evenly.
func TestBackoffJitter(t *testing.T) {
	const rounds, parts = 10_000, 10
	var hits [parts]int
	for range rounds {
		var b backoff
		hits[b.next()*parts/firstWait]++
	}
	for i, n := range hits {
		if n < rounds/parts*3/4 || n > rounds/parts*5/4 {
			t.Errorf("part %d of %d of the range got %d of %d waits, want about %d", i, parts, n, rounds, rounds/parts)
		}
	}
}
