package tunnel

import (
	"math"
	"time"
)

const (
	// DefaultStreamWindow is how many bytes either end may send on a new stream before it gets credit.
	DefaultStreamWindow = 256 << 10
	// maxStreamWindow is how far the window of a stream grows, in bytes.
	maxStreamWindow = 16 << 20
	// quickQuarter is the time in which a quarter of a window has to be read for the window to grow: it then lasts for a
	// second, longer than any round trip.
	quickQuarter = 250 * time.Millisecond
	// windowBudget is how many bytes the windows of a link may grow by, all together.
	windowBudget = 32 << 20

	maxCredit = math.MaxInt32
)

// A recvWindow says how much the peer may send on a stream. It doubles while the reader keeps up, so that a long
// round trip does not limit a transfer, and shrinks when the reader does not, so that it cannot fill the memory.
type recvWindow struct {
	size     int64 // bytes; DefaultStreamWindow to maxStreamWindow
	left     int64 // bytes that the peer may still send
	consumed int64 // bytes that were read and not yet given back as credit
	least    int64 // bytes that were left waiting to be read when they were fewest, since credit was last given

	given time.Duration // when that was, after the start of the session; zero before
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
	want := w.size
	switch {
	case w.least == 0 && (w.given == 0 || now-w.given < quickQuarter):
		want *= 2
	case w.least > w.size/2: // of at most three quarters: the rest was read
		want /= 2
	}
	size := st.session.resizeWindow(w.size, want, w.size-w.consumed)
	grant := w.consumed + size - w.size
	w.size = size
	w.left += grant
	w.consumed, w.least, w.given = 0, int64(st.in.size), now
	return uint32(grant)
}

// resizeWindow returns the new size of a window that is to have want bytes, and takes what it grows by from the link's
// budget. It is not less than least, as credit cannot be taken back, nor more than what is then left of the budget: so
// that n streams come to have a share of 1/(n+1) each, and there is one for the next.
func (s *Session) resizeWindow(size, want, least int64) int64 {
	for {
		grown := s.grown.Load()
		next := min(want, maxStreamWindow, (windowBudget-grown+size)/2)
		next = max(next, least, DefaultStreamWindow)
		if s.grown.CompareAndSwap(grown, grown+next-size) {
			return next
		}
	}
}

// releaseWindow gives back to the link's budget what a window of the given size has taken from it.
func (s *Session) releaseWindow(size int64) { s.grown.Add(DefaultStreamWindow - size) }
