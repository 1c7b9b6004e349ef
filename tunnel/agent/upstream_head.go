package agent

import (
	"errors"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/harp-tunnel/harp/messages"
)

// keptFields is how many fields' room a responseHead keeps for the next head.
const keptFields = 64

// A headField is one line of a head or of trailers.
type headField struct {
	name  string // canonical; "" if the field is to be left out
	value string
}

// A responseHead is the head of an HTTP/1 response (RFC 9112 sections 4 and 5).
type responseHead struct {
	minor  int // the version is HTTP/1.minor
	status int // 100 to 999
	fields []headField
}

// parse reads a head, from the status line to the empty line. A bare LF ends a line too, and a folded line is
// joined with a space (RFC 9112 sections 2.2 and 5.2). The strings are parts of section.
func (h *responseHead) parse(section string) error {
	line, rest := cutLine(section)
	// HTTP/1.x SSS reason
	if len(line) < 12 || line[:7] != "HTTP/1." || !isDigits(line[7:8]) || line[8] != ' ' ||
		!isDigits(line[9:12]) || line[9] == '0' || len(line) > 12 && line[12] != ' ' {
		return errors.New("no HTTP/1 status line")
	}
	h.minor = int(line[7] - '0')
	h.status = int(line[9]-'0')*100 + int(line[10]-'0')*10 + int(line[11]-'0')
	if strings.ContainsAny(line, "\r\x00") {
		return errors.New("control character in the status line")
	}
	return h.parseFields(rest)
}

// parseFields reads field lines up to the empty line.
func (h *responseHead) parseFields(section string) error {
	h.fields = h.fields[:0]
	for {
		line, rest := cutLine(section)
		if line == "" {
			return nil
		}
		section = rest
		if strings.IndexByte(line, '\r') >= 0 || strings.IndexByte(line, 0) >= 0 {
			return errors.New("control character in a header field")
		}
		if line[0] == ' ' || line[0] == '\t' {
			if len(h.fields) == 0 {
				return errors.New("folded line without a header field")
			}
			last := &h.fields[len(h.fields)-1]
			last.value = trimOWS(last.value + " " + trimOWS(line))
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || !validToken(name) {
			return errors.New("malformed header field")
		}
		h.fields = append(h.fields, headField{textproto.CanonicalMIMEHeaderKey(name), trimOWS(value)})
	}
}

// cutLine returns the first line without its end, and what follows.
func cutLine(s string) (line, rest string) {
	line, rest, _ = strings.Cut(s, "\n")
	return strings.TrimSuffix(line, "\r"), rest
}

// copyTo sets the fields in dst, which may hold others, but for those of the connection itself
// (RFC 9110 section 7.6.1). An upgrade keeps these: they are what was agreed.
func (h *responseHead) copyTo(dst http.Header, upgrade bool) {
	if len(dst) > 0 {
		for i := range h.fields {
			delete(dst, h.fields[i].name)
		}
	}
	named := h.namedByConnection(upgrade)
	wanted := h.status == http.StatusUpgradeRequired // says what to upgrade to (RFC 9110 section 15.5.22)
	values := make([]string, len(h.fields))
	for i := range h.fields {
		f := &h.fields[i]
		switch {
		case f.name == "":
			continue
		case wanted && f.name == "Upgrade":
		case !upgrade && hopByHop(f.name) || named != nil && headerHasToken(named, f.name):
			continue
		}
		if before, ok := dst[f.name]; ok {
			dst[f.name] = append(before, f.value)
			continue
		}
		values[i] = f.value
		dst[f.name] = values[i : i+1 : i+1]
	}
}

// appendFields appends what copyTo would copy in the form of messages.Fields, and returns the Content-Length, -1 if there
// is none. It reports false if that takes the rules that copyTo and the tunnel's ResponseWriter have for other than
// common heads.
func (h *responseHead) appendFields(b []byte) (_ []byte, length int64, ok bool) {
	if h.status == http.StatusSwitchingProtocols || h.status == http.StatusUpgradeRequired {
		return b, 0, false
	}
	length = -1
	for i := range h.fields {
		f := &h.fields[i]
		switch f.name {
		case "", "Keep-Alive", "Transfer-Encoding":
			continue
		case "Connection":
			if !strings.EqualFold(f.value, "close") && !strings.EqualFold(f.value, "keep-alive") {
				return b, 0, false
			}
			continue
		case "Proxy-Connection", "Upgrade", "Http2-Settings", "Trailer":
			return b, 0, false
		case "Content-Length":
			n, err := strconv.ParseInt(f.value, 10, 64)
			if err != nil {
				return b, 0, false
			}
			length = n
		}
		if !httpguts.ValidHeaderFieldValue(f.value) {
			return b, 0, false
		}
		b = messages.AppendField(b, f.name, f.value)
	}
	return b, length, true
}

// namedByConnection returns the values of Connection if they may name further fields; else nil.
func (h *responseHead) namedByConnection(upgrade bool) (values []string) {
	if upgrade {
		return nil
	}
	for i := range h.fields {
		f := &h.fields[i]
		if f.name == "Connection" && !strings.EqualFold(f.value, "close") && !strings.EqualFold(f.value, "keep-alive") {
			values = append(values, f.value)
		}
	}
	return values
}

// reset forgets the head, so that no string of it is kept alive.
func (h *responseHead) reset() {
	if cap(h.fields) > keptFields {
		h.fields = nil
	}
	clear(h.fields[:cap(h.fields)])
	h.fields = h.fields[:0]
}
