package dns

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

// TestCookies: a cookie is good for the address it was given to, for an hour, also when the secret has changed since.
func TestCookies(t *testing.T) {
	t.Parallel()
	began := time.Unix(1e9, 0)
	c := newCookies(began)
	client, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	given := began.Add(secretLife - time.Minute)
	first, err := c.read(cookieOPT("0011223344556677"), client, given)
	if err != nil || first.known || len(first.reply) != 48 || !strings.HasPrefix(first.reply, "0011223344556677"+"01000000") {
		t.Fatalf("cookie %+v, %v; want the client's with a server's of version 1 (RFC 9018, section 4)", first, err)
	}
	forged := first.reply[:47] + map[bool]string{true: "0", false: "1"}[first.reply[47] != '0']
	for _, test := range []struct {
		why, cookie string
		client      netip.Addr
		after       time.Duration
		want        bool
	}{
		{"at once", first.reply, client, 0, true},
		{"from another address", first.reply, other, 0, false},
		{"a forged one", forged, client, 0, false},
		{"the client's part changed", "1" + first.reply[1:], client, 0, false},
		{"a longer one than ours", first.reply + "00", client, 0, false},
		{"from the future", first.reply, client, -10 * time.Minute, false},
		{"after the secret has changed", first.reply, client, 30 * time.Minute, true},
		{"too old", first.reply, client, time.Hour, false},
	} {
		got, err := c.read(cookieOPT(test.cookie), test.client, given.Add(test.after))
		if err != nil || got.known != test.want {
			t.Errorf("%s: known %v, %v; want %v", test.why, got.known, err, test.want)
		}
	}
	for _, n := range []int{0, 1, 7, 9, 15, 41, 100} {
		if _, err := c.read(cookieOPT(strings.Repeat("00", n)), client, given); err == nil {
			t.Errorf("a cookie of %d bytes was taken (RFC 7873, section 5.2.2)", n)
		}
	}
	secret, _ := c.secrets(given.Add(secretLife))
	if _, before := c.secrets(given.Add(2 * secretLife)); before != secret {
		t.Error("the secret before is not the one that was")
	}
}

func cookieOPT(cookie string) *mdns.OPT {
	m := new(mdns.Msg)
	setCookie(m, cookie)
	return m.IsEdns0()
}
