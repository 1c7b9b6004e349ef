package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/harp-tunnel/harp/messages"
)

// forwardH2 carries a request over HTTP/2. If the error is errNotH2, the request is as it was.
func (f *Forwarder) forwardH2(v *forwardVisitor) error {
	x := h2Exchange{f: f, v: v}
	// The visitor's own context would also end when net/http gives up the body and we therefore stop reading it.
	ctx, cancel := context.WithCancel(context.WithoutCancel(v.r.Context()))
	defer cancel()
	x.cancel = cancel
	stop := context.AfterFunc(v.r.Context(), func() {
		if v.gone() {
			cancel()
		}
	})
	defer stop()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:        func(httptrace.GotConnInfo) { x.onceOnly() },
		WroteHeaders:   func() { x.wrote.Store(true) },
		Got1xxResponse: x.interim,
	})
	out := x.request(ctx)
	if x.body != nil {
		defer x.body.finish()
	}
	res, err := f.h2.transport.RoundTrip(out)
	x.headOver()
	if err != nil {
		return x.failure(err)
	}
	defer res.Body.Close()
	return x.relay(res)
}

// An h2Exchange is one request and its response over HTTP/2.
type h2Exchange struct {
	f      *Forwarder
	v      *forwardVisitor
	body   *h2RequestBody // nil if there is none
	cancel context.CancelFunc

	wrote   atomic.Bool // the head was sent
	stopped atomic.Bool // by onceOnly

	mu       sync.Mutex // guards the fields below, and v until over
	over     bool       // RoundTrip has returned
	interims int
}

// request builds what goes to net/http.
func (x *h2Exchange) request(ctx context.Context) *http.Request {
	r, q := x.v.r, &x.v.plan
	header := make(http.Header, len(r.Header)+len(x.f.add.fields)+1)
	for name, values := range r.Header {
		if !x.f.skips(q, name) {
			header[name] = values
		}
	}
	for name, values := range x.f.add.fields {
		header[name] = values
	}
	if headerHasToken(r.Header["Te"], "trailers") {
		header["Te"] = []string{"trailers"}
	}
	if _, ok := header["User-Agent"]; !ok {
		header["User-Agent"] = nil // else net/http makes one up
	}
	target := q.target
	if strings.HasPrefix(target, "//") {
		// url.URL takes an opaque part that begins so for a host; net/http's HTTP/2 then removes exactly
		// scheme://host from the result, and the target is left.
		target = "//" + q.host + target
	}
	out := (&http.Request{
		Method: r.Method,
		URL:    &url.URL{Scheme: x.f.h2.scheme, Host: x.f.target.host, Opaque: target},
		Host:   q.host,
		Header: header,
	}).WithContext(ctx)
	if q.body == bodyNone {
		return out
	}
	x.body = &h2RequestBody{v: x.v, trailer: make(http.Header)}
	out.Body, out.Trailer, out.ContentLength = x.body, x.body.trailer, -1
	if q.body == bodySized {
		out.ContentLength = r.ContentLength
	}
	if header["Trailer"] == nil {
		for name := range r.Trailer {
			if validTrailer(name) {
				out.Trailer[name] = nil
			}
		}
	}
	return out
}

// onceOnly keeps net/http from sending a request again that is not safe to repeat: after a stream error that it
// takes for harmless it would, if there is no body.
func (x *h2Exchange) onceOnly() {
	if x.wrote.Load() && !safeMethod(x.v.r.Method) {
		x.stopped.Store(true)
		x.cancel()
	}
}

// interim passes a 1xx response on. It is called while RoundTrip runs, or just after ctx has ended.
func (x *h2Exchange) interim(status int, header textproto.MIMEHeader) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.over {
		return nil
	}
	if x.interims++; x.interims > maxInterim {
		return errors.New("too many interim answers")
	}
	if status == http.StatusSwitchingProtocols {
		return errors.New("101 has no place in HTTP/2") // RFC 9113 section 8.6
	}
	x.v.writeInterim(status, func(dst http.Header) { copyH2Header(dst, http.Header(header)) })
	return nil
}

func (x *h2Exchange) headOver() {
	x.mu.Lock()
	x.over = true
	x.mu.Unlock()
}

// failure makes a failure of RoundTrip's error.
func (x *h2Exchange) failure(err error) error {
	if errors.Is(err, errNotH2) {
		if x.f.h2.scheme == "https" {
			return errNotH2
		}
		return brokenError("speaks no HTTP/2", nil)
	}
	if x.body != nil {
		if bodyErr := x.body.finish(); bodyErr != nil {
			return bodyError(bodyErr)
		}
	}
	if dial := (*dialFailure)(nil); errors.As(err, &dial) {
		return dialError(dial)
	}
	if x.stopped.Load() {
		return brokenError("gave no answer: it reset the stream", nil)
	}
	var reset h2Reset
	if errors.As(err, &reset) && reset.Code == h2Cancel && x.v.r.Header["Grpc-Timeout"] != nil {
		// A gRPC server whose clock says first that the call's time is over resets the stream.
		return &forwardFailure{code: messages.CancelTimeout, reason: "the call's deadline passed at the upstream", err: err}
	}
	if x.wrote.Load() {
		return brokenError("gave no answer", err)
	}
	return &forwardFailure{code: messages.CancelBroken, reason: "cannot send the request on: " + err.Error(), err: err}
}

// h2Cancel is the error code CANCEL (RFC 9113 section 7).
const h2Cancel = 8

// An h2Reset is a stream error of net/http's HTTP/2, in the form in which that lets itself be found by errors.As: any
// struct with fields of these names.
type h2Reset struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

func (e h2Reset) Error() string {
	return fmt.Sprintf("stream %d was reset with code %d", e.StreamID, e.Code)
}

// relay passes the response on, each piece as soon as it comes.
func (x *h2Exchange) relay(res *http.Response) error {
	v := x.v
	if res.StatusCode < 200 || res.StatusCode > 999 {
		return brokenError(fmt.Sprintf("answered with status %d", res.StatusCode), nil)
	}
	if lengths := res.Header["Content-Length"]; lengths != nil {
		n, err := parseContentLength(strings.Join(lengths, ","))
		if err != nil {
			return brokenError("sent a response whose end cannot be told", err)
		}
		res.Header["Content-Length"] = []string{strconv.FormatInt(n, 10)}
	}
	header := v.w.Header()
	copyH2Header(header, res.Header)
	if len(res.Trailer) > 0 {
		header["Trailer"] = []string{announced(res.Trailer)} // net/http has taken it out
	}
	v.writeHead(res.StatusCode, x.body != nil && !x.body.ended.Load())
	if x.v.r.Method != http.MethodHead && res.StatusCode != 204 && res.StatusCode != 304 {
		// A length of 0 is also net/http's word for a head that was the end of its stream, as a gRPC error is: if it
		// was flushed, the visitor would get one more frame and miss the trailers in it.
		if res.ContentLength != 0 {
			if err := v.flush(); err != nil {
				return visitorError(err)
			}
		}
		if err := x.relayBody(res.Body); err != nil {
			return err
		}
	}
	for name, values := range res.Trailer {
		if len(values) > 0 {
			v.setTrailer(name, values...)
		}
	}
	return nil
}

func (x *h2Exchange) relayBody(body io.Reader) error {
	lent := lentBuffer{from: x.f.buffers}
	defer lent.release()
	for last := 0; ; {
		buf := lent.next(last)
		n, err := body.Read(buf)
		if last = n; n == len(buf) {
			last = smallBuffer
		}
		if n > 0 {
			werr := x.v.write(buf[:n])
			if werr == nil && err != io.EOF {
				werr = x.v.flush()
			}
			if werr != nil {
				return visitorError(werr)
			}
		}
		switch err {
		case nil:
		case io.EOF:
			return nil
		default:
			return brokenError("broke off in its answer", err)
		}
	}
}

// copyH2Header sets the fields of an HTTP/2 response, in which those of a connection are malformed.
func copyH2Header(dst, src http.Header) {
	for name, values := range src {
		if !hopByHop(name) {
			dst[name] = values
		}
	}
}
