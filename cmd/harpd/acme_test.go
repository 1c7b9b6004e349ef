package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
)

// An autoEdge is an edge with --tls auto, a certificate authority, and the DNS by which they find each other.
type autoEdge struct {
	cfg   config
	ca    *pebble
	names *names
	log   *syncBuffer
	at    listenAddrs
	stop  func() // ends the edge and waits for it
}

// newAutoEdge prepares an edge; start starts it.
func newAutoEdge(t *testing.T, o pebbleOptions) *autoEdge {
	t.Helper()
	e := &autoEdge{log: new(syncBuffer)}
	s := newSetup(t, nil)
	e.cfg = s.cfg
	e.cfg.TLS, e.cfg.DataDir = "auto", t.TempDir()
	e.cfg.HTTP, e.cfg.HTTPS, e.cfg.DNS = freeAddr(t), freeAddr(t), freeAddr(t)
	e.cfg.PublicIP = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	e.names = startNames(t, e.cfg.DNS)
	o.HTTP, o.TLS, o.DNS = port(t, e.cfg.HTTP), port(t, e.cfg.HTTPS), e.names.Addr
	e.ca = startPebble(t, o)
	e.cfg.ACMECA, e.cfg.ACMECARoot, e.cfg.ACMEDNS = e.ca.Directory, e.ca.RootFile, "builtin"
	e.cfg.Resolver = []string{e.names.Addr}
	e.cfg.acmeRetry, e.cfg.acmeCheckEvery = 200*time.Millisecond, 200*time.Millisecond
	return e
}

func port(t *testing.T, addr string) int {
	t.Helper()
	p, err := netip.ParseAddrPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return int(p.Port())
}

func (e *autoEdge) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	started, ended := make(chan listenAddrs, 1), make(chan error, 1)
	go func() {
		ended <- runLogged(ctx, e.cfg, cli.NewLogger(e.log, "debug", "text"), func(at listenAddrs) { started <- at })
	}()
	select {
	case e.at = <-started:
	case err := <-ended:
		cancel()
		t.Fatalf("the edge did not start: %v", err)
	}
	e.stop = func() {
		cancel()
		await(t, ended, "the edge to end", func(err error) {
			if err != nil {
				t.Errorf("the edge ended with %v", err)
			}
			ended <- nil
		})
	}
	t.Cleanup(func() {
		e.stop()
		if t.Failed() {
			t.Logf("the edge said:\n%s", e.log.tail(80))
		}
	})
}

// TestWildcardByBuiltinDNS: from nothing to a certificate for the domain and every name below it.
func TestWildcardByBuiltinDNS(t *testing.T) {
	t.Parallel()
	e := newAutoEdge(t, pebbleOptions{})
	e.start(t)
	roots := e.ca.roots(t)
	for _, name := range []string{testDomain, "x." + testDomain} {
		eventually(t, "a certificate for "+name, func() bool {
			_, err := handshake(e.at.HTTPS, name, roots)
			return err == nil
		})
	}
	state, err := handshake(e.at.HTTPS, "x."+testDomain, roots)
	if err != nil || state.NegotiatedProtocol != "h2" || state.PeerCertificates[0].DNSNames[0] != "*."+testDomain {
		t.Errorf("%v, %q, %v", err, state.NegotiatedProtocol, state.PeerCertificates[0].DNSNames)
	}
	res := plain(t, e.at.HTTP, "x."+testDomain)
	if res.StatusCode != http.StatusPermanentRedirect || !strings.HasPrefix(res.Header.Get("Location"), "https://x."+testDomain+":") {
		t.Errorf("plain HTTP got %s to %q", res.Status, res.Header.Get("Location"))
	}
}

// plain makes a request to the edge over plain HTTP.
func plain(t *testing.T, addr, host string) *http.Response {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, "http://"+addr+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = host
	tr := &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{}).DialContext}
	res, err := tr.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	res.Body = io.NopCloser(strings.NewReader(string(b)))
	return res
}
