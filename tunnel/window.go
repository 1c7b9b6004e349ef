package tunnel

import "math"

const (
	// DefaultStreamWindow is how many bytes either end may send on a new stream before it gets credit.
	DefaultStreamWindow = 256 << 10
	// maxStreamWindow is how far the window of a stream grows, in bytes.
	maxStreamWindow = 4 << 20
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
	since    int64 // bytes that were read since the size last changed
	least    int64 // bytes that were waiting to be read when they were fewest, since credit was last given
}

// consumedLocked notes that the reader took n bytes, and returns how much credit to give for it, often none yet.
func (st *stream) consumedLocked(n int) uint32 {
	w := &st.recv
	w.consumed += int64(n)
	w.since += int64(n)
	w.least = min(w.least, int64(st.in.size))
	if st.inEnded || st.inErr != nil || w.consumed < w.size/2 {
		return 0
	}
	grant := w.consumed
	switch {
	case w.least == 0 && w.since >= w.size && w.size < maxStreamWindow:
		if more := st.session.growWindow(min(w.size, maxStreamWindow-w.size)); more > 0 {
			grant += more
			w.size += more
			w.since = 0
		}
	case w.least > w.size/4 && w.size > DefaultStreamWindow: // of at most half a window: the rest was read
		less := min(w.size-max(w.size/2, DefaultStreamWindow), grant)
		st.session.shrinkWindow(less)
		grant -= less
		w.size -= less
		w.since = 0
	}
	w.left += grant
	w.consumed, w.least = 0, int64(st.in.size)
	return uint32(grant)
}

// growWindow takes up to n bytes from the link's budget.
func (s *Session) growWindow(n int64) int64 {
	for {
		used := s.grown.Load()
		n = min(n, windowBudget-used)
		if n <= 0 || s.grown.CompareAndSwap(used, used+n) {
			return n
		}
	}
}

// shrinkWindow gives n bytes back to the link's budget.
func (s *Session) shrinkWindow(n int64) { s.grown.Add(-n) }
