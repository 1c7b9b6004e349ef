package messages_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/harp-tunnel/harp/messages"
)

// vector is an entry of a file in testdata/messages; its README says which members each list uses.
type vector struct {
	Name   string
	Hex    hexBytes
	Type   string // by name, where the number is one of ours
	Number messages.Type
	Flags  messages.Flags
	Stream uint32
	Sent   *bool // false: to be accepted, never to be sent

	Payload      hexBytes
	Request      *requestVector
	Response     json.RawMessage // a responseVector or, in registration.json, a RegistrationResponse
	Trailers     []fieldVector
	TLS          *tlsVector
	Credit       uint32
	Code         uint8
	Registration uint32
	Reason       string
	Ping         hexBytes

	Messages []vector // of framing.json
	Good     int      // how many messages come before the broken one

	Expect string // the text message that is expected
	Text   string
	Pad    int // blanks are added to Text up to this length
	JWS    string
}

type requestVector struct {
	Registration      uint32
	Method, Scheme    string
	Authority, Target rawString
	Visitor           string
	Fields            []fieldVector
}

type responseVector struct {
	Status int
	Fields []fieldVector
}

type tlsVector struct {
	Registration uint32
	ServerName   string `json:"server_name"`
	Visitor      string
}

// fieldVector is the name and the value of a field.
type fieldVector [2]rawString

// hexBytes is written as words of hex digits; the word 78*1024 is the byte 78, 1024 times.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) error {
	*h = hexBytes{}
	for word := range strings.FieldsSeq(string(text)) {
		digits, count, repeated := strings.Cut(word, "*")
		b, err := hex.DecodeString(digits)
		if err != nil {
			return err
		}
		n := 1
		if repeated {
			if n, err = strconv.Atoi(count); err != nil {
				return err
			}
		}
		*h = append(*h, bytes.Repeat(b, n)...)
	}
	return nil
}

// rawString is written as a string, or as an object with its hex where it is no UTF-8.
type rawString string

func (s *rawString) UnmarshalJSON(data []byte) error {
	if data[0] == '"' {
		return json.Unmarshal(data, (*string)(s))
	}
	var v struct{ Hex hexBytes }
	err := json.Unmarshal(data, &v)
	*s = rawString(v.Hex)
	return err
}

// readVectors returns one list of a vector file and fails the test if there is nothing in it.
func readVectors(t testing.TB, file, list string) []vector {
	t.Helper()
	data, err := os.ReadFile("../testdata/messages/" + file)
	if err != nil {
		t.Fatal(err)
	}
	var lists map[string][]vector
	if err := json.Unmarshal(data, &lists); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	if len(lists[list]) == 0 {
		t.Fatalf("%s: no vectors in the list %q", file, list)
	}
	return lists[list]
}

// text is the text message of a vector in registration.json.
func (v vector) text() []byte {
	if v.Hex != nil {
		return v.Hex
	}
	return []byte(v.Text + strings.Repeat(" ", max(0, v.Pad-len(v.Text))))
}

func fields(list []fieldVector) messages.Fields {
	var b []byte
	for _, f := range list {
		b = messages.AppendField(b, string(f[0]), string(f[1]))
	}
	return messages.Fields(b)
}

// typeOf returns the type that bears the name.
func typeOf(t testing.TB, name string) messages.Type {
	t.Helper()
	for n := messages.TypeHTTPRequest; n <= messages.TypeDisconnect; n++ {
		if n.String() == name {
			return n
		}
	}
	t.Fatalf("no message type is called %q", name)
	return 0
}

// want is what decode has to return for the vector.
func (v vector) want(t testing.TB) any {
	t.Helper()
	switch typeOf(t, v.Type) {
	case messages.TypeHTTPRequest, messages.TypeWSRequest:
		r := v.Request
		return messages.HTTPRequest{
			Registration: r.Registration, Method: r.Method, Scheme: r.Scheme, Authority: string(r.Authority),
			Target: string(r.Target), Visitor: r.Visitor, Fields: fields(r.Fields),
		}
	case messages.TypeHTTPResponse, messages.TypeWSResponse:
		var r responseVector
		if err := json.Unmarshal(v.Response, &r); err != nil {
			t.Fatal(err)
		}
		return messages.HTTPResponse{Status: r.Status, Fields: fields(r.Fields)}
	case messages.TypeBody, messages.TypeWSMessage:
		return body(v.Payload)
	case messages.TypeTrailers:
		return fields(v.Trailers)
	case messages.TypeCredit:
		return v.Credit
	case messages.TypeCancel, messages.TypeWSTeardown:
		return cancel{messages.CancelCode(v.Code), v.Reason}
	case messages.TypeTLSRequest:
		return messages.TLSRequest(*v.TLS)
	case messages.TypePing:
		return [messages.PingLen]byte(v.Ping)
	case messages.TypeDisconnect:
		return messages.Disconnect{Code: messages.DisconnectCode(v.Code), Registration: v.Registration, Reason: v.Reason}
	}
	panic(fmt.Sprintf("no case for %s", v.Type))
}
