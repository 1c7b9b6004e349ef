package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync/atomic"
)

// h2StreamBuffer is how many bytes of one response an upstream may send ahead of a slow visitor.
const h2StreamBuffer = 512 << 10

// errNotH2 is what a request over HTTP/2 fails with, untouched, if the upstream does not choose h2.
var errNotH2 = errors.New("the upstream does not speak HTTP/2")

// An upstreamH2 speaks HTTP/2 with one upstream, by net/http's own client.
type upstreamH2 struct {
	transport *http.Transport
	scheme    string      // of the requests: "http" or "https"
	refused   atomic.Bool // by ALPN, the last time it was asked
}

func newUpstreamH2(d *upstreamDialer, maxHead int) *upstreamH2 {
	u := &upstreamH2{scheme: "http"}
	u.transport = &http.Transport{
		DisableCompression:     true,
		IdleConnTimeout:        upstreamIdleTimeout,
		ExpectContinueTimeout:  expectTimeout,
		MaxResponseHeaderBytes: int64(maxHead),
		Protocols:              new(http.Protocols),
		HTTP2:                  &http.HTTP2Config{MaxReceiveBufferPerStream: h2StreamBuffer},
	}
	if d.tls == nil {
		u.transport.Protocols.SetUnencryptedHTTP2(true)
		u.transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return d.dial(ctx) }
		return u
	}
	u.scheme = "https"
	u.transport.Protocols.SetHTTP2(true)
	u.transport.DialTLSContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		c, err := d.dial(ctx, "h2", "http/1.1")
		if err != nil {
			return nil, err
		}
		if t, ok := c.(*tls.Conn); !ok || t.ConnectionState().NegotiatedProtocol != "h2" {
			c.Close()
			u.refused.Store(true)
			return nil, errNotH2
		}
		return c, nil
	}
	return u
}
