package messages_test

import (
	"strconv"
	"testing"

	"github.com/harp-tunnel/harp/messages"
)

// TestAllocations holds the hot path to its budget: nothing, neither to encode into a buffer with room nor to decode.
func TestAllocations(t *testing.T) {
	room := make([]byte, 0, 64<<10)
	piece := make([]byte, 32<<10)
	request := string(appendRequest(nil)[messages.HeaderLen:])
	response := string(appendResponse(nil)[messages.HeaderLen:])
	trailers := string(messages.AppendField(nil, "Grpc-Status", "0"))
	ping := [messages.PingLen]byte{1, 2, 3}

	var batch []byte
	for i := range uint32(50) {
		batch = appendRequest(batch)
		batch = messages.AppendBody(batch, messages.TypeBody, messages.FlagEnd, i, piece[:1024])
	}

	for _, c := range []struct {
		name string
		do   func() error
	}{
		{"append HTTPRequest with 12 fields", func() error { appendRequest(room); return nil }},
		{"append HTTPResponse with 12 fields", func() error { appendResponse(room); return nil }},
		{"append Body", func() error { messages.AppendBody(room, messages.TypeBody, 0, 1, piece); return nil }},
		{"append Trailers", func() error {
			_, err := messages.Finish(messages.AppendField(messages.AppendTrailers(room, 1, ""), "Grpc-Status", "0"), 0)
			return err
		}},
		{"append Credit", func() error { messages.AppendCredit(room, 1, 1<<17); return nil }},
		{"append Ping", func() error { messages.AppendPing(room, messages.FlagAck, ping); return nil }},
		{"append Cancel", func() error {
			messages.AppendCancel(room, messages.TypeCancel, 1, messages.CancelAborted, "visitor is gone")
			return nil
		}},
		{"append TLSRequest", func() error {
			_, err := messages.AppendTLSRequest(room, 1, &messages.TLSRequest{Registration: 1, ServerName: "example.com", Visitor: "192.0.2.1:1"})
			return err
		}},
		{"split a batch of 100 messages", func() error {
			for rest := batch; len(rest) > 0; {
				var err error
				if _, _, rest, err = messages.Next(rest); err != nil {
					return err
				}
			}
			return nil
		}},
		{"parse HTTPRequest and range over its fields", func() error {
			r, err := messages.ParseHTTPRequest(request)
			countFields(r.Fields)
			return err
		}},
		{"parse HTTPResponse and range over its fields", func() error {
			r, err := messages.ParseHTTPResponse(response)
			countFields(r.Fields)
			return err
		}},
		{"parse Trailers", func() error { _, err := messages.ParseTrailers(trailers); return err }},
		{"parse Credit", func() error { _, err := messages.ParseCredit([]byte{0, 1, 0, 0}); return err }},
		{"parse Ping", func() error { _, err := messages.ParsePing(ping[:]); return err }},
	} {
		if err := c.do(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if got := testing.AllocsPerRun(100, func() { _ = c.do() }); got != 0 {
			t.Errorf("%s: %s allocations, want none", c.name, strconv.FormatFloat(got, 'f', -1, 64))
		}
	}
}
