package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a server for tunnels.example.com on loopback and returns its address.
func start(t testing.TB, change func(*Options)) (*Server, string) {
	t.Helper()
	o := Options{
		Domain: "tunnels.example.com", Alias: "acme.example.net", CAA: []string{"letsencrypt.org"}, ResponseRate: -1,
		Addresses: []netip.Addr{netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8::7")},
	}
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, []net.PacketConn{udp}, []net.Listener{tcp}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s, tcp.Addr().String()
}

func ask(t testing.TB, network, addr string, m *mdns.Msg) *mdns.Msg {
	t.Helper()
	c := mdns.Client{Net: network, Timeout: 5 * time.Second, UDPSize: 4096}
	res, _, err := c.Exchange(m, addr)
	if err != nil {
		t.Fatalf("%v over %s: %v", m.Question, network, err)
	}
	return res
}

// TestGarbage: whatever comes, the next question is answered.
func TestGarbage(t *testing.T) {
	t.Parallel()
	_, addr := start(t, nil)
	for _, network := range []string{"udp", "tcp"} {
		for _, b := range []string{"", "\x00", strings.Repeat("\xff", 400), "GET / HTTP/1.1\r\n\r\n", "\x00\x0c\x00\x00\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c"} {
			conn, err := net.Dial(network, addr)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = conn.Write([]byte(b))
			conn.Close()
		}
	}
	answer := new(mdns.Msg).SetQuestion("tunnels.example.com.", mdns.TypeA)
	answer.Response = true
	conn, err := mdns.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.WriteMsg(answer)
	_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if m, err := conn.ReadMsg(); err == nil {
		t.Errorf("an answer was answered: two servers would talk for ever: %v", m)
	}
	for _, network := range []string{"udp", "tcp"} {
		if res := ask(t, network, addr, new(mdns.Msg).SetQuestion("tunnels.example.com.", mdns.TypeA)); len(res.Answer) != 1 {
			t.Errorf("over %s: %v", network, res)
		}
	}
}

func TestBadNames(t *testing.T) {
	t.Parallel()
	for _, o := range []Options{{}, {Domain: strings.Repeat("a", 64) + ".example"}, {Domain: "a.example", Alias: "a..b"},
		{Domain: "."}, {Domain: "a.example", Alias: "A.example."}, {Domain: "bücher.example"}, {Domain: "a b.example"}, {Domain: "a.example", Host: "."},
		{Domain: strings.Repeat("a.", 120) + "example"},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}

// TestServeEnds: a socket that breaks ends Serve with its error, and all sockets are closed.
func TestServeEnds(t *testing.T) {
	t.Parallel()
	s, err := New(Options{Domain: "tunnels.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp.Close()
	if err := s.Serve(t.Context(), []net.PacketConn{udp}, []net.Listener{tcp}); err == nil {
		t.Error("no error of a socket that is closed")
	}
	if _, err := tcp.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the other socket: %v, want that it is closed", err)
	}
}
