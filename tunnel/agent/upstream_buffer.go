package agent

import "sync"

const (
	smallBuffer = 4 << 10  // what a reader holds while it waits, or while little comes
	largeBuffer = 32 << 10 // what it holds while data fills it; the largest piece that is passed on at once
)

// upstreamBuffers lends buffers of two sizes. The zero value is ready; any goroutine may use it.
type upstreamBuffers struct {
	small sync.Pool // of *[smallBuffer]byte
	large sync.Pool // of *[largeBuffer]byte
}

// A lentBuffer is what one reading loop reads into. It is small until a read has filled it, so that thousands of
// silent streams cost 4 KiB each and a download still moves 32 KiB a system call.
type lentBuffer struct {
	from  *upstreamBuffers
	small *[smallBuffer]byte
	large *[largeBuffer]byte
}

// next returns the buffer for the next read; last is how many bytes the read before brought, smallBuffer or more if
// it brought all it had room for. What the buffer held before is lost.
func (l *lentBuffer) next(last int) []byte {
	if last >= smallBuffer {
		l.dropSmall()
		if l.large == nil {
			l.large, _ = l.from.large.Get().(*[largeBuffer]byte)
		}
		if l.large == nil {
			l.large = new([largeBuffer]byte)
		}
		return l.large[:]
	}
	l.dropLarge()
	if l.small == nil {
		l.small, _ = l.from.small.Get().(*[smallBuffer]byte)
	}
	if l.small == nil {
		l.small = new([smallBuffer]byte)
	}
	return l.small[:]
}

// release gives the buffer back; next may be called again.
func (l *lentBuffer) release() {
	l.dropSmall()
	l.dropLarge()
}

func (l *lentBuffer) dropSmall() {
	if l.small != nil {
		l.from.small.Put(l.small)
		l.small = nil
	}
}

func (l *lentBuffer) dropLarge() {
	if l.large != nil {
		l.from.large.Put(l.large)
		l.large = nil
	}
}
