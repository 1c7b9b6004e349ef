package tunnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/harp-tunnel/harp/messages"
)

func wsURL(srv *httptest.Server) string { return "ws" + strings.TrimPrefix(srv.URL, "http") }

func TestDialIsRefused(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/busy":
			http.Error(w, "too many\x1b[31m agents\nsecond line", http.StatusServiceUnavailable)
		case "/long":
			http.Error(w, strings.Repeat("x", 5000), 400)
		case "/silent":
			w.WriteHeader(404)
		case "/moved":
			http.Redirect(w, r, "/busy", http.StatusTemporaryRedirect)
		case "/other":
			c, err := websocket.Accept(w, r, nil)
			if err == nil {
				_ = c.Close(websocket.StatusNormalClosure, "")
			}
		}
	}))
	defer srv.Close()
	for _, c := range []struct {
		path, want string
		status     int
	}{
		{"/busy", "the server answered 503: too many[31m agents", 503},
		{"/long", "the server answered 400: " + strings.Repeat("x", 200), 400},
		{"/silent", "the server answered 404 Not Found", 404},
		{"/moved", "the server answered 307: <a href=\"/busy\">Temporary Redirect</a>.", 307},
		{"/other", "the server does not speak harp.v1", 0},
	} {
		_, _, err := Dial(t.Context(), wsURL(srv)+c.path, DialOptions{})
		var refused *RefusedError
		if errors.As(err, &refused) != (c.status != 0) || err.Error() != c.want || refused != nil && refused.Status != c.status {
			t.Errorf("dial %s: %v, want %q with status %d", c.path, err, c.want, c.status)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := Dial(ctx, wsURL(srv), DialOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("dial without time: %v, want %v", err, context.Canceled)
	}
	var refused *RefusedError
	if _, _, err := Dial(t.Context(), wsURL(srv)+"/moved", DialOptions{}); !errors.As(err, &refused) || refused.Location != "/busy" {
		t.Errorf("a redirect: %+v, want where it leads to", refused)
	}
	if _, _, err := Dial(t.Context(), wsURL(srv)+"/other", DialOptions{}); !errors.Is(err, ErrNotHARP) {
		t.Errorf("a WebSocket of another kind: %v, want %v", err, ErrNotHARP)
	}
	closed := httptest.NewServer(nil)
	closed.Close()
	if _, _, err := Dial(t.Context(), wsURL(closed), DialOptions{}); err == nil || errors.As(err, &refused) {
		t.Errorf("dial of a port on which nobody listens: %v", err)
	}
}

// TestDialErrorSaysWhy: a person reads what went wrong, and not which layers it came through.
func TestDialErrorSaysWhy(t *testing.T) {
	secure := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "websocket")
		w.WriteHeader(http.StatusSwitchingProtocols)
	}))
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	defer secure.Close()
	closed := httptest.NewServer(nil)
	closed.Close()
	roots := x509.NewCertPool()
	roots.AddCert(secure.Certificate())
	for _, c := range []struct {
		url, want string // begins so
		tls       *tls.Config
	}{
		{wsURL(closed), "dial tcp 127.0.0.1:", nil},
		{wsURL(secure), "tls: failed to verify certificate: x509: ", nil},
		{wsURL(secure), "the server does not speak harp.v1: WebSocket protocol violation: ", &tls.Config{RootCAs: roots}},
	} {
		_, _, err := Dial(t.Context(), c.url, DialOptions{TLS: c.tls})
		if err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s…", c.url, err, c.want)
		}
	}
}

// TestDialBelowLocalhost: names below localhost are this machine, whatever the resolver knows. The server sees
// the name that was dialled.
func TestDialBelowLocalhost(t *testing.T) {
	hosts := make(chan string, 2)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hosts <- r.Host
		if r.TLS != nil {
			hosts <- r.TLS.ServerName
		}
		if c, err := Accept(w, r, "challenge"); err == nil {
			_ = c.Close()
		}
	})
	plain, secure := httptest.NewServer(h), httptest.NewTLSServer(h)
	defer plain.Close()
	defer secure.Close()
	for _, c := range []struct{ scheme, url string }{{"ws", plain.URL}, {"wss", secure.URL}} {
		host := "edge.test.localhost:" + c.url[strings.LastIndexByte(c.url, ':')+1:]
		conn, _, err := Dial(t.Context(), c.scheme+"://"+host, DialOptions{TLS: &tls.Config{InsecureSkipVerify: true}, Proxy: true})
		if err != nil {
			t.Errorf("%s: %v", c.scheme, err)
			continue
		}
		_ = conn.Close()
		if got := <-hosts; got != host {
			t.Errorf("%s: the server was asked for %q, want %q", c.scheme, got, host)
		}
		if c.scheme == "wss" {
			if got := <-hosts; got != "edge.test.localhost" {
				t.Errorf("the server name is %q, want the one that was dialled", got)
			}
		}
	}
	for addr, want := range map[string]string{
		"localhost:1": "localhost:1", "x.localhost.:1": "localhost:1", "X.LocalHost:1": "localhost:1",
		"notlocalhost:1": "notlocalhost:1", "localhost.example:1": "localhost.example:1", "[::1]:1": "[::1]:1",
	} {
		if got, _ := dialled(addr); got != want {
			t.Errorf("for %s %s is dialled, want %s", addr, got, want)
		}
	}
}

// TestRefusedDialLeavesNothing dials a server that refuses with keep-alive, as an agent does for hours.
func TestRefusedDialLeavesNothing(t *testing.T) {
	var conns atomic.Int64
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "later", http.StatusServiceUnavailable) }))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			conns.Add(1)
		case http.StateClosed:
			conns.Add(-1)
		}
	}
	srv.Start()
	defer srv.Close()
	before := runtime.NumGoroutine()
	for range 20 {
		if _, _, err := Dial(t.Context(), wsURL(srv), DialOptions{}); err == nil {
			t.Fatal("dial succeeded")
		}
	}
	for range 200 {
		if conns.Load() == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if n := conns.Load(); n > 0 {
		t.Errorf("%d connections are open after 20 refused dials", n)
	}
	wantGoroutines(t, before)
}

func TestAcceptRefuses(t *testing.T) {
	errs := make(chan error, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := Accept(w, r, "challenge")
		errs <- err
	}))
	defer srv.Close()
	res, err := http.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if err := <-errs; err == nil || res.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("a plain GET got %d, and Accept returned %v; want 426 and an error", res.StatusCode, err)
	}
	c, _, err := websocket.Dial(t.Context(), wsURL(srv), &websocket.DialOptions{Subprotocols: []string{"harp.v0"}})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = c.Read(t.Context())
	if websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
		t.Errorf("an agent of another version got %v, want status 1008", err)
	}
	if err := <-errs; err == nil {
		t.Error("Accept took an agent that does not speak " + messages.Subprotocol)
	}
	_, res, err = websocket.Dial(t.Context(), wsURL(srv), &websocket.DialOptions{
		Subprotocols: []string{messages.Subprotocol}, HTTPHeader: http.Header{"Origin": {"https://evil.example"}}})
	if err == nil || res.StatusCode != http.StatusForbidden {
		t.Errorf("a web page of another origin got %v, %v; want 403", res, err)
	}
	<-errs
}

func TestConnCarriesMessages(t *testing.T) {
	server, client := loopback(t)
	defer server.Close()
	defer client.Close()
	largest := pattern(maxMessage, 13)
	for _, ends := range [][2]Conn{{server, client}, {client, server}} {
		go func() {
			_ = ends[0].WriteText([]byte("text"))
			_ = ends[0].WriteBinary([]byte("one"), nil, []byte("two"))
			_ = ends[0].WriteBinary(largest)
			_ = ends[0].WriteBinary(largest[:batchSize-1], largest[:batchSize], largest[:batchSize+1])
		}()
		for i, want := range [][]byte{[]byte("text"), []byte("one"), []byte("two"), largest,
			largest[:batchSize-1], largest[:batchSize], largest[:batchSize+1]} {
			text, r, err := ends[1].NextMessage()
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, want) || text != (i == 0) {
				t.Fatalf("message %d has %d others of %d bytes, text %v, %v", i, len(got), len(want), text, err)
			}
		}
	}
}

// TestOversizeMessage sends a WebSocket message that is a byte too long.
func TestOversizeMessage(t *testing.T) {
	server, client := loopback(t)
	defer client.Close()
	edge := run(t, NewSession(server, Config{}))
	go func() { _ = client.WriteBinary(make([]byte, maxMessage+1)) }()
	select {
	case <-edge.Ended():
	case <-time.After(5 * time.Second):
		t.Error("the link lives")
	}
}

// TestCloseFreesStuckWriter closes a Conn whose peer does not read. It does not wait to say farewell, as TLS would.
func TestCloseFreesStuckWriter(t *testing.T) {
	server, client := loopback(t)
	serverTLS, clientTLS := loopbackTLS(t)
	const size = 20 << 10 // of a batch that is one write, which TLS has behind it
	for _, ends := range [][2]Conn{{server, client}, {clientTLS, serverTLS}} {
		stuck := make(chan error)
		go func() {
			for {
				if err := ends[0].WriteBinary(make([]byte, size)); err != nil {
					stuck <- err
					return
				}
			}
		}()
		time.Sleep(50 * time.Millisecond)
		began := time.Now()
		_ = ends[0].Close()
		_ = ends[0].Close()
		select {
		case <-stuck:
		case <-time.After(5 * time.Second):
			t.Fatal("the writer is stuck")
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("Close took %v, want that it is at once", took)
		}
		if _, _, err := ends[0].NextMessage(); err == nil {
			t.Error("a closed connection has a message")
		}
		_ = ends[1].Close()
	}
}

// TestAbruptEnd cuts the TCP connection below a link.
func TestAbruptEnd(t *testing.T) {
	server, client := loopback(t)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	edge, agent := run(t, NewSession(server, Config{})), run(t, NewSession(client, Config{Handler: func(uint32) http.Handler { return h }}))
	call := goRoundTrip(t, edge, request("GET", "/", nil))
	for agent.Streams() == 0 {
		time.Sleep(time.Millisecond)
	}
	_ = client.(*wsConn).batch.Conn.Close()
	<-call.done
	if !errors.Is(call.err, ErrClosed) || Unprocessed(call.err) {
		t.Errorf("RoundTrip failed with %v, want %v", call.err, ErrClosed)
	}
	<-edge.Done()
	<-agent.Done()
}

// tlsServer is a server of links over TLS, with a certificate that nobody knows.
func tlsServer(t *testing.T) (*httptest.Server, <-chan Conn) {
	t.Helper()
	accepted := make(chan Conn, 1)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := Accept(w, r, "c")
		if err != nil {
			t.Errorf("accept: %v", err)
		}
		accepted <- c
	}))
	srv.EnableHTTP2 = true // which must not be chosen
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Listener = layeredListener{srv.Listener}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv, accepted
}

// A layeredListener accepts connections with a layer over TCP, as harpd has for what it looks at before TLS.
type layeredListener struct{ net.Listener }

func (l layeredListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return layer{c}, err
}

type layer struct{ net.Conn }

func (l layer) NetConn() net.Conn { return l.Conn }

// loopbackTLS is loopback over TLS.
func loopbackTLS(t *testing.T) (server, client Conn) {
	t.Helper()
	srv, accepted := tlsServer(t)
	config := srv.Client().Transport.(*http.Transport).TLSClientConfig
	client, _, err := Dial(t.Context(), "wss"+strings.TrimPrefix(srv.URL, "https"), DialOptions{TLS: config})
	if err != nil {
		t.Fatal(err)
	}
	return <-accepted, client
}

func TestDialTLS(t *testing.T) {
	srv, accepted := tlsServer(t)
	url := "wss" + strings.TrimPrefix(srv.URL, "https")
	var unknown x509.UnknownAuthorityError
	if _, _, err := Dial(t.Context(), url, DialOptions{}); !errors.As(err, &unknown) {
		t.Errorf("dial of a server with a certificate of its own: %v, want that it is not trusted", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	config := &tls.Config{RootCAs: roots}
	client, _, err := Dial(t.Context(), url, DialOptions{TLS: config})
	if err != nil {
		t.Fatal(err)
	}
	if config.NextProtos != nil {
		t.Error("Dial changed the caller's TLS configuration")
	}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	p := runPair(t, <-accepted, client, Config{}, Config{Handler: func(uint32) http.Handler { return h }})
	sent := pattern(1<<20, 17)
	if _, got := p.get(request("POST", "/", bytes.NewReader(sent))); got != string(sent) {
		t.Errorf("%d others of %d bytes came back", len(got), len(sent))
	}
}

// TestOneWriteABatch counts the writes to the connection below.
func TestOneWriteABatch(t *testing.T) {
	server, client := loopback(t)
	defer server.Close()
	defer client.Close()
	for _, c := range []*wsConn{server.(*wsConn), client.(*wsConn)} {
		counted := &countedConn{Conn: c.batch.Conn}
		c.batch.Conn = counted
		if err := c.WriteBinary(make([]byte, 500), make([]byte, 60<<10)); err != nil {
			t.Fatal(err)
		}
		if counted.writes != 1 {
			t.Errorf("a batch took %d writes, want 1", counted.writes)
		}
	}
}

type countedConn struct {
	net.Conn
	writes int
}

func (c *countedConn) Write(p []byte) (int, error) {
	c.writes++
	return c.Conn.Write(p)
}
