package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/interop"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/tunnel/agent"
)

const secret = "what only the two ends may read"

// endService answers with what it was asked, and echoes WebSockets.
func endService(t *testing.T) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if websocket.IsWebSocketUpgrade(r) {
			conn, err := new(websocket.Upgrader).Upgrade(w, r, nil)
			if err != nil {
				t.Errorf("upgrade: %v", err)
				return
			}
			defer conn.Close()
			kind, p, err := conn.ReadMessage()
			if err == nil {
				err = conn.WriteMessage(kind, p)
			}
			if err != nil {
				t.Errorf("echo: %v", err)
			}
			return
		}
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("Trailer", "X-End")
		fmt.Fprintf(w, "%s %s %s %s %s %s", r.Proto, r.Host, r.URL.Path, r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Forwarded-Proto"), b)
		w.Header().Set("X-End", "complete")
	})
}

// TestEndToEnd: a certificate by ACME through the tunnel, with a key that the edge never has.
func TestEndToEnd(t *testing.T) {
	t.Parallel()
	e := newAutoEdge(t, pebbleOptions{})
	e.start(t)
	roots := e.awaitWildcard(t)
	key, err := identity.Generate()
	if err != nil {
		t.Fatal(err)
	}
	label := key.Public().Thumbprint().Label("")
	host := label + "." + testDomain
	e.names.set(t, "app.example.org", "CNAME "+host+".")
	pool := x509.NewCertPool()
	text, _ := os.ReadFile(e.ca.RootFile)
	pool.AppendCertsFromPEM(text)
	certs := t.TempDir()
	registered, _ := e.publishAs(t, key, &agent.EndToEnd{CertDir: certs, Directory: e.ca.Directory, Roots: pool},
		agent.Service{Handler: endService(t), Hostnames: []string{"app.example.org"}})
	await(t, registered, "the registration", func(agent.Registration) {})
	for _, name := range []string{host, "app.example.org"} {
		eventually(t, "a certificate for "+name, func() bool {
			_, err := handshake(e.at.HTTPS, name, roots)
			return err == nil
		})
		for _, h2 := range []bool{true, false} {
			e.visitEndToEnd(t, name, roots, h2)
		}
	}
	e.echoEndToEnd(t, host, roots)

	state, err := handshake(e.at.HTTPS, host, roots)
	if err != nil {
		t.Fatal(err)
	}
	leaf := state.PeerCertificates[0]
	if len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != host {
		t.Errorf("the certificate is for %q, want one of the agent's own", leaf.DNSNames)
	}
	if kept, err := os.ReadFile(filepath.Join(certs, host)); err != nil || !bytes.Contains(kept, []byte("PRIVATE KEY")) {
		t.Errorf("the agent does not hold the key: %v", err)
	}
	e.knowsNothing(t, label)

	if res := plain(t, e.at.HTTP, host); res.StatusCode != http.StatusPermanentRedirect {
		t.Errorf("plain HTTP got %s, want a redirect", res.Status)
	}
	if status := e.coalesced(t, host, roots); status != http.StatusMisdirectedRequest {
		t.Errorf("over a connection for another name: %d, want 421", status)
	}
}

func (e *autoEdge) visitEndToEnd(t *testing.T, host string, roots *x509.CertPool, h2 bool) {
	t.Helper()
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true, Protocols: new(http.Protocols),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", e.at.HTTPS)
		},
	}
	defer tr.CloseIdleConnections()
	tr.Protocols.SetHTTP1(!h2)
	tr.Protocols.SetHTTP2(h2)
	r, err := http.NewRequest(http.MethodPost, "https://"+host+"/"+strings.ReplaceAll(secret, " ", "-"), strings.NewReader(secret))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Forwarded-For", "192.0.2.1")
	res, err := (&http.Client{Transport: tr, Timeout: patience}).Do(r)
	if err != nil {
		t.Errorf("%s: %v", host, err)
		return
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	proto := map[bool]string{true: "HTTP/2.0", false: "HTTP/1.1"}[h2]
	want := proto + " " + host + " /" + strings.ReplaceAll(secret, " ", "-") + " 127.0.0.1 https " + secret
	if err != nil || string(b) != want || res.Trailer.Get("X-End") != "complete" {
		t.Errorf("%v: %q, trailer %q, want %q", err, b, res.Trailer.Get("X-End"), want)
	}
}

func (e *autoEdge) echoEndToEnd(t *testing.T, host string, roots *x509.CertPool) {
	t.Helper()
	d := websocket.Dialer{
		TLSClientConfig: &tls.Config{RootCAs: roots}, HandshakeTimeout: patience,
		NetDial: func(string, string) (net.Conn, error) { return net.Dial("tcp", e.at.HTTPS) },
	}
	conn, _, err := d.Dial("wss://"+host+"/", nil)
	if err != nil {
		t.Errorf("WebSocket: %v", err)
		return
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	if err := conn.WriteMessage(websocket.TextMessage, []byte(secret)); err != nil {
		t.Error(err)
	}
	if _, p, err := conn.ReadMessage(); err != nil || string(p) != secret {
		t.Errorf("WebSocket: %q, %v", p, err)
	}
}

// coalesced asks for host over a connection that was made for the domain, as browsers do when a certificate is for both.
func (e *autoEdge) coalesced(t *testing.T, host string, roots *x509.CertPool) int {
	t.Helper()
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "x." + testDomain}, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", e.at.HTTPS)
		},
	}
	defer tr.CloseIdleConnections()
	res, err := (&http.Client{Transport: tr, Timeout: patience}).Get("https://" + host + "/")
	if err != nil {
		t.Error(err)
		return 0
	}
	res.Body.Close()
	return res.StatusCode
}

// knowsNothing looks for traces in the edge: a key for the name in its folder, what was said in its log.
func (e *autoEdge) knowsNothing(t *testing.T, label string) {
	t.Helper()
	err := filepath.WalkDir(e.cfg.DataDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if strings.Contains(path, label) || bytes.Contains(text, []byte(label)) {
			t.Errorf("the edge holds %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	for _, trace := range []string{secret, strings.ReplaceAll(secret, " ", "-")} {
		if strings.Contains(e.log.String(), trace) {
			t.Errorf("the edge's log holds %q", trace)
		}
	}
}

// TestEndToEndAgentAway: a name whose TLS ended at its agent is not served by the edge when that is away.
func TestEndToEndAgentAway(t *testing.T) {
	t.Parallel()
	e := newAutoEdge(t, pebbleOptions{})
	e.start(t)
	roots := e.awaitWildcard(t)
	key, err := identity.Generate()
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile, own := writeCertificate(t)
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	end := &agent.EndToEnd{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &pair, nil }}
	host := key.Public().Thumbprint().Label("") + "." + testDomain
	stopped := t.Run("up", func(t *testing.T) { // its agent ends with it
		registered, _ := e.publishAs(t, key, end, agent.Service{Handler: endService(t)})
		await(t, registered, "the registration", func(agent.Registration) {})
		if status, _, err := visit(e.at.HTTPS, host, own); err != nil || status != 200 {
			t.Errorf("with a certificate of its own: %d, %v", status, err)
		}
	})
	if !stopped {
		return
	}
	eventually(t, "the name to be closed", func() bool {
		_, err := handshake(e.at.HTTPS, host, own)
		return err != nil
	})
	if _, err := handshake(e.at.HTTPS, host, roots); err == nil {
		t.Error("the edge ends TLS in the agent's place")
	}
}

// TestEndToEndGRPC runs grpc-go's interop client against its server behind an agent that ends TLS itself. The edge has no
// certificate but its own CA's.
func TestEndToEndGRPC(t *testing.T) {
	t.Parallel()
	addr, _ := serveGRPC(t, interop.NewTestServer())
	forward, err := agent.Forward("h2c://"+addr, agent.ForwardOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(forward.Close)
	certFile, keyFile, own := writeCertificate(t)
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	key, err := identity.Generate()
	if err != nil {
		t.Fatal(err)
	}
	edge := &autoEdge{log: new(syncBuffer), cfg: newSetup(t, nil).cfg}
	edge.cfg.TLS, edge.cfg.DataDir, edge.cfg.HTTPS = "internal", t.TempDir(), "127.0.0.1:0"
	edge.start(t)
	registered := make(chan agent.Registration, 1)
	a, err := agent.New(agent.Options{
		Server: "https://" + edge.at.HTTPS, Key: key,
		TLSConfig:  func() (*tls.Config, error) { return trustInternal(edge.cfg.DataDir) },
		EndToEnd:   &agent.EndToEnd{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &pair, nil }},
		Services:   []agent.Service{{Handler: forward}},
		OnRegister: func(r agent.Registration) { registered <- r },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	await(t, registered, "the registration", func(agent.Registration) {})
	host := key.Public().Thumbprint().Label("") + "." + testDomain
	cc, err := grpc.NewClient("passthrough:///"+host,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: own, ServerName: host})),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", edge.at.HTTPS)
		}))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	for name := range interopCases {
		if err := runInterop(t, name, cc); err != nil {
			t.Error(err)
		}
	}
}
