package agent

import (
	"iter"
	"strings"
)

// validToken reports whether s is a token of RFC 9110 section 5.6.2, as methods and field names are.
func validToken(s string) bool {
	for i := range len(s) {
		if !tokenByte(s[i]) {
			return false
		}
	}
	return s != ""
}

func tokenByte(c byte) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-':
		return true
	case c > ' ' && c < 0x7f:
		return strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) < 0
	}
	return false
}

// validTarget reports whether s can stand in a request line and be read back whole.
func validTarget(s string) bool {
	return s != "" && validHost(s)
}

// validHost reports whether s has no space and no control character; it may be empty.
func validHost(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

func validFieldValue(s string) bool {
	return !strings.ContainsAny(s, "\r\n\x00")
}

// validTrailer reports whether a field may come behind a body (RFC 9110 section 6.5.1).
func validTrailer(name string) bool {
	switch name {
	case "Content-Length", "Host", "Te", "Trailer":
		return false
	}
	return validToken(name) && !hopByHop(name)
}

// headerTokens yields the members of a comma-separated field, all its lines taken as one.
func headerTokens(values []string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, v := range values {
			for more := true; more; {
				var token string
				token, v, more = strings.Cut(v, ",")
				if token = trimOWS(token); token != "" && !yield(token) {
					return
				}
			}
		}
	}
}

func headerHasToken(values []string, want string) bool {
	for token := range headerTokens(values) {
		if strings.EqualFold(token, want) {
			return true
		}
	}
	return false
}

// trimOWS removes the optional white space of RFC 9110 section 5.6.3.
func trimOWS(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for s != "" && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}
