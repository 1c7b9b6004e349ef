package server

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"runtime/pprof"
	"runtime/trace"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// An adminView is what the admin pages show.
type adminView struct {
	Ready    func() error        // nil error: visitors can be served; nil func: always
	Status   func() any          // goes out as JSON; nil func: an empty object
	Gatherer prometheus.Gatherer // nil: no metrics
	Hosts    []string            // names besides localhost by which the pages may be asked for
}

const adminPages = `/healthz      200 while the process runs
/readyz       200 if visitors can be served, else 503 and the reason
/metrics      Prometheus metrics
/status       what is connected, as JSON
/debug/pprof/ profiles for go tool pprof
`

// adminHandler returns the pages of the admin listener. They are for the operator alone: the listener has to be on
// loopback or behind a login. The handler itself keeps web pages out that the operator's browser has open: it
// refuses names other than localhost and a.Hosts (DNS rebinding) and requests that another site's page makes.
func adminHandler(a adminView) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { adminText(w, http.StatusOK, "ok\n") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if a.Ready != nil {
			if err := a.Ready(); err != nil {
				adminText(w, http.StatusServiceUnavailable, "not ready: "+err.Error()+"\n")
				return
			}
		}
		adminText(w, http.StatusOK, "ready\n")
	})
	if a.Gatherer != nil {
		mux.Handle("/metrics", promhttp.HandlerFor(a.Gatherer, promhttp.HandlerOpts{}))
	}
	mux.HandleFunc("/status", func(w http.ResponseWriter, _ *http.Request) { adminStatus(w, a.Status) })
	mux.HandleFunc("/debug/pprof/", serveProfile)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		adminText(w, http.StatusNotFound, "no such page; there are\n\n"+adminPages)
	})
	return guardAdmin(a.Hosts, mux)
}

func adminText(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	io.WriteString(w, text)
}

func adminStatus(w http.ResponseWriter, status func() any) {
	var v any = struct{}{}
	if status != nil {
		v = status()
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		adminText(w, http.StatusInternalServerError, "status: "+err.Error()+"\n")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(b, '\n'))
}

// guardAdmin lets only GET and HEAD requests (and POST for pprof's symbols) of the operator's own through.
func guardAdmin(hosts []string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		allow := "GET, HEAD"
		if r.URL.Path == "/debug/pprof/symbol" {
			allow += ", POST"
		}
		switch {
		case !adminHost(r.Host, hosts):
			adminText(w, http.StatusForbidden, fmt.Sprintf("this page is not served under the name %.100q\n"+
				"hint: use localhost or the IP address\n", r.Host))
		case !sameSite(r):
			adminText(w, http.StatusForbidden, "another site's page asked for this\nhint: open the address itself\n")
		case !slices.Contains(strings.Split(allow, ", "), r.Method):
			h.Set("Allow", allow)
			adminText(w, http.StatusMethodNotAllowed, "only "+allow+" here\n")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// adminHost reports whether no foreign DNS name can stand behind host: it is an IP address, localhost, one of
// hosts, or absent, which no browser does (probes that speak HTTP/1.0 do).
func adminHost(host string, hosts []string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"), ".")
	if _, err := netip.ParseAddr(host); err == nil || host == "" || strings.EqualFold(host, "localhost") {
		return true
	}
	return slices.ContainsFunc(hosts, func(name string) bool { return strings.EqualFold(name, host) })
}

// sameSite reports whether r is not made by another site's page. Following a link from one is fine: the page then
// cannot read what is shown. Old browsers and other programs send no Sec-Fetch-Site.
func sameSite(r *http.Request) bool {
	if origin := r.Header.Get("Origin"); origin != "" && origin != "http://"+r.Host && origin != "https://"+r.Host {
		return false
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "none", "same-origin":
		return true
	}
	return r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
}

// maxProfile bounds a CPU profile or trace.
const maxProfile = 5 * time.Minute

// serveProfile does what net/http/pprof does. That package would also put its pages on http.DefaultServeMux, where
// a program that embeds the edge might serve them to every visitor.
func serveProfile(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/debug/pprof/")
	switch name {
	case "":
		text := "profiles, with ?debug=1 for text (goroutine: debug=2, heap: gc=1)\n\n"
		for _, p := range pprof.Profiles() {
			text += fmt.Sprintf("%6d %s\n", p.Count(), p.Name())
		}
		adminText(w, http.StatusOK, text+"\nand, for as long as ?seconds= says, profile (CPU) and trace; cmdline; symbol\n")
	case "cmdline":
		adminText(w, http.StatusOK, strings.Join(os.Args, "\x00"))
	case "symbol":
		serveSymbol(w, r)
	case "profile":
		record(w, r, 30, pprof.StartCPUProfile, pprof.StopCPUProfile)
	case "trace":
		record(w, r, 1, trace.Start, trace.Stop)
	default:
		servePprof(w, r, name)
	}
}

func servePprof(w http.ResponseWriter, r *http.Request, name string) {
	p := pprof.Lookup(name)
	debug, err := formNumber(r, "debug", 0)
	switch {
	case p == nil:
		adminText(w, http.StatusNotFound, "no such profile; /debug/pprof/ lists them\n")
		return
	case err != nil:
		adminText(w, http.StatusBadRequest, err.Error()+"\n")
		return
	case name == "heap" && r.URL.Query().Get("gc") != "":
		runtime.GC()
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if debug != 0 {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	}
	p.WriteTo(w, int(debug)) // fails only when the reader left
}

// record sends what is recorded between start and stop, which are as many seconds apart as the request says.
func record(w http.ResponseWriter, r *http.Request, seconds float64, start func(io.Writer) error, stop func()) {
	seconds, err := formNumber(r, "seconds", seconds)
	if err != nil || seconds == 0 {
		adminText(w, http.StatusBadRequest, "seconds: not a positive number\n")
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if r.Method == http.MethodHead {
		return
	}
	if err := start(w); err != nil {
		adminText(w, http.StatusConflict, err.Error()+"\n")
		return
	}
	defer stop()
	wait := time.NewTimer(time.Duration(min(seconds, maxProfile.Seconds()) * float64(time.Second)))
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-r.Context().Done():
	}
}

func formNumber(r *http.Request, name string, absent float64) (float64, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return absent, nil
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || !(n >= 0) {
		return 0, fmt.Errorf("%s: %.20q is not a number of 0 or more", name, text)
	}
	return n, nil
}

// serveSymbol answers program counters, joined by "+" in the query or a POST body, with the names of functions.
func serveSymbol(w http.ResponseWriter, r *http.Request) {
	counters := r.URL.RawQuery
	if r.Method == http.MethodPost {
		b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			adminText(w, http.StatusRequestEntityTooLarge, err.Error()+"\n")
			return
		}
		counters = string(b)
	}
	text := []byte("num_symbols: 1\n") // pprof wants to know only that it is not 0
	for counter := range strings.SplitSeq(counters, "+") {
		pc, err := strconv.ParseUint(counter, 0, 64)
		if err != nil || pc == 0 {
			continue
		}
		if f := runtime.FuncForPC(uintptr(pc)); f != nil {
			text = fmt.Appendf(text, "%#x %s\n", pc, f.Name())
		}
	}
	adminText(w, http.StatusOK, string(text))
}
