package agent

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

// visitorAddress is where the visitors of these tests are.
const visitorAddress = "192.0.2.7:4711"

// An endEdge is the edge of an agent that ends TLS itself, with one link and one service.
type endEdge struct {
	*edgeLink
	agent *running
	host  string // of the service, below the edge's domain
	roots *x509.CertPool
}

// startEnd runs an agent that ends TLS for h with a certificate of its own, for any name.
func startEnd(t testing.TB, h http.Handler, change func(*Options)) *endEdge {
	t.Helper()
	cert, roots := newCertificate(t)
	e := newMemoryEdge(t)
	a := startAgent(t, e, func(o *Options) {
		o.Services = []Service{{Handler: h, Hostnames: []string{"app.example.org"}}}
		o.EndToEnd = &EndToEnd{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }}
		if change != nil {
			change(o)
		}
	})
	l := e.next()
	if claim := l.grant(); !claim.EndToEnd {
		t.Error("the agent does not say that it ends TLS")
	}
	l.serve()
	return &endEdge{edgeLink: l, agent: a, host: rfcKey(t).Public().Thumbprint().Label("") + ".tunnels.example.com", roots: roots}
}

// open is a visitor's connection as the edge hands it on.
func (e *endEdge) open(name string) *tunnel.UpgradedConn {
	e.t.Helper()
	conn, err := e.session.OpenTLS(context.Background(), 1, name, visitorAddress)
	if err != nil {
		e.t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	return conn
}

// secure is a visitor's connection with TLS. The certificate is not for the name, but the agent's own.
func (e *endEdge) secure(name string, protocols ...string) *tls.Conn {
	e.t.Helper()
	c := tls.Client(e.open(name), &tls.Config{
		ServerName: name, NextProtos: protocols, InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: e.roots})
			return err
		},
	})
	e.t.Cleanup(func() { c.Close() })
	if err := c.Handshake(); err != nil {
		e.t.Fatalf("handshake for %s: %v", name, err)
	}
	return c
}

// client speaks HTTP/2 or HTTP/1.1 through the link.
func (e *endEdge) client(h2 bool) *http.Client {
	tr := &http.Transport{Protocols: new(http.Protocols), DisableKeepAlives: !h2}
	tr.Protocols.SetHTTP1(!h2)
	tr.Protocols.SetHTTP2(h2)
	alpn := map[bool]string{true: "h2", false: "http/1.1"}[h2]
	tr.DialTLSContext = func(_ context.Context, _, addr string) (net.Conn, error) {
		name, _, _ := net.SplitHostPort(addr)
		return e.secure(name, alpn), nil
	}
	e.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

// told answers with what the handler is told of the visitor, and the body.
func told(w http.ResponseWriter, r *http.Request) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s %s", r.Proto, r.Host, r.RequestURI, r.RemoteAddr)
	for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Real-Ip", "Forwarded"} {
		fmt.Fprintf(&b, " %q", r.Header[name])
	}
	for name := range r.Header {
		if strings.Contains(strings.Join(r.Header[name], ""), "claim") {
			fmt.Fprintf(&b, " CLAIM %s", name)
		}
	}
	body, _ := io.ReadAll(r.Body)
	w.Header().Set("Trailer", "X-End")
	fmt.Fprintf(w, "%s %s", b.String(), body)
	w.Header().Set("X-End", "complete")
}

// TestEndToEnd: requests arrive over HTTP/1.1 and HTTP/2 as they would through an edge that can read them, and what
// visitors claim to be told by an edge is dropped.
func TestEndToEnd(t *testing.T) {
	t.Parallel()
	e := startEnd(t, http.HandlerFunc(told), nil)
	for _, host := range []string{e.host, "app.example.org", "APP.example.org:8443"} {
		for _, h2 := range []bool{false, true} {
			r, err := http.NewRequest("POST", "https://"+host+"/a%2Fb?c", strings.NewReader("body"))
			if err != nil {
				t.Fatal(err)
			}
			r.Host = host
			for _, name := range []string{
				"X-Forwarded-For", "X_Forwarded_For", "X-Forwarded-Prefix", "X-Real-IP", "Forwarded", "Harp-Tunnel", "harp_tunnel",
			} {
				r.Header[name] = []string{"claim"}
			}
			res, err := e.client(h2).Do(r)
			if err != nil {
				t.Fatalf("%s: %v", host, err)
			}
			got, err := io.ReadAll(res.Body)
			res.Body.Close()
			proto := map[bool]string{true: "HTTP/2.0", false: "HTTP/1.1"}[h2]
			want := fmt.Sprintf(`%s %s /a%%2Fb?c %s ["192.0.2.7"] ["https"] [%q] ["192.0.2.7"] ["for=192.0.2.7;host=\"%s\";proto=https"] body`,
				proto, host, visitorAddress, host, host)
			if err != nil || string(got) != want || res.Trailer.Get("X-End") != "complete" {
				t.Errorf("got  %s (%v, trailer %q)\nwant %s", got, err, res.Trailer.Get("X-End"), want)
			}
		}
	}
}

// TestEndToEndMisdirected: a service is reached by its own names only, whatever the certificate is for.
func TestEndToEndMisdirected(t *testing.T) {
	t.Parallel()
	e := startEnd(t, http.HandlerFunc(told), nil)
	for _, host := range []string{"internal", "x." + e.host, e.host + ":http", "localhost", "tunnels.example.com"} {
		for _, h2 := range []bool{false, true} {
			r, err := http.NewRequest("GET", "https://"+e.host+"/", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Host = host
			res, err := e.client(h2).Do(r)
			if err != nil {
				t.Fatalf("%s: %v", host, err)
			}
			res.Body.Close()
			if res.StatusCode != http.StatusMisdirectedRequest {
				t.Errorf("a request for %s got %s, want 421", host, res.Status)
			}
		}
	}
}

// TestEndToEndUpgrade: a handler that takes the connection over has it in both directions.
func TestEndToEndUpgrade(t *testing.T) {
	t.Parallel()
	e := startEnd(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Errorf("hijack: %v", err)
			return
		}
		defer conn.Close()
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_ = rw.Flush()
		_, _ = io.Copy(conn, rw)
	}), nil)
	c := e.secure(e.host, "http/1.1")
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n", e.host)
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%+v, %v; want 101", res, err)
	}
	sent := bytes.Repeat([]byte("echo"), 300_000)
	go func() {
		_, _ = c.Write(sent)
		_ = c.CloseWrite()
	}()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d of %d bytes came back, %v", len(got), len(sent), err)
	}
}

// TestEndToEndRefuses: what the edge must not be able to do, and what is no TLS.
func TestEndToEndRefuses(t *testing.T) {
	t.Parallel()
	e := startEnd(t, http.HandlerFunc(told), nil)
	if got, err := e.visit(1, "/"); !tunnel.Unprocessed(err) {
		t.Errorf("a request that the edge could read: %q, %v; want that it is refused", got, err)
	}
	conn, err := e.session.OpenTLS(context.Background(), 2, e.host, visitorAddress)
	if err != nil {
		t.Fatal(err)
	}
	var cancelled *tunnel.CancelError
	if _, err := conn.Read(make([]byte, 1)); !errors.As(err, &cancelled) || cancelled.Code != messages.CancelRefused {
		t.Errorf("a registration that is not there: %v, want refused", err)
	}
	garbage := e.open(e.host)
	_, _ = io.WriteString(garbage, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	answer, _ := io.ReadAll(garbage)
	if bytes.Contains(answer, []byte("HTTP/")) && !bytes.Contains(answer, []byte("400")) {
		t.Errorf("plain HTTP got %q", answer)
	}
	_ = garbage.Close()
}

// TestEndToEndEnd: an idle visitor does not hold the agent up, and one that is served is.
func TestEndToEndEnd(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}), make(chan struct{})
	e := startEnd(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(entered)
			<-release
		}
		_, _ = io.WriteString(w, "done")
	}), func(o *Options) { o.DrainTimeout = patience })
	idle := e.client(true)
	res, err := idle.Get("https://" + e.host + "/")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, res.Body)
	res.Body.Close()
	answer := make(chan string, 1)
	go func() {
		res, err := e.client(false).Get("https://" + e.host + "/slow")
		if err != nil {
			answer <- err.Error()
			return
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		answer <- fmt.Sprint(string(b), err)
	}()
	<-entered
	e.agent.end()
	e.farewell()
	close(release)
	if got := <-answer; got != "done<nil>" {
		t.Errorf("a request under way got %q", got)
	}
	began := time.Now()
	if err := e.agent.wait(); err != nil || time.Since(began) > patience/2 {
		t.Errorf("Run returned %v after %v", err, time.Since(began))
	}
}

// TestEndToEndLinkLost: with the link, its visitors' connections end, and nothing is left behind.
func TestEndToEndLinkLost(t *testing.T) {
	t.Parallel()
	entered, over := make(chan struct{}), make(chan struct{})
	e := startEnd(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
		close(over)
	}), nil)
	c := e.secure(e.host, "http/1.1")
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", e.host)
	<-entered
	e.cut()
	select {
	case <-over:
	case <-time.After(patience):
		t.Error("the handler does not learn that the link is lost")
	}
}

// TestEndToEndOptions: what New refuses, and what the edge does.
func TestEndToEndOptions(t *testing.T) {
	t.Parallel()
	own := &EndToEnd{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errors.New("none") }}
	for _, test := range []struct {
		end  *EndToEnd
		path string
		says string
	}{
		{own, "/api", "path"},
		{&EndToEnd{}, "", "folder"},
	} {
		o := testOptions(t)
		o.EndToEnd, o.Services[0].Path = test.end, test.path
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("path %q: %v, want a word about the %s", test.path, err, test.says)
		}
	}
	e := newMemoryEdge(t)
	a := startAgent(t, e, func(o *Options) { o.EndToEnd = own })
	l := e.next()
	l.claim()
	l.answer(messages.RegistrationResponse{Error: &messages.RegistrationError{
		Code: messages.RefuseUnsupported, Message: "this server does not pass TLS through",
	}})
	var refused *RefusedError
	if err := a.wait(); !errors.As(err, &refused) || refused.Code != messages.RefuseUnsupported || !strings.Contains(refused.Reason, "TLS") {
		t.Errorf("Run returned %v, want the edge's refusal", err)
	}
}

// TestEndToEndHostnames: the names that are asked for are signed.
func TestEndToEndHostnames(t *testing.T) {
	t.Parallel()
	e := newMemoryEdge(t)
	startAgent(t, e, func(o *Options) { o.Services[0].Hostnames = []string{"app.example.org", "example.org"} })
	if claim := e.next().grant(); len(claim.Hostnames) != 2 || claim.Hostnames[1] != "example.org" || claim.EndToEnd || claim.Mode != identity.ModeTakeover && claim.Mode != "" {
		t.Errorf("the agent asks for %+v", claim)
	}
}
