package tunnel

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/harp-tunnel/harp/messages"
)

// benchPair returns the edge of a link whose agent has the handler, in memory or over a WebSocket on loopback.
func benchPair(b testing.TB, loopback bool, h http.Handler) *Session {
	b.Helper()
	if loopback {
		edge, _ := newLoopbackPair(b, h)
		return edge
	}
	x, y := newMemLink(16)
	run(b, NewSession(y, Config{Handler: func(uint32) http.Handler { return h }}))
	return run(b, NewSession(x, Config{}))
}

// answerKiB is a small service: 1 KiB with the fields of an ordinary answer.
func answerKiB() http.HandlerFunc {
	answer := make([]byte, 1<<10)
	return func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h["Content-Type"] = []string{"text/html; charset=utf-8"}
		h["Content-Length"] = []string{"1024"}
		h["Date"] = []string{"Mon, 01 Jan 2024 00:00:00 GMT"}
		h["Cache-Control"] = []string{"no-cache"}
		h["Server"] = []string{"own/1.0"}
		_, _ = w.Write(answer)
	}
}

// visitorRequest is what an ordinary browser sends.
func visitorRequest(ctx context.Context) *http.Request {
	r := httptest.NewRequestWithContext(ctx, "GET", "/some/page?of=a&large=site", nil)
	r.Header = http.Header{
		"User-Agent":        {"Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"},
		"Accept":            {"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"},
		"Accept-Language":   {"en-US,en;q=0.5"},
		"Accept-Encoding":   {"gzip, deflate, br"},
		"Cookie":            {"session=0123456789abcdef0123456789abcdef"},
		"X-Forwarded-For":   {"192.0.2.7"},
		"X-Forwarded-Proto": {"https"},
		"X-Request-Id":      {"0123456789abcdef"},
	}
	r.Body = nil
	return r
}

func exchange1(tb testing.TB, edge *Session, req *http.Request) {
	res, err := edge.RoundTrip(1, req)
	if err != nil {
		tb.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, res.Body); n != 1024 || err != nil {
		tb.Fatalf("%d bytes, %v", n, err)
	}
	res.Body.Close()
}

func BenchmarkRoundTrip(b *testing.B) {
	for _, c := range []struct {
		name     string
		loopback bool
		parallel int // visitors for each CPU
		handler  http.Handler
	}{
		{"memory", false, 0, answerKiB()}, {"memory-64", false, 32, answerKiB()},
		{"loopback", true, 0, answerKiB()}, {"loopback-64", true, 32, answerKiB()}, {"fields-loopback-64", true, 32, newFieldsKiB()},
	} {
		b.Run(c.name, func(b *testing.B) {
			edge := benchPair(b, c.loopback, c.handler)
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			b.ReportAllocs()
			if c.parallel == 0 {
				req := visitorRequest(ctx)
				for b.Loop() {
					exchange1(b, edge, req)
				}
				return
			}
			b.SetParallelism(c.parallel)
			b.RunParallel(func(pb *testing.PB) {
				for req := visitorRequest(ctx); pb.Next(); {
					exchange1(b, edge, req)
				}
			})
		})
	}
}

func BenchmarkBulk(b *testing.B) {
	const size = 64 << 20
	for _, c := range []struct {
		name             string
		loopback, upload bool
	}{{"download-memory", false, false}, {"upload-memory", false, true}, {"download-loopback", true, false}, {"upload-loopback", true, true}} {
		b.Run(c.name, func(b *testing.B) {
			piece := make([]byte, 32<<10)
			edge := benchPair(b, c.loopback, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				for n := size; n > 0 && !c.upload; n -= len(piece) {
					_, _ = w.Write(piece)
				}
			}))
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				req := visitorRequest(b.Context())
				if c.upload {
					req.Method, req.Body = "POST", io.NopCloser(io.LimitReader(zeros{}, size))
				}
				res, err := edge.RoundTrip(1, req)
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, res.Body); err != nil || !c.upload && n != size {
					b.Fatalf("%d bytes, %v", n, err)
				}
				res.Body.Close()
			}
		})
	}
}

// fieldsKiB is answerKiB as a FieldsHandler.
type fieldsKiB struct {
	http.HandlerFunc
	head, body []byte
}

func newFieldsKiB() *fieldsKiB {
	var head []byte
	for _, f := range [][2]string{
		{"Content-Type", "text/html; charset=utf-8"}, {"Content-Length", "1024"},
		{"Date", "Mon, 01 Jan 2024 00:00:00 GMT"}, {"Cache-Control", "no-cache"}, {"Server", "own/1.0"},
	} {
		head = messages.AppendField(head, f[0], f[1])
	}
	return &fieldsKiB{answerKiB(), head, make([]byte, 1<<10)}
}

func (h *fieldsKiB) Self() http.Handler { return h }

func (h *fieldsKiB) ServeFields(w http.ResponseWriter, _ *http.Request, _ messages.Fields) {
	w.(FieldsWriter).WriteFields(200, 1024, h.head)
	_, _ = w.Write(h.body)
}

// TestRoundTripAllocations holds a request with its answer of 1 KiB, at both ends together and over a real WebSocket, to
// its budget. The second figure is what it was when this was written.
func TestRoundTripAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for _, c := range []struct {
		name string
		h    http.Handler
		most float64
	}{
		{"http.Handler", answerKiB(), 24},     // 22, of which five are the handler's own
		{"FieldsHandler", newFieldsKiB(), 13}, // 11
	} {
		edge := benchPair(t, true, c.h)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		req := visitorRequest(ctx)
		if got := testing.AllocsPerRun(2000, func() { exchange1(t, edge, req) }); got > c.most {
			t.Errorf("%s: a round trip makes %.0f allocations, want at most %.0f", c.name, got, c.most)
		} else {
			t.Logf("%s: a round trip makes %.0f allocations", c.name, got)
		}
	}
}
