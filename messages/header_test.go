package messages_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/harp-tunnel/harp/messages"
)

func TestFraming(t *testing.T) {
	for _, v := range readVectors(t, "framing.json", "accept") {
		t.Run(v.Name, func(t *testing.T) {
			rest := []byte(v.Hex)
			var again []byte
			for i, want := range v.Messages {
				h, payload, r, err := messages.Next(rest)
				if err != nil {
					t.Fatalf("message %d: %v", i, err)
				}
				if h.Type != want.Number || h.Flags != want.Flags || h.Stream != want.Stream || h.Length != len(want.Payload) {
					t.Errorf("message %d has the header %+v", i, h)
				}
				if !bytes.Equal(payload, want.Payload) {
					t.Errorf("message %d has the payload %x, want %x", i, clipHex(payload), clipHex(want.Payload))
				}
				again = append(messages.AppendHeader(again, h), payload...)
				rest = r
			}
			if len(rest) != 0 {
				t.Errorf("%d bytes are left after the last message", len(rest))
			}
			if !bytes.Equal(again, v.Hex) {
				t.Errorf("encoded again to %x, want %x", clipHex(again), clipHex(v.Hex))
			}
		})
	}
}

func TestFramingRefused(t *testing.T) {
	for _, v := range readVectors(t, "framing.json", "refuse") {
		rest := []byte(v.Hex)
		for i := range v.Good {
			var err error
			if _, _, rest, err = messages.Next(rest); err != nil {
				t.Fatalf("%s: message %d: %v", v.Name, i, err)
			}
		}
		if h, _, _, err := messages.Next(rest); !errors.Is(err, messages.ErrHeader) {
			t.Errorf("%s: read as %+v, %v, want ErrHeader", v.Name, h, err)
		}
	}
}

// TestFramingCut cuts every good message at every byte: none of it may pass for a whole one.
func TestFramingCut(t *testing.T) {
	for _, v := range readVectors(t, "payloads.json", "accept") {
		for n := range min(len(v.Hex), 2048) {
			if _, _, _, err := messages.Next(v.Hex[:n]); !errors.Is(err, messages.ErrHeader) {
				t.Errorf("%s %s, cut to %d bytes: %v, want ErrHeader", v.Type, v.Name, n, err)
			}
		}
	}
}

func TestNextKeepsNeighboursApart(t *testing.T) {
	b := messages.AppendBody(nil, messages.TypeBody, 0, 1, []byte("ab"))
	b = messages.AppendBody(b, messages.TypeBody, 0, 1, []byte("cd"))
	_, first, rest, err := messages.Next(b)
	if err != nil {
		t.Fatal(err)
	}
	_ = append(first, "overflow"...)
	if _, second, _, err := messages.Next(rest); err != nil || string(second) != "cd" {
		t.Errorf("after the first payload was appended to, the second is %q, %v, want %q", second, err, "cd")
	}
}

func TestFinish(t *testing.T) {
	largest := bytes.Repeat([]byte{'x'}, messages.MaxPayload)
	b := messages.AppendBody([]byte("before"), messages.TypeBody, 0, 1, nil)
	start := len("before")

	whole, err := messages.Finish(append(bytes.Clone(b), largest...), start)
	if err != nil {
		t.Fatalf("a payload of exactly MaxPayload bytes: %v", err)
	}
	if h, payload, _, err := messages.Next(whole[start:]); err != nil || h.Length != messages.MaxPayload || !bytes.Equal(payload, largest) {
		t.Errorf("a payload of exactly MaxPayload bytes is read back as %+v, %v", h, err)
	}

	taken, err := messages.Finish(append(append(b, largest...), 'x'), start)
	if !errors.Is(err, messages.ErrTooLong) {
		t.Errorf("a payload of one byte more: %v, want ErrTooLong", err)
	}
	if string(taken) != "before" {
		t.Errorf("a message that is too long leaves %d bytes in the buffer, want those before it", len(taken))
	}
}
