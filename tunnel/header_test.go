package tunnel

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

func TestConnectionNames(t *testing.T) {
	for _, c := range []struct {
		fields []string
		want   []string
	}{
		{nil, nil},
		{[]string{"keep-alive"}, nil},
		{[]string{"Close, Keep-Alive,,"}, nil},
		{[]string{"Upgrade"}, []string{"Upgrade"}},
		{[]string{"x-one , X-TWO", "x-three,x-one"}, []string{"X-One", "X-Three", "X-Two"}},
	} {
		h := http.Header{"Connection": c.fields}
		if got := slices.Sorted(maps.Keys(ConnectionNames(h))); !slices.Equal(got, c.want) {
			t.Errorf("Connection %q names %q, want %q", c.fields, got, c.want)
		}
	}
	named := ConnectionNames(http.Header{"Connection": {"x-own"}})
	for name, want := range map[string]bool{"X-Own": true, "X-Other": false, "Connection": true, "Upgrade": true,
		"Transfer-Encoding": true, "Keep-Alive": true, "Proxy-Connection": true, "Trailer": false, "Te": false} {
		if got := IsHopByHop(name, named); got != want {
			t.Errorf("%s is a hop-by-hop field: %v, want %v", name, got, want)
		}
	}
}

// TestManyConnectionNames has a visitor send as many names and fields as fit in a head of 1 MiB.
func TestManyConnectionNames(t *testing.T) {
	h := make(http.Header)
	var names []string
	for i := range 60_000 {
		h[fmt.Sprintf("X-%d", i)] = []string{""}
		names = append(names, fmt.Sprintf("y-%d", i))
	}
	h["Connection"] = []string{strings.Join(names, ",")}
	start := time.Now()
	named := ConnectionNames(h)
	for name := range h {
		_ = IsHopByHop(name, named)
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("it took %v, want a time that grows with the head, not with its square", d)
	}
}

func TestDecodeHeader(t *testing.T) {
	f := encodeFields([]string{"set-cookie: a", "X-Other: ", "Set-Cookie: b", "SET-COOKIE: c"})
	got := decodeHeader(f)
	want := http.Header{"Set-Cookie": {"a", "b", "c"}, "X-Other": {""}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("fields became %v, want %v", got, want)
	}
	got.Add("X-Other", "more")
	if got["Set-Cookie"][0] != "a" || len(got["X-Other"]) != 2 {
		t.Errorf("a value that is added overwrote another: %v", got)
	}
	if h := decodeHeader(""); h == nil || len(h) != 0 {
		t.Errorf("no fields became %v", h)
	}
}

func TestAppendHeaderKeepsPeersHappy(t *testing.T) {
	h := http.Header{"X-Good": {"a", "b\tc ü"}, "X Bad": {"1"}, "": {"2"}, "X-Break": {"a\r\nb\x00\x7f"}, ":path": {"/"}}
	fields, err := messages.ParseTrailers(string(appendHeader(nil, h)))
	if err != nil {
		t.Fatalf("the peer refuses what was made of %v: %v", h, err)
	}
	got := decodeHeader(fields)
	want := http.Header{"X-Good": {"a", "b\tc ü"}, "X-Break": {"a  b  "}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("fields became %q, want %q", got, want)
	}
}

func TestContentLength(t *testing.T) {
	for _, c := range []struct {
		values []string
		want   int64
	}{
		{nil, -1}, {[]string{""}, -1}, {[]string{"0"}, 0}, {[]string{"5"}, 5}, {[]string{"+5"}, -1}, {[]string{"-5"}, -1},
		{[]string{"5", "5"}, -1}, {[]string{"5, 5"}, -1}, {[]string{"0x5"}, -1},
		{[]string{"9223372036854775807"}, 1<<63 - 1}, {[]string{"9223372036854775808"}, -1},
	} {
		if got := contentLength(http.Header{"Content-Length": c.values}); got != c.want {
			t.Errorf("Content-Length %q is %d, want %d", c.values, got, c.want)
		}
	}
}
