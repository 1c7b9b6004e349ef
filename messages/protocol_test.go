package messages_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/harp-tunnel/harp/messages"
)

func readPage(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

// TestPageNamesEverything wants each number and name that the code has in a table of PROTOCOL.md.
func TestPageNamesEverything(t *testing.T) {
	page := readPage(t)
	wants := func(row string) {
		t.Helper()
		if !strings.Contains(page, row) {
			t.Errorf("PROTOCOL.md has no row %q", row)
		}
	}
	for n := messages.TypeHTTPRequest; n <= messages.TypeDisconnect; n++ {
		wants(fmt.Sprintf("\n| 0x%02x | `%s` |", uint8(n), n))
	}
	wants(fmt.Sprintf("\n| 0x%02x | reserved |", uint8(messages.TypeReserved)))
	for c := messages.CancelEnough; c <= messages.CancelUnsupported; c++ {
		wants(fmt.Sprintf("\n| %d | %s |", uint8(c), c))
	}
	for c := messages.DisconnectDraining; c <= messages.DisconnectProtocol; c++ {
		wants(fmt.Sprintf("\n| %d | %s |", uint8(c), c))
	}
	for _, code := range []string{
		messages.RefuseMalformed, messages.RefuseSignature, messages.RefuseChallenge, messages.RefuseAudience,
		messages.RefuseNotAuthorized, messages.RefuseUnsupported, messages.RefuseLimit, messages.RefuseDraining,
	} {
		wants("\n| `" + code + "` |")
	}
	for _, word := range []string{messages.Subprotocol, messages.ConnectPath, messages.ChallengeField} {
		if !strings.Contains(page, word) {
			t.Errorf("PROTOCOL.md does not name %s", word)
		}
	}
}

// TestPageExamples wants each example in hex to be one of the vectors, which other tests hold against the code.
func TestPageExamples(t *testing.T) {
	var known []string
	for file, list := range map[string]string{"payloads.json": "accept", "framing.json": "accept"} {
		for _, v := range readVectors(t, file, list) {
			known = append(known, hex.EncodeToString(v.Hex))
		}
	}
	examples := regexp.MustCompile("(?s)```hex\n(.*?)```").FindAllStringSubmatch(readPage(t), -1)
	if len(examples) == 0 {
		t.Fatal("PROTOCOL.md has no examples in hex")
	}
	for _, e := range examples {
		var digits strings.Builder
		for line := range strings.Lines(e[1]) {
			bytes, _, _ := strings.Cut(line, "#")
			for word := range strings.FieldsSeq(bytes) {
				digits.WriteString(word)
			}
		}
		if !slices.Contains(known, digits.String()) {
			t.Errorf("this example is no vector:\n%s", e[1])
		}
	}
}

// TestPageNames follows section 4 by hand to the names that it gives.
func TestPageNames(t *testing.T) {
	page := readPage(t)
	jwk := regexp.MustCompile(`(?m)^ {4}(\{"crv":"Ed25519","kty":"OKP","x":"[\w-]+"\})$`).FindStringSubmatch(page)
	if jwk == nil {
		t.Fatal("PROTOCOL.md has no text to make a thumbprint of")
	}
	thumbprint := sha256.Sum256([]byte(jwk[1]))
	label := func(session string) string {
		sum := sha256.Sum256(append(thumbprint[:], session...))
		return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:]))
	}
	for _, row := range []string{
		"| thumbprint, base64url | `" + base64.RawURLEncoding.EncodeToString(thumbprint[:]) + "` |",
		"| label, no session | `" + label("") + "` |",
		"| label, session `api` | `" + label("api") + "` |",
	} {
		if !strings.Contains(page, row) {
			t.Errorf("PROTOCOL.md does not have %s", row)
		}
	}
}

// TestPageSignature takes the signed example of section 15 apart and verifies it.
func TestPageSignature(t *testing.T) {
	page := readPage(t)
	text := regexp.MustCompile(`(?m)^ {4}(\{"type":"RegistrationRequest","jws":"[\w.-]+"\})$`).FindStringSubmatch(page)
	if text == nil {
		t.Fatal("PROTOCOL.md has no signed example")
	}
	request, err := messages.ParseRegistrationRequest([]byte(text[1]))
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(request.JWS, ".")
	if len(parts) != 3 {
		t.Fatalf("the JWS has %d parts", len(parts))
	}
	var decoded [3][]byte
	for i, part := range parts {
		if decoded[i], err = base64.RawURLEncoding.Strict().DecodeString(part); err != nil {
			t.Fatalf("part %d: %v", i+1, err)
		}
	}
	for i, name := range []string{"header", "payload"} {
		if want := fmt.Sprintf("    %-9s%s\n", name, decoded[i]); !strings.Contains(page, want) {
			t.Errorf("PROTOCOL.md does not show the %s as it was signed: %s", name, decoded[i])
		}
	}
	x := regexp.MustCompile(`"x":"([\w-]+)"`).FindSubmatch(decoded[0])
	if x == nil {
		t.Fatal("the header has no key")
	}
	key, err := base64.RawURLEncoding.DecodeString(string(x[1]))
	if err != nil || len(key) != ed25519.PublicKeySize {
		t.Fatalf("key of %d bytes, %v", len(key), err)
	}
	if !ed25519.Verify(key, []byte(parts[0]+"."+parts[1]), decoded[2]) {
		t.Error("the signature of the example does not verify")
	}
}
