package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// hijacks runs a handler that takes the connection over before any head, and returns what it gets.
func hijacks(t *testing.T, kind messages.Type) (*peer, net.Conn) {
	t.Helper()
	var c net.Conn
	p := newAgent(t, func(w http.ResponseWriter, r *http.Request) {
		var err error
		if c, _, err = http.NewResponseController(w).Hijack(); err != nil {
			t.Errorf("hijack: %v", err)
		}
	})
	p.sends(requestHead(kind, 1, "POST", "/", 0, "Connection: Upgrade", "Upgrade: own"))
	return p, c
}

func TestHijackerWritesHead(t *testing.T) {
	for _, c := range []struct {
		name, text string
		status     int
		want       string // header
		behind     string
	}{
		{"101", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: own\r\n\r\n", 101, "map[Connection:[Upgrade] Upgrade:[own]]", ""},
		{"101 with bytes behind", "HTTP/1.1 101 \r\nUpgrade: own\r\n\r\nhello", 101, "map[Upgrade:[own]]", "hello"},
		{"404", "HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 4\r\n\r\ngone", 404, "map[Content-Length:[4]]", "gone"},
		{"200 without a length", "HTTP/1.0 200 OK\r\nX: a\r\nx: b\r\n\r\nbody", 200, "map[X:[a b]]", "body"},
	} {
		for _, piece := range []int{1, 7, len(c.text)} {
			synctest.Test(t, func(t *testing.T) {
				p, conn := hijacks(t, messages.TypeWSRequest)
				for text := c.text; text != ""; {
					n, err := io.WriteString(conn, text[:min(piece, len(text))])
					if n != min(piece, len(text)) || err != nil {
						t.Fatalf("%s: write returned %d, %v", c.name, n, err)
					}
					text = text[n:]
				}
				if h := p.wantsResponse(c.name, 1, c.status, 0); fmt.Sprint(h) != c.want {
					t.Errorf("%s: header %v, want %v", c.name, h, c.want)
				}
				_ = conn.Close()
				got := p.gathers(c.name, 1)
				if string(got) != c.behind {
					t.Errorf("%s: behind the head came %q, want %q", c.name, got, c.behind)
				}
				p.wantsCancel("closed both ways", 1, messages.CancelEnough)
				p.idle("nothing more")
			})
		}
	}
}

func TestHijackerWritesNoHead(t *testing.T) {
	for _, c := range []struct{ name, text string }{
		{"nothing", ""},
		{"no HTTP", "SSH-2.0-OpenSSH\r\n\r\n"},
		{"no end of the head", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 65<<10)},
		{"101 without Upgrade", "HTTP/1.1 101 Switching Protocols\r\n\r\n"},
	} {
		synctest.Test(t, func(t *testing.T) {
			p, conn := hijacks(t, messages.TypeHTTPRequest)
			_, err := io.WriteString(conn, c.text)
			if err == nil && c.text != "" {
				t.Errorf("%s: write succeeded", c.name)
			}
			_ = conn.Close()
			p.wantsCancel(c.name+": without a head there is no proper end", 1, messages.CancelBroken)
			p.idle(c.name)
			if n := p.s.Streams(); n != 0 {
				t.Errorf("%s: %d streams are left", c.name, n)
			}
		})
	}
}

// TestHijackerWritesChunks frames a body as HTTP/1.1 does, in pieces of every size.
func TestHijackerWritesChunks(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	for _, c := range []struct {
		name, text, want string
		end              []byte // nil if it is broken
	}{
		{"some chunks", "5\r\nhello\r\n06;x=y\r\n world\r\n0\r\n\r\n", "hello world", end(1, "")},
		{"no chunks", "0\r\n\r\n", "", end(1, "")},
		{"large hex", "A \r\n0123456789\r\nb\r\n0123456789a\r\n00\r\n\r\n", "01234567890123456789a", end(1, "")},
		{"trailers", "1\r\nx\r\n0\r\nX-Sum: 12 \r\n\r\n", "x", trailers(1, "X-Sum: 12")},
		{"no last chunk", "5\r\nhello\r\n", "hello", nil},
		{"half a chunk", "5\r\nhel", "hel", nil},
		{"no line after the last chunk", "5\r\nhello\r\n0\r\n", "hello", nil},
		{"nothing", "", "", nil},
		{"no size", "\r\n", "", nil},
		{"negative size", "-5\r\nhello\r\n0\r\n\r\n", "", nil},
		{"huge size", "ffffffffffffffffffff\r\nhello", "", nil},
		{"longer than its size", "4\r\nhello\r\n0\r\n\r\n", "hell", nil},
		{"bare line feed", "5\nhello\n0\n\n", "", nil},
		{"endless line", strings.Repeat("0", 5000), "", nil},
		{"trailer that is none", "0\r\nX-Sum\r\n\r\n", "", nil},
		{"endless trailers", "0\r\n" + strings.Repeat("X: y\r\n", 20_000), "", nil},
	} {
		for _, piece := range []int{1, 3, 100_000_000} {
			synctest.Test(t, func(t *testing.T) {
				p, conn := hijacks(t, messages.TypeHTTPRequest)
				_, _ = io.WriteString(conn, head)
				p.wantsResponse(c.name, 1, 200, 0)
				for text := c.text; text != ""; {
					n := min(piece, len(text))
					if _, err := io.WriteString(conn, text[:n]); err != nil {
						break
					}
					text = text[n:]
				}
				if err := conn.Close(); (err == nil) != (c.end != nil) {
					t.Errorf("%s: close returned %v", c.name, err)
				}
				if got := p.data(c.name); got != c.want {
					t.Errorf("%s: data %q, want %q", c.name, got, c.want)
				}
				if c.end == nil {
					p.wantsCancel(c.name, 1, messages.CancelBroken)
				} else {
					p.wants(c.name, c.end)
					p.wantsCancel(c.name+": the exchange is over", 1, messages.CancelEnough)
				}
				p.idle(c.name)
			})
		}
	}
}

// data takes the pieces of a body up to the next message that is no plain piece.
func (p *peer) data(why string) string {
	p.t.Helper()
	var all []byte
	for p.pending() {
		rest := p.rest
		h, payload := p.next(why)
		if h.Type != messages.TypeBody || h.Flags != 0 {
			p.rest = rest
			break
		}
		all = append(all, payload...)
	}
	return string(all)
}

// TestHijackerResetsChunks resets a connection in the middle of a chunked answer.
func TestHijackerResetsChunks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, conn := hijacks(t, messages.TypeHTTPRequest)
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel")
		_ = conn.(*UpgradedConn).Reset()
		p.wantsResponse("a head", 1, 200, 0)
		p.wants("some data", body(1, "hel"))
		p.wantsCancel("and the reset", 1, messages.CancelAborted)
		p.idle("and no more")
	})
}

// TestHijackerReadsRequestBody hijacks a request with a body, answers, and reads on.
func TestHijackerReadsRequestBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, conn := hijacks(t, messages.TypeHTTPRequest)
		p.sends(body(1, "hello"))
		read(t, conn, 5)
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\nfine")
		_ = conn.(*UpgradedConn).CloseWrite()
		p.wantsResponse("its answer", 1, 200, 0)
		p.wants("whole", body(1, "fine"), end(1, ""))
		p.wantsCancel("the exchange is over with the answer", 1, messages.CancelEnough)
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read after the answer: %v, want %v: the edge need not send the rest", err, net.ErrClosed)
		}
		if n := p.s.Streams(); n != 0 {
			t.Errorf("%d streams are left", n)
		}
	})
}

func TestHijackAfterHead(t *testing.T) {
	p := newPair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(200)
		if _, _, err := http.NewResponseController(w).Hijack(); err == nil {
			t.Error("hijack after WriteHeader(200) succeeded: the head would be lost")
		}
		_, _ = io.WriteString(w, "fine")
	}))
	if _, got := p.get(request("GET", "/", nil)); got != "fine" {
		t.Errorf("body %q", got)
	}
}

// TestAnswerToUpgradeIsNot101 has the service refuse an upgrade: that is an ordinary answer in WSMessage.
func TestAnswerToUpgradeIsNot101(t *testing.T) {
	p := newPair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "own" {
			t.Errorf("header %v, want Upgrade", r.Header)
		}
		if b, err := io.ReadAll(r.Body); len(b) > 0 || err != nil {
			t.Errorf("request body %q, %v", b, err)
		}
		w.Header().Set("Trailer", "X-Lost")
		w.WriteHeader(http.StatusUpgradeRequired)
		_, _ = io.WriteString(w, "no")
		w.Header().Set("X-Lost", "1")
	}))
	res, got := p.get(request("GET", "/", nil, "Connection: Upgrade", "Upgrade: own"))
	if res.StatusCode != 426 || got != "no" || len(res.Trailer) > 0 {
		t.Errorf("answer %d %q with trailers %v, want 426, \"no\" and none", res.StatusCode, got, res.Trailer)
	}
	if n := p.edge.Streams(); n != 0 {
		t.Errorf("%d streams are left", n)
	}
}

// TestAgentSwitches plays an agent that answers 101.
func TestAgentSwitches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		call := p.calls(request("GET", "/", nil, "Connection: Upgrade", "Upgrade: own"))
		id, _ := p.wantsRequest("an upgrade")
		p.sends(responseHead(messages.TypeWSResponse, id, 101, 0), upgraded(id, "hello"))
		c := call.answered("101").Body.(*UpgradedConn)
		read(t, c, 5)
		_, _ = c.Write([]byte("hi"))
		p.wants("the visitor's bytes", upgraded(id, "hi"))
		p.sends(body(id, "x"))
		p.wantsCancel("Body on an upgraded stream", id, messages.CancelProtocol)
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, ErrProtocol) {
			t.Errorf("read: %v, want %v", err, ErrProtocol)
		}

		call = p.calls(request("GET", "/", nil, "Connection: Upgrade", "Upgrade: own"))
		id, _ = p.wantsRequest("an upgrade")
		p.sends(responseHead(messages.TypeWSResponse, id, 101, messages.FlagEnd))
		c = call.answered("101 that ends at once").Body.(*UpgradedConn)
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read: %v, want io.EOF", err)
		}
		_ = c.CloseWrite()
		p.wants("the other direction ends too", upgradedEnd(id, ""))
		if n := p.s.Streams(); n != 0 {
			t.Errorf("%d streams are left", n)
		}
	})
}

// TestContextEndsUpgrade cancels the context of an upgraded request.
func TestContextEndsUpgrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		ctx, cancel := context.WithCancel(t.Context())
		call := p.calls(request("GET", "/", nil, "Connection: Upgrade", "Upgrade: own").WithContext(ctx))
		id, _ := p.wantsRequest("an upgrade")
		p.sends(responseHead(messages.TypeWSResponse, id, 101, 0))
		c := call.answered("101").Body.(*UpgradedConn)
		cancel()
		p.wantsCancel("the visitor is gone", id, messages.CancelAborted)
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("read: %v, want an error", err)
		}
	})
}

// TestHandlerWriteDeadlinePassed has the time for a short response pass before its end: it must not look complete.
func TestHandlerWriteDeadlinePassed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "late")
			_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(-time.Second))
		}))
		res, err := p.edge.RoundTrip(1, httptest.NewRequest("GET", "/", nil))
		if err != nil {
			return
		}
		defer res.Body.Close()
		if b, err := io.ReadAll(res.Body); err == nil {
			t.Errorf("got %q, want an error", b)
		}
	})
}

// TestHandlerWriteDeadline sets the write deadline of an ordinary response.
func TestHandlerWriteDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		errs := make(chan error, 2)
		p := newAgent(t, func(w http.ResponseWriter, r *http.Request) {
			rc := http.NewResponseController(w)
			errs <- rc.SetWriteDeadline(time.Now().Add(time.Second))
			var err error
			switch r.RequestURI {
			case "/":
				_, err = w.Write(make([]byte, 1<<20))
			case "/flush":
				_, _ = w.Write(make([]byte, DefaultStreamWindow))
				_, _ = w.Write([]byte("more"))
				err = rc.Flush()
			}
			errs <- err
			_ = rc.SetWriteDeadline(time.Time{})
			_, _ = io.WriteString(w, "as if nothing had happened")
		})
		for i, target := range []string{"/", "/flush"} {
			id := uint32(i + 1)
			p.sends(requests(id, "GET", target, messages.FlagEnd))
			if err := <-errs; err != nil {
				t.Errorf("set write deadline: %v", err)
			}
			if err := <-errs; !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: %v, want %v", target, err, os.ErrDeadlineExceeded)
			}
			p.wantsResponse("the head", id, 200, 0)
			if got := p.data("a window"); len(got) != DefaultStreamWindow {
				t.Errorf("%s: %d bytes came, want a window", target, len(got))
			}
			p.wantsCancel("what lacks a part must not look complete", id, messages.CancelAborted)
			p.idle("nothing behind the gap")
		}
	})
}
