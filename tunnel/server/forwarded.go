package server

import (
	"net/http"
	"net/netip"
	"strings"
)

// trustedProxies are the networks whose X-Forwarded-* and Forwarded fields are believed. IPv4 networks are
// written as IPv4, not mapped. Nil trusts nobody.
type trustedProxies []netip.Prefix

func (t trustedProxies) trusts(addr netip.Addr) bool {
	addr = plainAddr(addr)
	for _, p := range t {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// visitor returns who sent r, and the scheme ("http" or "https") and host that were asked for; trusted says that
// the connection is a trusted proxy's.
//
// Without trust that is the connection's own address, scheme and Host; addr is the zero Addr if the connection has
// none. A trusted proxy is believed: addr is the rightmost address of X-Forwarded-For that is not trusted, or the
// leftmost if all are; a malformed entry ends the search. If there is no X-Forwarded-For, Forwarded (RFC 7239) is
// read in the same way, and obfuscated nodes end the search. X-Forwarded-Proto and X-Forwarded-Host count by their
// last element, and in their absence the Forwarded element of the visitor.
//
// host is for the fields that the upstream sees. Requests are routed by r.Host: many a proxy passes the visitor's
// own X-Forwarded-Host on, and a shared cache before it would then keep one tunnel's answer under another's name.
func (t trustedProxies) visitor(r *http.Request) (addr netip.Addr, scheme, host string, trusted bool) {
	addr, scheme, host = connAddr(r), "http", r.Host
	if r.TLS != nil {
		scheme = "https"
	}
	if len(t) == 0 || !t.trusts(addr) {
		return addr, scheme, host, false
	}
	var el forwardedElement
	if lines := r.Header["X-Forwarded-For"]; len(lines) > 0 {
		addr = t.searchList(lines, addr)
	} else {
		addr, el = t.searchForwarded(r.Header["Forwarded"], addr)
	}
	if v := lastElement(r.Header["X-Forwarded-Proto"]); v != "" {
		el.proto = v
	}
	if v := lastElement(r.Header["X-Forwarded-Host"]); v != "" {
		el.host = v
	}
	switch {
	case strings.EqualFold(el.proto, "https"):
		scheme = "https"
	case strings.EqualFold(el.proto, "http"):
		scheme = "http"
	}
	if validForwardedHost(el.host) {
		host = el.host
	}
	return addr, scheme, host, true
}

// searchList goes through X-Forwarded-For from the right.
func (t trustedProxies) searchList(lines []string, addr netip.Addr) netip.Addr {
	for i := len(lines) - 1; i >= 0; i-- {
		rest, more := lines[i], true
		for more {
			comma := strings.LastIndexByte(rest, ',')
			entry := strings.TrimSpace(rest[comma+1:])
			if more = comma >= 0; more {
				rest = rest[:comma]
			}
			if entry == "" {
				continue // RFC 9110, section 5.6.1.2: empty elements are ignored
			}
			next, ok := parseNode(entry)
			if !ok {
				return addr
			}
			if addr = next; !t.trusts(addr) {
				return addr
			}
		}
	}
	return addr
}

// A forwardedElement is what one proxy says in a Forwarded field; what it does not say is empty.
type forwardedElement struct{ node, host, proto string }

// searchForwarded goes through Forwarded from the right, as far as trusted proxies wrote it.
func (t trustedProxies) searchForwarded(lines []string, addr netip.Addr) (netip.Addr, forwardedElement) {
	var el forwardedElement
	for i := len(lines) - 1; i >= 0; i-- {
		elements, ok := parseForwarded(lines[i])
		if !ok {
			return addr, el
		}
		for j := len(elements) - 1; j >= 0; j-- {
			el = elements[j]
			next, ok := parseNode(el.node)
			if !ok {
				return addr, el
			}
			if addr = next; !t.trusts(addr) {
				return addr, el
			}
		}
	}
	return addr, el
}

// parseForwarded splits one Forwarded line into its elements (RFC 7239, section 4).
func parseForwarded(line string) (elements []forwardedElement, ok bool) {
	for more := true; more; {
		var element string
		element, line, more = cutUnquoted(line, ',')
		if strings.TrimSpace(element) == "" {
			continue
		}
		var el forwardedElement
		for morePairs := true; morePairs; {
			var pair string
			pair, element, morePairs = cutUnquoted(element, ';')
			name, value, found := strings.Cut(strings.TrimSpace(pair), "=")
			if !found {
				return nil, false
			}
			if value, ok = unquote(value); !ok {
				return nil, false
			}
			switch strings.ToLower(name) {
			case "for":
				el.node = value
			case "host":
				el.host = value
			case "proto":
				el.proto = value
			}
		}
		elements = append(elements, el)
	}
	return elements, true
}

// parseNode reads an address with or without a port: 192.0.2.1, 192.0.2.1:80, 2001:db8::1, [2001:db8::1] or
// [2001:db8::1]:80. "unknown" and obfuscated names are refused; an obfuscated port is not.
func parseNode(s string) (netip.Addr, bool) {
	if host, rest, ok := strings.Cut(s, "]"); ok && strings.HasPrefix(host, "[") && (rest == "" || rest[0] == ':') {
		addr, err := netip.ParseAddr(host[1:])
		return plainAddr(addr), err == nil && addr.Is6()
	}
	if host, _, ok := strings.Cut(s, ":"); ok && strings.Count(s, ":") == 1 {
		s = host
	}
	addr, err := netip.ParseAddr(s)
	return plainAddr(addr), err == nil
}

// lastElement returns the last element of a list field.
func lastElement(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	last := lines[len(lines)-1]
	return strings.TrimSpace(last[strings.LastIndexByte(last, ',')+1:])
}

// validForwardedHost reports whether s is a host name or address with or without a port, in no other form.
func validForwardedHost(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !isAlphanumeric(c) && !strings.ContainsRune("-._:[]", rune(c)) {
			return false
		}
	}
	return s != "" && len(s) <= 255+len(":65535")
}

// cutUnquoted is strings.Cut at the first sep that is not inside a quoted string (RFC 9110, section 5.6.4).
func cutUnquoted(s string, sep byte) (before, after string, found bool) {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '"':
			quoted = !quoted
		case quoted && s[i] == '\\':
			i++
		case !quoted && s[i] == sep:
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

// unquote returns the value of a token or quoted string.
func unquote(s string) (string, bool) {
	if !strings.HasPrefix(s, `"`) {
		return s, s != "" && !strings.ContainsAny(s, "\" \t")
	}
	if len(s) < 2 || s[len(s)-1] != '"' {
		return "", false
	}
	var b strings.Builder
	for s = s[1 : len(s)-1]; s != ""; s = s[1:] {
		if s[0] == '"' {
			return "", false
		}
		if s[0] == '\\' {
			if s = s[1:]; s == "" {
				return "", false
			}
		}
		b.WriteByte(s[0])
	}
	return b.String(), true
}

// connAddr returns the address at the other end of r's connection, or the zero Addr.
func connAddr(r *http.Request) netip.Addr { return addrOf(r.RemoteAddr) }

// addrOf is the address of ip:port; the zero Addr if there is none.
func addrOf(remote string) netip.Addr {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	return plainAddr(ap.Addr())
}

// plainAddr returns addr as IPv4 if it is mapped into IPv6, and without a zone.
func plainAddr(addr netip.Addr) netip.Addr { return addr.Unmap().WithZone("") }

// setForwarded replaces what r's sender claimed in h, the upstream's copy of r.Header, by what visitor found:
//
//	X-Forwarded-For    the visitor's address; from a trusted proxy the whole chain, the proxy's address appended
//	X-Forwarded-Host   host
//	X-Forwarded-Proto  scheme
//	Forwarded          one element with for, host and proto (RFC 7239): what the edge has made sure of, not the chain
//	X-Real-Ip          the visitor's address
//
// Every other X-Forwarded-* field is dropped unless a trusted proxy sent it, and every Harp-* field always. There
// is no X-Forwarded-Port: host has the port already, and a second statement can only disagree with it. If the
// address is not known the for fields say "unknown" and X-Real-Ip is left out.
func setForwarded(h http.Header, r *http.Request, addr netip.Addr, scheme, host string, trusted bool) {
	chain := ""
	if trusted {
		chain = forwardedChain(r, addr)
	}
	for name := range h {
		if isSetAnew(name) {
			continue // below, and to delete first would cost as much again
		}
		if isClaim(name) && !(trusted && isProxyClaim(name)) {
			delete(h, name)
		}
	}

	if !isVisible(host) {
		host = ""
	}
	// One string for Forwarded, of which the address is a part, and one array for all values: this is the hot path.
	forwarded, address := forwardedValue(addr, scheme, host)
	if chain == "" {
		chain = address
	}
	v := [...]string{chain, scheme, forwarded, host, address}
	values := v[:]
	h["X-Forwarded-For"] = values[0:1:1]
	h["X-Forwarded-Proto"] = values[1:2:2]
	h["Forwarded"] = values[2:3:3]
	if host != "" {
		h["X-Forwarded-Host"] = values[3:4:4]
	} else {
		delete(h, "X-Forwarded-Host")
	}
	if addr.IsValid() {
		h["X-Real-Ip"] = values[4:5:5]
	} else {
		delete(h, "X-Real-Ip")
	}
}

// forwardedValue returns an element of Forwarded, and the address as it stands there without quotes.
func forwardedValue(addr netip.Addr, scheme, host string) (value, address string) {
	var buf [192]byte
	b := append(buf[:0], "for="...)
	if addr.Is6() { // RFC 7239, section 6: in brackets, and therefore quoted
		b = append(b, `"[`...)
	}
	start := len(b)
	if addr.IsValid() {
		b = addr.AppendTo(b)
	} else {
		b = append(b, "unknown"...)
	}
	end := len(b)
	if addr.Is6() {
		b = append(b, `]"`...)
	}
	if host != "" {
		b = appendQuoted(append(b, ";host="...), host)
	}
	b = append(append(b, ";proto="...), scheme...)
	value = string(b)
	return value, value[start:end]
}

// forwardedChain returns the X-Forwarded-For of a trusted proxy with the proxy itself appended.
func forwardedChain(r *http.Request, addr netip.Addr) string {
	proxy := connAddr(r)
	if lines := r.Header["X-Forwarded-For"]; len(lines) > 0 {
		return strings.Join(lines, ", ") + ", " + proxy.String()
	}
	if addr == proxy {
		return proxy.String()
	}
	return addr.String() + ", " + proxy.String()
}

// appendQuoted appends s, of visible characters, as a token if it surely is one, else as a quoted string.
func appendQuoted(b []byte, s string) []byte {
	token := true
	for i := range len(s) {
		token = token && (isAlphanumeric(s[i]) || s[i] == '-' || s[i] == '.' || s[i] == '_')
	}
	if token {
		return append(b, s...)
	}
	b = append(b, '"')
	for i := range len(s) {
		if s[i] == '"' || s[i] == '\\' {
			b = append(b, '\\')
		}
		b = append(b, s[i])
	}
	return append(b, '"')
}

func isAlphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z'
}

// isClaim reports whether only the edge may say a field of that name to an upstream: X-Forwarded-*, Forwarded,
// X-Real-Ip and Harp-*, in any case. Underscores count as dashes, because CGI and WSGI cannot tell them apart.
func isClaim(name string) bool {
	if len(name) < len("Harp-") {
		return false
	}
	switch name[0] | 0x20 {
	case 'x':
		return hasNamePrefix(name, "x-forwarded-") || len(name) == len("x-real-ip") && hasNamePrefix(name, "x-real-ip")
	case 'f':
		return len(name) == len("forwarded") && hasNamePrefix(name, "forwarded")
	case 'h':
		return hasNamePrefix(name, "harp-")
	}
	return false
}

// isSetAnew reports whether setForwarded sets the field of that name, which is in canonical form.
func isSetAnew(name string) bool {
	switch name {
	case "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded", "X-Real-Ip":
		return true
	}
	return false
}

// isProxyClaim reports whether a claim may stay if it is a trusted proxy's.
func isProxyClaim(name string) bool {
	return !hasNamePrefix(name, "harp-") && strings.IndexByte(name, '_') < 0
}

func hasNamePrefix(name, prefix string) bool {
	if len(name) < len(prefix) {
		return false
	}
	for i := range len(prefix) {
		c := name[i]
		if c == '_' {
			c = '-'
		}
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != prefix[i] {
			return false
		}
	}
	return true
}
