package agent

import (
	"bytes"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"

	"github.com/harp-tunnel/harp/messages"
)

// bodyKind is how a request's body goes upstream.
type bodyKind uint8

const (
	bodyNone    bodyKind = iota
	bodySized            // Request.ContentLength bytes
	bodyChunked          // as long as it takes, with trailers
)

// A forwardPlan is what is sent upstream, as far as it is not simply the visitor's request.
type forwardPlan struct {
	target  string // the request target
	host    string // the Host field
	upgrade string // the protocols to switch to; "" for an ordinary request
	body    bodyKind
	expect  bool     // the visitor waits for 100 before it sends the body
	named   []string // more fields that belong to the visitor's own connection, canonical
}

// plan decides how r goes upstream; the error is a *forwardFailure.
func (f *Forwarder) plan(r *http.Request) (forwardPlan, error) {
	q := forwardPlan{target: f.rewriteTarget(r), host: f.host}
	if q.host == "" {
		q.host = r.Host
	}
	if q.host == "" {
		q.host = f.target.host // HTTP/1.0 needs no Host, HTTP/1.1 does
	}
	switch {
	case r.Method == http.MethodConnect:
		return q, &forwardFailure{code: messages.CancelUnsupported, reason: "CONNECT is not forwarded"}
	case r.Method != "" && !validToken(r.Method), !validTarget(q.target), !validHost(q.host):
		return q, &forwardFailure{code: messages.CancelProtocol, reason: "the request line cannot be sent on"}
	}
	switch {
	case r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0:
	case r.ContentLength > 0:
		q.body = bodySized
	default:
		q.body = bodyChunked
	}
	if q.body != bodyNone {
		q.expect = headerHasToken(r.Header["Expect"], "100-continue")
	}
	if connection := r.Header["Connection"]; connection != nil {
		if headerHasToken(connection, "upgrade") {
			q.upgrade = withoutH2C(r.Header["Upgrade"])
		}
		for token := range headerTokens(connection) {
			q.named = append(q.named, http.CanonicalHeaderKey(token))
		}
	}
	return q, nil
}

// skips reports whether a visitor's field is not sent on as it is: those of its own connection
// (RFC 9110 section 7.6.1), those that the sender writes itself, and those that HeaderAdd replaces.
func (f *Forwarder) skips(q *forwardPlan, name string) bool {
	switch name {
	case "Host", "Content-Length", "Te", "Http2-Settings":
		return true
	}
	if hopByHop(name) {
		return true
	}
	for _, n := range q.named {
		if n == name {
			return true
		}
	}
	if len(f.add.fields) > 0 {
		_, replaced := f.add.fields[name]
		return replaced
	}
	return false
}

// passes reports whether all fields are sent on as they are, with canonical names.
func (f *Forwarder) passes(fields messages.Fields) bool {
	for name := range fields.All() {
		if textproto.CanonicalMIMEHeaderKey(name) != name || f.skips(&forwardPlan{}, name) {
			return false
		}
	}
	return true
}

// hopByHop reports whether a field belongs to one connection, whatever Connection says. TE is not among them.
func hopByHop(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Connection", "Transfer-Encoding", "Upgrade":
		return true
	}
	return false
}

// appendRequestHead appends the head as HTTP/1.1 has it. ok is false if it would not read back as what it was.
func (f *Forwarder) appendRequestHead(b []byte, v *forwardVisitor) (_ []byte, ok bool) {
	r, q := v.r, &v.plan
	method := r.Method
	if method == "" {
		method = http.MethodGet
	}
	start := len(b)
	b = append(b, method...)
	b = append(b, ' ')
	b = append(b, q.target...)
	b = append(b, " HTTP/1.1\r\n"...)
	b = appendField(b, "Host", q.host)
	lines := 2
	for name, value := range v.fields.All() {
		b = appendField(b, name, value)
		lines++
	}
	for name, values := range r.Header {
		if f.skips(q, name) {
			continue
		}
		if !validToken(name) {
			return b, false
		}
		for _, value := range values {
			b = appendField(b, name, value)
			lines++
		}
	}
	b, n := appendFraming(b, r, q)
	lines += n
	// Every line break must be one of ours: this sees in two passes what a look at each value would.
	if head := b[start:]; bytes.Count(head, []byte{'\n'}) != lines || bytes.Count(head, []byte{'\r'}) != lines ||
		bytes.IndexByte(head, 0) >= 0 {
		return b, false
	}
	b = append(b, f.add.lines...)
	return append(b, "\r\n"...), true
}

// appendFraming appends the fields that the sender of a request decides, and says how many they are.
func appendFraming(b []byte, r *http.Request, q *forwardPlan) (_ []byte, lines int) {
	add := func(name, value string) {
		b = appendField(b, name, value)
		lines++
	}
	switch {
	case q.body == bodySized:
		add("Content-Length", strconv.FormatInt(r.ContentLength, 10))
	case q.body == bodyChunked:
		add("Transfer-Encoding", "chunked")
	case len(r.Header["Content-Length"]) > 0:
		add("Content-Length", "0")
	}
	if q.body == bodyChunked && len(r.Trailer) > 0 && r.Header["Trailer"] == nil {
		if names := announced(r.Trailer); names != "" {
			add("Trailer", names)
		}
	}
	switch {
	case q.upgrade != "":
		add("Connection", "Upgrade")
		add("Upgrade", q.upgrade)
	case headerHasToken(r.Header["Te"], "trailers"):
		add("TE", "trailers")
		add("Connection", "TE") // RFC 9110 section 10.1.4 wants both
	}
	return b, lines
}

func appendField(b []byte, name, value string) []byte {
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...)
}

// announced lists the names of trailers as a Trailer field does.
func announced(trailer http.Header) string {
	var b strings.Builder
	for name := range trailer {
		if !validTrailer(name) {
			continue
		}
		if b.Len() > 0 {
			b.WriteString(", ")
		}
		b.WriteString(name)
	}
	return b.String()
}
