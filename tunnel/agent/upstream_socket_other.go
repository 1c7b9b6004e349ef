//go:build !unix

package agent

import (
	"errors"
	"net"
	"os"
	"time"
)

// An upstreamSocket is the socket of a connection that is used again.
type upstreamSocket struct{ raw net.Conn }

func newUpstreamSocket(raw net.Conn) *upstreamSocket { return &upstreamSocket{raw: raw} }

// alive reports whether the peer neither closed the connection nor sent anything. It waits a millisecond. A byte that was
// sent is lost, so a connection that is not alive must be closed.
func (s *upstreamSocket) alive() bool {
	// A deadline that has passed already would fail the read before it looked at the socket.
	if s.raw.SetReadDeadline(time.Now().Add(time.Millisecond)) != nil {
		return false
	}
	var buf [1]byte
	n, err := s.raw.Read(buf[:])
	return n == 0 && errors.Is(err, os.ErrDeadlineExceeded) && s.raw.SetReadDeadline(time.Time{}) == nil
}

// asks reports whether ask works.
func (s *upstreamSocket) asks() bool { return false }

func (s *upstreamSocket) ask(out, in []byte) (sent, n int, err error) {
	panic("agent: BUG: ask where asks is false")
}
