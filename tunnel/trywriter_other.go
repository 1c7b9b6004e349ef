//go:build !unix

package tunnel

import "net"

// NewTryWriter returns what writes to c without waiting; nil if c is no socket, or the system cannot do that.
func NewTryWriter(net.Conn) *TryWriter { return nil }
