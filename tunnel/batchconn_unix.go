//go:build unix

package tunnel

import "syscall"

// writeOnce writes as much of the batch as the connection takes now. It is called by syscall.RawConn, which would wait and
// call again if it returned false.
func (c *batchConn) writeOnce(fd uintptr) bool {
	n, err := syscall.Write(int(fd), c.buf[c.off:c.n])
	c.off += max(n, 0)
	if err != syscall.EAGAIN && err != syscall.EINTR {
		c.tried = err
	}
	return true
}
