package agent

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/textproto"
	"strings"
	"time"

	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

// ForwardOptions says how a Forwarder speaks to its upstream. The zero value is ready to use.
type ForwardOptions struct {
	// HostHeader is the Host field that the upstream gets: "" or "preserve" is the visitor's,
	// "rewrite" the target's host and port ("localhost" for unix:), anything else is sent as it is.
	HostHeader string

	// StripPath is removed from the front of the request target where it matches whole segments:
	// "/app" turns "/app/x" into "/x" and "/app" into "/", and leaves "/apple" alone.
	StripPath string

	// HeaderAdd is set on every request, replacing what the visitor sent under the same names.
	HeaderAdd http.Header

	// InsecureSkipVerify accepts any certificate of an https:// upstream.
	InsecureSkipVerify bool

	// RootCAs verify an https:// upstream; nil means the system's.
	RootCAs *x509.CertPool

	// DialTimeout bounds name lookup, connecting and the TLS handshake together; zero or negative means 10 s.
	DialTimeout time.Duration

	// MaxIdle is how many idle HTTP/1.1 connections are kept; zero means 128, negative none.
	// Each is closed after it has rested 60 s, or a second before the upstream's own Keep-Alive timeout.
	MaxIdle int

	// MaxHeadBytes bounds the head of a response, and its trailers; zero or negative means 128 KiB.
	MaxHeadBytes int

	// Logger gets a line for each request that the upstream failed; nil discards.
	Logger *slog.Logger
}

const (
	defaultDialTimeout  = 10 * time.Second
	defaultMaxIdle      = 128
	defaultMaxHeadBytes = 128 << 10
	upstreamIdleTimeout = 60 * time.Second
)

// A Forwarder is an http.Handler that feeds a private web service as if its visitors had dialled it themselves:
// bytes, order and timing of requests and responses are kept as far as net/http's interfaces can tell them.
//
// It takes the request target from Request.RequestURI. If the upstream fails before it answered, the Forwarder calls
// Fail(messages.CancelCode, string) on the ResponseWriter (or what that unwraps to) where there is one, and else
// answers 502 or 504 with a sentence of text; if it fails later, or the visitor has left, the Forwarder panics with
// http.ErrAbortHandler. If the upstream ends its answer before the request body has ended, the rest of the body is
// not read; to stop a pending Read the Forwarder uses the ResponseWriter's SetReadDeadline where there is one, and
// else Request.Body.Close, which must then end it.
//
// A Forwarder may be used from any goroutine. It holds 4 KiB for a request or upgraded connection that waits (twice
// that while it has a body), 32 KiB for one that moves much data, and no buffer for an idle connection.
type Forwarder struct {
	target  forwardTarget
	host    string    // the Host to send; "" is the visitor's
	strip   string    // "" or a path without the last slash
	add     addedHead // fields to set on each request
	maxHead int
	log     *slog.Logger
	dialer  *upstreamDialer
	pool    *upstreamPool
	buffers *upstreamBuffers
	h2      *upstreamH2 // nil if the upstream is never asked for HTTP/2
}

// Forward returns a handler that forwards to target: a port ("3000" is http://localhost:3000), host:port, or a URL
// with the scheme http, https, h2c (HTTP/2 without TLS) or unix (a path, HTTP/1.1); "" is http://localhost:8080.
// A path in the URL is put before every request target. The host localhost is both 127.0.0.1 and ::1, whichever
// answers. Nothing is dialled before the first request. The caller calls Close when it is done with the Forwarder.
func Forward(target string, o ForwardOptions) (*Forwarder, error) {
	t, err := parseForwardTarget(target)
	if err != nil {
		return nil, err
	}
	add, err := newAddedHead(o.HeaderAdd)
	if err != nil {
		return nil, err
	}
	f := &Forwarder{
		target:  t,
		strip:   strings.TrimRight(o.StripPath, "/"),
		add:     add,
		maxHead: o.MaxHeadBytes,
		log:     o.Logger,
		buffers: new(upstreamBuffers),
	}
	if f.strip != "" && f.strip[0] != '/' {
		f.strip = "/" + f.strip
	}
	switch o.HostHeader {
	case "", "preserve":
	case "rewrite":
		f.host = t.host
	default:
		f.host = o.HostHeader
	}
	if !validHost(f.host) {
		return nil, fmt.Errorf("cannot send %q as Host: it has a space or a control character", f.host)
	}
	if f.maxHead <= 0 {
		f.maxHead = defaultMaxHeadBytes
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	maxIdle := o.MaxIdle
	if maxIdle == 0 {
		maxIdle = defaultMaxIdle
	}
	f.pool = &upstreamPool{max: maxIdle, rest: upstreamIdleTimeout}
	f.dialer = newUpstreamDialer(t, o)
	if t.scheme == "https" || t.scheme == "h2c" {
		f.h2 = newUpstreamH2(f.dialer, f.maxHead)
	}
	return f, nil
}

// Close closes the idle connections. Requests under way go on, and their connections are closed after them.
func (f *Forwarder) Close() {
	f.pool.close()
	if f.h2 != nil {
		f.h2.transport.CloseIdleConnections()
	}
}

// ServeHTTP forwards one request. It returns when the response has been passed on and nothing reads r.Body any more.
func (f *Forwarder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.serve(&forwardVisitor{w: w, r: r})
}

// ServeFields is ServeHTTP as tunnel.FieldsHandler has it.
func (f *Forwarder) ServeFields(w http.ResponseWriter, r *http.Request, fields messages.Fields) {
	v := &forwardVisitor{w: w, r: r, fields: fields}
	if f.h2 != nil || !f.passes(fields) {
		v.fields, r.Header = "", tunnel.HeaderOf(fields)
	}
	f.serve(v)
}

// Self is tunnel.FieldsHandler's.
func (f *Forwarder) Self() http.Handler { return f }

func (f *Forwarder) serve(v *forwardVisitor) {
	r, err := v.r, f.forward(v)
	if err == nil {
		return
	}
	failure := asFailure(err)
	level := slog.LevelWarn
	if v.gone() || failure.code == messages.CancelAborted {
		level = slog.LevelDebug // visitors come and go
	}
	f.log.Log(r.Context(), level, "request failed", "method", r.Method, "host", r.Host, "reason", failure.reason)
	v.fail(failure)
}

func (f *Forwarder) forward(v *forwardVisitor) (err error) {
	if v.plan, err = f.plan(v.r); err != nil {
		return err
	}
	if v.plan.body != bodyNone {
		v.enableFullDuplex()
	}
	if f.h2 != nil && v.plan.upgrade == "" && !f.h2.refused.Load() {
		if err := f.forwardH2(v); err != errNotH2 {
			return err
		}
	}
	return f.forwardH1(v)
}

// addedHead is ForwardOptions.HeaderAdd in the two forms in which it is needed.
type addedHead struct {
	fields http.Header // canonical names
	lines  []byte      // the same as HTTP/1.1 field lines
}

func newAddedHead(h http.Header) (addedHead, error) {
	a := addedHead{fields: make(http.Header, len(h))}
	for name, values := range h {
		key := textproto.CanonicalMIMEHeaderKey(name)
		switch {
		case !validToken(name):
			return a, fmt.Errorf("cannot add header %q: not a field name", name)
		case key == "Host":
			return a, errors.New("cannot add header Host: use the host header option")
		case key == "Content-Length" || key == "Te" || key == "Trailer" || hopByHop(key):
			return a, fmt.Errorf("cannot add header %s: it belongs to the connection", key)
		}
		for _, value := range values {
			if !validFieldValue(value) {
				return a, fmt.Errorf("cannot add header %s: its value has a line break or a NUL", key)
			}
			a.fields[key] = append(a.fields[key], value)
			a.lines = appendField(a.lines, key, value)
		}
	}
	return a, nil
}
