package tunnel

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// An UpgradedConn is the bytes of an upgraded connection (RFC 9110, section 7.8), or of one that a handler hijacked.
// Its end is the peer's half-close, and a reset of the connection beyond is an error, never an end.
type UpgradedConn struct {
	st      *stream
	release func() bool // at the edge: stops watching the request's context
	remote  string      // the visitor's address, at the agent
	head    *rawHead    // a response head that the hijacker writes itself; nil once it has
	readBy  deadline
	writeBy deadline
}

// Read returns io.EOF after the peer's half-close, and a *CancelError after a reset.
func (c *UpgradedConn) Read(p []byte) (int, error) { return c.st.read(p, c.readBy.wait()) }

// Write sends p. It waits while the peer does not read.
func (c *UpgradedConn) Write(p []byte) (int, error) {
	if c.head != nil {
		rest, err := c.head.write(p)
		if err != nil {
			return 0, err
		}
		if c.head.done {
			c.head = nil
		}
		if len(rest) > 0 {
			if _, err := c.st.write(rest, c.writeBy.wait()); err != nil {
				return 0, err
			}
		}
		return len(p), nil
	}
	return c.st.write(p, c.writeBy.wait())
}

// CloseWrite ends what this end sends; the other direction stays open.
func (c *UpgradedConn) CloseWrite() error { return c.st.endBody() }

// Close ends both directions. What was written still arrives.
func (c *UpgradedConn) Close() error {
	err := c.st.endBody()
	c.st.leave()
	c.free()
	return err
}

// Reset ends both directions so that the peer cannot take it for a proper end.
func (c *UpgradedConn) Reset() error {
	c.st.cancel(messages.CancelAborted, "connection reset")
	c.free()
	return nil
}

func (c *UpgradedConn) free() {
	if c.release != nil {
		c.release()
	}
	c.readBy.set(time.Time{})
	c.writeBy.set(time.Time{})
}

// SetDeadline sets both deadlines; the zero time means never.
func (c *UpgradedConn) SetDeadline(t time.Time) error {
	c.readBy.set(t)
	c.writeBy.set(t)
	return nil
}

// SetReadDeadline makes reads fail with os.ErrDeadlineExceeded after t.
func (c *UpgradedConn) SetReadDeadline(t time.Time) error {
	c.readBy.set(t)
	return nil
}

// SetWriteDeadline makes writes fail with os.ErrDeadlineExceeded after t.
func (c *UpgradedConn) SetWriteDeadline(t time.Time) error {
	c.writeBy.set(t)
	return nil
}

// LocalAddr names the tunnel.
func (c *UpgradedConn) LocalAddr() net.Addr { return addr("harp") }

// RemoteAddr is the visitor's address.
func (c *UpgradedConn) RemoteAddr() net.Addr { return addr(c.remote) }

type addr string

func (addr) Network() string  { return "harp" }
func (a addr) String() string { return string(a) }

// rawHead turns the response head that a hijacker writes into a message.
type rawHead struct {
	w    *responseWriter
	text []byte
	done bool
}

// write takes the next bytes of the head and returns those behind it.
func (h *rawHead) write(p []byte) (rest []byte, err error) {
	h.text = append(h.text, p...)
	end := bytes.Index(h.text, []byte("\r\n\r\n"))
	if end < 0 {
		if len(h.text) > 64<<10 {
			return nil, errors.New("tunnel: hijacker wrote 64 KiB that are no response head")
		}
		return nil, nil
	}
	res, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(h.text[:end+4])), h.w.r)
	if err != nil {
		return nil, fmt.Errorf("tunnel: hijacker wrote no HTTP response: %w", err)
	}
	if len(res.TransferEncoding) > 0 {
		return nil, errors.New("tunnel: hijacker wrote a chunked response, which is not supported here")
	}
	rest, h.text, h.done = h.text[end+4:], nil, true
	w := h.w
	w.status, w.headSent = res.StatusCode, true
	if res.StatusCode == http.StatusSwitchingProtocols && w.st.kind != messages.TypeWSMessage {
		return nil, errors.New("tunnel: 101 to a request without Upgrade")
	}
	return rest, w.sendHead(res.StatusCode, appendResponseHeader(nil, res.Header, res.StatusCode), 0)
}
