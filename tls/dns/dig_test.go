package dns

import (
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"
)

// TestDig asks with the program that people use.
func TestDig(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("dig"); err != nil {
		t.Skip("dig is missing: apt-get install bind9-dnsutils")
	}
	_, addr := start(t, nil)
	host, port, _ := net.SplitHostPort(addr)
	for _, test := range []struct{ args, want string }{
		{"+short x.tunnels.example.com A", "203.0.113.7\n"},
		{"+short +tcp x.tunnels.example.com AAAA", "2001:db8::7\n"},
		{"+noall +comments example.com A", "status: REFUSED"},
		{"+noall +comments +edns=1 +noednsnegotiation tunnels.example.com", "status: BADVERS"},
		{"+noall +comments +cookie tunnels.example.com", "(good)"},
	} {
		args := append([]string{"@" + host, "-p", port, "+time=5"}, strings.Fields(test.args)...)
		out, err := exec.Command("dig", args...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), test.want) {
			t.Errorf("dig %s: %v\n%s", test.args, err, out)
		}
	}
}

// TestKdig asks with Knot's.
func TestKdig(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("kdig"); err != nil {
		t.Skip("kdig is missing: apt-get install knot-dnsutils")
	}
	s, addr := start(t, nil)
	for i := range 30 {
		if err := s.AddTXT("acme.example.net", fmt.Sprintf("%043d", i)); err != nil {
			t.Fatal(err)
		}
	}
	host, port, _ := net.SplitHostPort(addr)
	for _, test := range []struct{ args, want string }{
		{"+short deep.x.tunnels.example.com A", "203.0.113.7\n"},
		{"+ignore acme.example.net TXT", "Flags: qr aa tc rd;"},
		{"acme.example.net TXT", fmt.Sprintf("%043d", 29)}, // it comes back by TCP
		{"+cookie tunnels.example.com SOA", "COOKIE: "},
		{"tunnels.example.com AXFR", "REFUSED"},
		{"-c CH version.bind TXT", "status: REFUSED"},
		{"x._acme-challenge.tunnels.example.com TXT", "status: NXDOMAIN"},
	} {
		args := append([]string{"@" + host, "-p", port, "+time=5"}, strings.Fields(test.args)...)
		out, _ := exec.Command("kdig", args...).CombinedOutput() // its code tells of a refused transfer, too
		if !strings.Contains(string(out), test.want) {
			t.Errorf("kdig %s: want %q\n%s", test.args, test.want, out)
		}
	}
}
