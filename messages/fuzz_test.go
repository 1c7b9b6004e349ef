package messages_test

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/harp-tunnel/harp/messages"
)

// seedPayloads adds the payloads of the vectors of the types, good and bad ones.
func seedPayloads(f *testing.F, types ...messages.Type) {
	f.Helper()
	for _, list := range []string{"accept", "refuse"} {
		found := false
		for _, v := range readVectors(f, "payloads.json", list) {
			if slices.Contains(types, typeOf(f, v.Type)) {
				f.Add([]byte(v.Hex[messages.HeaderLen:]))
				found = true
			}
		}
		if !found {
			f.Fatalf("no vectors for %v in the list %q", types, list)
		}
	}
}

// fuzzPayload parses what comes as a payload of the type, and wants what was accepted to be encoded to the same bytes.
// check, which may be nil, looks at the value.
func fuzzPayload(f *testing.F, typ messages.Type, check func(t *testing.T, v any)) {
	f.Fuzz(func(t *testing.T, payload []byte) {
		if len(payload) > messages.MaxPayload {
			return
		}
		before := bytes.Clone(payload)
		v, err := decode(typ, payload)
		if !bytes.Equal(payload, before) {
			t.Fatal("parsing changed the payload")
		}
		if err != nil {
			if !errors.Is(err, messages.ErrMalformed) {
				t.Fatalf("error %v does not wrap ErrMalformed", err)
			}
			if !reflect.ValueOf(v).IsZero() {
				t.Fatalf("with the error comes %+v", v)
			}
			return
		}
		again, err := encode(nil, messages.Header{Type: typ, Stream: 1}, v)
		if err != nil {
			t.Fatalf("encode %+v: %v", v, err)
		}
		h, second := next(t, again)
		if h.Type != typ || !bytes.Equal(second, payload) {
			t.Fatalf("encoded again as %s to\n%x, want\n%x", h.Type, second, payload)
		}
		if check != nil {
			check(t, v)
		}
	})
}

func FuzzNext(f *testing.F) {
	for _, list := range []string{"accept", "refuse"} {
		for _, v := range append(readVectors(f, "framing.json", list), readVectors(f, "payloads.json", list)...) {
			if len(v.Hex) < 8<<10 { // the largest ones only slow the search down
				f.Add([]byte(v.Hex))
			}
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var again []byte
		rest := b
		for len(rest) > 0 {
			h, payload, r, err := messages.Next(rest)
			if err != nil {
				if !errors.Is(err, messages.ErrHeader) {
					t.Fatalf("error %v does not wrap ErrHeader", err)
				}
				if payload != nil || r != nil {
					t.Fatalf("with the error come %d and %d bytes", len(payload), len(r))
				}
				break
			}
			if h.Length != len(payload) || h.Length > messages.MaxPayload || cap(payload) != len(payload) {
				t.Fatalf("header %+v with a payload of %d bytes, capacity %d", h, len(payload), cap(payload))
			}
			if len(r) != len(rest)-messages.HeaderLen-len(payload) {
				t.Fatalf("%d bytes became a payload of %d and a rest of %d", len(rest), len(payload), len(r))
			}
			again = append(messages.AppendHeader(again, h), payload...)
			rest = r
			_ = h.Type.String()
		}
		if !bytes.Equal(append(again, rest...), b) {
			t.Fatalf("put together again it is %x, want %x", again, b)
		}
	})
}

func FuzzHTTPRequest(f *testing.F) {
	seedPayloads(f, messages.TypeHTTPRequest, messages.TypeWSRequest)
	fuzzPayload(f, messages.TypeHTTPRequest, func(t *testing.T, v any) {
		r := v.(messages.HTTPRequest)
		for _, part := range []string{r.Method, r.Scheme, r.Authority, r.Target} {
			if strings.ContainsAny(part, " \r\n\x00") {
				t.Fatalf("%q could not stand in a request line", part)
			}
		}
		checkFields(t, r.Fields)
	})
}

func FuzzHTTPResponse(f *testing.F) {
	seedPayloads(f, messages.TypeHTTPResponse, messages.TypeWSResponse)
	fuzzPayload(f, messages.TypeHTTPResponse, func(t *testing.T, v any) {
		r := v.(messages.HTTPResponse)
		if r.Status < 100 || r.Status > 999 {
			t.Fatalf("status %d", r.Status)
		}
		checkFields(t, r.Fields)
	})
}

func FuzzTrailers(f *testing.F) {
	seedPayloads(f, messages.TypeTrailers)
	fuzzPayload(f, messages.TypeTrailers, func(t *testing.T, v any) { checkFields(t, v.(messages.Fields)) })
}

// checkFields wants the fields to be what they are made of, and none to hold a line break.
func checkFields(t *testing.T, fields messages.Fields) {
	t.Helper()
	var again []byte
	for name, value := range fields.All() {
		if name == "" || strings.ContainsAny(name, " :\r\n\x00") || strings.ContainsAny(value, "\r\n\x00") {
			t.Fatalf("field %q: %q", name, value)
		}
		again = messages.AppendField(again, name, value)
	}
	if string(again) != string(fields) {
		t.Fatalf("fields put together again are %x, want %x", again, fields)
	}
}

func FuzzTLSRequest(f *testing.F) {
	seedPayloads(f, messages.TypeTLSRequest)
	fuzzPayload(f, messages.TypeTLSRequest, nil)
}

func FuzzCredit(f *testing.F) {
	seedPayloads(f, messages.TypeCredit)
	fuzzPayload(f, messages.TypeCredit, func(t *testing.T, v any) {
		if v.(uint32) == 0 {
			t.Fatal("credit of nothing was accepted")
		}
	})
}

func FuzzCancel(f *testing.F) {
	seedPayloads(f, messages.TypeCancel, messages.TypeWSTeardown)
	fuzzPayload(f, messages.TypeCancel, func(t *testing.T, v any) {
		c := v.(cancel)
		_ = c.code.String()
		if len(c.reason) > 1024 || !utf8.ValidString(c.reason) {
			t.Fatalf("reason %q of %d bytes", c.reason, len(c.reason))
		}
	})
}

// FuzzReason sends any text as a reason, and wants the receiver to accept what became of it.
func FuzzReason(f *testing.F) {
	for _, v := range readVectors(f, "payloads.json", "accept") {
		f.Add(v.Reason)
	}
	f.Add("\xff" + strings.Repeat("é", 600))
	f.Fuzz(func(t *testing.T, reason string) {
		_, payload := next(t, messages.AppendCancel(nil, messages.TypeWSTeardown, 1, messages.CancelBroken, reason))
		_, got, err := messages.ParseCancel(payload)
		if err != nil {
			t.Fatalf("a reason that was sent is refused: %v", err)
		}
		if utf8.ValidString(reason) && !strings.HasPrefix(reason, got) {
			t.Fatalf("%q became %q", reason, got)
		}
	})
}

func FuzzPing(f *testing.F) {
	seedPayloads(f, messages.TypePing)
	fuzzPayload(f, messages.TypePing, nil)
}

func FuzzDisconnect(f *testing.F) {
	seedPayloads(f, messages.TypeDisconnect)
	fuzzPayload(f, messages.TypeDisconnect, func(t *testing.T, v any) {
		d := v.(messages.Disconnect)
		_ = d.Code.String()
		if len(d.Reason) > 1024 || !utf8.ValidString(d.Reason) {
			t.Fatalf("reason %q of %d bytes", d.Reason, len(d.Reason))
		}
	})
}

// seedTexts adds all text messages of the vectors: one for the wrong parser is a seed as good as any.
func seedTexts(f *testing.F) {
	f.Helper()
	for _, list := range []string{"requests", "responses", "refuse"} {
		for _, v := range readVectors(f, "registration.json", list) {
			f.Add(v.text())
		}
	}
}

func FuzzRegistrationRequest(f *testing.F) {
	seedTexts(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := messages.ParseRegistrationRequest(text)
		if checkRefusal(t, err) {
			return
		}
		encoded, err := messages.EncodeRegistrationRequest(r)
		if checkTooLong(t, err) {
			return
		}
		if again, err := messages.ParseRegistrationRequest(encoded); err != nil || again != r {
			t.Fatalf("%+v is read back as %+v, %v", r, again, err)
		}
	})
}

func FuzzRegistrationResponse(f *testing.F) {
	seedTexts(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := messages.ParseRegistrationResponse(text)
		if checkRefusal(t, err) {
			return
		}
		if (r.Error == nil) == (r.Registration == 0) {
			t.Fatalf("%+v neither grants nor refuses, or does both", r)
		}
		encoded, err := messages.EncodeRegistrationResponse(r)
		if checkTooLong(t, err) {
			return
		}
		if again, err := messages.ParseRegistrationResponse(encoded); err != nil || !reflect.DeepEqual(again, r) {
			t.Fatalf("%+v is read back as %+v, %v", r, again, err)
		}
	})
}

// checkRefusal reports whether there is an error, and fails if it is not the one that is promised.
func checkRefusal(t *testing.T, err error) bool {
	t.Helper()
	if err != nil && (!errors.Is(err, messages.ErrMalformed) || len(err.Error()) > 1024) {
		t.Fatalf("error %v does not wrap ErrMalformed, or is too long", err)
	}
	return err != nil
}

// checkTooLong reports whether the text grew too long: JSON has several spellings of a character, and ours can be the
// longer one.
func checkTooLong(t *testing.T, err error) bool {
	t.Helper()
	if err != nil && !errors.Is(err, messages.ErrTooLong) {
		t.Fatalf("what was read can not be written: %v", err)
	}
	return err != nil
}
