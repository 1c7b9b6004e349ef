package tunnel

import (
	"errors"
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

// A mutedConn is a layer that could have a socket below and does not tell which, as TLS under another layer.
type mutedConn struct{ net.Conn }

func (c mutedConn) SyscallConn() (syscall.RawConn, error) { return nil, errors.ErrUnsupported }
func (c mutedConn) NetConn() net.Conn                     { return c.Conn }

func TestUnsentIsLimitedBelowLayers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	limitUnsent(mutedConn{c})
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		got, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT)
		if got != maxUnsent || err != nil {
			t.Errorf("the kernel takes %d bytes that cannot go out, %v, want %d", got, err, maxUnsent)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}
