package tunnel

import (
	"io"
	"net/http"
	"testing"

	"github.com/harp-tunnel/harp/messages"
)

// FuzzDispatch gives a session of either role whatever a peer might send in one batch, with streams in every state. It must
// not panic or wait, and at its end nothing of it may be left.
func FuzzDispatch(f *testing.F) {
	seeds := [][]byte{
		requests(1, "GET", "/", messages.FlagEnd), requests(9, "POST", "/x?y", 0, "Expect: 100-continue", "Trailer: X"),
		requestHead(messages.TypeWSRequest, 10, "GET", "/hijack", 0, "Upgrade: own"),
		responds(1, 200, 0, "Content-Length: 5"), responds(2, 103, 0), responds(3, 204, messages.FlagEnd), responds(1, 101, 0),
		body(1, "hello"), end(1, ""), upgraded(4, "x"), trailers(1, "X: y"), credit(2, 1<<31-1), cancels(3, messages.CancelEnough, "why"),
		cancels(1, messages.CancelRefused, ""), messages.AppendPing(nil, 0, [messages.PingLen]byte{}),
		messages.AppendDisconnect(nil, messages.Disconnect{Code: messages.DisconnectDraining}), messages.AppendReserved(nil, 1),
		raw(messages.TypeTLSRequest, 0, 11, "\x01\x01a\x01b"),
	}
	for i, a := range seeds {
		f.Add(a)
		for _, b := range seeds[i:] {
			f.Add(append(append([]byte(nil), a...), b...))
		}
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.RequestURI == "/hijack" {
			c, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\n\r\nhello")
				_ = c.Close()
			}
			return
		}
		_, _ = io.CopyN(w, r.Body, 5)
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		agent := NewSession(nil, Config{Handler: func(registration uint32) http.Handler {
			if registration > 100 {
				return nil
			}
			return handler
		}})
		_ = agent.dispatch(b)
		agent.fail(ErrClosed)
		agent.endWorkers()
		agent.handlers.Wait()
		if n := agent.Streams(); n != 0 {
			t.Errorf("%d streams are left at the agent", n)
		}

		edge := NewSession(nil, Config{})
		var open []*stream
		for _, r := range []*http.Request{request("GET", "/", nil), request("POST", "/", nil), request("GET", "/", nil, "Upgrade: own"),
			request("GET", "/", nil, "Upgrade: own")} {
			x := &exchange{ctx: t.Context()}
			if err := edge.open(x, 1, r, r.Method == "POST"); err != nil {
				t.Fatal(err)
			}
			open = append(open, &x.stream)
		}
		_ = edge.dispatch(responds(1, 200, 0))
		_ = edge.dispatch(b)
		_ = edge.dispatch(b)
		edge.fail(ErrClosed)
		for _, st := range open {
			st.shut(errCancelled, true)
		}
		if n := edge.Streams(); n != 0 {
			t.Errorf("%d streams are left at the edge", n)
		}
		if a, b := agent.grown.Load(), edge.grown.Load(); a != 0 || b != 0 {
			t.Errorf("%d and %d bytes of the window budgets are missing", a, b)
		}
	})
}
