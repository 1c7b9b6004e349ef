package tunnel

import (
	"net/http"
	"net/textproto"
	"strconv"

	"github.com/harp-tunnel/harp/messages"
)

// appendHeader appends the fields of h. Names that are not valid in a message are left out.
func appendHeader(b []byte, h http.Header) []byte {
	for name, values := range h {
		for _, v := range values {
			b = messages.AppendField(b, name, v)
		}
	}
	return b
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
