package tls

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// record returns the first bytes that a client with config sends.
func record(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	go func() { _ = tls.Client(b, config).Handshake() }() // ends with a
	defer b.Close()
	head := make([]byte, recordHeader)
	if _, err := io.ReadFull(a, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(a, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

// cut puts a record's payload into records of n bytes.
func cut(b []byte, n int) (out []byte) {
	head, payload := b[:3], b[recordHeader:]
	for len(payload) > 0 {
		k := min(n, len(payload))
		out = append(out, head...)
		out = binary.BigEndian.AppendUint16(out, uint16(k))
		out = append(out, payload[:k]...)
		payload = payload[k:]
	}
	return out
}

// parseClientHello parses what came at once.
func parseClientHello(b []byte) (clientHello, error) { return new(helloParser).parse(b) }

func TestParseClientHello(t *testing.T) {
	t.Parallel()
	many := make([]string, 200)
	for i := range many {
		many[i] = strings.Repeat("p", 200)
	}
	for name, config := range map[string]*tls.Config{
		"usual":             {ServerName: "A.example.com"},
		"TLS 1.2":           {ServerName: "a.example.com", MaxVersion: tls.VersionTLS12},
		"no post-quantum":   {ServerName: "a.example.com", CurvePreferences: []tls.CurveID{tls.X25519}},
		"larger than 16 KB": {ServerName: "a.example.com", NextProtos: many},
	} {
		whole := record(t, config)
		if name == "larger than 16 KB" {
			whole = hugeHello(t, config)
		}
		for _, n := range []int{1 << 14, 1000, 37, 5} {
			if len(whole)/n > 900 {
				continue
			}
			b := cut(joined(whole), n)
			var trickled helloParser
			for i := range b {
				if _, err := trickled.parse(b[:i]); !errors.Is(err, errMore) {
					t.Fatalf("%s in records of %d: after %d of %d bytes: %v", name, n, i, len(b), err)
				}
			}
			if h, err := trickled.parse(b); err != nil || h.serverName != "a.example.com" {
				t.Errorf("%s in records of %d, byte by byte: %+v, %v", name, n, h, err)
			}
			if h, err := parseClientHello(b); err != nil || h.serverName != "a.example.com" {
				t.Errorf("%s in records of %d: %+v, %v", name, n, h, err)
			}
		}
	}
	h, err := parseClientHello(record(t, &tls.Config{InsecureSkipVerify: true}))
	if err != nil || h.serverName != "" {
		t.Errorf("without a name: %+v, %v", h, err)
	}
}

// hugeHello is what a client sends whose hello takes several records.
func hugeHello(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go func() { _ = tls.Client(b, config).Handshake() }() // ends with a
	_ = a.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	all, _ := io.ReadAll(a)
	return all
}

// joined puts the payloads of several records into one, whose length field means nothing.
func joined(b []byte) []byte {
	out := append([]byte(nil), b[:recordHeader]...)
	for len(b) > 0 {
		n := recordHeader + int(binary.BigEndian.Uint16(b[3:]))
		out = append(out, b[recordHeader:n]...)
		b = b[n:]
	}
	return out
}

func TestParseClientHelloRefuses(t *testing.T) {
	t.Parallel()
	good := record(t, &tls.Config{ServerName: "a.example.com"})
	change := func(f func([]byte) []byte) []byte { return f(append([]byte(nil), good...)) }
	at := strings.Index(string(good), "a.example.com")
	for _, test := range []struct {
		why  string
		b    []byte
		want error
	}{
		{"HTTP", []byte("GET / HTTP/1.1\r\n"), errNotTLS},
		{"SSLv2", []byte{0x80, 0x2e, 1, 0, 2}, errNotTLS},
		{"an alert", []byte{21, 3, 3, 0, 2, 1, 0}, errNotTLS},
		{"an empty record", []byte{22, 3, 1, 0, 0}, errMalformed},
		{"a record over the limit", []byte{22, 3, 1, 0xff, 0xff}, errMalformed},
		{"a ServerHello", change(func(b []byte) []byte { b[5] = 2; return b }), errMalformed},
		{"a hello of 16 MB", []byte{22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff}, errMalformed},
		{"a name with a blank", change(func(b []byte) []byte { b[at] = ' '; return b }), errMalformed},
		{"a name that ends in a dot", change(func(b []byte) []byte { b[at+12] = '.'; return b }), errMalformed},
		{"an address", change(func(b []byte) []byte { copy(b[at:], "1.12.123.123."[:12]+"1"); return b }), errMalformed},
		{"a length that lies", change(func(b []byte) []byte { b[at-1]++; return b }), errMalformed},
		{"something after the hello", change(func(b []byte) []byte { b[4]++; return append(b, 0) }), errMalformed},
		{"too many records", cut(append(good[:recordHeader:recordHeader], append([]byte{1, 0, 0x30, 0}, make([]byte, 0x3000)...)...), 1), errMalformed},
	} {
		if _, err := parseClientHello(test.b); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", test.why, err, test.want)
		}
	}
}

// TestTrickledHello: a client who sends a large hello byte by byte makes the server copy it once, not once for each byte.
func TestTrickledHello(t *testing.T) {
	hello := make([]byte, 60<<10)
	size := len(hello) - 4
	hello[0], hello[1], hello[2], hello[3] = typeHello, byte(size>>16), byte(size>>8), byte(size)
	b := cut(append([]byte{typeHandshake, 3, 1, 0, 0}, hello...), 64)
	allocated := testing.AllocsPerRun(1, func() {
		var p helloParser
		for i := range b {
			_, _ = p.parse(b[:i])
		}
	})
	if allocated > 100 {
		t.Errorf("%.0f allocations for %d bytes, want one whenever what is kept has to grow", allocated, len(b))
	}
}

// FuzzClientHello: whatever this parser takes it takes byte by byte, too, and crypto/tls reads the same name from, if it takes
// it.
func FuzzClientHello(f *testing.F) {
	good := record(f, &tls.Config{ServerName: "a.example.com"})
	f.Add(good)
	f.Add(cut(good, 100))
	f.Add(record(f, &tls.Config{ServerName: "b.example.com", MaxVersion: tls.VersionTLS12}))
	f.Add(record(f, &tls.Config{InsecureSkipVerify: true}))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseClientHello(b)
		if err != nil {
			return
		}
		var p helloParser
		trickled, err := p.parse(nil)
		for i := 0; errors.Is(err, errMore) && i < len(b); i++ {
			trickled, err = p.parse(b[:i+1])
		}
		if err != nil || trickled != h {
			t.Errorf("byte by byte this reads %+v, %v, and at once %+v", trickled, err, h)
		}
		name, ok := "", false
		config := &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			name, ok = info.ServerName, true
			return nil, errors.New("that is all")
		}}
		_ = tls.Server(&canned{b: b}, config).HandshakeContext(context.Background())
		if ok && !strings.EqualFold(name, h.serverName) {
			t.Errorf("this reads %q, crypto/tls %q", h.serverName, name)
		}
	})
}

// canned is a connection from which b comes, and no more.
type canned struct {
	net.Conn
	b []byte
}

func (c *canned) Read(p []byte) (int, error) {
	if len(c.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.b)
	c.b = c.b[n:]
	return n, nil
}

func (c *canned) Write(p []byte) (int, error)      { return len(p), nil }
func (c *canned) Close() error                     { return nil }
func (c *canned) SetDeadline(time.Time) error      { return nil }
func (c *canned) SetReadDeadline(time.Time) error  { return nil }
func (c *canned) SetWriteDeadline(time.Time) error { return nil }
