package agent

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// fromVisitor gives h what the edge would have told it, and drops what the visitor claims to be told by an edge. Requests for
// other hosts than names are misdirected (RFC 9110, section 15.5.20): an upstream that goes by the host must not be
// reached by all that it has, and a browser whose certificate is for the names of several services may have the wrong one.
func fromVisitor(h http.Handler, names []string) http.Handler {
	own := make(map[string]bool)
	for _, name := range names {
		own[strings.ToLower(name)] = true
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !own[bareHost(r.Host)] {
			http.Error(w, "This connection is not for that host.", http.StatusMisdirectedRequest)
			return
		}
		setForwarded(r)
		if r.ProtoMajor == 1 && r.Body != nil && r.Body != http.NoBody {
			_ = http.NewResponseController(w).EnableFullDuplex()
		}
		h.ServeHTTP(w, r)
	})
}

// bareHost is a Host field in lower case, without port and last dot.
func bareHost(host string) string {
	if name, port, err := net.SplitHostPort(host); err == nil && isDigits(port) {
		host = name
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// setForwarded says in r's fields whom it is from, as the edge does for requests that it can read.
func setForwarded(r *http.Request) {
	for name := range r.Header {
		if isClaim(name) {
			delete(r.Header, name)
		}
	}
	from := "unknown"
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		addr := peer.Addr().Unmap().WithZone("")
		r.Header["X-Forwarded-For"] = []string{addr.String()}
		r.Header["X-Real-Ip"] = []string{addr.String()}
		if from = addr.String(); addr.Is6() { // RFC 7239, section 6: in brackets, and therefore quoted
			from = `"[` + from + `]"`
		}
	}
	r.Header["X-Forwarded-Proto"] = []string{"https"}
	r.Header["X-Forwarded-Host"] = []string{r.Host}
	r.Header["Forwarded"] = []string{"for=" + from + `;host="` + r.Host + `";proto=https`} // r.Host is one of the agent's names
}

// isClaim reports whether only who ends TLS may say a field of that name to an upstream. Underscores count as dashes,
// because CGI and WSGI cannot tell them apart.
func isClaim(name string) bool {
	name = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	return strings.HasPrefix(name, "x-forwarded-") || strings.HasPrefix(name, "harp-") || name == "forwarded" || name == "x-real-ip"
}
