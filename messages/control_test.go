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

func TestCodes(t *testing.T) {
	for want, c := range []messages.CancelCode{
		messages.CancelEnough, messages.CancelRefused, messages.CancelAborted, messages.CancelProtocol, messages.CancelFlow,
		messages.CancelTooLarge, messages.CancelTimeout, messages.CancelInternal, messages.CancelUnreachable,
		messages.CancelBroken, messages.CancelUnsupported,
	} {
		if int(c) != want || strings.HasPrefix(c.String(), "CancelCode(") {
			t.Errorf("code %d of Cancel is %d on the wire and called %q", want, uint8(c), c)
		}
	}
	for want, c := range []messages.DisconnectCode{
		messages.DisconnectDraining, messages.DisconnectReplaced, messages.DisconnectRevoked, messages.DisconnectLeaving,
		messages.DisconnectProtocol,
	} {
		if int(c) != want || strings.HasPrefix(c.String(), "DisconnectCode(") {
			t.Errorf("code %d of Disconnect is %d on the wire and called %q", want, uint8(c), c)
		}
	}
	if got := messages.CancelCode(200).String(); got != "CancelCode(200)" {
		t.Errorf("a code that is not known is called %q", got)
	}
	if got := messages.DisconnectCode(200).String(); got != "DisconnectCode(200)" {
		t.Errorf("a code that is not known is called %q", got)
	}
}
