// Package messages is HARP's wire format: what the edge and the agent say to each other over a link.
// PROTOCOL.md beside this file describes it well enough to write a second implementation.
//
// Append functions add one encoded message to a buffer; Parse functions read one payload. Nothing here does I/O,
// and nothing here allocates except where a comment says so.
package messages

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// HeaderLen is the size in bytes of the header that begins every binary message (RFC 9113, section 4.1).
const HeaderLen = 9

// MaxPayload is the largest payload in bytes that a receiver accepts in one message.
const MaxPayload = 1 << 20

// ErrHeader means that a message header is cut short, or announces more bytes than there are or may be.
// The link cannot be read any further.
var ErrHeader = errors.New("messages: broken message header")

// ErrMalformed means that a payload does not follow its format. Only its stream is to end.
var ErrMalformed = errors.New("messages: malformed payload")

// ErrTooLong means that what was to be sent does not fit in one message.
var ErrTooLong = errors.New("messages: message too long")

// Type says what a binary message carries.
type Type uint8

// The message types, with their numbers on the wire. A receiver skips every other type.
const (
	TypeHTTPRequest  Type = 0x01
	TypeHTTPResponse Type = 0x02
	TypeBody         Type = 0x03
	TypeTrailers     Type = 0x04
	TypeCredit       Type = 0x05
	TypeCancel       Type = 0x06
	TypeWSRequest    Type = 0x07
	TypeWSResponse   Type = 0x08
	TypeWSMessage    Type = 0x09
	TypeWSTeardown   Type = 0x0a
	TypeTLSRequest   Type = 0x0b
	TypePing         Type = 0x0c
	TypeDisconnect   Type = 0x0d

	// TypeReserved is never given a meaning. Senders use it now and then, so that receivers stay able to skip
	// what they do not know.
	TypeReserved Type = 0xba
)

var typeNames = map[Type]string{
	TypeHTTPRequest: "HTTPRequest", TypeHTTPResponse: "HTTPResponse", TypeBody: "Body", TypeTrailers: "Trailers",
	TypeCredit: "Credit", TypeCancel: "Cancel", TypeWSRequest: "WSRequest", TypeWSResponse: "WSResponse",
	TypeWSMessage: "WSMessage", TypeWSTeardown: "WSTeardown", TypeTLSRequest: "TLSRequest", TypePing: "Ping",
	TypeDisconnect: "Disconnect",
}

func (t Type) String() string {
	if s, ok := typeNames[t]; ok {
		return s
	}
	return fmt.Sprintf("Type(0x%02x)", uint8(t))
}

// Flags refine a message. A receiver ignores the bits that its type does not define.
type Flags uint8

const (
	// FlagEnd on HTTPRequest, HTTPResponse, WSRequest, WSResponse, Body and WSMessage: the sender sends no more bytes on
	// this stream.
	FlagEnd Flags = 0x01
	// FlagAck on Ping: this answers a Ping and repeats its bytes.
	FlagAck Flags = 0x01
)

// A Header begins every binary message.
type Header struct {
	Length int // of the payload, in bytes; 0 to 1<<24-1
	Type   Type
	Flags  Flags
	Stream uint32 // 0 for the link itself
}

// AppendHeader appends the nine bytes of h.
func AppendHeader(b []byte, h Header) []byte {
	b = append(b, byte(h.Length>>16), byte(h.Length>>8), byte(h.Length), byte(h.Type), byte(h.Flags))
	return binary.BigEndian.AppendUint32(b, h.Stream)
}

// Next splits the first message off b. The payload and the rest are parts of b. The error is ErrHeader.
func Next(b []byte) (h Header, payload, rest []byte, err error) {
	if len(b) < HeaderLen {
		return h, nil, nil, fmt.Errorf("%w: %d bytes where a header takes %d", ErrHeader, len(b), HeaderLen)
	}
	h = Header{
		Length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]),
		Type:   Type(b[3]),
		Flags:  Flags(b[4]),
		Stream: binary.BigEndian.Uint32(b[5:9]),
	}
	if h.Length > MaxPayload {
		return h, nil, nil, fmt.Errorf("%w: payload of %d bytes, at most %d are allowed", ErrHeader, h.Length, MaxPayload)
	}
	if b = b[HeaderLen:]; len(b) < h.Length {
		return h, nil, nil, fmt.Errorf("%w: payload of %d bytes announced, %d follow", ErrHeader, h.Length, len(b))
	}
	return h, b[:h.Length:h.Length], b[h.Length:], nil
}

// begin appends a header whose length Finish fills in.
func begin(b []byte, t Type, flags Flags, stream uint32) []byte {
	return AppendHeader(b, Header{Type: t, Flags: flags, Stream: stream})
}

// Finish writes the length of the message that begins at start and reaches to the end of b. A message
// longer than MaxPayload is taken off again: the error is ErrTooLong and b[:start] is returned.
func Finish(b []byte, start int) ([]byte, error) {
	n := len(b) - start - HeaderLen
	if n > MaxPayload {
		return b[:start], fmt.Errorf("%w: %d bytes", ErrTooLong, n)
	}
	b[start], b[start+1], b[start+2] = byte(n>>16), byte(n>>8), byte(n)
	return b, nil
}
