package tunnel

import (
	"math"
	"sync"
	"time"
)

const (
	// DefaultStreamWindow is how many bytes either end may send on a new stream before it gets credit.
	DefaultStreamWindow = 256 << 10
	// maxStreamWindow is how far the window of a stream grows, in bytes.
	maxStreamWindow = 16 << 20
	// minStreamWindow is how far it shrinks, in bytes, to leave room for other requests.
	minStreamWindow = 64 << 10
	// windowBudget is how many bytes the windows of a link may grow by, all together.
	windowBudget = 32 << 20

	// shortRound is how long a queue in the link may be for the sake of fewer system calls: a download to the same machine
	// costs a quarter more CPU time with windows that just fit its round trip.
	shortRound = 5 * time.Millisecond

	// crowdBudget is how many bytes the windows of transfers share on a link of less than shortTrip to which other requests
	// come, and crowdMemory for how long after one. What is under way is in front of these: their p99 beside four downloads to
	// the same machine is a third of what it is with windows for the highest throughput, which falls by a quarter.
	crowdBudget = 256 << 10
	crowdMemory = 100 * time.Millisecond
	shortTrip   = 2 * time.Millisecond

	maxCredit = math.MaxInt32
)

// A recvWindow says how much the peer may send on a stream. It doubles while it is what limits a quick reader, so that a
// long round trip does not limit a transfer, and shrinks when the reader is slow, so that it cannot fill the memory.
type recvWindow struct {
	size     int64 // bytes; minStreamWindow to maxStreamWindow, and DefaultStreamWindow at least unless crowded
	left     int64 // bytes that the peer may still send
	consumed int64 // bytes that were read and not yet given back as credit
	least    int64 // bytes that were left waiting to be read when they were fewest, since credit was last given

	// A round is from credit until the first byte that the peer could not have sent without it: a round trip, and the
	// time in which the peer had credit to spare.
	round time.Duration // when it began, after the start of the session
	ahead int64         // bytes that may come before it ends; negative outside of one
	spare bool          // the last round, or this one so far, is so long that the window is no limit

	bulk    bool          // it gave credit: the stream is one of Session.transfers
	newest  uint32        // the newest stream of the link when credit was last given
	crowded time.Duration // when that had changed, after the start of the session; zero for never
}

func newRecvWindow() recvWindow {
	return recvWindow{size: DefaultStreamWindow, left: DefaultStreamWindow, least: DefaultStreamWindow, ahead: -1}
}

// receivedLocked notes that n bytes have come.
func (st *stream) receivedLocked(n int) {
	w := &st.recv
	w.left -= int64(n)
	if w.ahead < 0 {
		return
	}
	if w.ahead -= int64(n); w.ahead < 0 {
		now := time.Since(st.session.start)
		st.session.trips.note(now-w.round, now)
		w.spare = now-w.round > st.session.trips.limit()
	}
}

// consumedLocked notes that the reader took n bytes, and returns how much credit to give for it, often none yet. Credit
// comes for each quarter of the window: the window of a quick reader grows fourfold in a round trip.
func (st *stream) consumedLocked(n int) uint32 {
	w := &st.recv
	w.consumed += int64(n)
	w.least = min(w.least, int64(st.in.size))
	if st.inEnded || st.inErr != nil || w.consumed < w.size/4 {
		return 0
	}
	now := time.Since(st.session.start)
	if w.ahead >= 0 && now-w.round > st.session.trips.limit() {
		w.spare = true
	}
	want := w.size
	crowd := st.crowdLocked(now)
	switch {
	case w.size > crowd:
		want = crowd
	case w.least == 0 && !w.spare:
		want *= 2
	case w.least > w.size/2: // of at most three quarters: the rest was read
		want /= 2
	}
	size := st.session.resizeWindow(w.size, min(want, crowd), max(w.size-w.consumed, min(crowd, DefaultStreamWindow)))
	grant := w.consumed + size - w.size
	if grant > 0 && w.ahead < 0 {
		w.round, w.ahead = now, w.left
	}
	w.size = size
	w.left += grant
	w.consumed, w.least = 0, int64(st.in.size)
	return uint32(grant)
}

// crowdLocked returns how large the window may be for the sake of other requests.
func (st *stream) crowdLocked(now time.Duration) int64 {
	w, s := &st.recv, st.session
	if !w.bulk {
		w.bulk, w.newest = true, st.id
		s.transfers.Add(1)
	}
	if newest := s.newest.Load(); newest != w.newest {
		w.newest, w.crowded = newest, now
	}
	if w.crowded == 0 || now-w.crowded > crowdMemory || !s.trips.short() {
		return maxStreamWindow
	}
	return max(crowdBudget/int64(s.transfers.Load()), minStreamWindow)
}

// resizeWindow returns the new size of a window that is to have want bytes, and takes what it grows by from the link's
// budget. It is not less than least, as credit cannot be taken back, nor more than what is then left of the budget: so
// that n streams come to have a share of 1/(n+1) each, and there is one for the next.
func (s *Session) resizeWindow(size, want, least int64) int64 {
	for {
		grown := s.grown.Load()
		next := min(want, maxStreamWindow, (windowBudget-grown+size)/2)
		next = max(next, least)
		if s.grown.CompareAndSwap(grown, grown+next-size) {
			return next
		}
	}
}

// releaseWindow gives back to the link's budget what a stream's window has taken from it.
func (s *Session) releaseWindow(w *recvWindow) {
	s.grown.Add(DefaultStreamWindow - w.size)
	if w.bulk {
		s.transfers.Add(-1)
	}
}

// roundTrips knows the shortest round trip of a link, from its pings and the rounds of its windows.
type roundTrips struct {
	mu    sync.Mutex    // guards the fields below; taken after stream.mu
	least time.Duration // zero before the first
	known time.Duration // when it was noted, after the start of the session
}

// note takes a round trip, or what may have been longer than one, that ended now. What is known is forgotten by half each
// minute, because paths change.
func (r *roundTrips) note(trip, now time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now-r.known > time.Minute {
		r.least *= 2
		r.known = now
	}
	if r.least == 0 || trip < r.least {
		r.least, r.known = trip, now
	}
}

// short reports whether the round trip is known to be shorter than shortTrip.
func (r *roundTrips) short() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.least > 0 && r.least < shortTrip
}

// limit is the length of a round above which a larger window would make nothing faster: two round trips, as far as is
// known; but at least shortRound and at most a second. Larger windows would only fill the queues of the link, in front of
// other streams' bytes: when every quick reader's window grew, small requests beside four downloads took twice as long.
func (r *roundTrips) limit() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.least == 0 {
		return time.Second
	}
	return min(max(2*r.least, shortRound), time.Second)
}
