package messages_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/harp-tunnel/harp/messages"
)

type body string // of a Body or WSMessage

type cancel struct {
	code   messages.CancelCode
	reason string
}

// decode parses a payload to a value that can be compared with ==.
func decode(t messages.Type, payload []byte) (any, error) {
	switch t {
	case messages.TypeHTTPRequest, messages.TypeWSRequest:
		return messages.ParseHTTPRequest(string(payload))
	case messages.TypeHTTPResponse, messages.TypeWSResponse:
		return messages.ParseHTTPResponse(string(payload))
	case messages.TypeBody, messages.TypeWSMessage:
		return body(payload), nil
	case messages.TypeTrailers:
		return messages.ParseTrailers(string(payload))
	case messages.TypeCredit:
		return messages.ParseCredit(payload)
	case messages.TypeCancel, messages.TypeWSTeardown:
		code, reason, err := messages.ParseCancel(payload)
		return cancel{code, reason}, err
	case messages.TypeTLSRequest:
		return messages.ParseTLSRequest(string(payload))
	case messages.TypePing:
		return messages.ParsePing(payload)
	case messages.TypeDisconnect:
		return messages.ParseDisconnect(payload)
	}
	return nil, fmt.Errorf("no case for %s", t)
}

// encode appends the message that decode read.
func encode(b []byte, h messages.Header, v any) ([]byte, error) {
	start := len(b)
	switch v := v.(type) {
	case messages.HTTPRequest:
		return messages.Finish(messages.BeginHTTPRequest(b, h.Type, h.Flags, h.Stream, &v), start)
	case messages.HTTPResponse:
		return messages.Finish(messages.BeginHTTPResponse(b, h.Type, h.Flags, h.Stream, &v), start)
	case body:
		return messages.AppendBody(b, h.Type, h.Flags, h.Stream, []byte(v)), nil
	case messages.Fields:
		return messages.Finish(messages.AppendTrailers(b, h.Stream, v), start)
	case uint32:
		return messages.AppendCredit(b, h.Stream, v), nil
	case cancel:
		return messages.AppendCancel(b, h.Type, h.Stream, v.code, v.reason), nil
	case messages.TLSRequest:
		return messages.AppendTLSRequest(b, h.Stream, &v)
	case [messages.PingLen]byte:
		return messages.AppendPing(b, h.Flags, v), nil
	case messages.Disconnect:
		return messages.AppendDisconnect(b, v), nil
	}
	return nil, fmt.Errorf("no case for %T", v)
}

func TestPayloads(t *testing.T) {
	seen := make(map[messages.Type]bool)
	for _, v := range readVectors(t, "payloads.json", "accept") {
		t.Run(v.Type+"/"+v.Name, func(t *testing.T) {
			h, payload := next(t, v.Hex)
			want := messages.Header{Length: len(v.Hex) - messages.HeaderLen, Type: typeOf(t, v.Type), Flags: v.Flags, Stream: v.Stream}
			if h != want {
				t.Errorf("header is %+v, want %+v", h, want)
			}
			seen[h.Type] = true
			got, err := decode(h.Type, payload)
			if err != nil || got != v.want(t) {
				t.Fatalf("decoded to %+v, %v, want %+v", got, err, v.want(t))
			}
			again, err := encode([]byte("before"), h, got)
			if err != nil {
				t.Fatalf("encode: %v", err)
			}
			again, ok := bytes.CutPrefix(again, []byte("before"))
			if !ok {
				t.Fatal("encoding changed what was in the buffer before")
			}
			if v.Sent != nil && !*v.Sent { // the encoder has no way to make such a header
				again, v.Hex = again[messages.HeaderLen:], v.Hex[messages.HeaderLen:]
			}
			if !bytes.Equal(again, v.Hex) {
				t.Errorf("encoded again to\n%x, want\n%x", clipHex(again), clipHex(v.Hex))
			}
		})
	}
	for n := messages.TypeHTTPRequest; n <= messages.TypeDisconnect; n++ {
		if !seen[n] {
			t.Errorf("no vector for %s", n)
		}
	}
}

func TestPayloadsRefused(t *testing.T) {
	seen := make(map[messages.Type]bool)
	for _, v := range readVectors(t, "payloads.json", "refuse") {
		t.Run(v.Type+"/"+v.Name, func(t *testing.T) {
			h, payload := next(t, v.Hex)
			if h.Type != typeOf(t, v.Type) {
				t.Fatalf("header says %s", h.Type)
			}
			seen[h.Type] = true
			got, err := decode(h.Type, payload)
			if !errors.Is(err, messages.ErrMalformed) {
				t.Fatalf("decoded to %+v, %v, want ErrMalformed", got, err)
			}
			if len(err.Error()) > 200 {
				t.Errorf("the error repeats too much of what was sent: %d bytes", len(err.Error()))
			}
		})
	}
	for n := messages.TypeHTTPRequest; n <= messages.TypeDisconnect; n++ {
		if !seen[n] && n != messages.TypeBody && n != messages.TypeWSMessage { // these take any payload
			t.Errorf("no vector for %s", n)
		}
	}
}

// TestPayloadsCut cuts every good payload at every byte. What is left is refused, or is something shorter that is
// good as well: fields and reasons may end early.
func TestPayloadsCut(t *testing.T) {
	for _, v := range readVectors(t, "payloads.json", "accept") {
		h, payload := next(t, v.Hex)
		for n := range min(len(payload), 2048) {
			got, err := decode(h.Type, payload[:n])
			if err != nil {
				if !errors.Is(err, messages.ErrMalformed) {
					t.Errorf("%s, cut to %d bytes: %v, want ErrMalformed", v.Name, n, err)
				}
				continue
			}
			again, err := encode(nil, h, got)
			if err != nil || !bytes.Equal(again[messages.HeaderLen:], payload[:n]) {
				t.Errorf("%s, cut to %d bytes, is encoded again to %x, %v", v.Name, n, clipHex(again), err)
			}
		}
	}
}

// TestSkipped wants types that are not known to be read like any other, so that a receiver can skip them.
func TestSkipped(t *testing.T) {
	for _, v := range readVectors(t, "payloads.json", "skip") {
		h, payload := next(t, v.Hex)
		if h.Type != v.Number || h.Flags != v.Flags || h.Stream != v.Stream || !bytes.Equal(payload, v.Payload) {
			t.Errorf("%s: read as %+v, %x", v.Name, h, payload)
		}
		if want := fmt.Sprintf("Type(0x%02x)", uint8(v.Number)); h.Type.String() != want {
			t.Errorf("%s: called %s, want %s", v.Name, h.Type, want)
		}
	}
	h, payload := next(t, messages.AppendReserved(nil, 9))
	if want := (messages.Header{Type: messages.TypeReserved, Stream: 9}); h != want || len(payload) != 0 {
		t.Errorf("AppendReserved makes %+v, %x, want %+v and no payload", h, payload, want)
	}
}

// next reads the one message that b is.
func next(t testing.TB, b []byte) (messages.Header, []byte) {
	t.Helper()
	h, payload, rest, err := messages.Next(b)
	if err != nil || len(rest) != 0 {
		t.Fatalf("not one message: %v, %d bytes left", err, len(rest))
	}
	return h, payload
}

// clipHex keeps the output of a failed test readable.
func clipHex(b []byte) []byte { return b[:min(len(b), 400)] }
