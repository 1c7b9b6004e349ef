package main

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
)

var trailers = []field{{"X-Sum", "abc"}, {"X-Late", "not announced"}, {"X-Sum", "second"}, {"X-Empty", ""}}

func wantTrailers(t *testing.T, where string, m message) {
	t.Helper()
	for _, f := range trailers {
		if g, w := fieldValues(m.Trailers, f.Name), fieldValues(trailers, f.Name); !slices.Equal(g, w) {
			t.Errorf("%s: trailer %s is %q, want %q", where, f.Name, g, w)
		}
	}
	for _, f := range m.Trailers {
		if len(fieldValues(trailers, f.Name)) == 0 {
			t.Errorf("%s: nobody sent trailer %s: %q", where, f.Name, f.Value)
		}
	}
	if announced := strings.ToLower(strings.Join(m.values("Trailer"), ",")); !strings.Contains(announced, "x-sum") {
		t.Errorf("%s: Trailer is %q: X-Sum was announced, and many programs see announced trailers only", where, announced)
	}
}

// trailed returns a chunked body that ends in trailers.
func trailed(b []byte) string {
	_, wire := framed(b, true)
	return strings.TrimSuffix(wire, "\r\n") + strings.Join(fieldLines(trailers), "\r\n") + "\r\n\r\n"
}

// TestTrailers sends trailers both ways behind bodies of several sizes, some announced and some not.
func TestTrailers(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, func(m message) string {
		return "HTTP/1.1 200 OK\r\nTrailer: X-Sum, X-Empty\r\nTransfer-Encoding: chunked\r\n\r\n" + trailed(m.Body)
	})
	c := publish(t, r.Target).dial(t)
	for _, size := range []int{0, 1, 100_000} {
		b := pattern(size)
		c.send(c.request("POST", "/x", "TE: trailers", "Trailer: X-Sum", "Transfer-Encoding: chunked") + trailed(b))
		m := c.final("POST")
		sent := r.next(t)
		wantTrailers(t, fmt.Sprintf("the upstream, behind %d bytes", size), sent)
		wantTrailers(t, fmt.Sprintf("the visitor, behind %d bytes", size), m)
		if diff := sameBytes(sent.Body, b); diff != "" {
			t.Errorf("the upstream saw %s", diff)
		}
		if diff := sameBytes(m.Body, b); diff != "" {
			t.Errorf("the visitor saw %s", diff)
		}
	}
}

// TestTrailersNetHTTP is the same between net/http programs, which see and send trailers in their own ways.
func TestTrailersNetHTTP(t *testing.T) {
	t.Parallel()
	type seen struct {
		announced bool
		trailer   http.Header
	}
	requests := make(chan seen, 1)
	target := serveUpstream(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, announced := r.Trailer["X-Sum"]
		w.Header().Set("Trailer", "X-Sum")
		io.Copy(io.Discard, r.Body)
		requests <- seen{announced, r.Trailer}
		w.Write([]byte("body"))
		w.Header().Set("X-Sum", "abc")
		w.Header().Set(http.TrailerPrefix+"X-Late", "late")
	}))
	tn := publish(t, target)
	req, err := http.NewRequestWithContext(t.Context(), "POST", tn.URL+"/x", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = -1
	req.Trailer = http.Header{"X-Sum": {"abc"}}
	resp, err := tn.client(t, false).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, ok := resp.Trailer["X-Sum"]; !ok {
		t.Errorf("the visitor does not know that X-Sum will come")
	}
	io.Copy(io.Discard, resp.Body)
	await(t, requests, "the request", func(s seen) {
		if !s.announced || s.trailer.Get("X-Sum") != "abc" {
			t.Errorf("the upstream saw announced=%v, trailers %q; want X-Sum announced and sent", s.announced, s.trailer)
		}
	})
	if resp.Trailer.Get("X-Sum") != "abc" || resp.Trailer.Get("X-Late") != "late" {
		t.Errorf("the visitor saw trailers %q, want X-Sum and the unannounced X-Late", resp.Trailer)
	}
}

// TestTrailersHTTP10 wants trailers to vanish for a visitor whose protocol has none.
func TestTrailersHTTP10(t *testing.T) {
	t.Parallel()
	r := recordUpstream(t, func(message) string {
		return "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n" + trailed([]byte("body"))
	})
	tn := publish(t, r.Target)
	tn.needsTunnel(t)
	c := tn.dial(t)
	c.send("GET /x HTTP/1.0\r\nHost: " + tn.Host + "\r\n\r\n")
	m := c.final("GET")
	if string(m.Body) != "body" || m.Framing == "chunked" {
		t.Errorf("an HTTP/1.0 visitor got %s body %q", m.Framing, m.Body)
	}
	c.expectClosed("HTTP/1.0 without keep-alive ends with its answer")
}
