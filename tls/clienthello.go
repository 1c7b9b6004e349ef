package tls

import (
	"encoding/binary"
	"errors"
	"strings"
)

const (
	recordHeader   = 5        // bytes: type, version, length (RFC 8446, section 5.1)
	maxRecord      = 16 << 10 // bytes of a plain record's payload
	maxClientHello = 64 << 10 // bytes of all records together; a post-quantum one has about 1,800
	typeHandshake  = 22       // of a record
	typeHello      = 1        // of a handshake message
	helloHead      = 4        // bytes: its type and length
	extServerName  = 0        // RFC 6066, section 3
	maxRecords     = 1 << 10  // that a hello may be cut into
	maxServerName  = 253      // bytes
)

var (
	errNotTLS    = errors.New("not TLS")
	errMalformed = errors.New("malformed ClientHello")
	errMore      = errors.New("more is to come") // not a fault: the rest has not arrived
)

// A clientHello is what a visitor shows before anything is encrypted (RFC 8446, section 4.1.2).
type clientHello struct {
	serverName string // lower case; empty for none. Of an encrypted hello (RFC 9849), the outer one's
}

// A helloParser finds the ClientHello in the records at the beginning of a connection, as they come. What it has seen it
// does not look at again until the hello is whole: a client who sends byte by byte costs no more than another.
type helloParser struct {
	at      int    // where the record begins that is being read
	seen    int    // how much of its payload was seen
	records int    // before it
	length  int    // of what all records carried so far
	head    []byte // its first bytes, at most helloHead
}

// parse takes all that has come so far, which begins with what it was given before. The error is errMore while the hello
// is incomplete.
func (p *helloParser) parse(b []byte) (clientHello, error) {
	for {
		record := b[p.at:]
		if len(record) < 1 {
			return clientHello{}, errMore
		}
		if record[0] != typeHandshake {
			return clientHello{}, errNotTLS
		}
		if len(record) < recordHeader {
			return clientHello{}, errMore
		}
		n := int(binary.BigEndian.Uint16(record[3:]))
		if record[1] != 3 || n == 0 || n > maxRecord {
			return clientHello{}, errMalformed
		}
		if p.at+recordHeader+n > maxClientHello || p.records >= maxRecords {
			return clientHello{}, errMalformed
		}
		part := record[recordHeader:min(len(record), recordHeader+n)]
		if err := p.see(part[p.seen:]); err == nil {
			return parseHello(payload(b[:p.at+recordHeader+len(part)])[helloHead:])
		} else if !errors.Is(err, errMore) {
			return clientHello{}, err
		}
		if len(part) < n {
			p.seen = len(part)
			return clientHello{}, errMore
		}
		p.at += recordHeader + n
		p.seen = 0
		p.records++
	}
}

// see counts what comes next of the message (RFC 8446, section 4). It returns nil once that is whole.
func (p *helloParser) see(next []byte) error {
	p.length += len(next)
	p.head = append(p.head, next[:min(len(next), helloHead-len(p.head))]...)
	if len(p.head) > 0 && p.head[0] != typeHello {
		return errMalformed
	}
	if len(p.head) < helloHead {
		return errMore
	}
	whole := helloHead + (int(p.head[1])<<16 | int(p.head[2])<<8 | int(p.head[3]))
	switch {
	case whole > maxClientHello, p.length > whole: // nothing may follow the hello before the answer
		return errMalformed
	case p.length < whole:
		return errMore
	}
	return nil
}

// payload is what good records carry, the last of which may be cut short.
func payload(b []byte) []byte {
	var out []byte
	for len(b) > recordHeader {
		end := min(len(b), recordHeader+int(binary.BigEndian.Uint16(b[3:])))
		out = append(out, b[recordHeader:end]...)
		b = b[end:]
	}
	return out
}

// parseHello reads the body of a ClientHello message.
func parseHello(b []byte) (h clientHello, err error) {
	r := reader{b}
	r.skip(2 + 32) // version and random
	r.skip(r.length(1))
	r.skip(r.length(2))
	r.skip(r.length(1))
	if len(r.b) == 0 && r.b != nil {
		return h, nil // no extensions (TLS 1.2)
	}
	extensions := reader{r.take(r.length(2))}
	if r.b == nil || len(r.b) > 0 {
		return h, errMalformed
	}
	named := false
	for len(extensions.b) > 0 {
		kind := extensions.length(2)
		body := extensions.take(extensions.length(2))
		if extensions.b == nil {
			return h, errMalformed
		}
		if kind != extServerName {
			continue
		}
		if named {
			return h, errMalformed
		}
		named = true
		if h.serverName, err = parseServerName(body); err != nil {
			return h, err
		}
	}
	return h, nil
}

// parseServerName reads the one host name of the list (RFC 6066, section 3). A name of other letters than a host's is
// malformed; an address or a name that ends in a dot, too.
func parseServerName(b []byte) (string, error) {
	r := reader{b}
	list := reader{r.take(r.length(2))}
	if r.b == nil || len(r.b) > 0 || len(list.b) == 0 {
		return "", errMalformed
	}
	kind := list.length(1)
	name := list.take(list.length(2))
	if list.b == nil || len(list.b) > 0 || kind != 0 || len(name) == 0 || len(name) > maxServerName {
		return "", errMalformed
	}
	digits := true
	for _, c := range name {
		switch {
		case 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '-' || c == '_':
			digits = false
		case '0' <= c && c <= '9' || c == '.':
		default:
			return "", errMalformed
		}
	}
	if digits || name[len(name)-1] == '.' {
		return "", errMalformed
	}
	return strings.ToLower(string(name)), nil
}

// A reader takes bytes from the front of b. Once there are too few, b is nil for good.
type reader struct{ b []byte }

func (r *reader) take(n int) []byte {
	if r.b == nil || n > len(r.b) {
		r.b = nil
		return nil
	}
	part := r.b[:n]
	r.b = r.b[n:]
	return part
}

func (r *reader) skip(n int) { r.take(n) }

// length reads a number of size bytes; 0 if there are too few.
func (r *reader) length(size int) (n int) {
	for _, c := range r.take(size) {
		n = n<<8 | int(c)
	}
	return n
}
