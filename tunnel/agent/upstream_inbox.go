package agent

import (
	"bytes"
	"errors"
	"io"
)

// errSectionTooLong is what section returns when the fields, and what fill returns when a line, are over the limit.
var errSectionTooLong = errors.New("head too long")

// An upstreamInbox is the receiving half of a connection: bytes that came and were not used yet. Slices of it stay
// valid until the next fill. It holds no memory between release and the next fill.
type upstreamInbox struct {
	src  io.Reader
	lent lentBuffer
	buf  []byte // what lent gave, or a longer one while a head needs it
	r, w int    // buf[r:w] is unread
	last int    // what the last read brought, as lentBuffer.next wants it
	err  error  // of a read that ask made; for the next fill
}

func (b *upstreamInbox) unread() []byte { return b.buf[b.r:b.w] }

func (b *upstreamInbox) skip(n int) { b.r += n }

// fill reads once, behind what is unread, and fails with errSectionTooLong if limit bytes are unread already.
// Any other error is the connection's; there is io.EOF only at a clean end.
func (b *upstreamInbox) fill(limit int) error {
	switch {
	case b.err != nil:
		return b.err
	case b.r == b.w:
		b.renew()
	case b.w-b.r >= limit:
		return errSectionTooLong
	case b.r > 0:
		b.w = copy(b.buf, b.buf[b.r:b.w])
		b.r = 0
	}
	if b.w == len(b.buf) {
		b.buf = append(b.buf[:len(b.buf):len(b.buf)], make([]byte, len(b.buf))...)
	}
	n, err := b.src.Read(b.buf[b.w:])
	b.took(n)
	if n > 0 {
		return nil // an error comes again with the next read
	}
	return err
}

// ask is upstreamSocket.ask for the first fill after nothing was unread. The error is errStale or nil: that of a read is
// the next fill's.
func (b *upstreamInbox) ask(s *upstreamSocket, out []byte) (sent int, err error) {
	b.renew()
	sent, n, err := s.ask(out, b.buf)
	b.took(n)
	if err == errStale {
		return 0, err
	}
	b.err = err
	return sent, nil
}

// renew makes room when nothing is unread.
func (b *upstreamInbox) renew() {
	b.buf = b.lent.next(b.last)
	b.r, b.w = 0, 0
}

// took notes that a read has put n bytes behind what is unread.
func (b *upstreamInbox) took(n int) {
	room := len(b.buf) - b.w
	b.w += n
	if b.last = n; n == room {
		b.last = max(n, smallBuffer)
	}
}

// section returns all lines up to and with the first empty one, and takes them out: the head of a message, or the
// trailers. If the connection ends before, the error is io.EOF if nothing at all came, else io.ErrUnexpectedEOF.
func (b *upstreamInbox) section(limit int) (string, error) {
	line, seen := 0, 0 // where in unread the last line begins, and what was searched
	for {
		p := b.unread()
		for {
			i := bytes.IndexByte(p[seen:], '\n')
			if i < 0 {
				seen = len(p)
				break
			}
			end := seen + i + 1
			if end > limit {
				return "", errSectionTooLong
			}
			if n := end - line; n == 1 || n == 2 && p[line] == '\r' {
				s := string(p[:end])
				b.skip(end)
				return s, nil
			}
			line, seen = end, end
		}
		if err := b.fill(limit); err != nil {
			if err == io.EOF && len(b.unread()) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return "", err
		}
	}
}

// release gives the memory back. What is unread is lost.
func (b *upstreamInbox) release() {
	b.lent.release()
	b.buf, b.r, b.w, b.last, b.err = nil, 0, 0, 0, nil
}
