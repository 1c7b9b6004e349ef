package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// An h2Conn is an HTTP/2 visitor who decides every field. Its methods belong to the test's own goroutine.
type h2Conn struct {
	*rawConn
	framer *http2.Framer
	block  bytes.Buffer // what the encoder wrote
	enc    *hpack.Encoder
	nextID uint32
}

// dialH2 connects to the edge, by ALPN if the tunnel has TLS and else by prior knowledge.
func (tn *tunnel) dialH2(t *testing.T) *h2Conn {
	t.Helper()
	c := &h2Conn{rawConn: tn.dial(t, "h2"), nextID: 1}
	if s, ok := c.Conn.(*tls.Conn); ok && s.ConnectionState().NegotiatedProtocol != "h2" {
		t.Fatalf("ALPN agreed on %q", s.ConnectionState().NegotiatedProtocol)
	}
	c.framer = http2.NewFramer(c.Conn, c.br)
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.enc = hpack.NewEncoder(&c.block)
	c.send(http2.ClientPreface)
	if err := c.framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return c
}

// ask sends a request without a body. fields are names and values in turn; they replace or follow the usual four
// pseudo-fields, and a value of "\x00" leaves one out.
func (c *h2Conn) ask(fields ...string) uint32 {
	c.t.Helper()
	pseudo := []field{{":method", "GET"}, {":scheme", "http"}, {":authority", c.host}, {":path", "/"}}
	if _, ok := c.Conn.(*tls.Conn); ok {
		pseudo[1].Value = "https"
	}
	var rest []field
	for i := 0; i < len(fields); i += 2 {
		f := field{fields[i], fields[i+1]}
		if j := slices.IndexFunc(pseudo, func(p field) bool { return p.Name == f.Name }); j >= 0 {
			pseudo[j] = f
		} else {
			rest = append(rest, f)
		}
	}
	c.block.Reset()
	for _, f := range append(pseudo, rest...) {
		if f.Value != "\x00" {
			c.enc.WriteField(hpack.HeaderField{Name: f.Name, Value: f.Value})
		}
	}
	id := c.nextID
	c.nextID += 2
	c.SetWriteDeadline(time.Now().Add(patience))
	err := c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block.Bytes(), EndHeaders: true, EndStream: true})
	if err != nil {
		c.t.Fatal(err)
	}
	return id
}

// An h2Answer is what came on one stream until it ended.
type h2Answer struct {
	status   int
	fields   []hpack.HeaderField // of the final head
	data     []byte
	trailers []hpack.HeaderField
	reset    *http2.ErrCode // nil after a clean end
}

// answer reads until the stream ends; see is called after each of its frames if it is not nil.
func (c *h2Conn) answer(id uint32, see func(*h2Answer)) h2Answer {
	c.t.Helper()
	var a h2Answer
	for {
		c.SetReadDeadline(time.Now().Add(patience))
		f, err := c.framer.ReadFrame()
		if err != nil {
			c.t.Fatalf("%v while waiting for the answer to stream %d (so far %d, %q)", err, id, a.status, a.data)
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				c.framer.WriteSettingsAck()
			}
			continue
		case *http2.PingFrame:
			c.framer.WritePing(true, f.Data)
			continue
		case *http2.GoAwayFrame:
			c.t.Fatalf("GOAWAY %v %q: one bad stream must not end the connection", f.ErrCode, f.DebugData())
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				a.reset = &f.ErrCode
				return a
			}
		case *http2.DataFrame:
			if f.StreamID == id {
				a.data = append(a.data, f.Data()...)
			}
		case *http2.MetaHeadersFrame:
			if f.StreamID == id {
				a.take(f)
			}
		}
		if f.Header().StreamID != id {
			continue
		}
		if see != nil {
			see(&a)
		}
		if (f.Header().Type == http2.FrameData || f.Header().Type == http2.FrameHeaders) && f.Header().Flags.Has(http2.FlagDataEndStream) {
			return a
		}
	}
}

func (a *h2Answer) take(f *http2.MetaHeadersFrame) {
	if status := f.PseudoValue("status"); status != "" {
		a.status, _ = strconv.Atoi(status)
		a.fields = f.RegularFields()
		return
	}
	a.trailers = f.RegularFields()
}

// TestHTTP2Target wants every request target byte for byte.
func TestHTTP2Target(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, nil)
	tn := publish(t, r.Target)
	tn.needsTunnel(t)
	c := tn.dialH2(t)
	for _, target := range []string{
		"/", "//a", "//", "/a//b/../c/./d", "/?", "/a?", "/a??b", "/?a;b=%zz&c", "/%2F%2f/%41", "/a;b=c;d", "/ü", "/\xff\xfe",
		"/a?q=grüße+x", "/\"<>\\^`{|}", "/a#b", "/a:b@c", "/http://x/", "/" + strings.Repeat("x", 8000), "/*",
	} {
		a := c.answer(c.ask(":path", target), nil)
		if a.status != 200 || a.reset != nil {
			t.Errorf("%.80q got %d %q, reset %v", target, a.status, a.data, a.reset)
			continue
		}
		if got := r.next(t).target(); got != target {
			t.Errorf("the upstream saw %.80q, want %.80q", got, target)
		}
	}
	a := c.answer(c.ask(":method", "OPTIONS", ":path", "*"), nil)
	if got := r.next(t); a.status != 200 || got.Line != "OPTIONS * HTTP/1.1" {
		t.Errorf("OPTIONS * got %d, the upstream saw %q", a.status, got.Line)
	}
}

// TestHTTP2BadTarget wants targets that HTTP/1.1 cannot carry to be refused, and none to reach the upstream.
func TestHTTP2BadTarget(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, nil)
	tn := publish(t, r.Target)
	tn.needsTunnel(t)
	c := tn.dialH2(t)
	for target, resets := range map[string]bool{ // whether PROTOCOL_ERROR does as well (RFC 9113 section 8.1.1)
		"/a b": false, "/ HTTP/1.1": false, "/?a b": false, "/a ": false,
		"/a\tb": true, "/a\r\nX-Smuggled:1": true, "/a\nb": true, "/a\x00b": true, "/a\x7fb": true, " /": true,
		"a": true, "?a": true, "": true, "\x00": true, "http://other.example/": true,
	} {
		a := c.answer(c.ask(":path", target), nil)
		malformed := a.reset != nil && *a.reset == http2.ErrCodeProtocol
		if a.status != 400 && !(resets && malformed) {
			t.Errorf("%q got %d, reset %v; want 400", target, a.status, a.reset)
		}
	}
	for _, m := range r.complete() {
		t.Errorf("the upstream was sent %q", m.Line)
	}
	if a := c.answer(c.ask(), nil); a.status != 200 {
		t.Errorf("after the bad targets a good one got %d", a.status)
	}
}

// TestHTTP2Authority wants :authority to choose the tunnel, and the upstream to see one Host.
func TestHTTP2Authority(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]option{"TLS": {withTLS()}, "prior knowledge": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := recordUpstream(t, nil)
			tn := publish(t, r.Target, opts...)
			tn.needsTunnel(t)
			c := tn.dialH2(t)
			upper := strings.ToUpper(tn.Host)
			for _, tt := range []struct {
				fields []string
				host   string // as the upstream sees it; empty for none
			}{
				{nil, tn.Host},
				{[]string{":authority", tn.Host + ":8443"}, tn.Host + ":8443"},
				{[]string{":authority", upper}, upper},
				{[]string{":authority", "\x00", "host", tn.Host}, tn.Host}, // as a gateway from HTTP/1.1 may send it
				{[]string{"host", tn.Host}, tn.Host},
				{[]string{":authority", "nobody." + testDomain}, ""},
				{[]string{":authority", "nobody." + testDomain, "host", tn.Host}, ""},
				{[]string{":authority", "\x00"}, ""},
				{[]string{":authority", tn.Host + "\r\nX-A: b"}, ""},
				{[]string{":authority", tn.Host + " x"}, ""},
				{[]string{":authority", tn.Host, ":authority2", "x"}, ""},
			} {
				a := c.answer(c.ask(tt.fields...), nil)
				if tt.host == "" {
					if a.status == 200 || a.status == 0 && a.reset == nil || a.status >= 500 {
						t.Errorf("%q got %d, want it refused", tt.fields, a.status)
					}
					continue
				}
				if a.status != 200 {
					t.Errorf("%q got %d %q %v", tt.fields, a.status, a.data, a.reset)
					continue
				}
				if got := r.next(t).values("Host"); len(got) != 1 || got[0] != tt.host {
					t.Errorf("%q: the upstream saw Host %q, want %q", tt.fields, got, tt.host)
				}
			}
			a := c.answer(c.ask("host", "other.example"), nil) // RFC 9113 section 8.3.1 lets both stand: refuse, or obey :authority
			for _, m := range r.complete() {
				if v := m.values("Host"); a.status == 200 && (len(v) != 1 || v[0] != tn.Host) {
					t.Errorf("with another Host beside :authority the upstream saw %q", v)
				}
			}
			if a.status != 200 && a.status != 400 && a.reset == nil {
				t.Errorf("with another Host beside :authority the visitor got %d", a.status)
			}
		})
	}
}

// TestHTTP2Cookies wants cookies that came in several fields as one (RFC 9113 section 8.2.3).
func TestHTTP2Cookies(t *testing.T) {
	t.Parallel()
	eachH2(t, func(t *testing.T, start starter) {
		tn := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%q", r.Header["Cookie"])
		}))
		c := tn.dialH2(t)
		a := c.answer(c.ask("cookie", "a=1", "x-between", "1", "cookie", "b=2; c=3", "cookie", "d="), nil)
		if got, want := string(a.data), `["a=1; b=2; c=3; d="]`; got != want {
			t.Errorf("the upstream saw %s, want %s", got, want)
		}
	})
}

// TestHTTP2ConnectionFields wants requests with fields that HTTP/2 does not allow to be refused
// (RFC 9113 sections 8.2.1 and 8.2.2).
func TestHTTP2ConnectionFields(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, nil)
	tn := publish(t, r.Target)
	tn.needsTunnel(t)
	c := tn.dialH2(t)
	for _, f := range []field{
		{"connection", "close"}, {"connection", "x-a"}, {"keep-alive", "timeout=5"}, {"proxy-connection", "keep-alive"},
		{"transfer-encoding", "chunked"}, {"upgrade", "websocket"}, {"te", "gzip"}, {"te", "trailers, gzip"},
		{"X-Upper", "1"}, {"x a", "1"}, {"x-a", "b\r\nx-smuggled: 1"}, {"x-a", "b\x00"}, {"", "no name"}, {"x:a", "1"},
		{":unknown", "1"}, {":status", "200"}, {"content-length", "5"},
	} {
		a := c.answer(c.ask(f.Name, f.Value), nil)
		malformed := a.reset != nil && *a.reset == http2.ErrCodeProtocol
		if a.status != 400 && !malformed {
			t.Errorf("%s: %q got %d, reset %v; want it refused", f.Name, f.Value, a.status, a.reset)
		}
	}
	for _, m := range r.complete() {
		t.Errorf("the upstream was sent %q %q", m.Line, m.Fields)
	}
	if a := c.answer(c.ask("te", "trailers"), nil); a.status != 200 {
		t.Errorf("TE: trailers got %d %v, but it is allowed", a.status, a.reset)
	}
	for _, fields := range [][]string{
		{":method", "CONNECT", ":path", "\x00", ":scheme", "\x00"},
		{":method", "CONNECT", ":protocol", "websocket"}, // RFC 8441, which the edge did not offer
	} {
		if a := c.answer(c.ask(fields...), nil); a.status == 200 || a.status >= 500 && a.status != 501 {
			t.Errorf("%q got %d, want it refused", fields, a.status)
		}
	}
}

// TestHTTP2ResponseFields wants no field of the upstream's connection on the visitor's, and lower case names.
func TestHTTP2ResponseFields(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, func(message) string {
		return "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Own\r\nKeep-Alive: timeout=5\r\nX-Own: 1\r\nProxy-Connection: keep-alive\r\n" +
			"Upgrade: h2c\r\nX-Kept: t\xc3\xb6\r\nX-Kept: two\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk("hello") + "0\r\nX-Sum: abc\r\n\r\n"
	})
	tn := publish(t, r.Target)
	tn.needsTunnel(t)
	a := func() h2Answer { c := tn.dialH2(t); return c.answer(c.ask(), nil) }()
	var kept []string
	for _, f := range a.fields {
		switch f.Name {
		case "connection", "keep-alive", "x-own", "proxy-connection", "upgrade", "transfer-encoding":
			t.Errorf("the visitor got %s: %q", f.Name, f.Value)
		case "x-kept":
			kept = append(kept, f.Value)
		}
		if f.Name != strings.ToLower(f.Name) {
			t.Errorf("the name %q is not in lower case", f.Name)
		}
	}
	if !slices.Equal(kept, []string{"t\xc3\xb6", "two"}) {
		t.Errorf("the visitor got X-Kept %q", kept)
	}
	if string(a.data) != "hello" || len(a.trailers) != 1 || a.trailers[0].Value != "abc" {
		t.Errorf("got %q with trailers %v", a.data, a.trailers)
	}
}

// TestHTTP2TrailersAnnouncedOnly has an upstream that announces trailers and sends none.
func TestHTTP2TrailersAnnouncedOnly(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{"empty": "", "some": chunk("hello")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := recordUpstream(t, func(message) string {
				return "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n" + body + chunk("")
			})
			tn := publish(t, r.Target)
			tn.needsTunnel(t)
			c := tn.dialH2(t)
			if a := c.answer(c.ask(), nil); a.status != 200 || a.reset != nil || len(a.trailers) > 0 {
				t.Errorf("got %d %q, trailers %v, reset %v; want a clean end", a.status, a.data, a.trailers, a.reset)
			}
		})
	}
}

// TestHTTP2NoBodyStaysNone wants a request whose head was its end to have no body for the upstream either.
func TestHTTP2NoBodyStaysNone(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, nil)
	tn := publish(t, r.Target)
	tn.needsTunnel(t)
	c := tn.dialH2(t)
	for _, method := range []string{"GET", "HEAD", "DELETE", "OPTIONS", "PURGE"} {
		c.answer(c.ask(":method", method), nil)
		if m := r.next(t); m.Framing != "none" {
			t.Errorf("%s without a body reached the upstream with a %s body: %q", method, m.Framing, m.Fields)
		}
	}
}

// TestHTTP2BesideHTTP1 wants both protocols on one port, with and without TLS.
func TestHTTP2BesideHTTP1(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]option{"TLS": {withTLS()}, "plain": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tn := publish(t, "http://"+serveH2(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, "fine")
			})), opts...)
			if name == "TLS" {
				tn.needsTunnel(t)
			}
			if a := func() h2Answer { c := tn.dialH2(t); return c.answer(c.ask(), nil) }(); string(a.data) != "fine" {
				t.Errorf("HTTP/2 got %d %q", a.status, a.data)
			}
			for _, alpn := range [][]string{nil, {"http/1.1"}} {
				if m := tn.dial(t, alpn...).do("GET", "/x"); string(m.Body) != "fine" {
					t.Errorf("HTTP/1.1 (ALPN %q) got %q %q", alpn, m.Line, m.Body)
				}
			}
		})
	}
}
