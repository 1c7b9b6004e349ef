package messages_test

import (
	"testing"

	"github.com/harp-tunnel/harp/messages"
)

func BenchmarkAppendHTTPRequest(b *testing.B) {
	room := make([]byte, 0, 64<<10)
	b.ReportAllocs()
	b.SetBytes(int64(len(appendRequest(room))))
	for b.Loop() {
		appendRequest(room)
	}
}

func BenchmarkParseHTTPRequest(b *testing.B) {
	payload := string(appendRequest(nil)[messages.HeaderLen:])
	b.ReportAllocs()
	b.SetBytes(int64(len(payload)))
	for b.Loop() {
		r, err := messages.ParseHTTPRequest(payload)
		if err != nil {
			b.Fatal(err)
		}
		countFields(r.Fields)
	}
}

func BenchmarkAppendHTTPResponse(b *testing.B) {
	room := make([]byte, 0, 64<<10)
	b.ReportAllocs()
	b.SetBytes(int64(len(appendResponse(room))))
	for b.Loop() {
		appendResponse(room)
	}
}

func BenchmarkParseHTTPResponse(b *testing.B) {
	payload := string(appendResponse(nil)[messages.HeaderLen:])
	b.ReportAllocs()
	b.SetBytes(int64(len(payload)))
	for b.Loop() {
		r, err := messages.ParseHTTPResponse(payload)
		if err != nil {
			b.Fatal(err)
		}
		countFields(r.Fields)
	}
}

func BenchmarkAppendBody(b *testing.B) {
	room, piece := make([]byte, 0, 64<<10), make([]byte, 1<<10)
	b.ReportAllocs()
	b.SetBytes(int64(len(piece)))
	for b.Loop() {
		messages.AppendBody(room, messages.TypeBody, messages.FlagEnd, 1, piece)
	}
}

// BenchmarkNext splits the batch that a busy link carries: requests and answers of 1 KiB.
func BenchmarkNext(b *testing.B) {
	var batch []byte
	for i := range uint32(50) {
		batch = appendRequest(batch)
		batch = messages.AppendBody(batch, messages.TypeBody, messages.FlagEnd, i, make([]byte, 1024))
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(batch)))
	for b.Loop() {
		for rest := batch; len(rest) > 0; {
			var err error
			if _, _, rest, err = messages.Next(rest); err != nil {
				b.Fatal(err)
			}
		}
	}
}
