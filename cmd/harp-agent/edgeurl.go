package main

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/idna"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
)

// An edgeURL says where an edge is. The zero value means that it is not known.
type edgeURL struct {
	scheme string // http or https
	host   string // ASCII, lower case; an IPv6 address without brackets
	port   string // empty for the scheme's own
}

// parseEdge reads what a person types for an edge: a URL with the scheme https, http, wss or ws, or a host with or
// without port, which means https. flag is named in errors. An empty text gives the zero value.
func parseEdge(flag, s string) (edgeURL, error) {
	fail := func(why, hint string) (edgeURL, error) {
		return edgeURL{}, &cli.Error{Err: fmt.Errorf("--%s %q: %s", flag, s, why), Hint: hint}
	}
	if s == "" {
		return edgeURL{}, nil
	}
	example := "write --" + flag + " tunnels.example.com"
	text := s
	if !strings.Contains(text, "://") {
		if scheme, rest, ok := cutScheme(text); ok {
			return fail("a scheme ends in ://", "write --"+flag+" "+scheme+"://"+rest)
		}
		text = "https://" + text
	}
	u, err := url.Parse(text)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err
		}
		return fail(err.Error(), example)
	}
	e := edgeURL{scheme: strings.Replace(u.Scheme, "ws", "http", 1), port: u.Port()}
	switch {
	case e.scheme != "https" && e.scheme != "http":
		return fail("the scheme is neither https nor http", example)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "":
		return fail("only the host is wanted", "write --"+flag+" "+u.Scheme+"://"+u.Host)
	}
	if e.host, err = asciiHost(u.Hostname()); err != nil {
		return fail("the host is not a name or address", example)
	}
	if n, err := strconv.ParseUint(e.port, 10, 16); e.port != "" && (err != nil || n == 0) {
		e.port = ""
		return fail("the port must be 1 to 65535", "write --"+flag+" "+e.String()+", or that with :PORT")
	}
	if e.scheme == "https" && e.port == "443" || e.scheme == "http" && e.port == "80" {
		e.port = ""
	}
	return e, nil
}

// cutScheme cuts a scheme off that was not written as one: https:/host, or http//host.
func cutScheme(s string) (scheme, rest string, ok bool) {
	for _, scheme := range []string{"https", "http", "wss", "ws"} {
		after, ok := strings.CutPrefix(s, scheme)
		rest := strings.TrimLeft(after, ":/")
		if mark, _ := strings.CutSuffix(after, rest); ok && (strings.Contains(mark, "/") || mark == ":" && strings.Trim(rest, "0123456789") != "") {
			return scheme, rest, true
		}
	}
	return "", "", false
}

func asciiHost(host string) (string, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.String(), nil
	}
	return idna.New(idna.MapForLookup(), idna.StrictDomainName(true), idna.VerifyDNSLength(true)).
		ToASCII(strings.TrimSuffix(host, "."))
}

// known reports whether e is not the zero value.
func (e edgeURL) known() bool { return e.host != "" }

// String is the URL of the edge itself.
func (e edgeURL) String() string { return e.scheme + "://" + e.hostPort(e.host) }

// hostname returns the name of a tunnel at the edge; empty if that is known by an address only, or not at all.
func (e edgeURL) hostname(label string) string {
	if _, err := netip.ParseAddr(e.host); err == nil || !e.known() {
		return ""
	}
	return label + "." + e.host
}

// tunnelURL returns the URL of a tunnel at the edge, without a slash at the end; empty if hostname is.
func (e edgeURL) tunnelURL(label string) string {
	name := e.hostname(label)
	if name == "" {
		return ""
	}
	return e.scheme + "://" + e.hostPort(name)
}

func (e edgeURL) hostPort(host string) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if e.port != "" {
		host += ":" + e.port
	}
	return host
}
