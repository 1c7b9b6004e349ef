package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

// testKey is the key of RFC 8037 appendix A.
const testKey = `{"kty":"OKP","crv":"Ed25519","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",` +
	`"x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`

// A fakeEdge is the server that agents dial: each link comes out of links, and the test plays its far end.
type fakeEdge struct {
	t      testing.TB
	server *httptest.Server // nil in memory
	links  chan *edgeLink

	challenge func() string

	mu     sync.Mutex
	refuse func() error // what a dial in memory gets in place of a link, if that is not nil
	dials  []time.Time  // in memory
}

// newMemoryEdge returns an edge that is reached through its dial, for tests in virtual time.
func newMemoryEdge(t testing.TB) *fakeEdge {
	return &fakeEdge{t: t, links: make(chan *edgeLink, 1000), challenge: newChallenge}
}

// listenEdge returns an edge on addr, by default on a port that the system gives.
func listenEdge(t testing.TB, addr string) *fakeEdge {
	t.Helper()
	e := newMemoryEdge(t)
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	e.server = &httptest.Server{Listener: l, Config: &http.Server{Handler: e}}
	t.Cleanup(e.server.Close)
	return e
}

// startEdge is an edge that listens and serves HTTP.
func startEdge(t testing.TB) *fakeEdge {
	t.Helper()
	e := listenEdge(t, "")
	e.server.Start()
	return e
}

func (e *fakeEdge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != messages.ConnectPath || r.URL.RawQuery != "" {
		http.NotFound(w, r)
		return
	}
	challenge := e.challenge()
	conn, err := tunnel.Accept(w, r, challenge)
	if err != nil {
		e.t.Errorf("the agent's handshake: %v", err)
		return
	}
	e.add(conn, challenge)
}

// dial takes the place of tunnel.Dial.
func (e *fakeEdge) dial(context.Context, string, tunnel.DialOptions) (tunnel.Conn, string, error) {
	e.mu.Lock()
	e.dials = append(e.dials, time.Now())
	refuse := e.refuse
	e.mu.Unlock()
	if refuse != nil {
		if err := refuse(); err != nil {
			return nil, "", err
		}
	}
	near, far := newPipe()
	challenge := e.challenge()
	e.add(far, challenge)
	return near, challenge, nil
}

func (e *fakeEdge) refuseWith(refuse func() error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.refuse = refuse
}

func (e *fakeEdge) dialled() []time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.dials
}

func newChallenge() string {
	var raw [32]byte
	_, _ = rand.Read(raw[:])
	return base64.RawURLEncoding.EncodeToString(raw[:])
}

func (e *fakeEdge) add(conn tunnel.Conn, challenge string) {
	e.t.Cleanup(func() { conn.Close() })
	e.links <- &edgeLink{Conn: conn, t: e.t, challenge: challenge, left: make(chan messages.Disconnect, 16)}
}

// next waits for the next link.
func (e *fakeEdge) next() *edgeLink {
	e.t.Helper()
	select {
	case l := <-e.links:
		return l
	case <-time.After(patience):
		e.t.Fatal("the agent opens no link")
		return nil
	}
}

// patience is how long tests wait for what must come. It is longer than any wait of an agent.
const patience = time.Minute

// accept waits for the next link, grants n registrations on it, and carries it.
func (e *fakeEdge) accept(n int) *edgeLink {
	e.t.Helper()
	l := e.next()
	for range n {
		l.grant()
	}
	l.serve()
	return l
}

// An edgeLink is the edge's end of a link.
type edgeLink struct {
	tunnel.Conn
	t         testing.TB
	challenge string
	granted   uint32
	session   *tunnel.Session
	left      chan messages.Disconnect // what the agent said, once it is carried
}

// claim reads the next registration request.
func (l *edgeLink) claim() (identity.Registration, identity.PublicKey) {
	l.t.Helper()
	text, r, err := l.NextMessage()
	if err != nil || !text {
		l.t.Fatalf("waiting for a registration request: text %v, error %v", text, err)
	}
	raw, err := io.ReadAll(r)
	if err != nil {
		l.t.Fatal(err)
	}
	request, err := messages.ParseRegistrationRequest(raw)
	if err != nil {
		l.t.Fatalf("registration request %q: %v", raw, err)
	}
	key, claim, err := identity.Verify(request.JWS)
	if err != nil {
		l.t.Fatalf("registration request %q: %v", raw, err)
	}
	return claim, key
}

// grant reads a registration request and answers it with the next number.
func (l *edgeLink) grant() identity.Registration {
	l.t.Helper()
	claim, key := l.claim()
	l.granted++
	hostname := key.Thumbprint().Label(claim.Session) + ".tunnels.example.com"
	l.answer(messages.RegistrationResponse{
		Registration: l.granted, Hostname: hostname, URL: "https://" + hostname + claim.Path,
		Limits: &messages.Limits{MaxBody: 512_000, MaxStreams: 1000},
	})
	return claim
}

func (l *edgeLink) answer(r messages.RegistrationResponse) {
	l.t.Helper()
	text, err := messages.EncodeRegistrationResponse(r)
	if err != nil {
		l.t.Fatal(err)
	}
	l.say(string(text))
}

// say sends a text message, whatever it holds.
func (l *edgeLink) say(text string) {
	l.t.Helper()
	if err := l.WriteText([]byte(text)); err != nil {
		l.t.Errorf("sending %.60q: %v", text, err)
	}
}

// serve carries the link from here on.
func (l *edgeLink) serve() {
	l.session = tunnel.NewSession(l.Conn, tunnel.Config{
		MaxStreams:   5000,
		OnDisconnect: func(d messages.Disconnect) { l.left <- d },
		OnText:       func([]byte) error { return errors.New("text from the agent") },
	})
	go l.session.Run(context.Background()) // ends with cut, or at the end of the test
	l.t.Cleanup(l.cut)
}

// cut ends the link without a farewell.
func (l *edgeLink) cut() {
	l.Close()
	if l.session != nil {
		<-l.session.Done()
	}
}

// disconnect tells the agent that the link, or one registration, is to end.
func (l *edgeLink) disconnect(code messages.DisconnectCode, registration uint32) {
	l.session.Disconnect(messages.Disconnect{Code: code, Registration: registration, Reason: "says the edge"})
}

// gone waits for the end of the link and returns its reason.
func (l *edgeLink) gone() error {
	l.t.Helper()
	select {
	case <-l.session.Ended():
	case <-time.After(patience):
		l.t.Fatal("the link does not end")
	}
	return l.session.Err()
}

// farewell waits for the agent's word that it leaves.
func (l *edgeLink) farewell() {
	l.t.Helper()
	var d messages.Disconnect
	select {
	case d = <-l.left:
	case <-l.session.Ended():
		select {
		case d = <-l.left:
		default:
			l.t.Error("the link ended without the agent's word")
			return
		}
	case <-time.After(patience):
		l.t.Error("the agent says nothing")
		return
	}
	if d.Code != messages.DisconnectLeaving || d.Registration != 0 {
		l.t.Errorf("the agent says %+v, want that it leaves", d)
	}
}

// visit sends a visitor's request to a registration and returns the whole answer.
func (l *edgeLink) visit(registration uint32, target string) (string, error) {
	r := httptest.NewRequest("GET", "/", nil)
	r.RequestURI = target
	res, err := l.session.RoundTrip(registration, r)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return string(body), err
}

// wants makes the test fail unless a visitor gets the answer.
func (l *edgeLink) wants(registration uint32, target, answer string) {
	l.t.Helper()
	if got, err := l.visit(registration, target); got != answer || err != nil {
		l.t.Errorf("registration %d answers %s with %q, %v; want %q", registration, target, got, err, answer)
	}
}

// newPipe returns both ends of a link in memory.
func newPipe() (near, far *pipeConn) {
	a, b := make(chan pipeMessage, 256), make(chan pipeMessage, 256)
	near = &pipeConn{in: a, out: b, closed: make(chan struct{})}
	far = &pipeConn{in: b, out: a, closed: make(chan struct{})}
	near.far, far.far = far, near
	return near, far
}

// A pipeConn is one end of a link in memory.
type pipeConn struct {
	far     *pipeConn
	in, out chan pipeMessage
	closed  chan struct{}
	once    sync.Once // closes closed
}

type pipeMessage struct {
	text bool
	b    []byte
}

func (c *pipeConn) NextMessage() (bool, io.Reader, error) {
	select {
	case m := <-c.in:
		return m.text, bytes.NewReader(m.b), nil
	case <-c.closed:
		return false, nil, net.ErrClosed
	case <-c.far.closed:
	}
	select { // what was sent before the end still comes
	case m := <-c.in:
		return m.text, bytes.NewReader(m.b), nil
	default:
		return false, nil, io.EOF
	}
}

func (c *pipeConn) WriteBinary(parts ...[]byte) error {
	for _, p := range parts {
		if len(p) > 0 {
			if err := c.write(pipeMessage{false, bytes.Clone(p)}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *pipeConn) WriteText(text []byte) error { return c.write(pipeMessage{true, bytes.Clone(text)}) }

func (c *pipeConn) write(m pipeMessage) error {
	select {
	case <-c.closed:
		return net.ErrClosed
	case <-c.far.closed:
		return io.ErrClosedPipe
	default:
	}
	select {
	case c.out <- m:
		return nil
	case <-c.closed:
		return net.ErrClosed
	case <-c.far.closed:
		return io.ErrClosedPipe
	}
}

func (c *pipeConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}
