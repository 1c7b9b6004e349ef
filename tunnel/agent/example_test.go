package agent_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"strings"
	"sync"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
	"github.com/harp-tunnel/harp/tunnel/agent"
)

// A Go program is on the internet without listening on any port.
func ExampleNew() {
	server := startEdge() // stands for "https://tunnels.example.com"
	defer server.Close()
	key := exampleKey() // in a program: identity.ReadKeyFile

	a, err := agent.New(agent.Options{
		Server: server.URL,
		Key:    key,
		Services: []agent.Service{{
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprintf(w, "hello, %s\n", r.RemoteAddr)
			}),
		}},
		OnRegister: func(r agent.Registration) { fmt.Println(r.URL) },
	})
	if err != nil {
		fmt.Println(err)
		return
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }() // comes back by itself whenever the link is lost

	fmt.Print(server.visit("4rsan3rocgnkjns3qjukyhz4bzuvbrav2dhykeyrbmnjick424lq.tunnels.example.com", "/"))
	stop() // or the interrupt key: running requests finish first
	if err := <-ended; err != nil {
		fmt.Println(err)
	}
	// Output:
	// https://4rsan3rocgnkjns3qjukyhz4bzuvbrav2dhykeyrbmnjick424lq.tunnels.example.com
	// hello, 192.0.2.1:1234
}

// A web service that only this machine can reach gets a public URL.
func ExampleForward() {
	server := startEdge() // stands for "https://tunnels.example.com"
	defer server.Close()
	private := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s with %q\n", r.Host, r.RequestURI, r.Header.Get("Authorization"))
	}))
	defer private.Close()

	upstream, err := agent.Forward(private.URL, agent.ForwardOptions{ // "3000" would do for http://localhost:3000
		HeaderAdd: http.Header{"Authorization": {"Bearer of the upstream"}},
		StripPath: "/app",
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer upstream.Close()
	a, err := agent.New(agent.Options{
		Server:   server.URL,
		Key:      exampleKey(),
		Services: []agent.Service{{Path: "/app", Handler: upstream}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}

	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()

	fmt.Print(server.visit("4rsan3rocgnkjns3qjukyhz4bzuvbrav2dhykeyrbmnjick424lq.tunnels.example.com/app", "/app/a%2Fb?c"))
	stop()
	<-ended
	// Output:
	// 4rsan3rocgnkjns3qjukyhz4bzuvbrav2dhykeyrbmnjick424lq.tunnels.example.com /a%2Fb?c with "Bearer of the upstream"
}

// One key has as many names as there are sessions, and each name can be divided by path. All of them share one link.
func ExampleService() {
	server := startEdge() // stands for "https://tunnels.example.com"
	defer server.Close()
	say := func(text string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, text) })
	}

	a, err := agent.New(agent.Options{
		Server: server.URL,
		Key:    exampleKey(),
		Services: []agent.Service{
			{Handler: say("the site")},
			{Path: "/shop", Handler: say("the shop")},
			{Session: "api", Mode: identity.ModeShare, Handler: say("one of several agents that serve the API")},
		},
		OnRegister: func(r agent.Registration) { fmt.Println(r.URL) },
	})
	if err != nil {
		fmt.Println(err)
		return
	}

	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()

	fmt.Print(server.visit("g6zvvr5cvc5ov4cfnn3kqx7iimbrbuqei3k7ayfnmarxku54bejq.tunnels.example.com", "/users"))
	stop()
	<-ended
	// Output:
	// https://4rsan3rocgnkjns3qjukyhz4bzuvbrav2dhykeyrbmnjick424lq.tunnels.example.com
	// https://4rsan3rocgnkjns3qjukyhz4bzuvbrav2dhykeyrbmnjick424lq.tunnels.example.com/shop
	// https://g6zvvr5cvc5ov4cfnn3kqx7iimbrbuqei3k7ayfnmarxku54bejq.tunnels.example.com
	// one of several agents that serve the API
}

// exampleKey is the key of RFC 8037 appendix A. Everybody has it: never use it.
func exampleKey() identity.Key {
	key, err := identity.ParseKey([]byte(`{"kty":"OKP","crv":"Ed25519",
		"d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`))
	if err != nil {
		panic(err) // it is a constant
	}
	return key
}

// An edge grants every name below tunnels.example.com.
type edge struct {
	*httptest.Server

	mu     sync.Mutex
	change *sync.Cond       // routes has grown
	routes map[string]route // by hostname and path
}

type route struct {
	session      *tunnel.Session
	registration uint32
}

func startEdge() *edge {
	e := &edge{routes: make(map[string]route)}
	e.change = sync.NewCond(&e.mu)
	e.Server = httptest.NewServer(e)
	return e
}

// ServeHTTP carries an agent's link.
func (e *edge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	conn, err := tunnel.Accept(w, r, "a challenge that is not random")
	if err != nil {
		return
	}
	var s *tunnel.Session
	s = tunnel.NewSession(conn, tunnel.Config{OnText: func(text []byte) error { return e.register(s, text) }})
	_ = s.Run(context.Background()) // until the agent leaves
}

func (e *edge) register(s *tunnel.Session, text []byte) error {
	request, err := messages.ParseRegistrationRequest(text)
	if err != nil {
		return err
	}
	key, claim, err := identity.Verify(request.JWS)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	n := uint32(len(e.routes) + 1)
	hostname := key.Thumbprint().Label(claim.Session) + ".tunnels.example.com"
	answer, err := messages.EncodeRegistrationResponse(messages.RegistrationResponse{
		Registration: n, Hostname: hostname, URL: "https://" + hostname + claim.Path,
	})
	if err != nil {
		return err
	}
	e.routes[hostname+claim.Path] = route{s, n}
	e.change.Broadcast()
	return s.SendText(answer)
}

// visit waits until there is a service with this name, and returns what it answers to a visitor.
func (e *edge) visit(name, target string) string {
	e.mu.Lock()
	for e.routes[name].session == nil {
		e.change.Wait()
	}
	to := e.routes[name]
	e.mu.Unlock()
	r := httptest.NewRequest("GET", target, nil)
	r.Host, _, _ = strings.Cut(name, "/")
	res, err := to.session.RoundTrip(to.registration, r)
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err.Error()
	}
	return string(body)
}
