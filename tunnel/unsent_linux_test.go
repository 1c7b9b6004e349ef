package tunnel

import (
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUnsentIsLimited asks the kernel at both ends of a link.
func TestUnsentIsLimited(t *testing.T) {
	server, client := loopback(t)
	for name, c := range map[string]Conn{"server": server, "client": client} {
		raw, err := c.(*wsConn).batch.Conn.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		err = raw.Control(func(fd uintptr) {
			got, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT)
			if got != maxUnsent || err != nil {
				t.Errorf("%s: the kernel takes %d bytes that cannot go out, %v, want %d", name, got, err, maxUnsent)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
}
