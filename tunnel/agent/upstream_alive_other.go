//go:build !unix

package agent

import (
	"errors"
	"net"
	"os"
	"time"
)

// A socketProbe looks at an idle socket with a read that must not last.
type socketProbe struct{ raw net.Conn }

func newSocketProbe(raw net.Conn) *socketProbe { return &socketProbe{raw: raw} }

// alive reports whether the peer neither closed the connection nor sent anything. A byte that was sent is lost, so a
// connection that is not alive must be closed.
func (p *socketProbe) alive() bool {
	// A deadline that has passed already would fail the read before it looked at the socket.
	if p.raw.SetReadDeadline(time.Now().Add(time.Millisecond)) != nil {
		return false
	}
	var buf [1]byte
	n, err := p.raw.Read(buf[:])
	return n == 0 && errors.Is(err, os.ErrDeadlineExceeded) && p.raw.SetReadDeadline(time.Time{}) == nil
}
