package main

import (
	"crypto/rand"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"
)

//go:embed demopage.html
var demoHTML string

// A shownRequest is what the demo page shows of a request.
type shownRequest struct {
	Method, Target, Proto, Host string
	Fields                      []echoField
	Nonce                       string // of the page's own script and style
}

type echoField struct{ Name, Value string }

// demoHandler returns the page that harpd dev publishes when it is given nothing else: it shows that the tunnel works.
// Below whatever path it is reached by, the last segment decides: events is a clock as server-sent events, upload
// counts and hashes what it is sent while it is sent, and anything else shows the request, as HTML or as plain text.
func demoHandler() http.Handler {
	page := template.Must(template.New("demo").Parse(demoHTML))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		switch path.Base(r.URL.Path) {
		case "events":
			serveClock(w, r)
		case "upload":
			serveUpload(w, r)
		default:
			servePage(w, r, page)
		}
	})
}

func servePage(w http.ResponseWriter, r *http.Request, page *template.Template) {
	e := newShownRequest(r)
	w.Header().Set("Vary", "Accept")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if !strings.Contains(r.Header.Get("Accept"), "text/html") {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintf(w, "The tunnel works. It brought this request:\n\n%s %s %s\nHost: %s\n", e.Method, e.Target, e.Proto, e.Host)
		for _, f := range e.Fields {
			fmt.Fprintf(w, "%s: %s\n", f.Name, f.Value)
		}
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Referrer-Policy", "no-referrer")
	w.Header().Set("Content-Security-Policy", fmt.Sprintf(
		"default-src 'none'; connect-src 'self'; img-src data:; style-src 'nonce-%s'; script-src 'nonce-%[1]s'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'", e.Nonce))
	// An error here is the visitor going away: nobody is left to tell.
	_ = page.Execute(w, e)
}

func newShownRequest(r *http.Request) shownRequest {
	e := shownRequest{Method: r.Method, Target: r.RequestURI, Proto: r.Proto, Host: r.Host, Nonce: rand.Text()}
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		for _, value := range r.Header[name] {
			if name == "Cookie" || name == "Authorization" {
				value = "(arrived, not shown)" // the page gets photographed
			}
			e.Fields = append(e.Fields, echoField{name, value})
		}
	}
	return e
}

// serveClock sends the time each second until the visitor leaves.
func serveClock(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		if _, err := fmt.Fprintf(w, "data: %s\n\n", time.Now().Format(time.TimeOnly)); err != nil {
			return
		}
		if err := out.Flush(); err != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-ticker.C:
		}
	}
}

// An uploadReport is one line of the answer to an upload.
type uploadReport struct {
	Received int64  `json:"received"`         // bytes so far
	SHA256   string `json:"sha256,omitempty"` // hex, in the last line only
}

// serveUpload reports, a line of JSON for each piece, while the request body still arrives. It keeps nothing.
func serveUpload(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "send something with POST", http.StatusMethodNotAllowed)
		return
	}
	out := http.NewResponseController(w)
	// Only an HTTP/1 server needs it; the others answer that they do not know it.
	_ = out.EnableFullDuplex()
	w.Header().Set("Content-Type", "application/x-ndjson")
	lines := json.NewEncoder(w)
	hash, buf, received := sha256.New(), make([]byte, 32<<10), int64(0)
	for {
		n, err := r.Body.Read(buf)
		hash.Write(buf[:n])
		received += int64(n)
		report := uploadReport{Received: received}
		if errors.Is(err, io.EOF) {
			report.SHA256 = hex.EncodeToString(hash.Sum(nil))
		} else if err != nil {
			panic(http.ErrAbortHandler) // the upload broke off, so the answer must not look whole
		}
		if lines.Encode(report) != nil || out.Flush() != nil || report.SHA256 != "" {
			return
		}
	}
}
