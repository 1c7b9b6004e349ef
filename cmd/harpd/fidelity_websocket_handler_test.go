package main

import (
	"net/http"
	"strings"
	"testing"
	"time"

	coder "github.com/coder/websocket"
	"github.com/gorilla/websocket"
)

// TestWebSocketHandlers has handlers of the agent's own process accept WebSockets: gorilla hijacks before any head,
// coder writes the 101 and then hijacks.
func TestWebSocketHandlers(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]http.Handler{
		"gorilla": gorillaEcho(websocket.Upgrader{Subprotocols: []string{"b"}, EnableCompression: true}),
		"coder":   coderEcho(coder.AcceptOptions{Subprotocols: []string{"b"}, CompressionMode: coder.CompressionContextTakeover}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tn := publishHandler(t, h)
			g, _ := tn.gorillaDial(t, websocket.Dialer{Subprotocols: []string{"a", "b"}, EnableCompression: true}, nil)
			c, res := tn.coderDial(t, coder.DialOptions{Subprotocols: []string{"b"}, CompressionMode: coder.CompressionContextTakeover})
			if g.Subprotocol() != "b" || c.Subprotocol() != "b" {
				t.Errorf("agreed on subprotocols %q and %q, want b", g.Subprotocol(), c.Subprotocol())
			}
			if res.Header.Get("X-Extensions-Seen") == "" {
				t.Errorf("the handler saw no Sec-WebSocket-Extensions")
			}
			for _, n := range []int{0, 1, 126, 65_536, maxBody} {
				wantGorillaEcho(t, g, websocket.BinaryMessage, pattern(n))
				wantCoderEcho(t, c, coder.MessageBinary, string(pattern(n)))
			}
			if err := c.Close(coder.StatusNormalClosure, "done"); err != nil {
				t.Errorf("close handshake: %v", err)
			}
		})
	}
}

// TestWebSocketHandlerClose has both libraries' servers close with a code and a reason, and be told one.
func TestWebSocketHandlerClose(t *testing.T) {
	t.Parallel()
	told := make(chan error, 1)
	tn := publishHandler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := coder.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		if r.Header.Get("X-Close") != "" {
			c.Close(4001, "the handler is done")
			return
		}
		_, _, err = c.Read(r.Context())
		told <- err
	}))
	g, _ := tn.gorillaDial(t, websocket.Dialer{}, http.Header{"X-Close": {"1"}})
	if _, _, err := g.ReadMessage(); !websocket.IsCloseError(err, 4001) || !strings.Contains(err.Error(), "the handler is done") {
		t.Errorf("got %v, want 4001 and the handler's reason", err)
	}
	g, _ = tn.gorillaDial(t, websocket.Dialer{}, nil)
	g.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1001, "visitor leaves"), time.Now().Add(patience))
	await(t, told, "the handler to be told", func(err error) {
		if coder.CloseStatus(err) != 1001 || !strings.Contains(err.Error(), "visitor leaves") {
			t.Errorf("the handler got %v, want 1001 and the visitor's reason", err)
		}
	})
}
