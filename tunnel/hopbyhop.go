package tunnel

import (
	"net/http"
	"strings"
)

// IsHopByHop reports whether a field, in canonical form, belongs to one connection only and must not travel through
// the tunnel (RFC 9110, section 7.6.1). named is what ConnectionNames found.
func IsHopByHop(name string, named map[string]bool) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Connection", "Transfer-Encoding", "Upgrade", "Http2-Settings":
		return true
	}
	return named[name]
}

// ConnectionNames returns the field names, in canonical form, that the Connection fields list; nil if none.
func ConnectionNames(h http.Header) (names map[string]bool) {
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			name = strings.TrimSpace(name)
			if name == "" || strings.EqualFold(name, "keep-alive") || strings.EqualFold(name, "close") {
				continue
			}
			if names == nil {
				names = make(map[string]bool)
			}
			names[http.CanonicalHeaderKey(name)] = true
		}
	}
	return names
}
