package dns

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libdns/libdns"
	mdns "github.com/miekg/dns"
)

const testSecret = "c2VjcmV0//NlY3JldHNlY3JldHNlY3JldA=="

func keyFile(t testing.TB, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tsig.key")
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
	return path
}

func TestKeyFiles(t *testing.T) {
	t.Parallel()
	bind := func(name, algorithm string) string {
		return "key \"" + name + "\" {\n\talgorithm " + algorithm + ";\n\tsecret \"" + testSecret + "\";\n};\n"
	}
	for _, c := range []struct{ what, text, keyName, want string }{
		{"a secret alone", testSecret + "\n", "acme", "acme (hmac-sha256)"},
		{"tsig-keygen", bind("acme", "hmac-sha512"), "", "acme (hmac-sha512)"},
		{"a name written otherwise", bind("acme.Example", "hmac-sha1"), "ACME.example.", "acme.example (hmac-sha1)"},
		{"an older BIND", "key acme. {algorithm HMAC-SHA224; secret " + strings.ReplaceAll(testSecret, "//", "ab") + ";};", "", "acme (hmac-sha224)"},
		{"no algorithm", `key "acme" { secret "` + testSecret + `"; };`, "", "acme (hmac-sha256)"},
		{"a key in a comment", "/* " + bind("old", "hmac-sha1") + "*/\n# key old { x\n//\n" + bind("acme", "hmac-sha384"), "", "acme (hmac-sha384)"},
		{"one of several", bind("other", "hmac-sha1") + bind("acme", "hmac-sha256"), "acme", "acme (hmac-sha256)"},
		{"Knot's form", "hmac-sha384:acme:" + testSecret, "acme", "acme (hmac-sha384)"},
		{"keymgr -t", "# hmac-sha256:acme.key:" + testSecret + "\nkey:\n  - id: acme.key\n    algorithm: hmac-sha256\n    secret: " + testSecret + "\n", "", "acme.key (hmac-sha256)"},
	} {
		p, err := NewRFC2136("ns1.example.com", c.keyName, keyFile(t, c.text, 0o640))
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		if got := p.key.String(); got != c.want {
			t.Errorf("%s: got %s, want %s", c.what, got, c.want)
		}
		if want := strings.ReplaceAll(testSecret, "//", "ab"); p.key.secret != testSecret && p.key.secret != want {
			t.Errorf("%s: got the secret %s", c.what, p.key.secret)
		}
	}
}

func TestKeyFilesRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ what, text, keyName, want string }{
		{"empty", "", "acme", "neither a key file"},
		{"no base64", "s3cr3t!", "acme", "neither a key file"},
		{"base64 cut off", "c2VjcmV", "acme", "neither a key file"},
		{"no name", testSecret, "", "does not say the key's name"},
		{"no secret", `key "acme" { algorithm hmac-sha256; };`, "", "neither a key file"},
		{"an old algorithm", "hmac-md5:acme:" + testSecret, "", "hmac-md5 is not supported"},
		{"another key", "hmac-sha256:other:" + testSecret, "acme", "has the key other, not acme"},
		{"which of two", "hmac-sha256:a:" + testSecret + "\nhmac-sha256:b:" + testSecret, "", "several keys, say which: a, b"},
		{"no name at all", "hmac-sha256:a..b:" + testSecret, "", "is no key name"},
		{"too long", strings.Repeat("A", maxKeyFile+1), "acme", "longer than"},
	} {
		_, err := NewRFC2136("ns1.example.com", c.keyName, keyFile(t, c.text, 0o600))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.what, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "c2VjcmV") {
			t.Errorf("%s: the error tells the secret: %v", c.what, err)
		}
	}
	if runtime.GOOS != "windows" {
		_, err := NewRFC2136("ns1.example.com", "acme", keyFile(t, testSecret, 0o644))
		if err == nil || !strings.Contains(err.Error(), "open to everybody (mode 0644); run: chmod 640 ") {
			t.Errorf("a file for everybody: got %v", err)
		}
	}
	if _, err := NewRFC2136("ns1.example.com", "acme", filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no file: no error")
	}
}

func TestRFC2136Server(t *testing.T) {
	t.Parallel()
	file := keyFile(t, testSecret, 0o600)
	for server, want := range map[string]string{
		"ns1.example.com": "ns1.example.com:53", "ns1.example.com:5353": "ns1.example.com:5353", "ns1.example.com:": "ns1.example.com:53",
		"2001:db8::1": "[2001:db8::1]:53", "[2001:db8::1]": "[2001:db8::1]:53", "[2001:db8::1]:54": "[2001:db8::1]:54",
		"": "", ":53": "",
	} {
		p, err := NewRFC2136(server, "acme", file)
		switch {
		case want == "":
			if err == nil {
				t.Errorf("%q: no error, want one, for there is no host", server)
			}
		case err != nil:
			t.Errorf("%q: %v", server, err)
		case p.Server != want:
			t.Errorf("%q: got %s, want %s", server, p.Server, want)
		}
	}
}

func TestWireRecord(t *testing.T) {
	t.Parallel()
	for _, data := range []string{"plain", `back\slash`, `\065 "quoted"; $INCLUDE`, "line\nline", strings.Repeat(`\`, 600), "\xff\x00"} {
		rr, err := wireRecord("example.com.", libdns.RR{Name: "a", Type: "TXT", Data: data, TTL: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		wire := make([]byte, 4096)
		n, err := mdns.PackRR(rr, wire, 0, nil, false)
		if err != nil {
			t.Errorf("%q: %v", data, err)
			continue
		}
		var got []byte // the strings as they stand on the wire
		for rest := wire[n-int(rr.Header().Rdlength) : n]; len(rest) > 0; {
			end := 1 + int(rest[0])
			got, rest = append(got, rest[1:end]...), rest[end:]
		}
		if string(got) != data {
			t.Errorf("TXT %q became %q", data, got)
		}
	}
	secret := keyFile(t, "a 60 IN A 192.0.2.1\n", 0o600)
	for _, r := range []libdns.RR{
		{Name: "a", Type: "TXT"},
		{Name: "a", Data: "x"},
		{Name: "a", Type: "A", Data: "192.0.2.1\nb 60 IN A 192.0.2.2"},
		{Name: "a", Type: "A", Data: "192.0.2.300"},
		{Name: "a", Type: "A 192.0.2.1 ;", Data: "x"},
		{Name: "a", Type: "A", Data: "\n$INCLUDE " + secret},
		{Name: "a..b", Type: "A", Data: "192.0.2.1"},
	} {
		if rr, err := wireRecord("example.com.", r); err == nil {
			t.Errorf("%q was taken for %v", r, rr)
		}
	}
	rr, err := wireRecord("example.com.", libdns.RR{Name: "$INCLUDE " + secret, Type: "A", Data: "192.0.2.1", TTL: -1})
	if err == nil && (rr.Header().Ttl != 0 || !strings.HasPrefix(rr.Header().Name, "$INCLUDE")) {
		t.Errorf("got %v, want a name as it is and no TTL below 0", rr)
	}
}

// answering runs a DNS server on loopback, by UDP and TCP.
func answering(t *testing.T, h mdns.HandlerFunc) string {
	t.Helper()
	tcp, udp := listenBoth(t)
	for _, s := range []*mdns.Server{
		{Listener: tcp, Handler: h, MsgAcceptFunc: func(mdns.Header) mdns.MsgAcceptAction { return mdns.MsgAccept }},
		{PacketConn: udp, Handler: h, MsgAcceptFunc: func(mdns.Header) mdns.MsgAcceptAction { return mdns.MsgAccept }},
	} {
		s.TsigSecret = map[string]string{"acme.": testSecret}
		up, done := make(chan struct{}), make(chan error, 1)
		s.NotifyStartedFunc = func() { close(up) }
		go func() { done <- s.ActivateAndServe() }() // ends with Shutdown
		<-up
		t.Cleanup(func() {
			if err := s.Shutdown(); err != nil {
				t.Error(err)
			}
			<-done
		})
	}
	return tcp.Addr().String()
}

// listenBoth listens at the same free port of loopback by TCP and UDP.
func listenBoth(t *testing.T) (net.Listener, net.PacketConn) {
	t.Helper()
	for range 20 {
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		udp, err := net.ListenPacket("udp", tcp.Addr().String())
		if err == nil {
			return tcp, udp
		}
		tcp.Close()
	}
	t.Fatal("no port is free for both TCP and UDP")
	return nil, nil
}

// drain returns what is in c now.
func drain(c chan string) (out []string) {
	for len(c) > 0 {
		out = append(out, <-c)
	}
	return out
}

var oneTXT = []libdns.Record{libdns.TXT{Name: "_acme-challenge", Text: "value"}}

func TestRFC2136Answers(t *testing.T) {
	t.Parallel()
	sign := func(m *mdns.Msg) { m.SetTsig("acme.", mdns.HmacSHA256, 300, time.Now().Unix()) }
	for _, c := range []struct {
		what   string
		answer func(w mdns.ResponseWriter, m *mdns.Msg) // m is a reply, unsigned
		want   string                                   // in the error; empty means none
		ways   string                                   // the request came by
	}{
		{"signed", func(_ mdns.ResponseWriter, m *mdns.Msg) { sign(m) }, "", "udp"},
		{"cut off by UDP", func(w mdns.ResponseWriter, m *mdns.Msg) {
			m.Truncated = w.LocalAddr().Network() == "udp"
			sign(m)
		}, "", "udp tcp"},
		{"forged by UDP", func(w mdns.ResponseWriter, m *mdns.Msg) {
			if w.LocalAddr().Network() == "tcp" {
				sign(m)
			}
		}, "", "udp tcp"},
		{"never signed", func(mdns.ResponseWriter, *mdns.Msg) {}, "the answer is not signed", "udp tcp"},
		{"refused", func(_ mdns.ResponseWriter, m *mdns.Msg) { m.Rcode = mdns.RcodeRefused }, "REFUSED: the key acme (hmac-sha256) may not update", "udp"},
		{"an unknown code", func(_ mdns.ResponseWriter, m *mdns.Msg) { m.Rcode = 15 }, "code 15", "udp"},
		{"BADTIME by EDNS alone", func(_ mdns.ResponseWriter, m *mdns.Msg) {
			m.SetEdns0(1232, false)
			m.Rcode = mdns.RcodeBadTime
		}, "BADTIME: the clocks", "udp"},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			ways := make(chan string, 4)
			addr := answering(t, func(w mdns.ResponseWriter, r *mdns.Msg) {
				ways <- w.LocalAddr().Network()
				m := new(mdns.Msg).SetReply(r)
				c.answer(w, m)
				_ = w.WriteMsg(m)
			})
			p, err := NewRFC2136(addr, "acme", keyFile(t, testSecret, 0o600))
			if err != nil {
				t.Fatal(err)
			}
			_, err = p.AppendRecords(context.Background(), "example.com.", oneTXT)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if got := strings.Join(drain(ways), " "); got != c.ways {
				t.Errorf("asked by %q, want %q", got, c.ways)
			}
		})
	}
}

func TestRFC2136LongUpdateByTCP(t *testing.T) {
	t.Parallel()
	ways := make(chan string, 4)
	addr := answering(t, func(w mdns.ResponseWriter, r *mdns.Msg) {
		ways <- w.LocalAddr().Network()
		_ = w.WriteMsg(new(mdns.Msg).SetReply(r).SetTsig("acme.", mdns.HmacSHA256, 300, time.Now().Unix()))
	})
	p, err := NewRFC2136(addr, "acme", keyFile(t, testSecret, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	records := []libdns.Record{libdns.TXT{Name: "a", Text: strings.Repeat("x", 500)}}
	if _, err := p.AppendRecords(context.Background(), "example.com", records); err != nil {
		t.Error(err)
	}
	if got := drain(ways); !slices.Equal(got, []string{"tcp"}) {
		t.Errorf("asked by %v, want TCP alone", got)
	}
}

func TestRFC2136ObeysContext(t *testing.T) {
	t.Parallel()
	came := make(chan struct{}, 2)
	addr := answering(t, func(mdns.ResponseWriter, *mdns.Msg) { came <- struct{}{} }) // and says nothing
	p, err := NewRFC2136(addr, "acme", keyFile(t, testSecret, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-came; cancel() }()
	began := time.Now()
	got, err := p.AppendRecords(ctx, "example.com", oneTXT)
	if err == nil || got != nil || time.Since(began) > udpTime/2 {
		t.Errorf("got %v, %v after %v, want an error at once", got, err, time.Since(began))
	}
}
