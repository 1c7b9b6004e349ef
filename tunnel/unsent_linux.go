package tunnel

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxUnsent is how many bytes the kernel takes before they can go out, beyond those under way. What it holds, up to 4 MiB
// else, is in front of every head: over 100 Mbit/s small requests beside four downloads took 1 to 2 s without this, 60 ms
// with it. Less than a batch would cut the writes.
const maxUnsent = batchSize

// limitUnsent has c, a TCP connection or layers over one that tell what is below, as TLS does, take no more than maxUnsent.
// It is a matter of speed only: errors do not count.
func limitUnsent(c net.Conn) {
	for {
		if s, ok := c.(syscall.Conn); ok {
			if raw, err := s.SyscallConn(); err == nil {
				_ = raw.Control(func(fd uintptr) {
					_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, maxUnsent)
				})
				return
			}
		}
		layer, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return
		}
		c = layer.NetConn()
	}
}
