package tunnel

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// TestHandlersBehaveAsUnderNetHTTP runs each handler under net/http's server and under the tunnel, and wants the client to
// see the same.
func TestHandlersBehaveAsUnderNetHTTP(t *testing.T) {
	for _, c := range handlerCases {
		for _, method := range []string{"GET", "HEAD", "POST"} {
			direct, tunnelled := directly(t, method, c.handler), throughTunnel(t, method, c.handler)
			switch {
			case method == "HEAD" && c.butHead != "":
				direct = c.butHead
			case method != "HEAD" && c.but != "":
				direct = c.but
			}
			if direct != tunnelled {
				t.Errorf("%s %s: the client sees\n%s\nunder net/http it sees\n%s", method, c.name, tunnelled, direct)
			}
		}
	}
}

type handlerCase struct {
	name    string
	handler http.HandlerFunc
	but     string // what the tunnel makes of it where that is not the same
	butHead string // and of HEAD
}

const plain = "Content-Type: text/plain; charset=utf-8\r\n"

var handlerCases = []handlerCase{
	{name: "does nothing", handler: func(w http.ResponseWriter, r *http.Request) {}},
	{name: "implicit 200", handler: writes("hello")},
	{name: "empty write", handler: writes("")},
	{name: "sniffs HTML", handler: writes("<html>")},
	{name: "sniffs what comes in pieces", handler: writes("<!DOC", "TYPE html>")},
	{name: "sniffs with a large piece behind", handler: writes("<!DOC", "TYPE html>"+strings.Repeat("x", 9000)),
		// Large bodies have a length for HEAD here.
		butHead: "200 length 9015\nContent-Length: 9015\r\nContent-Type: text/html; charset=utf-8\r\n\n\"\"\n"},
	{name: "sniffs binary", handler: writes("\x89PNG\x0d\x0a\x1a\x0a")},
	{name: "does not sniff encoded bodies", handler: with("Content-Encoding: gzip", "hello")},
	{name: "keeps a content type", handler: with("Content-Type: text/x-own", "<html>")},
	{name: "suppresses a content type", handler: func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Content-Type"] = nil
		_, _ = io.WriteString(w, "<html>")
	}},
	{name: "body of 1 MiB", handler: writes(strings.Repeat("0123456789abcdef", 1<<16)),
		butHead: "200 length 1048576\nContent-Length: 1048576\r\n" + plain + "\n\"\"\n"},
	{name: "own Content-Length", handler: with("Content-Length: 5", "hello")},
	{name: "Content-Length that is no number", handler: with("Content-Length: five", "hello"),
		// net/http takes it off and then gives no length; here the right one comes in its place.
		but:     "200 length 5\nContent-Length: 5\r\n" + plain + "\n\"hello\"\nhandler got <nil>\n",
		butHead: "200 length 5\nContent-Length: 5\r\n" + plain + "\n\"\"\nhandler got <nil>\n"},
	{name: "negative Content-Length", handler: with("Content-Length: -5", "hello"),
		but:     "200 length 5\nContent-Length: 5\r\n" + plain + "\n\"hello\"\nhandler got <nil>\n",
		butHead: "200 length 5\nContent-Length: 5\r\n" + plain + "\n\"\"\nhandler got <nil>\n"},
	{name: "WriteHeader twice", handler: func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(201)
		w.WriteHeader(500)
		_, _ = io.WriteString(w, "created")
	}},
	{name: "header after WriteHeader", handler: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Before", "1")
		w.WriteHeader(200)
		w.Header().Set("X-Before", "2")
		w.Header().Set("X-After", "1")
	}},
	{name: "header after Write", handler: func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "hello")
		w.Header().Set("X-After", "1")
	}},
	{name: "too much for Content-Length at once", handler: with("Content-Length: 5", "hello world"),
		// Before the head has gone out, the edge can still explain to the visitor what net/http can only break off.
		but: "no response" + "handler got http: wrote more than the declared Content-Length\n"},
	{name: "too much for Content-Length at the end", handler: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "5")
		_, err := io.WriteString(w, "hello")
		_, err2 := io.WriteString(w, " world")
		report(r, err, err2)
	}},
	{name: "short body, flushed", handler: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "50")
		_, _ = io.WriteString(w, "hello")
		w.(http.Flusher).Flush()
	}},
	{name: "short body", handler: with("Content-Length: 50", "hello"), but: "no responsehandler got <nil>\n"},
	{name: "panic", handler: func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }},
	{name: "panic after WriteHeader", handler: func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(200)
		panic("service failed")
	}},
	{name: "Goexit", handler: func(w http.ResponseWriter, r *http.Request) { runtime.Goexit() }},
	{name: "abort in the middle", handler: func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "hello")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}, butHead: "200 length 0\n" + plain + "\n\"\"\nbroken\n"},
	{name: "announced trailers", handler: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "x-one, X-Two")
		w.Header().Add("Trailer", "X-Never")
		_, _ = io.WriteString(w, "hello")
		w.Header().Set("X-One", "1")
		w.Header()["X-Two"] = []string{"2", "2"}
	}},
	{name: "prefixed trailers", handler: func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		_, _ = io.WriteString(w, "hello")
		w.Header().Set(http.TrailerPrefix+"x-late", "1")
	}},
	{name: "prefixed trailers without a flush", handler: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(http.TrailerPrefix+"X-Early", "1")
		_, _ = io.WriteString(w, "hello")
	}},
	{name: "trailers without a body", handler: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-One")
		w.WriteHeader(200)
		w.Header().Set("X-One", "1")
	}},
	{name: "flush first", handler: func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		_, _ = io.WriteString(w, "hello")
	}},
	{name: "flush between", handler: func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "hel")
		report(r, http.NewResponseController(w).Flush())
		_, _ = io.WriteString(w, "lo")
	}},
	{name: "early hints", handler: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a.css>")
		w.WriteHeader(103)
		w.Header().Set("Content-Length", "5")
		w.WriteHeader(102)
		_, _ = io.WriteString(w, "hello")
	}},
	{name: "204", handler: func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }},
	{name: "204 with a body", handler: func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(204)
		_, err := io.WriteString(w, "hello")
		report(r, err)
	}},
	{name: "304", handler: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Etag", `"1"`)
		w.WriteHeader(304)
	}},
	{name: "404 by http.Error", handler: func(w http.ResponseWriter, r *http.Request) { http.Error(w, "not here", 404) }},
	{name: "redirect", handler: func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }},
	{name: "status 999", handler: func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(999) }},
	{name: "impossible status", handler: func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(99) }},
	{name: "fields that must not be sent", handler: func(w http.ResponseWriter, r *http.Request) {
		w.Header()["X-Bad Name"] = []string{"1"}
		w.Header()["X-Break"] = []string{"a\r\nX-Injected: b"}
		w.Header()["X-Good"] = []string{"a\tb", "ü"}
		_, _ = io.WriteString(w, "hello")
	}},
	{name: "hop-by-hop fields", handler: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Keep-Alive", "timeout=5")
		w.Header().Set("X-Private", "1")
		w.Header().Set("Connection", "X-Private")
		_, _ = io.WriteString(w, "hello")
	}, but: "200 length 5\nContent-Length: 5\r\n" + plain + "\n\"hello\"\n",
		butHead: "200 length 5\nContent-Length: 5\r\n" + plain + "\n\"\"\n"},
	{name: "reads half of the request", handler: func(w http.ResponseWriter, r *http.Request) {
		b := make([]byte, 4)
		n, err := io.ReadFull(r.Body, b)
		if err != nil && err != io.EOF {
			report(r, err)
		}
		_, _ = w.Write(b[:n])
	}},
	{name: "closes the request body", handler: func(w http.ResponseWriter, r *http.Request) {
		report(r, r.Body.Close())
		n, err := r.Body.Read(make([]byte, 1))
		fmt.Fprint(w, n, err == nil)
	}},
	{name: "deadlines", handler: func(w http.ResponseWriter, r *http.Request) {
		report(r, http.NewResponseController(w).EnableFullDuplex())
		_, _ = io.WriteString(w, "hello")
	}},
	{name: "hijacks too late", handler: func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		_, err := io.WriteString(w, "hello")
		report(r, err)
	}},
	{name: "writes after hijack", handler: func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		report(r, err)
		defer c.Close()
		_, err = io.WriteString(w, "hello")
		_, _, err2 := http.NewResponseController(w).Hijack()
		fmt.Fprintf(rw, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nX-Own: 1\r\n\r\n%v %v", err == http.ErrHijacked, err2 != nil)
		report(r, rw.Flush())
	}, butHead: "200 length 9\nContent-Length: 9\r\nX-Own: 1\r\n\n\"true true\"\nhandler got <nil>\nhandler got <nil>\n"},
	{name: "hijacks and says interim first", handler: func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		report(r, err)
		defer c.Close()
		for piece := range slices.Values([]string{"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 418 Tea", "pot\r\nContent-Length: 3\r\n\r", "\ntea"}) {
			_, _ = rw.WriteString(piece)
			report(r, rw.Flush())
		}
	}, butHead: "interim 103 map[Link:[</a>]]\n418 length 3\nContent-Length: 3\r\n\n\"tea\"\n" +
		strings.Repeat("handler got <nil>\n", 4)},
	{name: "hijacks and hangs up", handler: func(w http.ResponseWriter, r *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		report(r, err)
		report(r, c.Close())
	}},
}

func writes(pieces ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for _, p := range pieces {
			n, err := io.WriteString(w, p)
			if n != len(p) {
				report(r, fmt.Errorf("wrote %d of %d bytes: %w", n, len(p), err))
			}
		}
	}
}

func with(field, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		name, value, _ := strings.Cut(field, ": ")
		w.Header().Set(name, value)
		_, err := io.WriteString(w, body)
		report(r, err)
	}
}

// report notes the errors that the handler of a case got, which are to be the same.
func report(r *http.Request, errs ...error) {
	w := r.Context().Value(reportKey{}).(*strings.Builder)
	for _, err := range errs {
		fmt.Fprintf(w, "handler got %v\n", err)
	}
}

type reportKey struct{}

func directly(t *testing.T, method string, h http.HandlerFunc) string {
	t.Helper()
	handler := newReporting(h)
	srv := httptest.NewUnstartedServer(handler)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Start()
	defer srv.Close()
	req, err := http.NewRequest(method, srv.URL, caseBody(method))
	if err != nil {
		t.Fatal(err)
	}
	return seen(&http.Transport{DisableKeepAlives: true, DisableCompression: true}, req, handler)
}

func throughTunnel(t *testing.T, method string, h http.HandlerFunc) string {
	t.Helper()
	handler := newReporting(h)
	p := newPair(t, handler)
	req := request(method, "/", nil)
	if b := caseBody(method); b != nil {
		req.Body = io.NopCloser(b)
	}
	return seen(roundTripper{p.edge}, req, handler)
}

type roundTripper struct{ s *Session }

func (r roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	return r.s.RoundTrip(1, req)
}

func caseBody(method string) io.Reader {
	if method == "POST" {
		return strings.NewReader("request body")
	}
	return nil
}

// A reporting handler serves one request.
type reporting struct {
	h        http.Handler
	said     strings.Builder
	returned chan struct{} // closed when the handler has returned
}

func newReporting(h http.Handler) *reporting { return &reporting{h: h, returned: make(chan struct{})} }

func (h *reporting) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer close(h.returned)
	h.h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), reportKey{}, &h.said)))
}

// seen is all that a client sees of a response, but for what an HTTP/1.1 connection adds, and what the handler reports.
func seen(rt http.RoundTripper, req *http.Request, h *reporting) string {
	var w strings.Builder
	trace := &httptrace.ClientTrace{Got1xxResponse: func(status int, h textproto.MIMEHeader) error {
		fmt.Fprintf(&w, "interim %d %v\n", status, h)
		return nil
	}}
	res, err := rt.RoundTrip(req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
	if err != nil {
		<-h.returned
		return w.String() + "no response" + h.said.String()
	}
	body, err := io.ReadAll(bufio.NewReader(res.Body))
	res.Body.Close()
	<-h.returned
	length := res.ContentLength
	if len(body) == 0 && length <= 0 {
		length = 0 // HTTP/1.1 says "chunked" where the tunnel just ends
	}
	fmt.Fprintf(&w, "%d length %d\n", res.StatusCode, length)
	for _, name := range []string{"Date", "Connection", "Trailer"} {
		res.Header.Del(name)
	}
	if len(body) == 0 && res.Header.Get("Content-Length") == "0" {
		res.Header.Del("Content-Length")
	}
	_ = res.Header.Write(&w)
	if len(body) > 100 {
		body = fmt.Append(body[:100], " and so on, ", len(body))
	}
	fmt.Fprintf(&w, "\n%q\n", body)
	if err != nil {
		fmt.Fprintf(&w, "broken\n")
	}
	for _, name := range slices.Sorted(maps.Keys(res.Trailer)) {
		if values := res.Trailer[name]; values != nil {
			fmt.Fprintf(&w, "trailer %s: %q\n", name, values)
		}
	}
	return w.String() + h.said.String()
}
