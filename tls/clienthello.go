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
	extServerName  = 0        // RFC 6066, section 3
	extECH         = 0xfe0d   // RFC 9849
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
	serverName string // lower case; empty for none
	ech        bool   // whether it offers an encrypted one, or pretends to
}

// parseClientHello reads the records at the beginning of a connection, as far as they have come. The error is errMore
// while the hello is incomplete.
func parseClientHello(b []byte) (clientHello, error) {
	var message []byte // what the records carry; without a copy if it is all in one
	for total, records := 0, 1; ; records++ {
		if len(b) < 1 {
			return clientHello{}, errMore
		}
		if b[0] != typeHandshake {
			return clientHello{}, errNotTLS
		}
		if len(b) < recordHeader {
			return clientHello{}, errMore
		}
		n := int(binary.BigEndian.Uint16(b[3:]))
		if b[1] != 3 || n == 0 || n > maxRecord {
			return clientHello{}, errMalformed
		}
		if total += recordHeader + n; total > maxClientHello || records > maxRecords {
			return clientHello{}, errMalformed
		}
		part := b[recordHeader:min(len(b), recordHeader+n)]
		if message == nil {
			message = part[:len(part):len(part)]
		} else {
			message = append(message, part...)
		}
		if len(message) > 0 && message[0] != typeHello {
			return clientHello{}, errMalformed
		}
		if len(message) >= 4 {
			size := int(message[1])<<16 | int(message[2])<<8 | int(message[3])
			if size > maxClientHello {
				return clientHello{}, errMalformed
			}
			if len(message) > 4+size {
				return clientHello{}, errMalformed // nothing may follow the hello before the answer
			}
			if len(message) == 4+size {
				return parseHello(message[4:])
			}
		}
		if len(b) < recordHeader+n {
			return clientHello{}, errMore
		}
		b = b[recordHeader+n:]
	}
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
		switch kind {
		case extECH:
			h.ech = true
		case extServerName:
			if named {
				return h, errMalformed
			}
			named = true
			if h.serverName, err = parseServerName(body); err != nil {
				return h, err
			}
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
