package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
)

const fooSwitch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: foo/2\r\n\r\n"

func switchToFoo(head) string { return fooSwitch }

func newReader(s string) *bufio.Reader { return bufio.NewReader(strings.NewReader(s)) }

// scriptOnce is an upstream that sends response to the first request of a connection and closes.
func scriptOnce(response string) func(*testing.T, net.Conn, *bufio.Reader) {
	return func(_ *testing.T, conn net.Conn, br *bufio.Reader) {
		if m := readMessage(br, ""); m.Err == nil {
			io.WriteString(conn, response)
		}
	}
}

// openFoo publishes a raw upstream that speaks foo/2 and opens a connection to it.
func openFoo(t *testing.T, opts ...option) wsPair {
	t.Helper()
	target, next := switchUpstream(t, switchToFoo)
	c := publish(t, target, opts...).dial(t)
	c.send(c.request("GET", "/x", "Connection: Upgrade", "Upgrade: foo/2"))
	if h := c.readHead(); h.status() != 101 || h.get("Upgrade") != "foo/2" || !strings.EqualFold(h.get("Connection"), "upgrade") {
		t.Fatalf("got %q %q, want the upstream's 101", h.Line, h.Fields)
	}
	up := next()
	if got := up.request.values("Upgrade"); len(got) != 1 || got[0] != "foo/2" {
		t.Errorf("the upstream saw Upgrade %q", got)
	}
	return wsPair{c, up.rawConn}
}

// TestUpgradeRawBytes sends bytes that would be wrong or too large as WebSocket frames.
func TestUpgradeRawBytes(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]option{"plain": nil, "TLS": {withTLS()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := openFoo(t, opts...)
			tooMuch := plainFrame(opBinary, "")
			tooMuch.length = 1 << 62
			large := tooMuch.wire() + "GET / HTTP/1.1\r\n\r\n\x00\xff" + string(pattern(2<<20)) // beyond the body limit: this is no body
			for why, way := range map[string][2]*rawConn{
				"to the upstream": {p.visitor, p.upstream}, "to the visitor": {p.upstream, p.visitor},
			} {
				sent := make(chan error, 1)
				go func() { sent <- way[0].write(large) }() // ends when the bytes were read
				way[1].want(large, "raw bytes go "+why+" as they are")
				await(t, sent, "the bytes to be sent", func(err error) {
					if err != nil {
						t.Errorf("%s: %v", why, err)
					}
				})
			}
		})
	}
}

// TestUpgradeEnds has foo/2 connections end in every way.
func TestUpgradeEnds(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"visitor", "upstream"} {
		ends := func(p wsPair) (from, to *rawConn) {
			if way == "visitor" {
				return p.visitor, p.upstream
			}
			return p.upstream, p.visitor
		}
		t.Run(way+" half-closes", func(t *testing.T) {
			t.Parallel()
			from, to := ends(openFoo(t))
			wantHalfClose(t, from, to, "word", string(pattern(1<<20)))
		})
		for _, d := range departures {
			t.Run(way+" leaves by "+d.name, func(t *testing.T) {
				t.Parallel()
				from, to := ends(openFoo(t))
				from.send("word")
				to.want("word", "the connection is open")
				d.leave(from)
				wantEnd(t, to, "", d.clean)
			})
		}
	}
}

// TestUpgradeEarlyData wants bytes that came in one packet with either head.
func TestUpgradeEarlyData(t *testing.T) {
	t.Parallel()
	target, next := switchUpstream(t, func(head) string { return fooSwitch + "banner" })
	c := publish(t, target).dial(t)
	c.send(c.request("GET", "/x", "Connection: Upgrade", "Upgrade: foo/2") + "early")
	if h := c.readHead(); h.status() != 101 {
		t.Fatalf("got %q", h.Line)
	}
	c.want("banner", "it came with the 101")
	next().want("early", "it came with the request")
}

// TestUpgradeH2CIgnored wants an upgrade to HTTP/2 to be ignored: it would be between the visitor and the edge, and
// RFC 9113 has withdrawn it.
func TestUpgradeH2CIgnored(t *testing.T) {
	t.Parallel()
	for name, fields := range map[string][]string{
		"h2c":          {"Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"},
		"case":         {"Connection: upgrade, http2-settings", "Upgrade: H2C", "http2-settings: AAMAAABkAAQAAP__"},
		"not named":    {"Connection: Upgrade", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"},
		"two settings": {"Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AA", "HTTP2-Settings: BB"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := recordUpstream(t, nil)
			tn := publish(t, r.Target)
			tn.needsTunnel(t)
			c := tn.dial(t)
			for _, method := range []string{"GET", "POST"} {
				request := c.request(method, "/x", fields...)
				if method == "POST" {
					request = c.request(method, "/x", append(fields, "Content-Length: 5")...) + "hello"
				}
				c.send(request)
				if m := c.final(method); m.status() != 200 || string(m.Body) != "ok" || m.has("Upgrade") {
					t.Errorf("%s got %q %q %q, want the upstream's plain answer", method, m.Line, m.Fields, m.Body)
				}
				up := r.next(t)
				for _, name := range []string{"Upgrade", "HTTP2-Settings"} {
					if up.has(name) {
						t.Errorf("%s: the upstream saw %s %q", method, name, up.values(name))
					}
				}
				if c := strings.ToLower(strings.Join(up.values("Connection"), ",")); strings.Contains(c, "upgrade") || strings.Contains(c, "settings") {
					t.Errorf("%s: the upstream saw Connection %q", method, c)
				}
				if method == "POST" && string(up.Body) != "hello" {
					t.Errorf("the upstream saw the body %q", up.Body)
				}
			}
		})
	}
}

// TestUpgradeSeveralTokens offers several protocols; the upstream's choice says what the bytes are.
func TestUpgradeSeveralTokens(t *testing.T) {
	t.Parallel()
	raw := string(pattern(600_000)) // as WebSocket frames this is nonsense
	for _, tt := range []struct {
		name    string
		offered []string
		chosen  string
		seen    string // Upgrade as the upstream sees it, joined
	}{
		{"foo among two", []string{"foo/2, bar"}, "foo/2", "foo/2, bar"},
		{"foo beside websocket", []string{"websocket, foo/2"}, "foo/2", "websocket, foo/2"},
		{"foo before websocket", []string{"foo/2, websocket"}, "foo/2", "foo/2, websocket"},
		{"two fields", []string{"websocket", "foo/2"}, "foo/2", "websocket, foo/2"},
		{"h2c is left out", []string{"h2c, foo/2"}, "foo/2", "foo/2"},
		{"websocket among two", []string{"foo/2, websocket"}, "websocket", "foo/2, websocket"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			target, next := switchUpstream(t, func(head) string { return strings.Replace(wsSwitch, "websocket", tt.chosen, 1) })
			tn := publish(t, target)
			c := tn.dial(t)
			lines := []string{"Connection: Upgrade"}
			for _, o := range tt.offered {
				lines = append(lines, "Upgrade: "+o)
			}
			c.send(c.request("GET", "/x", lines...))
			if h := c.readHead(); h.status() != 101 || h.get("Upgrade") != tt.chosen {
				t.Fatalf("got %q %q, want the upstream's choice", h.Line, h.Fields)
			}
			up := next()
			if got := strings.Join(up.request.values("Upgrade"), ", "); got != tt.seen && !direct() {
				t.Errorf("the upstream saw Upgrade %q, want %q", got, tt.seen)
			}
			if tt.chosen != "websocket" {
				go c.write(raw) // ends when it was read, or with c
				up.want(raw, "the upstream chose another protocol than WebSocket: these are no frames")
				return
			}
			tn.needsTunnel(t)
			tooMuch := maskedFrame(opBinary, "")
			tooMuch.length = maxBody + 1
			c.send(tooMuch.wire())
			wantTooLarge(t, "the visitor", c, nil, false)
		})
	}
}

// TestUpgradeNotMeant sends requests that look like an Upgrade and are none: they are ordinary requests.
func TestUpgradeNotMeant(t *testing.T) {
	t.Parallel()
	for name, request := range map[string]string{
		"Connection without Upgrade": "GET /x HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade\r\n\r\n",
		"empty Upgrade":              "GET /x HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade\r\nUpgrade:\r\n\r\n",
		"Upgrade without Connection": "GET /x HTTP/1.1\r\nHost: HOST\r\nUpgrade: websocket\r\n\r\n",
		"Connection names another":   "GET /x HTTP/1.1\r\nHost: HOST\r\nConnection: X-Upgrade\r\nUpgrade: websocket\r\n\r\n",
		"HTTP/1.0":                   "GET /x HTTP/1.0\r\nHost: HOST\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := recordUpstream(t, nil)
			tn := publish(t, r.Target)
			tn.needsTunnel(t)
			c := tn.dial(t)
			c.send(strings.Replace(request, "HOST", c.host, 1))
			if m := c.final("GET"); m.status() != 200 || string(m.Body) != "ok" {
				t.Errorf("got %q %q, want the upstream's plain answer", m.Line, m.Body)
			}
			up := r.next(t)
			if up.has("Upgrade") || strings.Contains(strings.ToLower(up.get("Connection")), "upgrade") {
				t.Errorf("the upstream saw Upgrade %q and Connection %q", up.values("Upgrade"), up.values("Connection"))
			}
		})
	}
}

// TestUpgradeWithBody sends a POST that offers an upgrade: the body arrives, and the upstream is either not offered
// the upgrade or can take it.
func TestUpgradeWithBody(t *testing.T) {
	t.Parallel()
	eachFraming(t, func(t *testing.T, chunked bool) {
		t.Parallel()
		type outcome struct {
			body     string
			upgraded bool
		}
		seen := make(chan outcome, 1)
		tn := publish(t, scriptUpstream(t, func(_ *testing.T, conn net.Conn, br *bufio.Reader) {
			m := readMessage(br, "")
			if m.Err != nil {
				return
			}
			seen <- outcome{string(m.Body), m.has("Upgrade")}
			if !m.has("Upgrade") {
				io.WriteString(conn, plainOK)
				return
			}
			io.WriteString(conn, fooSwitch)
			io.Copy(conn, br)
		}))
		c := tn.dial(t)
		line, wire := framed(pattern(100_000), chunked)
		c.send(c.request("POST", "/x", "Connection: Upgrade", "Upgrade: foo/2", line) + wire)
		h := c.readHead()
		got := <-seen
		if diff := sameBytes([]byte(got.body), pattern(100_000)); diff != "" {
			t.Errorf("the upstream saw a body of %s", diff)
		}
		if !got.upgraded {
			if h.status() != 200 {
				t.Errorf("got %q, want the upstream's plain answer", h.Line)
			}
			return
		}
		if h.status() != 101 {
			t.Fatalf("got %q, but the upstream was offered foo/2 and switched", h.Line)
		}
		c.send("word")
		c.want("word", "the upstream has switched and echoes")
	})
}

// TestUpgradeUnasked wants an upstream that switches protocols uninvited to be an error of the upstream.
func TestUpgradeUnasked(t *testing.T) {
	t.Parallel()
	for name, request := range map[string]string{
		"GET":  "GET /x HTTP/1.1\r\nHost: HOST\r\n\r\n",
		"POST": "POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2\r\n\r\nhi",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tn := publish(t, scriptUpstream(t, scriptOnce(fooSwitch+"foo talk")))
			tn.needsTunnel(t)
			c := tn.dial(t)
			c.send(strings.Replace(request, "HOST", c.host, 1))
			if m := c.response(name); m.status() != 502 || !m.has("Harp-Error") || m.Err != nil {
				t.Errorf("got %q %q (%v), want the edge's 502", m.Line, m.Fields, m.Err)
			}
		})
	}
}

// TestUpgradeAfterRequests has an upgrade come late on a connection that has carried ordinary requests.
func TestUpgradeAfterRequests(t *testing.T) {
	t.Parallel()
	tn := publish(t, scriptUpstream(t, func(_ *testing.T, conn net.Conn, br *bufio.Reader) {
		for {
			m := readMessage(br, "")
			if m.Err != nil {
				return
			}
			if m.has("Upgrade") {
				io.WriteString(conn, fooSwitch)
				io.Copy(conn, br)
				return
			}
			fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(m.target()), m.target())
		}
	}))
	c := tn.dial(t)
	for _, path := range []string{"/1", "/22"} {
		if m := c.do("GET", path); string(m.Body) != path {
			t.Errorf("%s got %q %q", path, m.Line, m.Body)
		}
	}
	c.send(c.request("GET", "/last") + c.request("GET", "/x", "Connection: Upgrade", "Upgrade: foo/2"))
	if m := c.final("GET"); string(m.Body) != "/last" {
		t.Errorf("/last got %q %q", m.Line, m.Body)
	}
	if h := c.readHead(); h.status() != 101 {
		t.Fatalf("the pipelined upgrade got %q", h.Line)
	}
	c.send("word")
	c.want("word", "the upstream has switched and echoes")
}
