package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// abortLimit is how soon the upstream has to see that a visitor has gone.
const abortLimit = time.Second

// TestVisitorAborts has a visitor leave at every stage, with FIN and with RST.
func TestVisitorAborts(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, request string
		body          string // sent after the head
		head          bool   // leave after the response head and some body
	}{
		{name: "waiting for the head", request: "GET"},
		{name: "waiting, after an upload", request: "POST", body: chunk("hello") + chunk("")},
		{name: "in a download", request: "GET", head: true},
		{name: "in an upload", request: "POST", body: chunk("hello")},
		{name: "in a chunk of an upload", request: "POST", body: "ff\r\nhel"},
		{name: "in both", request: "POST", body: chunk("hello"), head: true},
	} {
		for _, end := range []string{"FIN", "RST"} {
			t.Run(tt.name+" by "+end, func(t *testing.T) {
				t.Parallel()
				started, gone := make(chan struct{}, 1), make(chan error, 1)
				tn := publish(t, serveUpstream(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					gone <- untilGone(w, r, tt.head, started)
				})))
				c := tn.dial(t)
				if tt.request == "POST" {
					c.send(c.request("POST", "/x", "Transfer-Encoding: chunked") + tt.body)
				} else {
					c.send(c.request("GET", "/x"))
				}
				await(t, started, "the request", func(struct{}) {})
				if tt.head {
					c.readHead()
					c.readUntil("piece")
				}
				left := time.Now()
				if end == "RST" {
					c.reset()
				} else {
					c.Close()
				}
				await(t, gone, "the upstream to see that the visitor left", func(err error) {
					took := time.Since(left)
					t.Logf("seen after %v: %v", took.Round(10*time.Microsecond), err)
					if took > abortLimit {
						t.Errorf("the upstream went on for %v: it works for nobody", took)
					}
					if unfinished := tt.body != "" && !strings.HasSuffix(tt.body, chunk("")); unfinished && err == io.EOF {
						t.Errorf("the upstream saw a clean end of an upload that was cut off")
					}
				})
			})
		}
	}
}

// untilGone is an upstream that works until its visitor leaves, and returns how the request's body ended.
func untilGone(w http.ResponseWriter, r *http.Request, download bool, started chan<- struct{}) error {
	rc := http.NewResponseController(w)
	rc.EnableFullDuplex()
	started <- struct{}{}
	var wg sync.WaitGroup
	defer wg.Wait() // w is not to be used after the handler returned
	if download {
		wg.Go(func() { // ends with the request
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, strings.Repeat("piece", 1000)); err != nil {
					return
				}
				rc.Flush()
				<-time.After(10 * time.Millisecond)
			}
		})
	}
	_, err := io.Copy(io.Discard, r.Body)
	if err == nil {
		err = io.EOF
	}
	<-r.Context().Done()
	return err
}

// TestVisitorAbortsSizedUpload cuts a body of known length: the upstream must not see a whole one.
func TestVisitorAbortsSizedUpload(t *testing.T) {
	t.Parallel()
	heads, bodies := make(chan head, 2), make(chan message, 2)
	tn := publish(t, scriptUpstream(t, func(_ *testing.T, conn net.Conn, br *bufio.Reader) {
		h, err := readHead(br)
		if err != nil {
			return
		}
		heads <- h
		bodies <- readRest(br, h, "")
		io.WriteString(conn, plainOK)
	}))
	c := tn.dial(t)
	c.send(c.request("POST", "/x", "Content-Length: 1000") + strings.Repeat("x", 999))
	await(t, heads, "the request", func(head) {}) // one that is given up before may never be sent at all
	c.Close()
	await(t, bodies, "the broken body", func(m message) {
		if m.Err == nil {
			t.Errorf("the upstream saw a whole request of %d bytes, 999 of 1000 were sent", len(m.Body))
		}
	})
	if m := tn.dial(t).do("GET", "/y"); m.status() != 200 {
		t.Errorf("the next request got %q", m.Line)
	}
}

// A breakage is how an upstream ends an answer that is not done.
type breakage struct {
	name string
	head string
	body string // what the visitor must get, or nothing if the head is not whole
	wire string // body as it is framed
}

// TestUpstreamBreaksBeforeHead wants 502 for every answer without a whole head.
func TestUpstreamBreaksBeforeHead(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"nothing":             "",
		"half a status line":  "HTTP/1.1 20",
		"half a head":         "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n",
		"only 103":            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
		"another protocol":    "SSH-2.0-OpenSSH_9.9\r\n",
		"TLS alert":           "\x15\x03\x01\x00\x02\x02\x46",
		"HTTP/0.9":            "<html>hello</html>",
		"impossible status":   "HTTP/1.1 20 OK\r\n\r\n",
		"status of letters":   "HTTP/1.1 abc OK\r\n\r\n",
		"field without colon": "HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
		"unasked 101":         "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
	} {
		for _, end := range []string{"FIN", "RST"} {
			t.Run(name+" by "+end, func(t *testing.T) {
				t.Parallel()
				tn := publish(t, scriptUpstream(t, func(_ *testing.T, conn net.Conn, br *bufio.Reader) {
					if m := readMessage(br, ""); m.target() != "/x" {
						io.WriteString(conn, plainOK)
						return
					}
					io.WriteString(conn, answer)
					if end == "RST" {
						resetConn(conn)
					}
				}))
				tn.needsTunnel(t)
				c := tn.dial(t)
				c.send(c.request("POST", "/x", "Content-Length: 2") + "hi")
				m := c.response("POST")
				if m.status() == 103 && name == "only 103" {
					m = c.response("POST")
				}
				if m.status() != 502 || !m.has("Harp-Error") || m.Err != nil {
					t.Errorf("got %q with Harp-Error %q (%v), want the edge's 502", m.Line, m.get("Harp-Error"), m.Err)
				}
				if m := c.do("GET", "/y"); m.status() != 200 {
					t.Errorf("the next request got %q", m.Line)
				}
			})
		}
	}
}

// TestUpstreamBreaksInBody wants every byte that was sent, and then a broken transfer, never a clean end.
func TestUpstreamBreaksInBody(t *testing.T) {
	t.Parallel()
	const sized, chunked = "HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	large := string(pattern(200_000))
	for _, tt := range []breakage{
		{"sized, nothing", sized, "", ""},
		{"sized, one byte", sized, "a", "a"},
		{"sized, large", sized, large, large},
		{"chunked, nothing", chunked, "", ""},
		{"chunked, between chunks", chunked, "hello", chunk("hello")},
		{"chunked, large", chunked, large, chunk(large)},
		{"chunked, in a chunk", chunked, "hello", "ff\r\nhello"},
		{"chunked, in a size", chunked, "hello", chunk("hello") + "f"},
		{"chunked, before the last line", chunked, "hello", chunk("hello") + "0\r\n"},
		{"chunked, in the trailers", chunked, "hello", chunk("hello") + "0\r\nX-Sum: a"},
		{"chunked, bad size", chunked, "hello", chunk("hello") + "zz\r\n"},
	} {
		for _, end := range []string{"FIN", "RST"} {
			t.Run(tt.name+" by "+end, func(t *testing.T) {
				t.Parallel()
				arrived := make(chan struct{})
				tn := publish(t, scriptUpstream(t, func(_ *testing.T, conn net.Conn, br *bufio.Reader) {
					if m := readMessage(br, ""); m.target() != "/x" {
						io.WriteString(conn, plainOK)
						return
					}
					io.WriteString(conn, tt.head+tt.wire)
					if end == "FIN" {
						return
					}
					select { // a reset throws away what is still on its way
					case <-arrived:
					case <-t.Context().Done():
					}
					resetConn(conn)
				}))
				wantBroken(t, tn.dial(t), "1.1", tt.body, arrived)
				if m := tn.dial(t).do("GET", "/y"); m.status() != 200 {
					t.Errorf("the next request got %q", m.Line)
				}
			})
		}
	}
}

// TestUpstreamBreaksHTTP10 is the same for a visitor whose protocol marks the end of a body by the end of the
// connection: then only a reset tells a broken transfer from a whole one.
func TestUpstreamBreaksHTTP10(t *testing.T) {
	t.Parallel()
	tn := publish(t, scriptUpstream(t, func(_ *testing.T, conn net.Conn, br *bufio.Reader) {
		readMessage(br, "")
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"+chunk("hello"))
	}))
	tn.needsTunnel(t)
	wantBroken(t, tn.dial(t), "1.0", "hello", make(chan struct{}))
}

// wantBroken sends a GET and wants 200 with exactly these bytes and a broken end; it closes arrived once they are there.
func wantBroken(t *testing.T, c *rawConn, version, want string, arrived chan<- struct{}) {
	t.Helper()
	c.send(fmt.Sprintf("GET /x HTTP/%s\r\nHost: %s\r\n\r\n", version, c.host))
	h := c.readHead()
	b, err := bodyOf(c.br, h, "GET")
	if h.status() != 200 || err != nil {
		t.Fatalf("got %q %q (%v), want the upstream's 200", h.Line, h.Fields, err)
	}
	got := make([]byte, len(want))
	c.SetReadDeadline(time.Now().Add(patience))
	n, err := io.ReadFull(b, got)
	if diff := sameBytes(got[:n], []byte(want)); diff != "" {
		t.Errorf("the visitor got %s (%v): all that was sent before the break has to arrive", diff, err)
	}
	close(arrived)
	n, err = b.Read(make([]byte, 100))
	switch {
	case n > 0:
		t.Errorf("%d bytes more than the upstream sent", n)
	case err == io.EOF:
		t.Errorf("the visitor saw a clean end: it will take a part for the whole")
	case isTimeout(err):
		t.Errorf("the visitor still waits for the rest")
	}
}
