package server

import (
	"bytes"
	"net/http"
	"net/netip"
	"net/textproto"
	"strings"
	"sync"

	"golang.org/x/net/http/httpguts"

	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

// maxFastFields is how many header fields a request may have that is served without net/http.
const maxFastFields = 64

// scratchPool holds buffers for heads and short answers.
var scratchPool = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

// A fastRequest is a request as it goes to the agent.
type fastRequest struct {
	head   messages.HTTPRequest // without fields
	fields []byte               // in the form of messages.AppendField
	said   http.Header          // what a trusted proxy says of the visitor; nil for nothing
	label  string
	id     string // X-Request-Id
}

// fastClaims are what is made sure of who the visitor is.
type fastClaims struct {
	host   string     // that was asked for; no part of the head, which it would keep
	addr   netip.Addr // the visitor's
	remote string     // the same as ip:port
	scheme string
	fields []byte // what setForwarded says, in the form of messages.AppendField
}

// parse reads the request that the connection holds, and appends its fields to b. ok says that it is one of the common form:
// a GET without a body for a tunnel, in the only spelling that leaves no doubt what it means, and with no field that is to be
// acted on here. Whatever is not, net/http shall judge.
func (c *fastConn) parse(b []byte) (q fastRequest, ok bool) {
	s := c.listener.server
	raw := c.buf[:c.held]
	if len(raw) > maxFastHead || !bytes.HasPrefix(raw, []byte("GET /")) || !bytes.HasSuffix(raw, []byte("\r\n\r\n")) {
		return q, false
	}
	line, rest, _ := strings.Cut(string(raw), "\r\n")
	target, ok := strings.CutSuffix(line[len("GET "):], " HTTP/1.1")
	if !ok || !isPlainTarget(target) {
		return q, false
	}
	q.head = messages.HTTPRequest{Method: http.MethodGet, Target: target}
	q.fields = b
	for n := 0; ; n++ {
		if line, rest, ok = strings.Cut(rest, "\r\n"); line == "" || !ok {
			break
		}
		name, value, isField := strings.Cut(line, ":")
		if value = strings.Trim(value, " \t"); !isField || n == maxFastFields || !q.take(name, value, c.trusted) {
			return q, false
		}
	}
	if !ok || rest != "" || q.head.Authority == "" {
		return q, false
	}
	if q.label = s.labelOf(canonicalHost(q.head.Authority)); q.label == "" {
		return q, false
	}
	if _, is := s.routes.endToEnd(q.label); is {
		return q, false
	}
	if q.id == "" {
		q.id = newRequestID()
	}
	c.claim(&q)
	q.head.Scheme, q.head.Visitor = c.claims.scheme, c.claims.remote
	q.fields = append(q.fields, c.claims.fields...)
	q.fields = messages.AppendField(q.fields, "X-Request-Id", q.id)
	return q, true
}

// take takes a field of a visitor or a trusted proxy, and reports false if net/http has to see to it.
func (q *fastRequest) take(name, value string, trusted bool) bool {
	if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
		return false
	}
	name = textproto.CanonicalMIMEHeaderKey(name)
	switch name {
	case "Host":
		if q.head.Authority != "" || !isPlainHost(value) {
			return false
		}
		q.head.Authority = value
		return true
	case "Connection":
		return strings.EqualFold(value, "keep-alive")
	case "X-Request-Id":
		if q.id != "" || !validRequestID(value) {
			return false
		}
		q.id = value
		return true
	case "Content-Length", "Expect", "Te", "Trailer": // there is more to it than the head
		return false
	}
	switch {
	case tunnel.IsHopByHop(name, nil):
		return false
	case !isClaim(name), trusted && isProxyClaim(name) && !isSetAnew(name):
		q.fields = messages.AppendField(q.fields, name, value)
	case hasNamePrefix(name, "harp-"):
		return false
	case trusted && isSetAnew(name):
		if q.said == nil {
			q.said = make(http.Header)
		}
		q.said[name] = append(q.said[name], value)
	}
	return true
}

// claim finds out who the visitor is that asks for q.
func (c *fastConn) claim(q *fastRequest) {
	host := q.head.Authority
	if !c.trusted && c.claims.host == host {
		return // the connection's address is all that counts
	}
	r := &http.Request{Header: q.said, Host: host, RemoteAddr: c.remote, TLS: c.tls}
	addr, scheme, forHost, trusted := c.listener.server.proxies.visitor(r)
	c.claims = fastClaims{host: strings.Clone(host), addr: addr, remote: c.remote, scheme: scheme}
	if trusted {
		c.claims.remote = netip.AddrPortFrom(addr, 0).String()
	}
	h := make(http.Header)
	setForwarded(h, r, addr, scheme, forHost, trusted)
	for name, values := range h {
		c.claims.fields = messages.AppendField(c.claims.fields, name, values[0])
	}
}

// isPlainTarget reports whether net/http takes target, which begins with a slash, and nobody can read it in two ways.
func isPlainTarget(target string) bool {
	for i := 0; i < len(target); i++ {
		if target[i] == '%' && (i+2 >= len(target) || !isHex(target[i+1]) || !isHex(target[i+2])) {
			return false
		}
	}
	return isVisible(target)
}

func isHex(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f' }

// isPlainHost reports whether s can only be a host name or an IPv4 address, with or without a port.
func isPlainHost(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isAlphanumeric(c) && c != '-' && c != '.' && c != ':' {
			return false
		}
	}
	return s != ""
}
