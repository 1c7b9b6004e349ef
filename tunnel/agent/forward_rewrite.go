package agent

import (
	"net/http"
	"strings"
)

// rewriteTarget returns the request target to send: the visitor's byte for byte, but for the absolute form, which
// only a proxy may be sent (RFC 9112 section 3.2.1), the path to strip and the path to put before.
func (f *Forwarder) rewriteTarget(r *http.Request) string {
	t := originForm(r.Method, r.RequestURI)
	if t == "" && r.URL != nil {
		t = r.URL.RequestURI() // a request that no server has read
	}
	if f.strip != "" {
		t = stripPath(t, f.strip)
	}
	if f.target.base != "" && strings.HasPrefix(t, "/") {
		t = f.target.base + t
	}
	return t
}

// originForm turns http://host/path into /path, and leaves every other target alone.
func originForm(method, target string) string {
	if target == "" || target[0] == '/' {
		return target
	}
	scheme, rest, ok := strings.Cut(target, "://")
	if !ok || !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
		return target
	}
	i := strings.IndexAny(rest, "/?#")
	switch {
	case i == 0:
		return target // without a host it is something else
	case i < 0 && method == http.MethodOptions:
		return "*"
	case i < 0:
		return "/"
	case rest[i] != '/':
		return "/" + rest[i:]
	}
	return rest[i:]
}

// stripPath removes prefix, a path without the last slash, where whole segments of target match it.
func stripPath(target, prefix string) string {
	rest, ok := strings.CutPrefix(target, prefix)
	switch {
	case !ok:
		return target
	case rest == "" || rest[0] == '?':
		return "/" + rest
	case rest[0] == '/':
		return rest
	}
	return target
}

// withoutH2C joins the protocols of an Upgrade field, but for h2c: that upgrade is between the visitor and the edge,
// who did not make it (RFC 9113 section 3.1 has withdrawn it).
func withoutH2C(values []string) string {
	var kept []string
	for token := range headerTokens(values) {
		if !strings.EqualFold(token, "h2c") {
			kept = append(kept, token)
		}
	}
	return strings.Join(kept, ", ")
}
