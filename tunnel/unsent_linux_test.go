package tunnel

import (
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUnsentIsLimited asks the kernel at both ends of a link, without TLS and with it.
func TestUnsentIsLimited(t *testing.T) {
	server, client := loopback(t)
	secureServer, secureClient := loopbackTLS(t)
	for name, c := range map[string]Conn{
		"server": server, "client": client, "server with TLS": secureServer, "client with TLS": secureClient,
	} {
		below := c.(*wsConn).batch.Conn
		for {
			layer, ok := below.(interface{ NetConn() net.Conn })
			if !ok {
				break
			}
			below = layer.NetConn()
		}
		if b, ok := below.(*batchConn); ok {
			below = b.Conn
		}
		raw, err := below.(syscall.Conn).SyscallConn()
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
