package tunnel

import (
	"net/http"
	"strings"
)

// IsHopByHop reports whether a field, in canonical form, belongs to one connection only and must not travel through
// the tunnel (RFC 9110, section 7.6.1). named is what ConnectionNames found.
func IsHopByHop(name string, named []string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Connection", "Transfer-Encoding", "Upgrade", "Http2-Settings":
		return true
	}
	for _, n := range named {
		if n == name {
			return true
		}
	}
	return false
}

// ConnectionNames returns the field names, in canonical form, that the Connection fields list.
func ConnectionNames(h http.Header) (names []string) {
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			name = strings.TrimSpace(name)
			if name == "" || strings.EqualFold(name, "keep-alive") || strings.EqualFold(name, "close") {
				continue
			}
			names = append(names, http.CanonicalHeaderKey(name))
		}
	}
	return names
}
