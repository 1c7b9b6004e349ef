package messages_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/harp-tunnel/harp/messages"
)

func TestReasonIsCut(t *testing.T) {
	long := strings.Repeat("x", 1023)
	for _, c := range []struct{ name, reason, want string }{
		{"as long as may be", long + "y", long + "y"},
		{"one byte too long", long + "yz", long + "y"},
		{"a character across the limit goes whole", long + "é", long},
		{"far too long", strings.Repeat("é", 100_000), strings.Repeat("é", 512)},
		{"broken bytes become question marks", "a\xff\xfeb", "a?b"},
		{"nothing", "", ""},
	} {
		_, payload := next(t, messages.AppendCancel(nil, messages.TypeCancel, 1, messages.CancelInternal, c.reason))
		if _, got, err := messages.ParseCancel(payload); err != nil || got != c.want {
			t.Errorf("%s: Cancel carries %.60q (%d bytes), %v, want %.60q", c.name, got, len(got), err, c.want)
		}
		_, payload = next(t, messages.AppendDisconnect(nil, messages.Disconnect{Reason: c.reason}))
		if d, err := messages.ParseDisconnect(payload); err != nil || d.Reason != c.want {
			t.Errorf("%s: Disconnect carries %.60q (%d bytes), %v, want %.60q", c.name, d.Reason, len(d.Reason), err, c.want)
		}
		if !utf8.ValidString(c.want) {
			t.Errorf("%s: the test itself is wrong", c.name)
		}
	}
}

func TestCodesHaveNames(t *testing.T) {
	for c := messages.CancelEnough; c <= messages.CancelUnsupported; c++ {
		if strings.HasPrefix(c.String(), "CancelCode(") {
			t.Errorf("code %d of Cancel has no name", c)
		}
	}
	for c := messages.DisconnectDraining; c <= messages.DisconnectProtocol; c++ {
		if strings.HasPrefix(c.String(), "DisconnectCode(") {
			t.Errorf("code %d of Disconnect has no name", c)
		}
	}
	if got := messages.CancelCode(200).String(); got != "CancelCode(200)" {
		t.Errorf("a code that is not known is called %q", got)
	}
	if got := messages.DisconnectCode(200).String(); got != "DisconnectCode(200)" {
		t.Errorf("a code that is not known is called %q", got)
	}
}
