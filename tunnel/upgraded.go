package tunnel

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// An UpgradedConn is the bytes of an upgraded connection (RFC 9110, section 7.8), or of one that a handler hijacked.
// Its end is the peer's half-close, and a reset of the connection beyond is an error, never an end.
type UpgradedConn struct {
	st      *stream
	release func() bool // at the edge: stops watching the request's context
	remote  string      // the visitor's address, at the agent
	readBy  deadline
	writeBy deadline

	reading sync.Mutex      // held by Read: a stream has one reader
	writing sync.Mutex      // held by Write: a stream has one writer; guards head
	head    *rawHead        // a response head that the hijacker writes itself; nil once it has
	answer  bool            // what is written is the answer to a request, not the bytes after a 101
	chunks  *hijackedChunks // takes the body, if the hijacker chunks it; else nil
}

func newUpgradedConn(st *stream) *UpgradedConn {
	return &UpgradedConn{st: st, readBy: newDeadline(), writeBy: newDeadline()}
}

// Read returns io.EOF after the peer's half-close, and a *CancelError after a reset.
func (c *UpgradedConn) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	return c.st.read(p, c.readBy.wait())
}

// Write sends p. It waits while the peer does not read.
func (c *UpgradedConn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.head == nil {
		return c.writeBody(p)
	}
	rest, err := c.head.write(p)
	if err != nil {
		return 0, err
	}
	if c.head.status != 0 {
		c.answer = c.head.status != http.StatusSwitchingProtocols
		if c.head.chunked {
			c.chunks = &hijackedChunks{c: c}
		}
		c.head = nil
	}
	n, err := c.writeBody(rest)
	return len(p) - len(rest) + n, err
}

func (c *UpgradedConn) writeBody(p []byte) (int, error) {
	if c.chunks != nil {
		return c.chunks.write(p)
	}
	return c.st.write(p, c.writeBy.wait())
}

// CloseWrite ends what this end sends, after a Write that is under way. After a 101 the other direction stays open; else
// the answer is complete, and with it the exchange (PROTOCOL.md, section 9.2): nothing more can be read.
func (c *UpgradedConn) CloseWrite() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	return c.endWrite()
}

// endWrite is called with writing held.
func (c *UpgradedConn) endWrite() error {
	if c.head != nil {
		c.st.cancel(messages.CancelBroken, "the service closed the connection without an answer")
		return nil
	}
	var err error
	if c.chunks != nil {
		err = c.chunks.close()
	} else {
		err = c.st.endBody()
	}
	if c.answer {
		c.st.leave()
	}
	return err
}

// Close ends both directions. What was written still arrives, unless a Write is under way: that fails, and to the
// peer it is a reset, so that what arrived of it does not look complete.
func (c *UpgradedConn) Close() error {
	if !c.writing.TryLock() {
		return c.Reset()
	}
	defer c.writing.Unlock()
	err := c.endWrite()
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
	w       *responseWriter
	text    []byte
	status  int  // of the final head; 0 before it was sent
	chunked bool // the hijacker chunks the body
}

// write takes the next bytes of the head, which interim ones may precede, and returns those behind it.
func (h *rawHead) write(p []byte) (rest []byte, err error) {
	h.text = append(h.text, p...)
	for h.status == 0 {
		end := bytes.Index(h.text, []byte("\r\n\r\n"))
		if end < 0 {
			if len(h.text) > 64<<10 {
				return nil, errors.New("tunnel: hijacker wrote 64 KiB that are no response head")
			}
			return nil, nil
		}
		if err := h.send(h.text[:end+4]); err != nil {
			return nil, err
		}
		h.text = h.text[end+4:]
	}
	rest, h.text = h.text, nil
	return rest, nil
}

// send sends one head.
func (h *rawHead) send(text []byte) error {
	res, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(text)), h.w.r)
	if err != nil {
		return fmt.Errorf("tunnel: hijacker wrote no HTTP response: %w", err)
	}
	status := res.StatusCode
	h.chunked = len(res.TransferEncoding) > 0 && h.w.method != http.MethodHead && bodyAllowed(status)
	if status == http.StatusSwitchingProtocols && h.w.st.kind != messages.TypeWSMessage {
		return errors.New("tunnel: 101 to a request without Upgrade")
	}
	if !isInterim(status) {
		h.status = status
	}
	return h.w.sendHead(status, appendResponseHeader(nil, res.Header, status), 0, false)
}
