package server

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

// upgrading is a handler that switches to protocol and hands the connection to f.
func upgrading(t *testing.T, protocol string, f func(net.Conn, *bufio.ReadWriter)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", protocol)
		w.Header().Set("Sec-WebSocket-Accept", "as it is")
		w.WriteHeader(101)
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error("hijack:", err)
			return
		}
		f(c, rw)
	}
}

func echo(c net.Conn, rw *bufio.ReadWriter) {
	_, _ = io.Copy(c, rw)
	_ = c.Close()
}

// upgrade asks for an upgrade on a new connection, and wants 101.
func (e *edge) upgrade(host, protocol, early string) (*visitor, []string) {
	e.t.Helper()
	v := e.visit()
	v.says("GET /chat HTTP/1.1\nHost: "+host+"\nConnection: keep-alive, Upgrade\nUpgrade: "+protocol+"\nSec-WebSocket-Key: key\n\n", early)
	status, fields := v.head()
	if status != "HTTP/1.1 101 Switching Protocols" {
		e.t.Fatalf("upgrade to %s: %q", protocol, status)
	}
	return v, fields
}

func TestUpgradeCarriesBytesBothWays(t *testing.T) {
	e := newEdge(t, Options{MaxBody: 100})
	_, host := e.publish(upgrading(t, "lines", echo))
	v, fields := e.upgrade(host, "lines", "early ")
	for _, want := range []string{"Connection: Upgrade", "Upgrade: lines", "Sec-Websocket-Accept: as it is"} {
		if !strings.Contains(strings.Join(fields, "\n"), want) {
			t.Errorf("the 101 has no %q: %q", want, fields)
		}
	}
	if len(field(fields, "X-Request-Id")) != 1 {
		t.Errorf("the 101 has no X-Request-Id, as every response has: %q", fields)
	}
	long := strings.Repeat("0123456789", 100_000) // far over the limit, which is for WebSocket messages
	go v.says("", long)
	got := make([]byte, len("early ")+len(long))
	if _, err := io.ReadFull(v.r, got); err != nil || string(got) != "early "+long {
		t.Fatalf("%d bytes came back wrong: %v", len(got), err)
	}
	_ = v.Conn.(*net.TCPConn).CloseWrite()
	if rest, err := v.rest(); rest != "" || err != nil {
		t.Errorf("after the visitor's end: %q, %v; want a clean end", rest, err)
	}
	eventually(t, "nothing runs", func() bool { return e.metric("harp_streams") == 0 })
	if in, out := e.metric("harp_visitor_bytes_total{direction=in}"), e.metric("harp_visitor_bytes_total{direction=out}"); in != float64(len(got)) || out != in {
		t.Errorf("counted %v bytes in and %v out, want %d", in, out, len(got))
	}
}

func TestUpgradeThatIsNotGranted(t *testing.T) {
	e := newEdge(t, Options{})
	_, host := e.publish(func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header["Upgrade"]; len(got) != 1 || got[0] != "a, b" || r.Header.Get("Connection") != "Upgrade" {
			t.Errorf("the agent got Upgrade %q, Connection %q", got, r.Header["Connection"])
		}
		w.WriteHeader(403)
		io.WriteString(w, "no")
	})
	v := e.visit()
	v.says("GET / HTTP/1.1\nHost: "+host+"\nConnection: Upgrade, X-Drop\nX-Drop: 1\nUpgrade: a, h2c\nUpgrade: b\n\n", "")
	status, fields := v.head()
	if status != "HTTP/1.1 403 Forbidden" || len(field(fields, "Content-Length")) != 1 {
		t.Errorf("%q %q", status, fields)
	}
	body := make([]byte, 2)
	if _, err := io.ReadFull(v.r, body); err != nil || string(body) != "no" {
		t.Errorf("body %q, %v", body, err)
	}
	v.says("OPTIONS * HTTP/1.1\nHost: "+host+"\nConnection: Upgrade\nUpgrade: a, b\n\n", "")
	if status, _ := v.head(); status != "HTTP/1.1 403 Forbidden" {
		t.Errorf("the connection goes on as HTTP: %q", status)
	}
}

func TestUpgradeIsOnlyForThoseWhoMay(t *testing.T) {
	e := newEdge(t, Options{})
	_, host := e.publish(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "Upgrade:"+strings.Join(r.Header["Upgrade"], "|"))
	})
	for why, head := range map[string]string{
		"h2c":                "GET / HTTP/1.1\nHost: H\nConnection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AA\n\n",
		"HTTP/1.0":           "GET / HTTP/1.0\nHost: H\nConnection: Upgrade\nUpgrade: websocket\n\n",
		"not named":          "GET / HTTP/1.1\nHost: H\nConnection: keep-alive\nUpgrade: websocket\n\n",
		"with a body":        "POST / HTTP/1.1\nHost: H\nConnection: Upgrade\nUpgrade: websocket\nContent-Length: 2\n\nhi",
		"an empty protocol":  "GET / HTTP/1.1\nHost: H\nConnection: Upgrade\nUpgrade: ,\n\n",
		"no protocol at all": "GET / HTTP/1.1\nHost: H\nConnection: Upgrade\n\n",
	} {
		v := e.visit()
		v.says(strings.Replace(head, "H\n", host+"\n", 1), "")
		status, _ := v.head()
		body := make([]byte, len("Upgrade:"))
		if _, err := io.ReadFull(v.r, body); !strings.Contains(status, "200") || string(body) != "Upgrade:" || err != nil {
			t.Errorf("%s: %q %q %v, want a plain request", why, status, body, err)
		}
	}
}

func TestUpgradeEndsAbruptly(t *testing.T) {
	e := newEdge(t, Options{})
	seen := make(chan error, 1)
	a, host := e.publish(upgrading(t, "lines", func(c net.Conn, rw *bufio.ReadWriter) {
		defer c.Close()
		line, err := rw.ReadString('\n')
		switch line {
		case "reset\n":
			_ = c.(*tunnel.UpgradedConn).Reset()
			return
		case "":
			seen <- err
			return
		}
		_, err = rw.ReadByte()
		seen <- err
	}))
	v, _ := e.upgrade(host, "lines", "reset\n")
	if rest, err := v.rest(); !isReset(err) {
		t.Errorf("the agent's reset arrived as %q, %v", rest, err)
	}
	v, _ = e.upgrade(host, "lines", "stay\n")
	_ = v.Conn.(*net.TCPConn).SetLinger(0)
	v.Close()
	var cancelled *tunnel.CancelError
	if err := receive(t, "the visitor's reset", seen); !errors.As(err, &cancelled) {
		t.Errorf("the visitor's reset arrived as %v", err)
	}
	v, _ = e.upgrade(host, "lines", "")
	_ = v.Conn.(*net.TCPConn).CloseWrite()
	if err := receive(t, "the visitor's end", seen); err != io.EOF {
		t.Errorf("the visitor's end arrived as %v", err)
	}
	v, _ = e.upgrade(host, "lines", "stay\n")
	_ = a.conn.Close()
	if rest, err := v.rest(); !isReset(err) {
		t.Errorf("the loss of the link arrived as %q, %v", rest, err)
	}
	eventually(t, "nothing runs", func() bool { return e.metric("harp_streams") == 0 })
}

const close1009 = "\x88\x02\x03\xf1"

// masked is a whole frame from a visitor.
func masked(first byte, n int) string { return string(frame(first, uint64(n), true, n)) }

func TestWebSocketMessageLimit(t *testing.T) {
	t.Parallel()
	e := newEdge(t, Options{MaxBody: 1000})
	got := make(chan string, 1)
	_, host := e.publish(upgrading(t, "WebSocket", func(c net.Conn, rw *bufio.ReadWriter) {
		b, err := io.ReadAll(rw)
		if err != nil {
			t.Errorf("the agent's read: %v", err)
		}
		got <- string(b)
		c.Close()
	}))
	good := masked(opText, 600) + masked(fin|opPing, 4) + masked(fin|opContinuation, 400) + masked(fin|opBinary, 1000)
	v, _ := e.upgrade(host, "WebSocket", "")
	long := good + masked(fin|opText, 500_000)
	for i := 0; i < len(long); i += 701 { // so that heads get split
		if _, err := io.WriteString(v, long[i:min(i+701, len(long))]); err != nil {
			t.Fatalf("the visitor's write of byte %d: %v; its farewell must not be taken back", i, err)
		}
		if i < 10*701 {
			time.Sleep(time.Millisecond)
		}
	}
	if rest, err := v.rest(); rest != close1009 || err != nil {
		t.Errorf("the visitor got %q, %v; want close frame 1009 and an end", rest, err)
	}
	if b := receive(t, "what the agent got", got); b != good+"\x88\x82\x00\x00\x00\x00\x03\xf1" {
		t.Errorf("the agent got %d bytes, ending in %q; want all good messages and close frame 1009", len(b), b[max(0, len(b)-20):])
	}
	if n := e.metric("harp_limits_total{limit=max-body}"); n != 1 {
		t.Errorf("counted %v times", n)
	}
	v.Close()
	eventually(t, "nothing runs", func() bool { return e.metric("harp_streams") == 0 })
}

func TestWebSocketMessageLimitOfTheAgent(t *testing.T) {
	t.Parallel()
	e := newEdge(t, Options{MaxBody: 70000})
	got := make(chan string, 1)
	exact := string(frame(fin|opBinary, 70000, false, 70000))
	_, host := e.publish(upgrading(t, "websocket", func(c net.Conn, rw *bufio.ReadWriter) {
		go func() { // ends with the connection
			for _, part := range []string{exact, exact[:1], exact[1:5], exact[5:], string(frame(fin|opBinary, 70001, false, 70001))} {
				if _, err := io.WriteString(c, part); err != nil {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
		}()
		b, _ := io.ReadAll(rw)
		got <- string(b)
		c.Close()
	}))
	v, _ := e.upgrade(host, "websocket", masked(fin|opText, 3))
	if rest, err := v.rest(); rest != exact+exact+close1009 || err != nil {
		t.Errorf("the visitor got %d bytes ending in %q, %v; want two messages and close frame 1009", len(rest), rest[max(0, len(rest)-8):], err)
	}
	if b := receive(t, "what the agent got", got); b != masked(fin|opText, 3)+"\x88\x82\x00\x00\x00\x00\x03\xf1" {
		t.Errorf("the agent got %q, want its message and close frame 1009", b)
	}
}

// A close frame must not be written into the middle of another frame, which it could complete: it comes behind the
// rest of that, or not at all.
func TestWebSocketFarewellInTheMiddleOfAFrame(t *testing.T) {
	t.Parallel()
	whole := string(frame(fin|opBinary, 10, false, 10))
	half := whole[:len(whole)-4] // short by as much as a close frame has
	for rest, want := range map[string]string{"": "", whole[len(half):] + "\x82\x03": whole[len(half):] + close1009} {
		e := newEdge(t, Options{MaxBody: 1000})
		sent, got := make(chan struct{}), make(chan string, 1)
		_, host := e.publish(upgrading(t, "websocket", func(c net.Conn, rw *bufio.ReadWriter) {
			io.WriteString(c, half)
			_, _ = io.ReadFull(rw, make([]byte, 6))
			close(sent)
			b, _ := io.ReadAll(rw)
			io.WriteString(c, rest)
			got <- string(b)
			c.Close()
		}))
		v, _ := e.upgrade(host, "websocket", "\x81\x80\x00\x00\x00\x00")
		if _, err := io.ReadFull(v.r, make([]byte, len(half))); err != nil {
			t.Fatal(err)
		}
		receive(t, "the agent to be ready", sent)
		v.says("", masked(fin|opText, 2000))
		if b, err := v.rest(); b != want || err != nil {
			t.Errorf("after half a frame, and then %q, the visitor got %q, %v; want %q", rest, b, err, want)
		}
		if b := receive(t, "what the agent got", got); b != "\x88\x82\x00\x00\x00\x00\x03\xf1" {
			t.Errorf("the agent got %q, want close frame 1009", b)
		}
	}
}

func TestWebSocketWithoutALimit(t *testing.T) {
	e := newEdge(t, Options{MaxBody: -1})
	_, host := e.publish(upgrading(t, "websocket", echo))
	v, _ := e.upgrade(host, "websocket", "")
	message := masked(fin|opBinary, 2_000_000)
	go v.says("", message)
	got := make([]byte, len(message))
	if _, err := io.ReadFull(v.r, got); err != nil || string(got) != message {
		t.Errorf("a message of 2 MB: %v", err)
	}
}

// One slow half must not keep the other from being carried, nor the farewell from ending it.
func TestWebSocketLimitWhileTheVisitorDoesNotRead(t *testing.T) {
	t.Parallel()
	e := newEdge(t, Options{MaxBody: 1000})
	_, host := e.publish(upgrading(t, "websocket", func(c net.Conn, rw *bufio.ReadWriter) {
		defer c.Close()
		for p := bytes.Repeat(frame(fin|opBinary, 900, false, 900), 100); ; {
			if _, err := c.Write(p); err != nil {
				return
			}
		}
	}))
	v, _ := e.upgrade(host, "websocket", "")
	eventually(t, "the visitor's buffers are full", func() bool {
		before := e.metric("harp_visitor_bytes_total{direction=out}")
		time.Sleep(50 * time.Millisecond)
		return before > 0 && before == e.metric("harp_visitor_bytes_total{direction=out}")
	})
	start := time.Now()
	v.says("", masked(fin|opText, 1001))
	eventually(t, "the connection is ended", func() bool { return e.metric("harp_streams") == 0 })
	if took := time.Since(start); took > 3*linger {
		t.Errorf("it took %v", took)
	}
}

func TestScriptedUpgrade(t *testing.T) {
	e := newEdge(t, Options{})
	a := e.script(newKey(t), identity.Registration{})
	v := e.visit()
	ask := func() message {
		v.says("GET / HTTP/1.1\nHost: "+a.host+"\nConnection: Upgrade\nUpgrade: x\n\n", "")
		return a.wants("a request", messages.TypeWSRequest)
	}
	m := ask()
	a.sends(head(messages.TypeWSResponse, 0, m.Stream, 101, "Connection", "Upgrade", "Upgrade", "x", "Content-Length", "5",
		"Transfer-Encoding", "chunked", "Harp-Error", "fake", "X-Request-Id", "the upstream's"))
	_, fields := v.head()
	for _, name := range []string{"Content-Length", "Transfer-Encoding", "Harp-Error"} {
		if got := field(fields, name); got != nil {
			t.Errorf("the 101 has %s: %q", name, got)
		}
	}
	if got := field(fields, "X-Request-Id"); len(got) != 1 || got[0] != "the upstream's" {
		t.Errorf("X-Request-Id: %q, want the upstream's own", got)
	}
	a.sends(messages.AppendBody(nil, messages.TypeWSMessage, 0, m.Stream, []byte("bye")))
	a.sends(messages.AppendCancel(nil, messages.TypeWSTeardown, m.Stream, messages.CancelAborted, "reset"))
	if rest, err := v.rest(); !isReset(err) || rest != "" && rest != "bye" {
		t.Errorf("got %q, %v; want a reset", rest, err)
	}
	v = e.visit()
	m = ask()
	a.sends(head(messages.TypeWSResponse, messages.FlagEnd, m.Stream, 101, "Upgrade", "x"))
	v.head()
	if rest, err := v.rest(); rest != "" || err != nil {
		t.Errorf("a 101 that ends at once: %q, %v", rest, err)
	}
	v.says("", "still open")
	if got := a.wants("the other half", messages.TypeWSMessage); got.payload != "still open" {
		t.Errorf("the agent got %q", got.payload)
	}
}
