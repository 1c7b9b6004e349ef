package messages

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"
)

// AppendBody appends a Body or WSMessage (t) that carries p, at most MaxPayload bytes; the caller sees to that.
func AppendBody(b []byte, t Type, flags Flags, stream uint32, p []byte) []byte {
	b = AppendHeader(b, Header{Length: len(p), Type: t, Flags: flags, Stream: stream})
	return append(b, p...)
}

// AppendCredit appends a Credit: n more bytes of Body or WSMessage payload may be sent on the stream.
func AppendCredit(b []byte, stream uint32, n uint32) []byte {
	b = AppendHeader(b, Header{Length: 4, Type: TypeCredit, Stream: stream})
	return binary.BigEndian.AppendUint32(b, n)
}

// ParseCredit reads the payload of a Credit, in bytes; zero is refused. The error is ErrMalformed.
func ParseCredit(payload []byte) (uint32, error) {
	if len(payload) != 4 {
		return 0, fmt.Errorf("%w: credit of %d bytes", ErrMalformed, len(payload))
	}
	n := binary.BigEndian.Uint32(payload)
	if n == 0 {
		return 0, fmt.Errorf("%w: credit of nothing", ErrMalformed)
	}
	return n, nil
}

// CancelCode says why a stream ends early.
type CancelCode uint8

// The codes of Cancel and WSTeardown. A receiver takes one that it does not know for CancelInternal.
const (
	CancelEnough      CancelCode = 0  // nothing failed: no more of what the receiver sends is wanted
	CancelRefused     CancelCode = 1  // nothing was processed: the request may be sent elsewhere
	CancelAborted     CancelCode = 2  // the visitor went away, or the connection beyond was reset
	CancelProtocol    CancelCode = 3  // the peer broke the protocol on this stream
	CancelFlow        CancelCode = 4  // the peer sent more than it had credit for
	CancelTooLarge    CancelCode = 5  // a body or message is over the limit
	CancelTimeout     CancelCode = 6  // nothing came in time
	CancelInternal    CancelCode = 7  // the sender failed
	CancelUnreachable CancelCode = 8  // the agent could not connect to the upstream
	CancelBroken      CancelCode = 9  // the upstream broke off, or did not speak HTTP
	CancelUnsupported CancelCode = 10 // the agent does not do what this stream asks for
)

var cancelNames = [...]string{"enough", "refused", "aborted", "protocol error", "flow control error", "too large",
	"timeout", "internal error", "upstream unreachable", "upstream broken", "unsupported"}

func (c CancelCode) String() string {
	if int(c) < len(cancelNames) {
		return cancelNames[c]
	}
	return fmt.Sprintf("CancelCode(%d)", uint8(c))
}

// maxReason bounds the text of Cancel, WSTeardown and Disconnect, in bytes.
const maxReason = 1024

// AppendCancel appends a Cancel or WSTeardown (t). reason is for people; it is cut to 1024 bytes.
func AppendCancel(b []byte, t Type, stream uint32, code CancelCode, reason string) []byte {
	reason = clip(reason)
	b = AppendHeader(b, Header{Length: 1 + len(reason), Type: t, Stream: stream})
	return append(append(b, byte(code)), reason...)
}

// ParseCancel reads the payload of a Cancel or WSTeardown. The error is ErrMalformed. It allocates the reason.
func ParseCancel(payload []byte) (CancelCode, string, error) {
	if len(payload) < 1 || len(payload) > 1+maxReason || !utf8.Valid(payload[1:]) {
		return 0, "", fmt.Errorf("%w: cancel of %d bytes", ErrMalformed, len(payload))
	}
	return CancelCode(payload[0]), string(payload[1:]), nil
}

// PingLen is the size in bytes of what a Ping carries and its answer repeats.
const PingLen = 8

// AppendPing appends a Ping, or with FlagAck the answer to one.
func AppendPing(b []byte, flags Flags, data [PingLen]byte) []byte {
	b = AppendHeader(b, Header{Length: PingLen, Type: TypePing, Flags: flags})
	return append(b, data[:]...)
}

// ParsePing reads the payload of a Ping. The error is ErrMalformed.
func ParsePing(payload []byte) (data [PingLen]byte, err error) {
	if len(payload) != PingLen {
		return data, fmt.Errorf("%w: ping of %d bytes", ErrMalformed, len(payload))
	}
	return [PingLen]byte(payload), nil
}

// DisconnectCode says why a link or a registration ends.
type DisconnectCode uint8

// The codes of Disconnect. A receiver takes one that it does not know for DisconnectDraining.
const (
	DisconnectDraining DisconnectCode = 0 // the edge restarts or moves: connect again
	DisconnectReplaced DisconnectCode = 1 // a newer agent took the name: do not come back
	DisconnectRevoked  DisconnectCode = 2 // the key is no longer authorized: do not come back
	DisconnectLeaving  DisconnectCode = 3 // the agent goes
	DisconnectProtocol DisconnectCode = 4 // the peer broke the protocol; the link closes at once
)

var disconnectNames = [...]string{"draining", "replaced", "revoked", "leaving", "protocol error"}

func (c DisconnectCode) String() string {
	if int(c) < len(disconnectNames) {
		return disconnectNames[c]
	}
	return fmt.Sprintf("DisconnectCode(%d)", uint8(c))
}

// A Disconnect announces the end of the link, or of one registration on it. New streams are refused, running ones
// may finish.
type Disconnect struct {
	Code         DisconnectCode
	Registration uint32 // the one that ends; 0 is the whole link
	Reason       string // for people, at most 1024 bytes
}

// AppendDisconnect appends one whole message. The reason is cut to 1024 bytes.
func AppendDisconnect(b []byte, d Disconnect) []byte {
	reason := clip(d.Reason)
	b = AppendHeader(b, Header{Length: 5 + len(reason), Type: TypeDisconnect})
	b = binary.BigEndian.AppendUint32(append(b, byte(d.Code)), d.Registration)
	return append(b, reason...)
}

// ParseDisconnect reads the payload of a Disconnect. The error is ErrMalformed. It allocates the reason.
func ParseDisconnect(payload []byte) (Disconnect, error) {
	if len(payload) < 5 || len(payload) > 5+maxReason || !utf8.Valid(payload[5:]) {
		return Disconnect{}, fmt.Errorf("%w: disconnect of %d bytes", ErrMalformed, len(payload))
	}
	return Disconnect{
		Code:         DisconnectCode(payload[0]),
		Registration: binary.BigEndian.Uint32(payload[1:5]),
		Reason:       string(payload[5:]),
	}, nil
}

// AppendReserved appends a message that every receiver skips.
func AppendReserved(b []byte, stream uint32) []byte {
	return AppendHeader(b, Header{Type: TypeReserved, Stream: stream})
}

// clip makes s at most maxReason bytes of valid UTF-8. It allocates only if s has to change.
func clip(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "") // the cut may have split the last character
	}
	return s
}
