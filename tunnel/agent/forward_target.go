package agent

import (
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// A forwardTarget is where an upstream listens.
type forwardTarget struct {
	scheme  string   // "http", "https" or "h2c"; a unix socket is "http"
	network string   // "tcp" or "unix"
	addrs   []string // addresses to dial, tried in turn
	name    string   // the host alone, which a certificate must bear
	host    string   // host and port as they were written, for Host
	base    string   // put before every request target; "" or "/path" without the last slash
}

// parseForwardTarget reads what a person types as TARGET; Forward says what that may be.
func parseForwardTarget(s string) (forwardTarget, error) {
	switch {
	case s == "":
		s = "http://localhost:8080"
	case strings.HasPrefix(s, "unix:"):
		return parseUnixTarget(s)
	case isDigits(s):
		s = "http://localhost:" + s
	case strings.HasPrefix(s, ":"):
		s = "http://localhost" + s
	case !strings.Contains(s, "://"):
		if u, err := url.Parse("http://" + s); err != nil || u.Port() == "" {
			return forwardTarget{}, targetError(s, "want a port, host:port, http://, https://, h2c:// or unix:/path")
		}
		s = "http://" + s
	}
	return parseURLTarget(s)
}

func parseUnixTarget(s string) (forwardTarget, error) {
	path := strings.TrimPrefix(s, "unix:")
	if rest, ok := strings.CutPrefix(path, "//"); ok {
		path = rest
	}
	if path == "" || strings.HasSuffix(path, "/") {
		return forwardTarget{}, targetError(s, "want the path of a socket, as in unix:/run/app.sock")
	}
	return forwardTarget{
		scheme:  "http",
		network: "unix",
		addrs:   []string{path},
		name:    "localhost",
		host:    "localhost",
	}, nil
}

func parseURLTarget(s string) (forwardTarget, error) {
	u, err := url.Parse(s)
	if err != nil {
		if ue, ok := err.(*url.Error); ok {
			err = ue.Err
		}
		return forwardTarget{}, targetError(s, err.Error())
	}
	port := u.Port()
	switch u.Scheme {
	case "http", "h2c":
		if port == "" {
			port = "80"
		}
	case "https":
		if port == "" {
			port = "443"
		}
	default:
		return forwardTarget{}, targetError(s, "the scheme must be http, https, h2c or unix")
	}
	name := u.Hostname()
	n, err := strconv.ParseUint(port, 10, 16)
	switch {
	case err != nil || n == 0:
		return forwardTarget{}, targetError(s, "the port must be 1 to 65535")
	case name == "" || !validHost(u.Host):
		return forwardTarget{}, targetError(s, "it has no valid host")
	case u.User != nil:
		return forwardTarget{}, targetError(u.Redacted(), "it must not hold a password; add an Authorization header instead")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return forwardTarget{}, targetError(s, "it must end with the path")
	}
	return forwardTarget{
		scheme:  u.Scheme,
		network: "tcp",
		addrs:   dialAddrs(name, port),
		name:    name,
		host:    u.Host,
		base:    strings.TrimRight(u.EscapedPath(), "/"),
	}, nil
}

// dialAddrs returns what to dial for a host. A development server often listens on only one of the two loopback
// addresses, and which of them a resolver names first depends on the machine; so both stand for localhost.
func dialAddrs(name, port string) []string {
	lower := strings.TrimSuffix(strings.ToLower(name), ".")
	if lower == "localhost" || strings.HasSuffix(lower, ".localhost") {
		return []string{net.JoinHostPort("127.0.0.1", port), net.JoinHostPort("::1", port)}
	}
	return []string{net.JoinHostPort(name, port)}
}

func targetError(target, why string) error {
	return fmt.Errorf("cannot use target %q: %s", target, why)
}

func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}
