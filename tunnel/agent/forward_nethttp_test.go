package agent

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestBehindNetHTTP has raw visitors and a raw upstream with net/http's server and the Forwarder between them: what
// one end writes the other must read.
func TestBehindNetHTTP(t *testing.T) {
	for _, c := range []struct{ why, request, seen, answer, got string }{
		{"as it is", "GET /a%2Fb//c;d?e=%zz&f HTTP/1.1\r\nHost: v\r\nX: 1\r\nX: 2\r\n\r\n",
			"GET /a%2Fb//c;d?e=%zz&f HTTP/1.1\r\nHost: v\r\nX: 1\r\nX: 2\r\n\r\n",
			"HTTP/1.1 299 Whatever\r\nContent-Length: 2\r\n\r\nhi", "HTTP/1.1 299 status code 299\r\nContent-Length: 2\r\n\r\nhi"},
		{"two slashes", "GET //a//b HTTP/1.1\r\nHost: v\r\n\r\n", "GET //a//b HTTP/1.1\r\nHost: v\r\n\r\n",
			"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
		{"raw UTF-8 and empty query", "GET /Ünï? HTTP/1.1\r\nHost: v\r\n\r\n", "GET /Ünï? HTTP/1.1\r\nHost: v\r\n\r\n",
			"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
		{"a method nobody knows", "BREW /pot HTTP/1.1\r\nHost: v\r\nContent-Length: 0\r\n\r\n", "BREW /pot HTTP/1.1\r\nHost: v\r\nContent-Length: 0\r\n\r\n",
			"HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n"},
		{"HTTP/1.0 on both ends", "GET / HTTP/1.0\r\nHost: v\r\n\r\n", "GET / HTTP/1.1\r\nHost: v\r\n\r\n",
			"HTTP/1.0 200 OK\r\nServer: x\r\n\r\nhi", "HTTP/1.0 200 OK\r\nServer: x\r\n\r\nhi"},
		{"sized body", "PUT / HTTP/1.1\r\nHost: v\r\nContent-Length: 5\r\n\r\nhello", "PUT / HTTP/1.1\r\nHost: v\r\nContent-Length: 5\r\n\r\nhello",
			"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"},
		{"chunks and trailers", "PUT / HTTP/1.1\r\nHost: v\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n",
			"PUT / HTTP/1.1\r\nHost: v\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n",
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 8\r\n\r\n",
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 8\r\n\r\n"},
		{"early hints", "GET / HTTP/1.1\r\nHost: v\r\n\r\n", "GET / HTTP/1.1\r\nHost: v\r\n\r\n",
			"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
			"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
		{"HEAD", "HEAD / HTTP/1.1\r\nHost: v\r\n\r\n", "HEAD / HTTP/1.1\r\nHost: v\r\n\r\n",
			"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"},
	} {
		t.Run(c.why, func(t *testing.T) {
			checkForwardLeaks(t)
			addr := playUpstream(t, func(_ int, p *peer) {
				p.want(c.seen)
				io.WriteString(p, c.answer)
			})
			v := dialPeer(t, serveForward(t, addr, ForwardOptions{}))
			v.send(c.request)
			v.want(c.got)
			v.Close()
		})
	}
}

// TestLargeHeads sends 32 KB of fields both ways.
func TestLargeHeads(t *testing.T) {
	checkForwardLeaks(t)
	fields := strings.Repeat("X-Long: "+strings.Repeat("v", 992)+"\r\n", 32)
	addr := playUpstream(t, func(_ int, p *peer) {
		for range 2 {
			if head := p.head(); strings.Count(head, fields) != 1 {
				t.Errorf("the upstream got a head of %d bytes", len(head))
			}
			p.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + fields + "\r\nhi")
		}
		p.rest()
	})
	v := dialPeer(t, serveForward(t, addr, ForwardOptions{}))
	for range 2 {
		v.send("GET / HTTP/1.1\r\nHost: v\r\n" + fields + "\r\n")
		if head := v.head(); !strings.Contains(head, fields) {
			t.Errorf("the visitor got a head of %d bytes", len(head))
		}
		v.want("hi")
	}
	v.Close()
}

// TestBreakOffBehindNetHTTP wants a visitor of net/http's server to see a broken transfer.
func TestBreakOffBehindNetHTTP(t *testing.T) {
	checkForwardLeaks(t)
	addr := playUpstream(t, func(_ int, p *peer) {
		p.head()
		p.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
	})
	v := dialPeer(t, serveForward(t, addr, ForwardOptions{}))
	v.send("GET / HTTP/1.1\r\nHost: v\r\n\r\n")
	s, _ := v.rest()
	if !strings.Contains(s, "5\r\nhello\r\n") || strings.Contains(s, "0\r\n\r\n") {
		t.Errorf("the visitor got %q, want the piece that came and no end", s)
	}
}

// TestEarlyAnswerBehindNetHTTP answers visitors who have not sent all of their body. What they send then is still the
// body, and must not be taken for another request.
func TestEarlyAnswerBehindNetHTTP(t *testing.T) {
	upstream := func(t *testing.T) string {
		return playUpstream(t, func(_ int, p *peer) {
			if head := p.head(); !strings.HasPrefix(head, "POST / ") {
				t.Errorf("the upstream got %q", head)
			}
			p.send("HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n")
			p.rest()
		})
	}
	h2 := func(t *testing.T) string {
		return "h2c://" + serveH2C(t, func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", http.StatusForbidden) })
	}
	deaf := func(t *testing.T) string { return playUpstream(t, func(int, *peer) {}) }
	for _, c := range []struct {
		target func(*testing.T) string
		status int
	}{{upstream, 403}, {h2, 403}, {deaf, 502}} {
		for _, framing := range []string{
			"Content-Length: 1000\r\n\r\nhello", "Content-Length: 10000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
		} {
			t.Run(fmt.Sprintf("%d %.20s", c.status, framing), func(t *testing.T) {
				checkForwardLeaks(t)
				v := dialPeer(t, serveForward(t, c.target(t), ForwardOptions{}))
				v.send("POST / HTTP/1.1\r\nHost: v\r\n" + framing)
				start := time.Now()
				res, err := http.ReadResponse(v.r, nil)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(res.Body)
				if err != nil || res.StatusCode != c.status || c.status == 403 && !strings.HasPrefix(string(body), "no") {
					t.Errorf("got %d %q, %v", res.StatusCode, body, err)
				}
				if d := time.Since(start); d > 200*time.Millisecond {
					t.Errorf("the whole answer took %v, want at once", d)
				}
				io.WriteString(v, "GET /smuggled HTTP/1.1\r\nHost: v\r\n\r\n")
				if s, _ := v.rest(); s != "" {
					t.Errorf("the rest of the body was answered with %q", s)
				}
			})
		}
	}
}

// TestManyAtOnce moves bodies of many sizes both ways over shared connections.
func TestManyAtOnce(t *testing.T) {
	checkForwardLeaks(t)
	for _, scheme := range []string{"http://", "h2c://"} {
		addr := serveH2C(t, func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).EnableFullDuplex()
			w.Header().Set("Content-Type", "a/b")
			if r.ContentLength >= 0 {
				w.Header().Set("Content-Length", fmt.Sprint(r.ContentLength))
			}
			io.Copy(w, r.Body)
		})
		f := newTestForwarder(t, scheme+addr, ForwardOptions{MaxIdle: 4})
		done := make(chan error)
		for n := range 8 {
			go func() { // received below
				for i := range 40 {
					size := (n*40 + i) * (n*40 + i) * 7
					data := bytes.Repeat([]byte{byte(n), byte(i), 'x'}, size/3+1)[:size]
					length := int64(size)
					if i%2 == 0 {
						length = -1
					}
					w := newTunnelWriter()
					w.flushed = make(chan struct{}, 1<<20)
					if w.serve(f, request(t, "POST", "/", bytes.NewReader(data), length)) || !bytes.Equal(w.body.Bytes(), data) {
						done <- fmt.Errorf("%s: %d bytes became %d (%q)", scheme, size, w.body.Len(), w.reason)
						return
					}
				}
				done <- nil
			}()
		}
		for range 8 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		f.Close()
	}
}
