package server

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"net/http"
)

// maxRequestID bounds a visitor's own X-Request-Id, in bytes.
const maxRequestID = 128

// requestID returns the X-Request-Id under which r goes through logs and error pages: the visitor's own if there
// is exactly one and it is 1 to 128 visible ASCII characters, else 32 new hex digits. Whether a trusted proxy
// handed the request on makes no difference: an id grants nothing, it is only found again in a log.
func requestID(r *http.Request) string {
	if own := r.Header["X-Request-Id"]; len(own) == 1 && validRequestID(own[0]) {
		return own[0]
	}
	return newRequestID()
}

func newRequestID() string {
	var raw [16]byte // unique, not secret: math/rand/v2 is seeded from the system and has no lock
	binary.BigEndian.PutUint64(raw[:8], rand.Uint64())
	binary.BigEndian.PutUint64(raw[8:], rand.Uint64())
	var text [32]byte
	hex.Encode(text[:], raw[:])
	return string(text[:])
}

func validRequestID(s string) bool {
	return s != "" && len(s) <= maxRequestID && isVisible(s)
}

// isVisible reports whether s holds nothing but visible ASCII characters.
func isVisible(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
