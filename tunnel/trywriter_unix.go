//go:build unix

package tunnel

import (
	"net"
	"syscall"
)

// NewTryWriter returns what writes to c without waiting; nil if c is no socket, or the system cannot do that.
func NewTryWriter(c net.Conn) *TryWriter {
	s, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	w := &TryWriter{raw: raw}
	w.once = w.writeOnce
	return w
}

// writeOnce writes as much as the socket takes now. It is called by syscall.RawConn, which would wait and call again if it
// returned false.
func (w *TryWriter) writeOnce(fd uintptr) bool {
	n, err := syscall.Write(int(fd), w.left)
	w.left = w.left[max(n, 0):]
	if err != syscall.EAGAIN && err != syscall.EINTR {
		w.err = err
	}
	return true
}
