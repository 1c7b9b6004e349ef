package tunnel

import (
	"net/http"
	"net/textproto"
	"strconv"

	"golang.org/x/net/http/httpguts"

	"github.com/harp-tunnel/harp/messages"
)

// appendHeader appends the fields of h.
func appendHeader(b []byte, h http.Header) []byte {
	for name, values := range h {
		b = appendValues(b, name, values)
	}
	return b
}

// appendValues appends a field with all its values. As in net/http, a name that is no token is left out, and what a
// value must not hold becomes a blank: else the peer would refuse the whole head.
func appendValues(b []byte, name string, values []string) []byte {
	if !httpguts.ValidHeaderFieldName(name) {
		return b
	}
	for _, v := range values {
		if !httpguts.ValidHeaderFieldValue(v) {
			v = blank(v)
		}
		b = messages.AppendField(b, name, v)
	}
	return b
}

// blank puts blanks in the place of control characters.
func blank(v string) string {
	b := []byte(v)
	for i, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			b[i] = ' '
		}
	}
	return string(b)
}

// fieldCount returns how many fields h makes in a message.
func fieldCount(h http.Header) (n int) {
	for _, values := range h {
		n += len(values)
	}
	return n
}

// decodeHeader builds the map that net/http works with: two allocations, whatever the number of fields.
func decodeHeader(f messages.Fields) http.Header {
	n := 0
	for range f.All() {
		n++
	}
	h := make(http.Header, n)
	values := make([]string, n) // one array behind all values
	for name, value := range f.All() {
		name = textproto.CanonicalMIMEHeaderKey(name)
		if old := h[name]; old != nil {
			h[name] = append(old, value)
			continue
		}
		values[0] = value
		h[name], values = values[:1:1], values[1:]
	}
	return h
}

// contentLength reads the Content-Length field: -1 if there is none or it is no number.
func contentLength(h http.Header) int64 {
	v := h["Content-Length"]
	if len(v) != 1 {
		return -1
	}
	n, err := strconv.ParseUint(v[0], 10, 63)
	if err != nil {
		return -1
	}
	return int64(n)
}

// bodyAllowed reports whether a response with this status can have a body (RFC 9110, section 6.4.1).
func bodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}
