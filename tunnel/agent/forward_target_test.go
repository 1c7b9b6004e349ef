package agent

import (
	"net/http"
	"reflect"
	"strings"
	"testing"
)

func TestParseForwardTarget(t *testing.T) {
	both := func(port string) []string { return []string{"127.0.0.1:" + port, "[::1]:" + port} }
	for _, c := range []struct {
		in   string
		want forwardTarget
	}{
		{"", forwardTarget{"http", "tcp", both("8080"), "localhost", "localhost:8080", ""}},
		{"3000", forwardTarget{"http", "tcp", both("3000"), "localhost", "localhost:3000", ""}},
		{":3000", forwardTarget{"http", "tcp", both("3000"), "localhost", "localhost:3000", ""}},
		{"localhost:1", forwardTarget{"http", "tcp", both("1"), "localhost", "localhost:1", ""}},
		{"LocalHost.:1", forwardTarget{"http", "tcp", both("1"), "LocalHost.", "LocalHost.:1", ""}},
		{"app.localhost:80/x/", forwardTarget{"http", "tcp", both("80"), "app.localhost", "app.localhost:80", "/x"}},
		{"db.lan:5000", forwardTarget{"http", "tcp", []string{"db.lan:5000"}, "db.lan", "db.lan:5000", ""}},
		{"[::1]:5000", forwardTarget{"http", "tcp", []string{"[::1]:5000"}, "::1", "[::1]:5000", ""}},
		{"http://10.0.0.1", forwardTarget{"http", "tcp", []string{"10.0.0.1:80"}, "10.0.0.1", "10.0.0.1", ""}},
		{"https://a.lan/b%2Fc/", forwardTarget{"https", "tcp", []string{"a.lan:443"}, "a.lan", "a.lan", "/b%2Fc"}},
		{"h2c://a.lan:50051", forwardTarget{"h2c", "tcp", []string{"a.lan:50051"}, "a.lan", "a.lan:50051", ""}},
		{"unix:/run/a.sock", forwardTarget{"http", "unix", []string{"/run/a.sock"}, "localhost", "localhost", ""}},
		{"unix:///run/a.sock", forwardTarget{"http", "unix", []string{"/run/a.sock"}, "localhost", "localhost", ""}},
		{"unix:a.sock", forwardTarget{"http", "unix", []string{"a.sock"}, "localhost", "localhost", ""}},
	} {
		got, err := parseForwardTarget(c.in)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("target %q is %+v, %v; want %+v", c.in, got, err, c.want)
		}
	}
}

func TestParseForwardTargetErrors(t *testing.T) {
	for in, want := range map[string]string{
		"example.com":           "want a port",
		"foo":                   "want a port",
		"0":                     "1 to 65535",
		"65536":                 "1 to 65535",
		"99999999999999999":     "1 to 65535",
		"ftp://x":               "scheme must be",
		"http://":               "no valid host",
		"http://:80/":           "no valid host",
		"http://a b:80/":        "character",
		"http://u:secret@x:80/": "password",
		"http://x:80/?a":        "end with the path",
		"http://x:80/#a":        "end with the path",
		"http://x:http/":        "invalid port",
		"unix:":                 "path of a socket",
		"unix:/tmp/":            "path of a socket",
	} {
		_, err := parseForwardTarget(in)
		switch {
		case err == nil:
			t.Errorf("target %q was taken", in)
		case !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "cannot use target "):
			t.Errorf("target %q: %v; want a word about %q", in, err, want)
		case strings.Contains(err.Error(), "secret"):
			t.Errorf("target %q: %v; a password must not be shown", in, err)
		}
	}
}

func TestForwardOptionErrors(t *testing.T) {
	for name, o := range map[string]ForwardOptions{
		"host with a space":   {HostHeader: "a b"},
		"host field":          {HeaderAdd: http.Header{"Host": {"a"}}},
		"connection field":    {HeaderAdd: http.Header{"Connection": {"close"}}},
		"framing field":       {HeaderAdd: http.Header{"transfer-encoding": {"chunked"}}},
		"length field":        {HeaderAdd: http.Header{"Content-Length": {"1"}}},
		"no token":            {HeaderAdd: http.Header{"a b": {"1"}}},
		"empty name":          {HeaderAdd: http.Header{"": {"1"}}},
		"line break in value": {HeaderAdd: http.Header{"A": {"1\r\nB: 2"}}},
	} {
		if _, err := Forward("3000", o); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestRewriteTarget(t *testing.T) {
	for _, c := range []struct{ target, strip, base, want string }{
		{"/", "", "", "/"},
		{"/?", "", "", "/?"},
		{"//a//b;c?%zz&ü", "", "", "//a//b;c?%zz&ü"},
		{"*", "/app", "/base", "*"},
		{"/x", "", "/base", "/base/x"},
		{"/", "", "/base", "/base/"},
		{"//x", "", "/base", "/base//x"},
		{"/app", "/app", "", "/"},
		{"/app/", "/app", "", "/"},
		{"/app?q", "/app", "", "/?q"},
		{"/app/x?q", "/app", "", "/x?q"},
		{"/app//x", "/app", "", "//x"},
		{"/apple", "/app", "", "/apple"},
		{"/x/app", "/app", "", "/x/app"},
		{"/app%2Fx", "/app", "", "/app%2Fx"},
		{"/app/x", "/app", "/base", "/base/x"},
		{"/app/x", "app/", "", "/x"},
		{"http://h/a%2Fb//c?d", "", "", "/a%2Fb//c?d"},
		{"HTTPS://h:1/app/x", "/app", "/base", "/base/x"},
		{"http://h", "", "", "/"},
		{"http://h?q", "", "", "/?q"},
		{"http:///x", "", "", "http:///x"},
	} {
		f := newTestForwarder(t, "http://x:80"+c.base, ForwardOptions{StripPath: c.strip})
		if got := f.rewriteTarget(request(t, "GET", c.target, nil, 0)); got != c.want {
			t.Errorf("target %q, strip %q, base %q gives %q, want %q", c.target, c.strip, c.base, got, c.want)
		}
	}
	f := newTestForwarder(t, "x:80", ForwardOptions{})
	if got := f.rewriteTarget(request(t, "OPTIONS", "http://h", nil, 0)); got != "*" {
		t.Errorf("OPTIONS of a whole server gives %q, want * (RFC 9112 section 3.2.4)", got)
	}
}
