package tls

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	provenFor      = 5 * time.Minute // how long a proof opens the gate: longer than an order takes
	requestTime    = time.Minute     // for each request to the authority
	maxTries       = 6               // of one request, which the authority could not answer
	maxTryPause    = 8 * time.Second
	longestPoll    = 10 * time.Second // between two looks at an order
	longRetryAfter = 30 * time.Second // from here on it is better to give up and come back
)

// A gate is what a hostname's requests to the authority pass: only while the hostname is served here and has led here
// within the last minutes, and not before the time that the authority has set.
type gate struct {
	custom   *Custom
	hostname string
	dropped  *atomic.Bool // the site's

	mu     sync.Mutex // guards the fields below
	proven time.Time  // when the hostname last led here
	closed time.Time  // until then the authority wants nothing of us
}

// client returns one whose requests pass the gate.
func (g *gate) client() *http.Client { return &http.Client{Transport: g, Timeout: requestTime} }

// closedUntil is when the authority takes requests again; zero if it does.
func (g *gate) closedUntil() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closed
}

// RoundTrip carries a request to the authority, or says why not. It ends with the Custom.
func (g *gate) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(r.Context())
	stop := context.AfterFunc(g.custom.ctx, cancel)
	over := func() { stop(); cancel() }
	if err := g.open(ctx); err != nil {
		over()
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return nil, err
	}
	res, err := g.custom.authority.RoundTrip(r.WithContext(ctx))
	if err != nil {
		over()
		return nil, err
	}
	res.Body = overBody{res.Body, over}
	g.heed(res)
	return res, nil
}

func (g *gate) open(ctx context.Context) error {
	switch {
	case g.custom.ctx.Err() != nil:
		return errClosed
	case g.dropped.Load() || !g.custom.options.Serves(g.hostname):
		return fmt.Errorf("%s is not served here any more", g.hostname)
	}
	g.mu.Lock()
	fresh, closed := time.Since(g.proven) < provenFor, g.closed
	g.mu.Unlock()
	if time.Now().Before(closed) {
		return fmt.Errorf("the authority takes nothing for %s before %s", g.hostname, closed.UTC().Format(time.RFC3339))
	}
	if fresh {
		return nil
	}
	if err := g.custom.options.Prove(ctx, g.hostname); err != nil {
		return err
	}
	g.mu.Lock()
	g.proven = time.Now()
	g.mu.Unlock()
	return nil
}

// heed takes the authority's wish to be left alone (RFC 8555, section 6.6), and bounds one to look at an order later, which
// autocert would sleep through.
func (g *gate) heed(res *http.Response) {
	wait := retryAfter(res)
	switch {
	case res.StatusCode < 300 && wait > longestPoll:
		res.Header.Set("Retry-After", strconv.Itoa(int(longestPoll/time.Second)))
	case res.StatusCode >= 400 && wait > longRetryAfter:
		g.mu.Lock()
		g.closed = time.Now().Add(min(wait, maxPause))
		g.mu.Unlock()
	}
}

// retryAfter is the response's Retry-After (RFC 9110, section 10.2.3); zero if there is none.
func retryAfter(res *http.Response) time.Duration {
	v := res.Header.Get("Retry-After")
	if seconds, err := strconv.Atoi(v); err == nil {
		return time.Duration(min(max(seconds, 0), int(maxPause/time.Second))) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}

// retryAuthority is how long to wait before a request that the authority could not answer is sent again, the nth time
// from 1 on; zero means not at all.
func retryAuthority(n int, _ *http.Request, res *http.Response) time.Duration {
	wait := retryAfter(res)
	if n > maxTries || wait > longRetryAfter {
		return 0
	}
	return max(wait, min(250*time.Millisecond<<n, maxTryPause))
}

// An overBody says when the response was read.
type overBody struct {
	io.ReadCloser
	over func()
}

func (b overBody) Close() error {
	defer b.over()
	return b.ReadCloser.Close()
}
