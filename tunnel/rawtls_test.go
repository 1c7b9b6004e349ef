package tunnel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"

	"github.com/harp-tunnel/harp/messages"
)

// passes opens a TLS stream through a pair of sessions whose agent handles it with take.
func passes(t *testing.T, take func(messages.TLSRequest) func(net.Conn)) (p *pair, visitor *UpgradedConn) {
	t.Helper()
	a, b := newMemLink(4)
	p = runPair(t, a, b, Config{}, Config{TLSHandler: take, Handler: func(uint32) http.Handler { return nil }})
	visitor, err := p.edge.OpenTLS(context.Background(), 7, "a.example.com", "192.0.2.1:9")
	if err != nil {
		t.Fatal(err)
	}
	return p, visitor
}

// TestOpenTLS: bytes go both ways untouched, more than a window of them, each half ends by itself, and the agent knows
// whom they are from.
func TestOpenTLS(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		data := bytes.Repeat([]byte("any bytes"), 100_000)
		got := make(chan messages.TLSRequest, 1)
		remote := make(chan string, 1)
		_, visitor := passes(t, func(r messages.TLSRequest) func(net.Conn) {
			got <- r
			return func(conn net.Conn) {
				defer conn.Close()
				remote <- conn.RemoteAddr().String()
				_, _ = io.WriteString(conn, "the agent may speak first")
				all, err := io.ReadAll(conn)
				if err != nil || !bytes.Equal(all, data) {
					t.Errorf("%d of %d bytes, %v", len(all), len(data), err)
				}
				_, _ = conn.Write(all)
			}
		})
		if want := (messages.TLSRequest{Registration: 7, ServerName: "a.example.com", Visitor: "192.0.2.1:9"}); <-got != want {
			t.Error("the agent got another request")
		}
		if addr := <-remote; addr != "192.0.2.1:9" {
			t.Errorf("the visitor is %s to the agent", addr)
		}
		go func() {
			_, _ = visitor.Write(data)
			_ = visitor.CloseWrite()
		}()
		all, err := io.ReadAll(visitor)
		if want := append([]byte("the agent may speak first"), data...); err != nil || !bytes.Equal(all, want) {
			t.Errorf("%d of %d bytes came back, %v", len(all), len(want), err)
		}
		_ = visitor.Close()
	})
}

// TestOpenTLSRefused: each way in which an agent does not take a connection, and what the visitor's side gets.
func TestOpenTLSRefused(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		why  string
		take func(messages.TLSRequest) func(net.Conn)
		code messages.CancelCode
	}{
		{"the agent does not end TLS", nil, messages.CancelUnsupported},
		{"no such registration", func(messages.TLSRequest) func(net.Conn) { return nil }, messages.CancelRefused},
		{"a handler that panics", func(messages.TLSRequest) func(net.Conn) { return func(net.Conn) { panic("broken") } }, messages.CancelAborted},
		{"a reset", func(messages.TLSRequest) func(net.Conn) {
			return func(c net.Conn) { _ = c.(*UpgradedConn).Reset() }
		}, messages.CancelAborted},
	} {
		synctest.Test(t, func(t *testing.T) {
			p, visitor := passes(t, test.take)
			_, err := visitor.Read(make([]byte, 1))
			var cancelled *CancelError
			if !errors.As(err, &cancelled) || cancelled.Code != test.code {
				t.Errorf("%s: %v, want code %d", test.why, err, test.code)
			}
			_ = visitor.Close()
			synctest.Wait()
			if n := p.edge.Streams() + p.agent.Streams(); n != 0 {
				t.Errorf("%s: %d streams are left", test.why, n)
			}
		})
	}
}

// TestOpenTLSVisitorLeaves: the agent sees a reset, never an end.
func TestOpenTLSVisitorLeaves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan error, 1)
		_, visitor := passes(t, func(messages.TLSRequest) func(net.Conn) {
			return func(conn net.Conn) {
				defer conn.Close()
				_, err := io.Copy(io.Discard, conn)
				ended <- err
			}
		})
		_, _ = visitor.Write([]byte("some"))
		_ = visitor.Reset()
		if err := <-ended; err == nil {
			t.Error("a reset arrived as a clean end")
		}
	})
}

// A response head has no place on such a stream.
func TestOpenTLSAnsweredByHTTP(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		_, err := p.s.OpenTLS(context.Background(), 1, "a.example.com", "")
		if err != nil {
			t.Fatal(err)
		}
		if h, _ := p.next("the request"); h.Type != messages.TypeTLSRequest || h.Stream != 1 {
			t.Errorf("the first message is %v of stream %d", h.Type, h.Stream)
		}
		p.sends(responds(1, 200, 0))
		p.wantsCancel("a response head", 1, messages.CancelProtocol)
	})
}
