package messages

import (
	"encoding/binary"
	"fmt"
)

// An HTTPRequest is the head of a visitor's request. WSRequest has the same form.
type HTTPRequest struct {
	Registration uint32 // which registration of the link is meant
	Method       string // a token, case kept
	Scheme       string // "http" or "https": how the visitor reached the edge
	Authority    string // the visitor's Host field
	Target       string // the request target byte for byte (RFC 9112, section 3.2)
	Visitor      string // the visitor's address, ip:port
	Fields       Fields // header fields but Host and the hop-by-hop ones
}

// BeginHTTPRequest appends the message up to and including r.Fields. The caller may append more with AppendField
// and must end it with Finish. t is TypeHTTPRequest or TypeWSRequest; FlagEnd says that there is no body.
func BeginHTTPRequest(b []byte, t Type, flags Flags, stream uint32, r *HTTPRequest) []byte {
	b = begin(b, t, flags, stream)
	b = binary.AppendUvarint(b, uint64(r.Registration))
	b = appendString(b, r.Method)
	b = appendString(b, r.Scheme)
	b = appendString(b, r.Authority)
	b = appendString(b, r.Target)
	b = appendString(b, r.Visitor)
	return append(b, r.Fields...)
}

// ParseHTTPRequest reads the payload of an HTTPRequest or WSRequest; the strings are parts of it.
// The error is ErrMalformed.
func ParseHTTPRequest(payload string) (r HTTPRequest, err error) {
	id, s, ok := cutUvarint(payload)
	r.Registration = uint32(id)
	for _, v := range [...]*string{&r.Method, &r.Scheme, &r.Authority, &r.Target, &r.Visitor} {
		if ok {
			*v, s, ok = cutString(s)
		}
	}
	switch {
	case !ok:
		return HTTPRequest{}, fmt.Errorf("%w: request head is cut short", ErrMalformed)
	case !isToken(r.Method):
		return HTTPRequest{}, fmt.Errorf("%w: bad method", ErrMalformed)
	case r.Scheme != "http" && r.Scheme != "https":
		return HTTPRequest{}, fmt.Errorf("%w: bad scheme", ErrMalformed)
	case !isTarget(r.Target):
		return HTTPRequest{}, fmt.Errorf("%w: bad request target", ErrMalformed)
	case r.Authority != "" && !isTarget(r.Authority), !isFieldValue(r.Visitor):
		return HTTPRequest{}, fmt.Errorf("%w: bad authority or visitor address", ErrMalformed)
	}
	if r.Fields, err = parseFields(s); err != nil {
		return HTTPRequest{}, err
	}
	return r, nil
}

// An HTTPResponse is the head of a response. A status below 200 is interim: another HTTPResponse follows.
// WSResponse has the same form; its bytes, also the body of an answer other than 101, travel in WSMessage.
type HTTPResponse struct {
	Status int    // 100 to 999
	Fields Fields // header fields but the hop-by-hop ones
}

// BeginHTTPResponse appends the message up to and including r.Fields. The caller may append more with AppendField
// and must end it with Finish. t is TypeHTTPResponse or TypeWSResponse; FlagEnd says that there is no body.
func BeginHTTPResponse(b []byte, t Type, flags Flags, stream uint32, r *HTTPResponse) []byte {
	b = begin(b, t, flags, stream)
	b = binary.BigEndian.AppendUint16(b, uint16(r.Status))
	return append(b, r.Fields...)
}

// ParseHTTPResponse reads the payload of an HTTPResponse or WSResponse; the fields are part of it.
// The error is ErrMalformed.
func ParseHTTPResponse(payload string) (r HTTPResponse, err error) {
	if len(payload) < 2 {
		return r, fmt.Errorf("%w: response head is cut short", ErrMalformed)
	}
	r.Status = int(payload[0])<<8 | int(payload[1])
	if r.Status < 100 || r.Status > 999 {
		return HTTPResponse{}, fmt.Errorf("%w: status %d", ErrMalformed, r.Status)
	}
	if r.Fields, err = parseFields(payload[2:]); err != nil {
		return HTTPResponse{}, err
	}
	return r, nil
}

// A TLSRequest hands a visitor's raw TLS connection to an agent that ends TLS itself. WSMessage follows in both
// directions, beginning with the ClientHello.
type TLSRequest struct {
	Registration uint32
	ServerName   string // from the ClientHello, lower case
	Visitor      string // ip:port
}

// AppendTLSRequest appends one whole message.
func AppendTLSRequest(b []byte, stream uint32, r *TLSRequest) ([]byte, error) {
	start := len(b)
	b = begin(b, TypeTLSRequest, 0, stream)
	b = binary.AppendUvarint(b, uint64(r.Registration))
	b = appendString(b, r.ServerName)
	b = appendString(b, r.Visitor)
	return Finish(b, start)
}

// ParseTLSRequest reads the payload of a TLSRequest; the strings are parts of it. The error is ErrMalformed.
func ParseTLSRequest(payload string) (r TLSRequest, err error) {
	id, s, ok := cutUvarint(payload)
	r.Registration = uint32(id)
	if ok {
		r.ServerName, s, ok = cutString(s)
	}
	if ok {
		r.Visitor, s, ok = cutString(s)
	}
	if !ok || s != "" || !isTarget(r.ServerName) || !isFieldValue(r.Visitor) {
		return TLSRequest{}, fmt.Errorf("%w: TLS request", ErrMalformed)
	}
	return r, nil
}

// AppendTrailers appends a Trailers message up to and including f; more may follow with AppendField, and Finish ends it.
func AppendTrailers(b []byte, stream uint32, f Fields) []byte {
	return append(begin(b, TypeTrailers, 0, stream), f...)
}

// ParseTrailers reads the payload of Trailers. The error is ErrMalformed.
func ParseTrailers(payload string) (Fields, error) { return parseFields(payload) }
