package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// An upstreamDialer makes connections to one upstream. Any goroutine may use it.
type upstreamDialer struct {
	target  forwardTarget
	timeout time.Duration
	tls     *tls.Config  // nil without TLS
	works   atomic.Int32 // index of the address that answered last
}

func newUpstreamDialer(t forwardTarget, o ForwardOptions) *upstreamDialer {
	d := &upstreamDialer{target: t, timeout: o.DialTimeout}
	if d.timeout <= 0 {
		d.timeout = defaultDialTimeout
	}
	if t.scheme == "https" {
		d.tls = &tls.Config{
			RootCAs:            o.RootCAs,
			InsecureSkipVerify: o.InsecureSkipVerify,
			ServerName:         t.name,
			ClientSessionCache: tls.NewLRUClientSessionCache(0),
		}
	}
	return d
}

// A dialFailure says that there is no connection to the upstream.
type dialFailure struct {
	reason string // a sentence that names the addresses
	err    error  // of the last address
}

func (e *dialFailure) Error() string { return e.reason }
func (e *dialFailure) Unwrap() error { return e.err }

// dial connects, and for an https upstream makes the TLS handshake, offering protos by ALPN. The error is a
// *dialFailure, or ctx's if that ended first.
func (d *upstreamDialer) dial(ctx context.Context, protos ...string) (net.Conn, error) {
	limited, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	raw, errs := d.connect(limited)
	if raw == nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, &dialFailure{d.explain(errs), errs[len(errs)-1]}
	}
	if d.tls == nil {
		return raw, nil
	}
	config := d.tls.Clone()
	config.NextProtos = protos
	t := tls.Client(raw, config)
	if err := t.HandshakeContext(limited); err != nil {
		raw.Close()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, &dialFailure{"cannot speak TLS with " + raw.RemoteAddr().String() + ": " + d.why(err), err}
	}
	return t, nil
}

// connect tries each address, first the one that answered last time.
func (d *upstreamDialer) connect(ctx context.Context) (net.Conn, []error) {
	var dialer net.Dialer
	addrs := d.target.addrs
	errs := make([]error, len(addrs))
	first := int(d.works.Load())
	for i := range addrs {
		n := (first + i) % len(addrs)
		c, err := dialer.DialContext(ctx, d.target.network, addrs[n])
		if err == nil {
			d.works.Store(int32(n))
			return c, nil
		}
		errs[n] = err
	}
	return nil, errs
}

// explain makes a sentence of what each address answered.
func (d *upstreamDialer) explain(errs []error) string {
	addrs := d.target.addrs
	why := make([]string, len(errs))
	same := true
	for i, err := range errs {
		why[i] = d.why(err)
		same = same && why[i] == why[0]
	}
	if same {
		return "cannot connect to " + strings.Join(addrs, " and ") + ": " + why[0]
	}
	for i := range why {
		why[i] = addrs[i] + ": " + why[i]
	}
	return "cannot connect to " + strings.Join(why, " and ")
}

// why says in few words what failed, without the address, but with the one that a name was found to have.
func (d *upstreamDialer) why(err error) string {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return "no answer in " + d.timeout.String()
	}
	text := shortReason(err)
	var op *net.OpError
	if errors.As(err, &op) && op.Addr != nil && d.target.network == "tcp" && op.Addr.String() != d.target.addrs[0] &&
		len(d.target.addrs) == 1 {
		text += " (" + op.Addr.String() + ")"
	}
	return text
}

// shortReason returns what is at the bottom of a network error, without the addresses that net puts around it.
func shortReason(err error) string {
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return dns.Err
	}
	var sys *os.SyscallError
	if errors.As(err, &sys) {
		return sys.Err.Error()
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err.Error()
	}
	return err.Error()
}
