package server

import (
	"net/http"
	"net/textproto"
	"strconv"
	"time"

	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

// answerLocked writes a whole answer, or leaves it to net/http.
func (c *fastConn) answerLocked(head messages.HTTPResponse, size int) {
	s := c.listener.server
	if limit := s.options.MaxBody; limit > 0 && int64(size) > limit {
		c.rouseLocked(fastLeaves)
		return
	}
	scratch := scratchPool.Get().(*[]byte)
	b, ok := c.appendAnswerLocked((*scratch)[:0], head, size)
	if *scratch = b; !ok {
		scratchPool.Put(scratch)
		c.rouseLocked(fastLeaves)
		return
	}
	now := time.Now()
	s.metrics.request(head.Status, now.Sub(c.visit.began).Seconds())
	s.metrics.bytes(0, int64(size))
	s.metrics.stream(-1)
	c.state, c.visit, c.since = fastIdle, fastVisit{}, now
	n := 0
	if c.try != nil {
		var err error
		if n, err = c.try.TryWrite(b); err != nil || n == len(b) {
			scratchPool.Put(scratch)
			if err != nil {
				c.rouseLocked(fastBroken)
			}
			return
		}
	}
	c.state = fastSends
	c.listener.running.Go(func() { // ends when the visitor has taken it, at the latest when expire or stop say so
		c.send(b[n:])
		scratchPool.Put(scratch)
	})
}

// send writes what is left of an answer.
func (c *fastConn) send(rest []byte) {
	_, err := c.Conn.Write(rest)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state, c.since = fastIdle, time.Now()
	switch {
	case err != nil:
		c.rouseLocked(fastBroken)
	case c.listener.closed():
		c.rouseLocked(fastEnds)
	case c.late:
		c.late = false
		_ = c.Conn.SetWriteDeadline(time.Time{})
	}
	select {
	case c.sent <- struct{}{}:
	default:
	}
}

// appendAnswerLocked appends a whole answer with a body of size bytes, as the ordinary way would write it (respond.go), and
// takes it. It reports false, and the answer is still there, if that is not for here.
func (c *fastConn) appendAnswerLocked(b []byte, head messages.HTTPResponse, size int) ([]byte, bool) {
	v := &c.visit
	text := http.StatusText(head.Status)
	if text == "" {
		return b, false
	}
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(head.Status), 10)
	b = append(append(b, ' '), text...)
	b = append(b, "\r\n"...)
	var length, dated, named, strict bool
	for name, value := range head.Fields.All() {
		name = textproto.CanonicalMIMEHeaderKey(name)
		switch name {
		case "Content-Length":
			if n, err := strconv.ParseUint(value, 10, 63); err != nil || n != uint64(size) || length {
				return b, false
			}
			length = true
		case "Date":
			dated = true
		case "X-Request-Id":
			named = true
		case strictTransport:
			strict = true
		case "Trailer":
			return b, false
		}
		if tunnel.IsHopByHop(name, nil) {
			return b, false
		}
		if !isHarpField(name) {
			b = appendLine(b, name, value)
		}
	}
	if !dated {
		b = append(b, "Date: "...)
		b = time.Now().UTC().AppendFormat(b, http.TimeFormat)
		b = append(b, "\r\n"...)
	}
	if !named {
		b = appendLine(b, "X-Request-Id", v.id)
	}
	if rule := c.listener.server.hsts; rule != "" && c.tls != nil && !strict {
		b = appendLine(b, strictTransport, rule)
	}
	switch bodyless := head.Status == http.StatusNoContent || head.Status == http.StatusNotModified; {
	case bodyless && (length || size > 0):
		return b, false
	case length, bodyless:
		return v.pending.Take(append(b, "\r\n"...))
	case size == 0:
		return v.pending.Take(append(b, "Content-Length: 0\r\n\r\n"...))
	}
	b = append(b, "Transfer-Encoding: chunked\r\n\r\n"...)
	b = strconv.AppendInt(b, int64(size), 16)
	b, ok := v.pending.Take(append(b, "\r\n"...))
	return append(b, "\r\n0\r\n\r\n"...), ok
}

func appendLine(b []byte, name, value string) []byte {
	b = append(append(b, name...), ": "...)
	return append(append(b, value...), "\r\n"...)
}
