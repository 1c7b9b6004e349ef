package tunnel

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/harp-tunnel/harp/messages"
)

// A Conn carries whole messages between two ends. One goroutine may read while another writes;
// Close may be called at any time, more than once, and ends both.
type Conn interface {
	// NextMessage waits for the next message. r must be read to its end before the next call.
	NextMessage() (text bool, r io.Reader, err error)
	// WriteBinary sends each part as one binary message and flushes once. It keeps no part.
	WriteBinary(parts ...[]byte) error
	// WriteText sends one text message.
	WriteText(text []byte) error
	// Close ends the connection at once, without a farewell.
	Close() error
}

// A RefusedError is a server's answer to a dial that is not 101 Switching Protocols.
type RefusedError struct {
	Status   int
	Text     string // the first line of what the server said, at most 200 bytes
	Location string // where a redirect leads to, in the server's own words, which may be hostile; else empty
}

// ErrNotHARP is what Dial returns if the server opens a WebSocket, but none for links.
var ErrNotHARP = errors.New("the server does not speak " + messages.Subprotocol)

func (e *RefusedError) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("the server answered %d %s", e.Status, http.StatusText(e.Status))
	}
	return fmt.Sprintf("the server answered %d: %s", e.Status, e.Text)
}

// DialOptions says how Dial connects.
type DialOptions struct {
	TLS   *tls.Config // nil means the system's roots
	Proxy bool        // obey HTTPS_PROXY, HTTP_PROXY and NO_PROXY
}

// Dial opens a link to url (ws:// or wss://) and returns the challenge that the server sent with it.
// The server's name is looked up anew at each call; those below localhost are this machine (RFC 6761, section 6.3). The
// error is a *RefusedError if the server answered anything but 101, or wraps ErrNotHARP. ctx bounds the dial only.
func Dial(ctx context.Context, url string, o DialOptions) (Conn, string, error) {
	var batch *batchConn // the last connection dialled, which is the one that carries the link
	wrap := func(c net.Conn) net.Conn {
		batch = newBatchConn(c)
		return batch
	}
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}
	transport := &http.Transport{
		DisableCompression:  true,
		DisableKeepAlives:   true, // a connection that was refused as a link is of no more use
		TLSHandshakeTimeout: 10 * time.Second,
		TLSClientConfig:     o.TLS, // used behind a proxy, where the transport makes the TLS connection itself
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			addr, _ = dialled(addr)
			c, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return wrap(c), nil
		},
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			config := linkTLS(o.TLS)
			if config.ServerName == "" {
				config.ServerName, _, _ = net.SplitHostPort(addr) // the transport has put it together
			}
			addr, _ = dialled(addr)
			ctx, cancel := context.WithTimeout(ctx, dialer.Timeout)
			defer cancel()
			c, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			batch, err = overTLS(ctx, c, config)
			return batch, err
		},
	}
	if o.Proxy {
		transport.Proxy, transport.OnProxyConnectResponse = proxy, proxyAnswer
	}
	ws, res, err := websocket.Dial(ctx, url, &websocket.DialOptions{
		HTTPClient:   &http.Client{Transport: transport, CheckRedirect: noRedirect},
		Subprotocols: []string{messages.Subprotocol},
	})
	if err != nil {
		if res != nil && res.StatusCode != http.StatusSwitchingProtocols {
			return nil, "", &RefusedError{Status: res.StatusCode, Text: firstLine(res.Body), Location: res.Header.Get("Location")}
		}
		return nil, "", dialError(err)
	}
	if ws.Subprotocol() != messages.Subprotocol {
		_ = ws.CloseNow()
		return nil, "", ErrNotHARP
	}
	return newWSConn(ws, batch), res.Header.Get(messages.ChallengeField), nil
}

// dialError is err without the words of the layers between: what was dialled, and how, goes without saying.
func dialError(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	if inner := errors.Unwrap(err); inner != nil { // an answer 101 that is no WebSocket
		return fmt.Errorf("%w: %w", ErrNotHARP, inner)
	}
	return err
}

// dialled is what to dial for addr, host:port, and whether that is this machine by a name below localhost, which browsers
// know and few resolvers do.
func dialled(addr string) (string, bool) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || !strings.HasSuffix(strings.ToLower(strings.TrimSuffix(host, ".")), ".localhost") {
		return addr, false
	}
	return net.JoinHostPort("localhost", port), true
}

// proxy is the environment's, which itself leaves out localhost, but no name below it.
func proxy(r *http.Request) (*url.URL, error) {
	if _, here := dialled(net.JoinHostPort(r.URL.Hostname(), "0")); here {
		return nil, nil
	}
	return http.ProxyFromEnvironment(r)
}

// proxyAnswer makes an error of a proxy's refusal that says whose it is.
func proxyAnswer(_ context.Context, proxy *url.URL, _ *http.Request, res *http.Response) error {
	if res.StatusCode == http.StatusOK {
		return nil
	}
	return fmt.Errorf("the proxy %s answered %d %s", proxy.Host, res.StatusCode, http.StatusText(res.StatusCode))
}

// Accept answers a link's opening handshake and hands the challenge to the agent. On an error the
// response has been written.
func Accept(w http.ResponseWriter, r *http.Request, challenge string) (Conn, error) {
	hw := &hijackWriter{ResponseWriter: w}
	w.Header().Set(messages.ChallengeField, challenge)
	ws, err := websocket.Accept(hw, r, &websocket.AcceptOptions{Subprotocols: []string{messages.Subprotocol}})
	if err != nil {
		return nil, err
	}
	if ws.Subprotocol() != messages.Subprotocol {
		_ = ws.Close(websocket.StatusPolicyViolation, "subprotocol "+messages.Subprotocol+" is required")
		return nil, errors.New("agent does not speak " + messages.Subprotocol)
	}
	c := newWSConn(ws, hw.batch)
	if c.in = hw.in; !hw.early {
		c.in.Reset(hw.batch) // without the library's layer for early bytes, which takes stack
	}
	return c, nil
}

// linkTLS is c for a connection that must not become HTTP/2: a WebSocket is opened by HTTP/1.1.
func linkTLS(c *tls.Config) *tls.Config {
	if c == nil {
		c = &tls.Config{}
	}
	c = c.Clone()
	c.NextProtos = []string{"http/1.1"}
	return c
}

// noRedirect refuses redirects: the audience that the agent signs is the host that the person named.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func firstLine(r io.Reader) string {
	if r == nil {
		return ""
	}
	raw, _ := io.ReadAll(io.LimitReader(r, 200))
	line, _, _ := strings.Cut(strings.TrimSpace(string(raw)), "\n")
	return strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return -1
		}
		return c
	}, strings.ToValidUTF8(line, "?"))
}

// wsConn is a Conn over a WebSocket.
type wsConn struct {
	ws    *websocket.Conn
	batch *batchConn
	in    *bufio.Reader // of ws; nil at the agent
}

func newWSConn(ws *websocket.Conn, batch *batchConn) *wsConn {
	ws.SetReadLimit(maxMessage)
	return &wsConn{ws: ws, batch: batch}
}

func (c *wsConn) NextMessage() (text bool, r io.Reader, err error) {
	if c.in != nil {
		// An idle link waits here, where the stack is shallow: in the library it would take 1.5 KB more, a tenth.
		if _, err := c.in.Peek(1); err != nil {
			return false, nil, err
		}
	}
	kind, r, err := c.ws.Reader(context.Background())
	return kind == websocket.MessageText, r, err
}

func (c *wsConn) WriteBinary(parts ...[]byte) error {
	err := c.gather(parts)
	return cmp.Or(err, c.batch.flush())
}

// gather makes messages of the parts.
func (c *wsConn) gather(parts [][]byte) error {
	c.batch.begin()
	for _, p := range parts {
		if len(p) == 0 {
			continue
		}
		if err := c.ws.Write(context.Background(), websocket.MessageBinary, p); err != nil {
			return err
		}
	}
	return nil
}

func (c *wsConn) TryBinary(parts ...[]byte) (all bool, err error) {
	if err := c.gather(parts); err != nil {
		return false, cmp.Or(err, c.batch.flush())
	}
	return c.batch.tryFlush()
}

func (c *wsConn) Flush() error { return c.batch.flush() }

func (c *wsConn) WriteText(text []byte) error {
	c.batch.begin() // the library's own buffer is small
	err := c.ws.Write(context.Background(), websocket.MessageText, text)
	return cmp.Or(err, c.batch.flush())
}

func (c *wsConn) Close() error {
	// The connection below goes first: the library would wait for a writer that is stuck in it.
	err := c.batch.Close()
	_ = c.ws.CloseNow()
	return err
}

// The sizes in bytes of the buffers that a link at the edge has while it is idle: what is read to begin with, so that a
// small answer takes one read, and a control frame of a WebSocket. Both suffice: a message is read into, and written from,
// a buffer of the pool. Those of net/http would be 8 KiB.
const (
	linkReadSize  = 2 << 10
	linkWriteSize = 128
)

// hijackWriter hands the WebSocket library a connection that batches, and small buffers.
type hijackWriter struct {
	http.ResponseWriter
	batch *batchConn
	in    *bufio.Reader
	early bool // the agent's first bytes came before the connection was taken over
}

func (w *hijackWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	_ = c.SetDeadline(time.Time{}) // the HTTP server's deadlines are not the link's
	w.batch = newBatchConn(c)
	n := rw.Reader.Buffered()
	w.early = n > 0
	w.in = bufio.NewReaderSize(io.LimitReader(rw.Reader, int64(n)), max(n, linkReadSize))
	_, _ = w.in.Peek(n) // where the library looks for early bytes
	return w.batch, bufio.NewReadWriter(w.in, bufio.NewWriterSize(w.batch, linkWriteSize)), nil
}
