package tunnel

import "sync"

// keepBuffer is the largest buffer in bytes that is kept for the next batch.
const keepBuffer = 512 << 10

// The pool holds pointers to slices. spareSlices keeps those that hold nothing just now: to make one for each buffer that
// is released would be an allocation of its own, ten for a request.
var (
	bufferPool  sync.Pool // of *[]byte with a buffer
	spareSlices = sync.Pool{New: func() any { return new([]byte) }}
)

// buffer is b, or a buffer of the pool if there is none: a link that is idle holds none.
func buffer(b []byte) []byte {
	if b != nil {
		return b
	}
	p, _ := bufferPool.Get().(*[]byte)
	if p == nil {
		return make([]byte, 0, 4<<10)
	}
	b, *p = (*p)[:0], nil
	spareSlices.Put(p)
	return b
}

// releaseBuffer takes b back, which nobody may use any more.
func releaseBuffer(b []byte) {
	if cap(b) == 0 || cap(b) > keepBuffer {
		return
	}
	p := spareSlices.Get().(*[]byte)
	*p = b
	bufferPool.Put(p)
}
