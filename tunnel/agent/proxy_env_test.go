package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/harp-tunnel/harp/identity"
)

// net/http reads the environment once per process, so each case has a process of its own: this test binary, which
// TestMain makes an agent if these are set.
const (
	childServer = "HARP_TEST_SERVER" // what to dial
	childCA     = "HARP_TEST_CA"     // file with the certificate to trust
)

// runChild is an agent that publishes one service until its standard input ends. It prints what became of Run, and
// whether it looked the server's name up.
func runChild(server string) (code int) {
	resolver, lookups := newResolver(func() netip.Addr { return netip.MustParseAddr("127.0.0.1") })
	net.DefaultResolver = resolver
	ca, err := os.ReadFile(os.Getenv(childCA))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	key, err := identity.Generate()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	a, err := New(Options{
		Server: server, Key: key, Services: []Service{{Handler: named("child")}}, ExitOnFailure: true,
		TLSConfig: func() (*tls.Config, error) {
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(ca)
			return &tls.Config{RootCAs: roots}, nil
		},
	})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { // ends with the standard input
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	fmt.Printf("Run: %v\nlooked up: %v\n", a.Run(ctx), lookups.Load() > 0)
	return 0
}

// A connectProxy is a proxy as it stands in offices: it knows CONNECT, and resolves names itself.
type connectProxy struct {
	edge   string // address behind every name
	status int    // of its answer, if that is not 200

	mu    sync.Mutex
	asked []string // "target credentials", in order
}

func (p *connectProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, password, _ := (&http.Request{Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}).BasicAuth()
	p.mu.Lock()
	p.asked = append(p.asked, r.Method+" "+r.RequestURI+" "+user+":"+password)
	p.mu.Unlock()
	if p.status != 0 || r.Method != http.MethodConnect {
		http.Error(w, "the proxy does not want to", p.status)
		return
	}
	up, err := net.Dial("tcp", p.edge)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer up.Close()
	w.WriteHeader(http.StatusOK)
	down, rest, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer down.Close()
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(up, rest); up.Close() })   // ends when down does
	both.Go(func() { _, _ = io.Copy(down, up); down.Close() }) // ends when up does
	both.Wait()
}

func TestProxyFromEnvironment(t *testing.T) {
	cert, _ := newCertificate(t)
	var current atomic.Pointer[tls.Certificate]
	current.Store(&cert)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}), 0o600); err != nil {
		t.Fatal(err)
	}
	e := startTLSEdge(t, &current)
	addr := e.server.Listener.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	asked := "CONNECT edge.test:" + port + " me:secret"
	for _, c := range []struct {
		name    string
		env     []string // PROXY stands for the proxy's URL
		status  int      // of the proxy's refusal
		links   int      // how many come, one after the other
		proxied []string
		says    string
	}{
		{"HTTPS_PROXY", []string{"HTTPS_PROXY=PROXY"}, 0, 2, []string{asked, asked}, "Run: <nil>\nlooked up: false\n"},
		{"NO_PROXY", []string{"HTTPS_PROXY=PROXY", "NO_PROXY=other.test,edge.test"}, 0, 1, nil, "Run: <nil>\nlooked up: true\n"},
		{"NO_PROXY for another", []string{"HTTPS_PROXY=PROXY", "NO_PROXY=other.test"}, 0, 1, []string{asked}, "Run: <nil>\nlooked up: false\n"},
		{"HTTP_PROXY is not for https", []string{"HTTP_PROXY=PROXY"}, 0, 1, nil, "Run: <nil>\nlooked up: true\n"},
		{"the proxy refuses", []string{"HTTPS_PROXY=PROXY"}, 407, 0, []string{asked},
			"Run: cannot reach the server: the proxy PROXY answered 407 Proxy Authentication Required\n"},
	} {
		p := &connectProxy{edge: addr, status: c.status}
		server := httptest.NewServer(p)
		env := append(withoutProxies(os.Environ()), childServer+"=https://edge.test:"+port, childCA+"="+ca)
		for _, line := range c.env {
			env = append(env, strings.Replace(line, "=PROXY", "=http://me:secret@"+server.Listener.Addr().String(), 1))
		}
		said := strings.ReplaceAll(playChild(t, e, c.links, env), server.Listener.Addr().String(), "PROXY")
		server.Close()
		if !slices.Equal(p.asked, c.proxied) {
			t.Errorf("%s: the proxy was asked for %q, want %q", c.name, p.asked, c.proxied)
		}
		if !strings.HasPrefix(said, c.says) || strings.Contains(said, "secret") {
			t.Errorf("%s: the agent says %q, want %q and no password", c.name, said, c.says)
		}
	}
}

// playChild runs an agent with this environment, lets it open so many links, and returns what it says at its end.
func playChild(t *testing.T, e *fakeEdge, links int, env []string) string {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = env
	var said bytes.Buffer
	child.Stdout, child.Stderr = &said, &said
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	for i := range links {
		l := e.accept(1)
		l.wants(1, "/", "child /")
		if i < links-1 {
			l.cut()
		}
	}
	if links > 0 {
		stdin.Close()
	}
	if err := child.Wait(); err != nil {
		t.Errorf("the agent's process: %v", err)
	}
	return said.String()
}

// withoutProxies is env without what net/http looks for.
func withoutProxies(env []string) []string {
	return slices.DeleteFunc(env, func(line string) bool {
		name, _, _ := strings.Cut(strings.ToUpper(line), "=")
		return strings.HasSuffix(name, "_PROXY") || name == "REQUEST_METHOD"
	})
}
