package tunnel

import "sync"

// chunkSize is the size in bytes of the pieces in which a stream holds what has come and was not read yet.
const chunkSize = turn

type chunk struct {
	next *chunk
	r, w int              // what is held is b[r:w]
	b    *[chunkSize]byte // apart, because the allocator would round a chunk in one piece up to 40 KiB
}

var chunkPool = sync.Pool{New: func() any { return &chunk{b: new([chunkSize]byte)} }}

// A byteQueue is a queue of bytes in pooled chunks. The zero value is empty and holds no memory.
type byteQueue struct {
	head, tail *chunk
	size       int // bytes held
}

func (q *byteQueue) write(p []byte) {
	q.size += len(p)
	for len(p) > 0 {
		if q.tail == nil || q.tail.w == chunkSize {
			c := chunkPool.Get().(*chunk)
			c.next, c.r, c.w = nil, 0, 0
			if q.tail == nil {
				q.head = c
			} else {
				q.tail.next = c
			}
			q.tail = c
		}
		n := copy(q.tail.b[q.tail.w:], p)
		q.tail.w += n
		p = p[n:]
	}
}

// read moves bytes into p and returns how many.
func (q *byteQueue) read(p []byte) (n int) {
	for n < len(p) && q.head != nil {
		m := copy(p[n:], q.head.b[q.head.r:q.head.w])
		q.head.r += m
		q.size -= m
		if n += m; q.head.r == q.head.w {
			releaseChunk(q.take())
		}
	}
	return n
}

// take removes the first chunk, nil if there is none. It is the caller's until releaseChunk.
func (q *byteQueue) take() *chunk {
	c := q.head
	if c == nil {
		return nil
	}
	if q.head = c.next; q.head == nil {
		q.tail = nil
	}
	q.size -= c.w - c.r
	return c
}

func (q *byteQueue) clear() {
	for c := q.take(); c != nil; c = q.take() {
		releaseChunk(c)
	}
}

func releaseChunk(c *chunk) { chunkPool.Put(c) }
