package main

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	coder "github.com/coder/websocket"
	"github.com/gorilla/websocket"

	"github.com/harp-tunnel/harp/tunnel/agent"
)

// wsURL returns the tunnel's address for a WebSocket client.
func (tn *tunnel) wsURL() string { return "ws" + strings.TrimPrefix(tn.URL, "http") + "/ws?q=1" }

// gorillaDial opens a WebSocket as gorilla's client does; it is closed when the test ends.
func (tn *tunnel) gorillaDial(t *testing.T, d websocket.Dialer, fields http.Header) (*websocket.Conn, *http.Response) {
	t.Helper()
	d.NetDialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		var nd net.Dialer
		return nd.DialContext(ctx, tn.network, tn.Addr)
	}
	d.HandshakeTimeout = patience
	if tn.Roots != nil {
		d.TLSClientConfig = &tls.Config{RootCAs: tn.Roots}
	}
	c, res, err := d.Dial(tn.wsURL(), fields)
	if err != nil {
		t.Fatalf("WebSocket handshake: %v (%v)", err, res)
	}
	t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(2 * patience))
	c.SetWriteDeadline(time.Now().Add(2 * patience))
	return c, res
}

// coderDial is gorillaDial with the other library.
func (tn *tunnel) coderDial(t *testing.T, o coder.DialOptions) (*coder.Conn, *http.Response) {
	t.Helper()
	o.HTTPClient = tn.client(t, false)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, res, err := coder.Dial(ctx, tn.wsURL(), &o)
	if err != nil {
		t.Fatalf("WebSocket handshake: %v (%v)", err, res)
	}
	t.Cleanup(func() { c.CloseNow() })
	c.SetReadLimit(-1)
	return c, res
}

// gorillaEcho is an upstream that says back each message as it came, with its kind.
func gorillaEcho(up websocket.Upgrader) http.Handler {
	up.CheckOrigin = func(*http.Request) bool { return true }
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := up.Upgrade(w, r, http.Header{"X-Extensions-Seen": r.Header["Sec-Websocket-Extensions"]})
		if err != nil {
			return
		}
		defer c.Close()
		for {
			kind, p, err := c.ReadMessage()
			if err != nil || c.WriteMessage(kind, p) != nil {
				return
			}
		}
	})
}

// coderEcho is gorillaEcho with the other library.
func coderEcho(o coder.AcceptOptions) http.Handler {
	o.InsecureSkipVerify = true
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["X-Extensions-Seen"] = r.Header["Sec-Websocket-Extensions"]
		c, err := coder.Accept(w, r, &o)
		if err != nil {
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(-1)
		for {
			kind, p, err := c.Read(r.Context())
			if err != nil || c.Write(r.Context(), kind, p) != nil {
				return
			}
		}
	})
}

// TestWebSocketHandshakeFields wants the fields of both heads to arrive as they were sent.
func TestWebSocketHandshakeFields(t *testing.T) {
	t.Parallel()
	const answer = "HTTP/1.1 101 Web Socket Protocol Handshake\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\n" +
		"Sec-WebSocket-Accept: " + wsAccept + "\r\nSec-WebSocket-Protocol: v2.chat\r\n" +
		"Sec-WebSocket-Extensions: permessage-deflate;client_max_window_bits=12 ;  server_no_context_takeover\r\n" +
		"Set-Cookie: a=1; Path=/\r\nSet-Cookie: b=2\r\nX-Custom: \"ä\" ; odd\r\n\r\n"
	for name, opts := range map[string][]option{"plain": nil, "TLS": {withTLS()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			target, next := switchUpstream(t, func(head) string { return answer })
			c := publish(t, target, opts...).dial(t)
			sent := []field{
				{"Sec-WebSocket-Key", wsKey}, {"Sec-WebSocket-Version", "13"},
				{"Sec-WebSocket-Protocol", "v2.chat,  v1.chat"}, {"Sec-WebSocket-Protocol", "soap"},
				{"Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits ;server_no_context_takeover , x-foo; a=\"b,c\""},
				{"Origin", "https://Example.COM:8443"}, {"Cookie", "s=1; t=\"x y\""}, {"Authorization", "Bearer abc"},
				{"User-Agent", ""}, {"X-Custom", "one"}, {"X-Custom", "t\xc3\xb6"},
			}
			lines := []string{"Upgrade: websocket", "Connection: keep-alive, Upgrade"}
			for _, f := range sent {
				lines = append(lines, f.Name+": "+f.Value)
			}
			c.send(c.request("GET", "/chat//%2F?a=b;c", lines...))
			got := c.readHead()
			want, err := readHead(newReader(answer))
			if err != nil {
				t.Fatal(err)
			}
			if got.status() != 101 {
				t.Fatalf("got %q %q", got.Line, got.Fields)
			}
			wantSameFields(t, "the visitor", got, want.Fields)
			for _, name := range []string{"Content-Length", "Transfer-Encoding"} {
				if got.has(name) {
					t.Errorf("the 101 has %s %q: it has no body", name, got.values(name))
				}
			}
			up := next().request
			if up.Line != "GET /chat//%2F?a=b;c HTTP/1.1" {
				t.Errorf("the upstream saw %q", up.Line)
			}
			wantSameFields(t, "the upstream", up, append(sent, field{"Upgrade", "websocket"}, field{"Host", c.host}))
			if !strings.Contains(strings.ToLower(up.get("Connection")), "upgrade") {
				t.Errorf("the upstream saw Connection %q", up.values("Connection"))
			}
		})
	}
}

// wantSameFields wants each of these names to have exactly these values, in order.
func wantSameFields(t *testing.T, who string, got head, want []field) {
	t.Helper()
	for _, f := range want {
		if g, w := got.values(f.Name), fieldValues(want, f.Name); !slices.Equal(g, w) {
			t.Errorf("%s got %s %q, want %q", who, f.Name, g, w)
		}
	}
}

// TestWebSocketSubprotocol has both libraries agree on a subprotocol through the tunnel.
func TestWebSocketSubprotocol(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]http.Handler{
		"gorilla": gorillaEcho(websocket.Upgrader{Subprotocols: []string{"b", "c"}}),
		"coder":   coderEcho(coder.AcceptOptions{Subprotocols: []string{"b", "c"}}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tn := publish(t, serveUpstream(t, h))
			g, _ := tn.gorillaDial(t, websocket.Dialer{Subprotocols: []string{"a", "b"}}, nil)
			if got := g.Subprotocol(); got != "b" {
				t.Errorf("gorilla's client agreed on %q, want what the upstream chose", got)
			}
			c, _ := tn.coderDial(t, coder.DialOptions{Subprotocols: []string{"a", "b"}})
			if got := c.Subprotocol(); got != "b" {
				t.Errorf("coder's client agreed on %q, want what the upstream chose", got)
			}
			g, _ = tn.gorillaDial(t, websocket.Dialer{Subprotocols: []string{"a"}}, nil)
			if got := g.Subprotocol(); got != "" {
				t.Errorf("agreed on %q, but the upstream knows none of what was offered", got)
			}
		})
	}
}

// TestWebSocketCompression has both libraries agree on permessage-deflate with the very same parameters as without
// a tunnel, and compress.
func TestWebSocketCompression(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("compress me ", 20_000)
	for name, h := range map[string]http.Handler{
		"gorilla":        gorillaEcho(websocket.Upgrader{EnableCompression: true}),
		"coder":          coderEcho(coder.AcceptOptions{CompressionMode: coder.CompressionContextTakeover}),
		"coder, no keep": coderEcho(coder.AcceptOptions{CompressionMode: coder.CompressionNoContextTakeover}),
		"none":           gorillaEcho(websocket.Upgrader{}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			target := serveUpstream(t, h)
			tn := publish(t, target)
			network, addr := splitTarget(t, target)
			plainly := &tunnel{Addr: addr, network: network, Host: tn.Host, URL: "http://" + tn.Host}
			extensions := func(res *http.Response) [2]string {
				return [2]string{res.Header.Get("X-Extensions-Seen"), res.Header.Get("Sec-Websocket-Extensions")}
			}

			g, res := tn.gorillaDial(t, websocket.Dialer{EnableCompression: true}, nil)
			_, direct := plainly.gorillaDial(t, websocket.Dialer{EnableCompression: true}, nil)
			if got, want := extensions(res), extensions(direct); got != want || got[0] == "" {
				t.Errorf("gorilla: extensions offered and agreed are %q, want %q as without a tunnel", got, want)
			}
			for range 3 {
				if err := g.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
					t.Fatal(err)
				}
				if _, p, err := g.ReadMessage(); err != nil || string(p) != text {
					t.Fatalf("gorilla: the echo is %d bytes, %v", len(p), err)
				}
			}

			takeover := coder.DialOptions{CompressionMode: coder.CompressionContextTakeover}
			c, res := tn.coderDial(t, takeover)
			_, direct = plainly.coderDial(t, takeover)
			if got, want := extensions(res), extensions(direct); got != want || got[0] == "" {
				t.Errorf("coder: extensions offered and agreed are %q, want %q as without a tunnel", got, want)
			}
			for range 3 {
				wantCoderEcho(t, c, coder.MessageText, text)
			}
		})
	}
}

func wantCoderEcho(t *testing.T, c *coder.Conn, kind coder.MessageType, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	if err := c.Write(ctx, kind, []byte(text)); err != nil {
		t.Fatal(err)
	}
	gotKind, p, err := c.Read(ctx)
	if err != nil || gotKind != kind || string(p) != text {
		t.Fatalf("the echo of %d bytes (%v) is %d bytes (%v), %v", len(text), kind, len(p), gotKind, err)
	}
}

// TestWebSocketRefused wants an answer that is not 101 to arrive whole, and the connection to go on after it.
func TestWebSocketRefused(t *testing.T) {
	t.Parallel()
	large := string(pattern(100_000))
	for name, tt := range map[string]struct{ head, body string }{
		"403 sized":   {"403 Forbidden\r\nContent-Length: 6\r\nX-Why: no\r\n", "go out"},
		"403 chunked": {"403 Forbidden\r\nTransfer-Encoding: chunked\r\nX-Why: no\r\n", large},
		"426": {"426 Upgrade Required\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13, 8\r\n" +
			"Content-Length: 3\r\n", "old"},
		"200":         {"200 OK\r\nContent-Type: text/html\r\nContent-Length: 100000\r\n", large},
		"200, to end": {"200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n", large},
		"401 empty":   {"401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := recordUpstream(t, func(m message) string {
				switch {
				case m.target() != "/ws":
					return okAnswer
				case strings.Contains(tt.head, "chunked"):
					return "HTTP/1.1 " + tt.head + "\r\n" + chunk(tt.body) + chunk("")
				}
				return "HTTP/1.1 " + tt.head + "\r\n" + tt.body
			})
			if name == "200, to end" {
				r = &recorder{Target: scriptUpstream(t, scriptOnce("HTTP/1.1 "+tt.head+"\r\n"+tt.body))}
			}
			c := publish(t, r.Target).dial(t)
			c.send(c.wsRequest())
			m := c.final("GET")
			if status := strings.TrimPrefix(m.Line, "HTTP/1.1 "); status != strings.SplitN(tt.head, "\r\n", 2)[0] {
				t.Errorf("got %q, want the upstream's own answer", m.Line)
			}
			if diff := sameBytes(m.Body, []byte(tt.body)); diff != "" {
				t.Errorf("the answer's body is %s", diff)
			}
			upstreams, _ := readHead(newReader("HTTP/1.1 " + tt.head + "\r\n"))
			for _, name := range []string{"X-Why", "Sec-WebSocket-Version", "WWW-Authenticate", "Content-Type", "Upgrade"} {
				if got, want := m.values(name), upstreams.values(name); want != nil && !slices.Equal(got, want) {
					t.Errorf("the answer's %s is %q, want %q", name, got, want)
				}
			}
			if name != "200, to end" {
				if m := c.do("GET", "/next"); m.status() != 200 || string(m.Body) != "ok" {
					t.Errorf("the next request on the connection got %q %q", m.Line, m.Body)
				}
			}
		})
	}
}

// TestWebSocketEarlyData wants bytes to arrive that came in one packet with the handshake.
func TestWebSocketEarlyData(t *testing.T) {
	t.Parallel()
	first := plainFrame(opText, "hello from the upstream").wire()
	for name, opts := range map[string][]option{"plain": nil, "TLS": {withTLS()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			target, next := switchUpstream(t, func(head) string { return wsSwitch + first })
			c := publish(t, target, opts...).dial(t)
			early := maskedFrame(opText, "hello from the visitor").wire()
			c.send(c.wsRequest() + early)
			if h := c.readHead(); h.status() != 101 {
				t.Fatalf("got %q", h.Line)
			}
			c.want(first, "the upstream sent it with its 101")
			up := next()
			up.want(early, "the visitor sent it with its handshake")
			late := maskedFrame(opText, "more").wire()
			c.send(late)
			up.want(late, "the visitor sent it after the 101")
		})
	}
}

// TestWebSocketUpstreamKinds opens WebSockets to upstreams of every kind; those that speak HTTP/2 are asked for
// HTTP/1.1, which alone has an Upgrade.
func TestWebSocketUpstreamKinds(t *testing.T) {
	t.Parallel()
	h := gorillaEcho(websocket.Upgrader{})
	certFile, keyFile, roots := writeCertificate(t)
	serve := func(network, addr string, f func(*http.Server, net.Listener) error) string {
		ln, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: h}
		ended := make(chan error, 1)
		go func() { ended <- f(srv, ln) }() // ends when srv closes
		t.Cleanup(func() {
			srv.Close()
			await(t, ended, "the upstream to stop", func(error) {})
		})
		return ln.Addr().String()
	}
	secure := func(srv *http.Server, ln net.Listener) error { return srv.ServeTLS(ln, certFile, keyFile) }
	for name, target := range map[string]string{
		"unix":  "unix:" + serve("unix", filepath.Join(t.TempDir(), "up.sock"), (*http.Server).Serve),
		"https": "https://" + serve("tcp", "127.0.0.1:0", secure),
		"h2c":   "h2c://" + serveH2(t, h),
	} {
		t.Run(name, func(t *testing.T) {
			if name == "https" && direct() {
				t.Skip("only the tunnel takes TLS off")
			}
			tn := publish(t, target, withForward(func(o *agent.ForwardOptions) { o.RootCAs = roots }))
			for range 2 {
				g, _ := tn.gorillaDial(t, websocket.Dialer{}, nil)
				wantGorillaEcho(t, g, websocket.BinaryMessage, pattern(100_000))
			}
		})
	}
}
