package messages

import (
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"
)

// Subprotocol is the WebSocket subprotocol of a link (RFC 6455, section 1.9).
const Subprotocol = "harp.v1"

// ConnectPath is where an edge accepts links.
const ConnectPath = "/.well-known/harp/connect"

// ChallengeField is the field of the edge's 101 answer that holds the challenge: 32 random bytes, base64url.
const ChallengeField = "Harp-Challenge"

// MaxText is the largest text message in bytes: a RegistrationRequest or RegistrationResponse.
const MaxText = 16 << 10

// A RegistrationRequest asks for a registration. It travels as a text message, in JSON.
type RegistrationRequest struct {
	JWS string // compact JWS over the payload that PROTOCOL.md describes (RFC 7515)
}

// A RegistrationResponse answers a RegistrationRequest. It travels as a text message, in JSON; requests are
// answered in their order. Either Error is nil or it is the only field that is set; the parser refuses anything else.
type RegistrationResponse struct {
	Registration uint32             `json:"registration,omitempty"` // names it in HTTPRequest; never 0
	Hostname     string             `json:"hostname,omitempty"`
	URL          string             `json:"url,omitempty"`
	Limits       *Limits            `json:"limits,omitempty"`
	Error        *RegistrationError `json:"error,omitempty"`
}

// Limits are the edge's limits in force for a link. Zero means no limit.
type Limits struct {
	MaxBody        int64    `json:"max_body"`        // bytes of a request body, response body or WebSocket message
	MaxStreams     int      `json:"max_streams"`     // open at once on the link
	RequestTimeout Duration `json:"request_timeout"` // until the response head
	PingInterval   Duration `json:"ping_interval"`   // of silence
}

func (l *Limits) negative() bool {
	return l.MaxBody < 0 || l.MaxStreams < 0 || l.RequestTimeout < 0 || l.PingInterval < 0
}

// Duration is a time.Duration that JSON shows as Go writes it: "30s".
type Duration time.Duration

// MarshalText writes d as time.Duration does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// A RegistrationError is the edge's refusal.
type RegistrationError struct {
	Code    string `json:"code"`    // one of the Refuse constants
	Message string `json:"message"` // a sentence for a person
	Retry   bool   `json:"retry"`   // whether the same request can succeed later
}

func (e *RegistrationError) Error() string { return e.Message }

// The codes of RegistrationError.
const (
	RefuseMalformed     = "malformed"      // not a RegistrationRequest, or a payload that breaks the rules
	RefuseSignature     = "bad-signature"  // the signature does not fit the key in its header
	RefuseChallenge     = "bad-challenge"  // signed for another connection
	RefuseAudience      = "bad-audience"   // signed for another server
	RefuseNotAuthorized = "not-authorized" // the operator does not know this key
	RefuseUnsupported   = "unsupported"    // this edge cannot do what is asked
	RefuseHostname      = "hostname"       // a hostname of the agent's own is not proven: the message names the missing record
	RefuseLimit         = "limit"          // too many registrations
	RefuseDraining      = "draining"       // the edge is about to stop
)

// envelope is what both text messages have in common on the wire.
type envelope struct {
	Type string `json:"type"`
	JWS  string `json:"jws,omitempty"`
	*RegistrationResponse
}

const (
	typeRegistrationRequest  = "RegistrationRequest"
	typeRegistrationResponse = "RegistrationResponse"
)

// EncodeRegistrationRequest returns the text message. The error is ErrTooLong. It allocates.
func EncodeRegistrationRequest(r RegistrationRequest) ([]byte, error) {
	return encodeEnvelope(envelope{Type: typeRegistrationRequest, JWS: r.JWS})
}

// ParseRegistrationRequest reads a text message. The error is ErrMalformed.
func ParseRegistrationRequest(text []byte) (RegistrationRequest, error) {
	e, err := parseEnvelope(text, typeRegistrationRequest)
	if err == nil && e.JWS == "" {
		err = fmt.Errorf("%w: registration request without jws", ErrMalformed)
	}
	return RegistrationRequest{JWS: e.JWS}, err
}

// EncodeRegistrationResponse returns the text message. The error is ErrTooLong. It allocates.
func EncodeRegistrationResponse(r RegistrationResponse) ([]byte, error) {
	return encodeEnvelope(envelope{Type: typeRegistrationResponse, RegistrationResponse: &r})
}

// ParseRegistrationResponse reads a text message. The error is ErrMalformed.
func ParseRegistrationResponse(text []byte) (RegistrationResponse, error) {
	e, err := parseEnvelope(text, typeRegistrationResponse)
	if err != nil {
		return RegistrationResponse{}, err
	}
	r := e.RegistrationResponse
	switch {
	case r == nil, r.Error == nil && (r.Registration == 0 || r.Hostname == ""):
		return RegistrationResponse{}, fmt.Errorf("%w: empty registration response", ErrMalformed)
	case r.Error != nil && *r != (RegistrationResponse{Error: r.Error}):
		return RegistrationResponse{}, fmt.Errorf("%w: registration response that grants and refuses", ErrMalformed)
	case r.Limits != nil && r.Limits.negative():
		return RegistrationResponse{}, fmt.Errorf("%w: negative limit", ErrMalformed)
	}
	return *r, nil
}

func encodeEnvelope(e envelope) ([]byte, error) {
	text, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("messages: encode %s: %w", e.Type, err)
	}
	if len(text) > MaxText {
		return nil, fmt.Errorf("%w: %s of %d bytes", ErrTooLong, e.Type, len(text))
	}
	return text, nil
}

func parseEnvelope(text []byte, want string) (envelope, error) {
	var e envelope
	if len(text) > MaxText {
		return e, fmt.Errorf("%w: text message of %d bytes, at most %d are allowed", ErrMalformed, len(text), MaxText)
	}
	if !utf8.Valid(text) { // the JSON package would put other characters in the place of broken ones
		return e, fmt.Errorf("%w: text message is not UTF-8", ErrMalformed)
	}
	if err := json.Unmarshal(text, &e); err != nil {
		return envelope{}, fmt.Errorf("%w: %.200v", ErrMalformed, err) // it may repeat what was sent
	}
	if e.Type != want {
		return envelope{}, fmt.Errorf("%w: text message of type %.40q where %s is expected", ErrMalformed, e.Type, want)
	}
	return e, nil
}
