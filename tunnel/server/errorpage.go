package server

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// A visitorError is an answer of the edge's own, in place of the upstream's.
type visitorError struct {
	Status     int           // of the HTTP response, 400..599
	Code       string        // of the Harp-Error field: lower-case words joined by dashes, never from the network
	Title      string        // a few words
	Detail     string        // what happened and what to do, for a person; escaped when written
	RetryAfter time.Duration // rounded up to whole seconds; zero or negative sends no Retry-After
}

func noTunnelError() visitorError {
	return visitorError{Status: 404, Code: "no-tunnel", Title: "No such tunnel",
		Detail: "Nothing has been published at this address. Check it for typing mistakes. " +
			"If the service is yours, run harp-agent up and use the URL that it prints."}
}

func agentAwayError() visitorError {
	return visitorError{Status: 503, Code: "agent-away", Title: "The service is away", RetryAfter: 5 * time.Second,
		Detail: "The machine behind this address is not connected at the moment. Try again in a few seconds. " +
			"If the service is yours, see whether harp-agent is running there."}
}

// upstreamUnreachableError takes the agent's own words, which name the address that it dialled.
func upstreamUnreachableError(reason string) visitorError {
	return visitorError{Status: 502, Code: "upstream-unreachable", Title: "The service does not answer",
		Detail: withReason("The tunnel is up, but its agent cannot reach the service behind it", reason) +
			" If the service is yours, start it, or give harp-agent up the address where it listens."}
}

// upstreamBrokeError takes the agent's own words.
func upstreamBrokeError(reason string) visitorError {
	return visitorError{Status: 502, Code: "upstream-broke", Title: "The service broke off",
		Detail: withReason("The service behind the tunnel ended its answer early or did not speak HTTP", reason) +
			" The request may or may not have been carried out. If the service is yours, look at its log."}
}

// responseTooLargeError takes the limit in bytes.
func responseTooLargeError(limit int64) visitorError {
	return visitorError{Status: 502, Code: "response-too-large", Title: "The answer is too large",
		Detail: fmt.Sprintf("The service answered with more than the %d bytes that may pass here. "+
			"The operator of this server can raise --max-body.", limit)}
}

// requestTooLargeError takes the limit in bytes.
func requestTooLargeError(limit int64) visitorError {
	return visitorError{Status: 413, Code: "request-too-large", Title: "The request is too large",
		Detail: fmt.Sprintf("At most %d bytes may be sent in one request here. Send less at a time, "+
			"or ask the operator of this server to raise --max-body.", limit)}
}

func rateLimitedError() visitorError {
	return visitorError{Status: 429, Code: "rate-limited", Title: "Too many requests", RetryAfter: time.Second,
		Detail: "More requests have come than may pass here in this time. Wait a moment and try again."}
}

// timeoutError takes how long the edge has waited for a response head.
func timeoutError(waited time.Duration) visitorError {
	return visitorError{Status: 504, Code: "timeout", Title: "No answer in time",
		Detail: fmt.Sprintf("The service behind the tunnel did not begin to answer within %v. "+
			"The request may or may not have been carried out. Try again later.", waited)}
}

func headTooLargeError() visitorError {
	return visitorError{Status: 431, Code: "head-too-large", Title: "The header fields are too large",
		Detail: "The address or the header fields of the request are too long. Cookies are often the cause: " +
			"delete those of this site and try again."}
}

func busyError() visitorError {
	return visitorError{Status: 503, Code: "busy", Title: "The service is busy", RetryAfter: time.Second,
		Detail: "As many requests are open as the tunnel may carry at once. Wait a moment and try again."}
}

func linkLostError() visitorError {
	return visitorError{Status: 502, Code: "link-lost", Title: "The connection was lost",
		Detail: "The connection to the machine behind this address ended before the answer came. " +
			"The request may or may not have been carried out. Try again in a few seconds."}
}

// badRequestError takes what is wrong with the request, as a clause without a full stop; it may quote the request.
func badRequestError(why string) visitorError {
	return visitorError{Status: 400, Code: "bad-request", Title: "The request cannot be understood",
		Detail: withReason("The request can be read in more than one way, or in none", why) +
			" If a browser sent it, try again; otherwise repair the program that sent it."}
}

func connectRefusedError() visitorError {
	return visitorError{Status: 405, Code: "method-not-allowed", Title: "CONNECT is not allowed",
		Detail: "This server publishes services and is not a proxy to other places. Use another method than CONNECT."}
}

const (
	// maxReason bounds what a page repeats of somebody else's words, in bytes.
	maxReason = 300
	// maxRefusal bounds the refusal of a registration, in bytes. A DNS record that is asked for must not be cut, and such a
	// sentence holds the hostname three times, another name and the record's target, each of up to 253 bytes, and a label;
	// the other name comes from the DNS, which writes a strange byte as four.
	maxRefusal = 2500
)

// withReason appends reason to a sentence that lacks its full stop. reason is hostile: it is clipped, its
// control and formatting characters are dropped, and its white space is joined.
func withReason(sentence, reason string) string {
	reason = strings.TrimRight(clean(reason, maxReason), ". ")
	if reason == "" {
		return sentence + "."
	}
	return sentence + ": " + reason + "."
}

// cleanReason is reason as the refusal of a registration says it.
func cleanReason(reason string) string { return clean(reason, maxRefusal) }

// clean is reason in one line of at most limit bytes, without what is not printed.
func clean(reason string, limit int) string {
	reason = reason[:min(len(reason), 8*limit)] // bounds the loop when most of it is dropped
	var b strings.Builder
	space := false
	for _, c := range reason {
		switch {
		case unicode.IsSpace(c):
			space = b.Len() > 0
			continue
		case c == utf8.RuneError, !unicode.IsPrint(c):
			continue
		}
		if b.Len()+1+utf8.RuneLen(c) > limit {
			break
		}
		if space {
			b.WriteByte(' ')
			space = false
		}
		b.WriteRune(c)
	}
	return b.String()
}

// writeError answers r with e: an HTML page, RFC 9457 JSON or text, as the Accept field asks. A gRPC client
// gets HTTP status 200 and a gRPC status. An X-Request-Id that is already in w.Header() is shown; fields that
// describe another body are dropped. Nothing may have been written to w. For HEAD only the head is sent.
func writeError(w http.ResponseWriter, r *http.Request, e visitorError) {
	h := w.Header()
	for _, name := range [...]string{"Content-Encoding", "Content-Language", "Content-Range", "Etag",
		"Last-Modified", "Trailer", "Transfer-Encoding"} {
		h.Del(name)
	}
	h.Set("Harp-Error", e.Code)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if e.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64((e.RetryAfter+time.Second-1)/time.Second), 10))
	}
	if e.Status == http.StatusMethodNotAllowed && h.Get("Allow") == "" { // RFC 9110, section 15.5.6
		h.Set("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE")
	}
	if ct, ok := grpcContentType(r.Header.Get("Content-Type")); ok {
		writeGRPCError(w, e, ct)
		return
	}
	h.Add("Vary", "Accept")
	var body []byte
	switch acceptedForm(r.Header["Accept"]) {
	case formHTML:
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		body = errorHTML(e, h.Get("X-Request-Id"))
	case formJSON:
		h.Set("Content-Type", "application/problem+json")
		body = errorJSON(e, h.Get("X-Request-Id"))
	default:
		h.Set("Content-Type", "text/plain; charset=utf-8")
		body = errorText(e, h.Get("X-Request-Id"))
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(e.Status)
	if r.Method != http.MethodHead {
		w.Write(body) // an error means that the visitor left: there is nobody to tell
	}
}

//go:embed errorpage.html
var errorPageSource string

var errorPage = template.Must(template.New("errorpage.html").Parse(errorPageSource))

func errorHTML(e visitorError, requestID string) []byte {
	var b bytes.Buffer
	err := errorPage.Execute(&b, struct {
		visitorError
		RequestID string
	}{e, requestID})
	if err != nil {
		panic("server: BUG: error page: " + err.Error()) // the template and its data are both ours
	}
	return b.Bytes()
}

func errorJSON(e visitorError, requestID string) []byte {
	b, err := json.MarshalIndent(struct {
		Type      string `json:"type"`
		Title     string `json:"title"`
		Status    int    `json:"status"`
		Detail    string `json:"detail"`
		Code      string `json:"code"`
		RequestID string `json:"request_id,omitempty"`
	}{"urn:harp:error:" + e.Code, e.Title, e.Status, e.Detail, e.Code, requestID}, "", "  ")
	if err != nil {
		panic("server: BUG: error JSON: " + err.Error()) // strings and a number always encode
	}
	return append(b, '\n')
}

func errorText(e visitorError, requestID string) []byte {
	b := fmt.Appendf(nil, "%d %s (%s)\n%s\n", e.Status, e.Title, e.Code, e.Detail)
	if requestID != "" {
		b = fmt.Appendf(b, "Request id: %s\n", requestID)
	}
	return b
}

// grpcContentType reports whether a request of that Content-Type is gRPC or gRPC-Web, and what its answer bears.
func grpcContentType(ct string) (string, bool) {
	const name = "application/grpc"
	ct, _, _ = strings.Cut(ct, ";")
	ct = strings.ToLower(strings.TrimSpace(ct))
	rest, ok := strings.CutPrefix(ct, name)
	if !ok || rest != "" && rest[0] != '+' && rest[0] != '-' {
		return "", false
	}
	if strings.HasPrefix(rest, "-web") {
		return name + "-web+proto", true
	}
	return name, true
}

// writeGRPCError sends a head that is trailers, too ("Trailers-Only" of the gRPC HTTP/2 mapping).
func writeGRPCError(w http.ResponseWriter, e visitorError, contentType string) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", "0")
	h.Set("Grpc-Status", strconv.Itoa(grpcStatus(e.Status)))
	h.Set("Grpc-Message", grpcMessage(e.Title+": "+e.Detail))
	w.WriteHeader(http.StatusOK)
}

// grpcStatus is what a gRPC client would make of the HTTP status by gRPC's http-grpc-status-mapping, so that it
// retries where it would have. What is too large is RESOURCE_EXHAUSTED and what is too late DEADLINE_EXCEEDED, gRPC's own
// words: such a call may have been carried out, so it must not be repeated as an UNAVAILABLE one is.
func grpcStatus(status int) int {
	switch status {
	case http.StatusBadRequest:
		return 13 // INTERNAL
	case http.StatusUnauthorized:
		return 16 // UNAUTHENTICATED
	case http.StatusForbidden:
		return 7 // PERMISSION_DENIED
	case http.StatusNotFound:
		return 12 // UNIMPLEMENTED
	case http.StatusRequestEntityTooLarge, http.StatusRequestHeaderFieldsTooLarge:
		return 8 // RESOURCE_EXHAUSTED
	case http.StatusGatewayTimeout:
		return 4 // DEADLINE_EXCEEDED
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable:
		return 14 // UNAVAILABLE
	}
	return 2 // UNKNOWN
}

// grpcMessage percent-encodes all but printable ASCII, as the gRPC HTTP/2 mapping wants.
func grpcMessage(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

type errorForm int

const (
	formText errorForm = iota // also when nothing that we have is acceptable
	formHTML
	formJSON
)

// A formWish is how much an Accept field wants one form.
type formWish struct {
	q        int // thousandths
	specific int // 3 for the exact type, 2 for type/*, 1 for */*, 0 if nothing matched
	order    int // of the media range in the field
}

func (a formWish) beats(b formWish) bool {
	switch {
	case a.q != b.q:
		return a.q > b.q
	case a.specific != b.specific:
		return a.specific > b.specific
	}
	return a.order < b.order
}

// acceptedForm picks a form by the Accept fields (RFC 9110, section 12.5.1). Among equals the form that is named
// wins over a wildcard, then the one named first; a wildcard alone means text, and only text/html means HTML.
// A malformed media range is passed over.
func acceptedForm(accept []string) errorForm {
	var wishes [3]formWish
	order := 0
	for _, rest := range accept {
		for more := true; more; order++ {
			var element string
			element, rest, more = cutUnquoted(rest, ',')
			media, q, ok := parseMediaRange(element)
			if !ok {
				continue
			}
			for form := range wishes {
				w := formWish{q: q, specific: matchForm(errorForm(form), media), order: order}
				old := wishes[form]
				if w.specific > old.specific || w.specific > 0 && w.specific == old.specific && w.q > old.q {
					wishes[form] = w
				}
			}
		}
	}
	best := formText
	for _, form := range [...]errorForm{formHTML, formJSON} {
		if wishes[form].beats(wishes[best]) {
			best = form
		}
	}
	return best
}

// matchForm returns how specifically media, in lower case, means form: formWish.specific.
func matchForm(form errorForm, media string) int {
	exact, wide := false, ""
	switch form {
	case formHTML:
		exact = media == "text/html"
	case formJSON:
		exact, wide = media == "application/json" || strings.HasSuffix(media, "+json"), "application/*"
	default:
		exact, wide = media == "text/plain", "text/*"
	}
	switch {
	case exact:
		return 3
	case wide == "":
		return 0
	case media == wide:
		return 2
	case media == "*/*":
		return 1
	}
	return 0
}

// parseMediaRange splits "text/html;level=1;q=0.5" into its type in lower case and its weight in thousandths.
func parseMediaRange(s string) (media string, q int, ok bool) {
	media, params, more := cutUnquoted(s, ';')
	media = strings.ToLower(strings.TrimSpace(media))
	if !strings.Contains(media, "/") {
		return "", 0, false
	}
	q = 1000
	for more {
		var param string
		param, params, more = cutUnquoted(params, ';')
		name, value, _ := strings.Cut(strings.TrimSpace(param), "=")
		if strings.EqualFold(name, "q") {
			if q, ok = parseWeight(value); !ok {
				return "", 0, false
			}
			break
		}
	}
	return media, q, true
}

// parseWeight reads a qvalue (RFC 9110, section 12.4.2) as thousandths: 0 to 1 with at most three decimals.
func parseWeight(s string) (int, bool) {
	whole, decimals, _ := strings.Cut(s, ".")
	if whole != "0" && whole != "1" || len(decimals) > 3 {
		return 0, false
	}
	n, err := strconv.ParseUint(whole+(decimals + "000")[:3], 10, 16)
	return int(n), err == nil && n <= 1000
}
