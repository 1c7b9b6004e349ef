package identity

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json" // case-sensitive and refuses an object that names a member twice
)

// Both are wrapped by the errors of Verify.
var (
	// ErrSignature means that the signature was not made by the key in the header over these bytes.
	ErrSignature = errors.New("wrong signature")

	// ErrRequest means that the registration is malformed or asks for something that is not allowed.
	ErrRequest = errors.New("unacceptable registration")
)

// MaxJWS is how many bytes a signed registration may have.
const MaxJWS = 8 << 10

const (
	maxPayload = 4 << 10 // bytes

	// registrationType sets registrations apart from all else that the same key may sign (RFC 8725 section 3.11).
	registrationType = "harp-registration+jwt"
)

// Sign returns the registration as a compact JWS (RFC 7515 section 7.1) with alg EdDSA, typ harp-registration+jwt and
// the public JWK in the protected header. The same key and registration give the same bytes. It fails if r breaks the
// rules of Validate, if its JSON is over 4 KiB, or if k is the zero Key.
func (k Key) Sign(r Registration) (string, error) {
	if k.secret == nil {
		return "", fmt.Errorf("sign registration: %w: it is the zero Key", ErrNotKey)
	}
	if err := r.Validate(); err != nil {
		return "", fmt.Errorf("sign registration: %w", err)
	}
	payload, err := json.Marshal(r)
	if err != nil {
		return "", fmt.Errorf("sign registration: %w", err)
	}
	if len(payload) > maxPayload {
		return "", fmt.Errorf("sign registration: %d bytes, at most %d are allowed", len(payload), maxPayload)
	}
	options := (&jose.SignerOptions{EmbedJWK: true}).WithType(registrationType)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: k.secret.reveal()}, options)
	if err != nil {
		return "", fmt.Errorf("sign registration: %w", err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("sign registration: %w", err)
	}
	return signed.CompactSerialize()
}

// Verify returns the registration in a compact JWS and the key that signed it, which is the only key it knows: the one
// in the header. Path is in the form of CleanPath. Whether that key is welcome, and whether audience and challenge are
// the right ones, is for the caller to check.
//
// The header must hold alg EdDSA, typ harp-registration+jwt and a public Ed25519 jwk, and nothing else, so crit, b64,
// kid, jku, x5c and the like are refused. Members of the payload that are not known are ignored. Every error wraps
// ErrSignature or ErrRequest.
func Verify(jws string) (PublicKey, Registration, error) {
	header, size, err := splitJWS(jws)
	if err != nil {
		return PublicKey{}, Registration{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if size > maxPayload {
		return PublicKey{}, Registration{}, fmt.Errorf("%w: payload has %d bytes, at most %d are allowed", ErrRequest, size, maxPayload)
	}
	public, err := parseHeader(header)
	if err != nil {
		return PublicKey{}, Registration{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	signed, err := jose.ParseSignedCompact(jws, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		return PublicKey{}, Registration{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	payload, err := signed.Verify(ed25519.PublicKey(public.point[:]))
	if err != nil {
		return PublicKey{}, Registration{}, fmt.Errorf("%w: the key in the header did not make it over these bytes", ErrSignature)
	}
	r, err := parsePayload(payload)
	if err != nil {
		return PublicKey{}, Registration{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	return public, r, nil
}

// splitJWS checks the outer form and returns the decoded header and the size of the payload in bytes. It is stricter
// than the library: of each value only the one canonical base64url spelling is accepted.
func splitJWS(jws string) (header []byte, payloadSize int, err error) {
	if len(jws) > MaxJWS {
		return nil, 0, fmt.Errorf("%d bytes, at most %d are allowed", len(jws), MaxJWS)
	}
	if strings.HasPrefix(jws, "{") {
		return nil, 0, errors.New("JWS in JSON form, only the compact form is accepted")
	}
	parts := strings.SplitN(jws, ".", 4)
	if len(parts) != 3 {
		return nil, 0, errors.New("not a compact JWS of three parts")
	}
	var decoded [3][]byte
	for i, part := range parts {
		if decoded[i], err = decodeBase64(part); err != nil {
			return nil, 0, fmt.Errorf("part %d of the JWS: %w", i+1, err)
		}
	}
	return decoded[0], len(decoded[1]), nil
}

// parseHeader checks the protected header and returns the key in it.
func parseHeader(data []byte) (PublicKey, error) {
	var h map[string]json.RawMessage
	if err := json.Unmarshal(data, &h); err != nil {
		return PublicKey{}, fmt.Errorf("header is not a JSON object: %.80q", err.Error())
	}
	for _, name := range slices.Sorted(maps.Keys(h)) {
		if name != "alg" && name != "jwk" && name != "typ" {
			return PublicKey{}, fmt.Errorf("header holds %.40q, only alg, jwk and typ are accepted", name)
		}
	}
	if err := wantString(h, "alg", string(jose.EdDSA)); err != nil {
		return PublicKey{}, err
	}
	if err := wantString(h, "typ", registrationType); err != nil {
		return PublicKey{}, err
	}
	if h["jwk"] == nil {
		return PublicKey{}, errors.New("header has no jwk")
	}
	public, err := ParsePublicKey(h["jwk"])
	if err != nil {
		return PublicKey{}, fmt.Errorf("jwk in the header: %w", err)
	}
	return public, nil
}

func wantString(h map[string]json.RawMessage, name, want string) error {
	if h[name] == nil {
		return fmt.Errorf("header has no %s", name)
	}
	var got string
	if err := json.Unmarshal(h[name], &got); err != nil {
		return fmt.Errorf("%s in the header is not a string", name)
	}
	if got != want {
		return fmt.Errorf("%s in the header is %.40q, only %s is accepted", name, got, want)
	}
	return nil
}

func parsePayload(payload []byte) (Registration, error) {
	if !utf8.Valid(payload) { // else broken bytes would be replaced, and something else be read than was signed
		return Registration{}, errors.New("payload is not UTF-8")
	}
	var r Registration
	if err := json.Unmarshal(payload, &r); err != nil {
		return Registration{}, fmt.Errorf("payload: %.80q", err.Error())
	}
	if err := r.Validate(); err != nil {
		return Registration{}, err
	}
	r.Path, _ = CleanPath(r.Path) // checked by Validate
	return r, nil
}
