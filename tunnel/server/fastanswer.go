package server

import (
	"net/http"
	"net/textproto"
	"strconv"
	"time"

	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

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
