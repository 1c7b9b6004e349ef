//go:build unix

package agent

import (
	"net"
	"syscall"
)

// A socketProbe asks the kernel about an idle socket without waiting.
type socketProbe struct {
	rc    syscall.RawConn
	look  func(fd uintptr) bool // p.read; kept, because making it anew would allocate
	buf   [1]byte
	quiet bool
}

func newSocketProbe(raw net.Conn) *socketProbe {
	p := new(socketProbe)
	p.look = p.read
	if sc, ok := raw.(syscall.Conn); ok {
		p.rc, _ = sc.SyscallConn()
	}
	return p
}

// alive reports whether the peer neither closed the connection nor sent anything. A byte that was sent is lost, so a
// connection that is not alive must be closed.
func (p *socketProbe) alive() bool {
	if p.rc == nil {
		return true
	}
	p.quiet = false
	return p.rc.Read(p.look) == nil && p.quiet
}

func (p *socketProbe) read(fd uintptr) bool {
	for {
		n, err := syscall.Read(int(fd), p.buf[:])
		if err == syscall.EINTR {
			continue
		}
		p.quiet = n < 0 && (err == syscall.EAGAIN || err == syscall.EWOULDBLOCK)
		return true
	}
}
