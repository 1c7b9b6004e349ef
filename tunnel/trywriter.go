package tunnel

import (
	"cmp"
	"syscall"
)

// A TryWriter writes to a socket what it takes at once, for who must not wait. One goroutine at a time may use it.
type TryWriter struct {
	raw  syscall.RawConn
	once func(fd uintptr) bool // writeOnce, which would be an allocation each time
	left []byte
	err  error // what writeOnce met
}

// TryWrite writes as much of p as the socket takes, and returns how many bytes that was. It may be fewer than len(p)
// without an error.
func (w *TryWriter) TryWrite(p []byte) (n int, err error) {
	w.left, w.err = p, nil
	err = w.raw.Write(w.once)
	n = len(p) - len(w.left)
	w.left = nil
	return n, cmp.Or(err, w.err)
}
