package agent

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// bodyFraming is how the end of a response's body is found.
type bodyFraming uint8

const (
	framingNone       bodyFraming = iota // there is no body
	framingSized                         // Content-Length
	framingChunked                       // chunked transfer coding
	framingUntilClose                    // the connection's clean end
)

// A responseFraming is what a response's head says about its body, and about the connection after it.
type responseFraming struct {
	kind   bodyFraming
	length int64         // of a sized body, in bytes
	reuse  bool          // the connection can carry another request
	rest   time.Duration // how long the upstream keeps it idle, by its Keep-Alive field; 0 if it does not say
}

// frame applies RFC 9112 section 6.3 to the head of a final response. It leaves out of the fields a Content-Length
// that Transfer-Encoding overrides, and all but one of several equal ones. The error is one of bad framing.
func (h *responseHead) frame(method string) (responseFraming, error) {
	fr := responseFraming{reuse: h.minor >= 1}
	length, coding := -1, -1 // index of the field
	for i := range h.fields {
		f := &h.fields[i]
		switch f.name {
		case "Content-Length":
			n, err := parseContentLength(f.value)
			switch {
			case err != nil:
				return fr, err
			case length < 0:
				length, fr.length = i, n
				if !isDigits(f.value) || f.value[0] == '0' { // else it is what FormatInt would allocate
					f.value = strconv.FormatInt(n, 10)
				}
			case n != fr.length:
				return fr, errors.New("two different Content-Lengths")
			default:
				f.name = ""
			}
		case "Transfer-Encoding":
			if coding >= 0 || !strings.EqualFold(f.value, "chunked") {
				return fr, errors.New("transfer coding other than chunked")
			}
			coding = i
		case "Connection":
			fr.connection(f.value, h.minor)
		case "Keep-Alive":
			fr.rest = keepAliveTimeout(f.value)
		}
	}
	switch {
	case method == http.MethodHead, h.status < 200, h.status == 204, h.status == 304:
		fr.kind, fr.length = framingNone, 0
	case coding >= 0:
		fr.kind, fr.length = framingChunked, 0
	case length >= 0 && fr.length == 0:
		fr.kind = framingNone
	case length >= 0:
		fr.kind = framingSized
	default:
		fr.kind, fr.reuse = framingUntilClose, false
	}
	if coding >= 0 && (length >= 0 || h.minor < 1) {
		fr.reuse = false // section 6.1: such framing may be an attempt at smuggling
		if length >= 0 {
			h.fields[length].name = ""
		}
	}
	return fr, nil
}

// connection notes what the options of a Connection field say about the connection's life (RFC 9112 section 9.3).
func (fr *responseFraming) connection(value string, minor int) {
	for more := true; more; {
		var option string
		option, value, more = strings.Cut(value, ",")
		switch option = trimOWS(option); {
		case strings.EqualFold(option, "close"):
			fr.reuse = false
			return
		case strings.EqualFold(option, "keep-alive") && minor == 0:
			fr.reuse = true
		}
	}
}

// parseContentLength reads a length, or a list of equal ones (RFC 9110 section 8.6).
func parseContentLength(value string) (int64, error) {
	n := int64(-1)
	for more := true; more; {
		var s string
		s, value, more = strings.Cut(value, ",")
		if s = trimOWS(s); !isDigits(s) {
			return 0, errors.New("malformed Content-Length")
		}
		v, err := strconv.ParseInt(s, 10, 64)
		switch {
		case err != nil:
			return 0, errors.New("malformed Content-Length")
		case n >= 0 && v != n:
			return 0, errors.New("two different Content-Lengths")
		}
		n = v
	}
	return n, nil
}

// keepAliveTimeout reads "timeout=5, max=100"; it returns 0 if there is no timeout.
func keepAliveTimeout(value string) time.Duration {
	for more := true; more; {
		var param string
		param, value, more = strings.Cut(value, ",")
		name, seconds, _ := strings.Cut(trimOWS(param), "=")
		if !strings.EqualFold(name, "timeout") {
			continue
		}
		if n, err := strconv.ParseUint(seconds, 10, 20); err == nil {
			return time.Duration(n) * time.Second
		}
	}
	return 0
}
