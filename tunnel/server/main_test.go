package server

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testDomain = "tunnels.test"
	// patience bounds every single wait; nothing comes near it unless something is broken.
	patience = 10 * time.Second
)

// An edge is a Server behind a real socket, set up as cmd/harpd does.
type edge struct {
	*Server
	t      testing.TB
	addr   string // host:port of the socket
	client *http.Client
	reg    *prometheus.Registry
	log    *logBook
}

// newEdge starts an edge for the test. Without a RateLimit there is none.
func newEdge(t testing.TB, o Options) *edge {
	t.Helper()
	e := &edge{t: t, reg: prometheus.NewRegistry(), log: &logBook{}}
	if o.Domain == "" {
		o.Domain = testDomain
	}
	if o.RateLimit == 0 {
		o.RateLimit = -1
	}
	o.Metrics = e.reg
	o.Logger = slog.New(slog.NewTextHandler(e.log, nil))
	s, err := New(o)
	if err != nil {
		t.Fatal("new server:", err)
	}
	e.Server = s
	web := httptest.NewUnstartedServer(s)
	web.Config.DisableGeneralOptionsHandler = true
	web.Config.Protocols = new(http.Protocols)
	web.Config.Protocols.SetHTTP1(true)
	web.Config.Protocols.SetUnencryptedHTTP2(true)
	web.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	web.Start()
	e.addr = web.Listener.Addr().String()
	e.client = &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", e.addr)
			},
			DisableCompression: true, MaxIdleConnsPerHost: 100,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	t.Cleanup(func() {
		over, cancel := context.WithCancel(context.Background())
		cancel()
		_ = s.Shutdown(over)
		e.client.CloseIdleConnections()
		web.CloseClientConnections()
		web.Close()
	})
	return e
}

// A logBook keeps what was logged.
type logBook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBook) has(text string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Contains(b.text.String(), text)
}

// eventually waits until f holds.
func eventually(t testing.TB, why string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in %v it did not come true that %s", patience, why)
		}
	}
}

// receive takes the next value from c.
func receive[T any](t testing.TB, why string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("waited %v for %s", patience, why)
		panic("unreachable")
	}
}

// metric returns the value of a series, or the sum of all of a metric if name has no label.
func (e *edge) metric(name string) (sum float64) {
	e.t.Helper()
	for series, v := range gather(e.t.(*testing.T), e.reg) {
		if bare, _, _ := strings.Cut(series, "{"); series == name || bare == name {
			sum += v
		}
	}
	return sum
}

// newKey returns a key of its own for a test.
func newKey(t testing.TB) identity.Key {
	t.Helper()
	key, err := identity.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// An agent is a well-behaved one: tunnel's own session with a handler.
type agent struct {
	e           *edge
	key         identity.Key
	conn        tunnel.Conn
	session     *tunnel.Session
	challenge   string
	answers     chan messages.RegistrationResponse
	disconnects chan messages.Disconnect
	ended       chan error // gets why the session ended

	mu       sync.Mutex              // guards the field below
	handlers map[uint32]http.Handler // by registration; 0 is for all others
}

// dial connects an agent that has not registered.
func (e *edge) dial(key identity.Key, h http.Handler) *agent {
	e.t.Helper()
	conn, challenge := e.dialConn()
	a := &agent{
		e: e, key: key, conn: conn, challenge: challenge,
		answers: make(chan messages.RegistrationResponse, 100), disconnects: make(chan messages.Disconnect, 100),
		ended: make(chan error, 1), handlers: map[uint32]http.Handler{0: h},
	}
	a.session = tunnel.NewSession(conn, tunnel.Config{
		Handler: a.handler, OnDisconnect: func(d messages.Disconnect) { a.disconnects <- d },
		OnText: func(text []byte) error {
			answer, err := messages.ParseRegistrationResponse(text)
			a.answers <- answer
			return err
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { a.ended <- a.session.Run(ctx) }) // ends with ctx or the link
	e.t.Cleanup(func() { cancel(); running.Wait() })
	return a
}

func (e *edge) dialConn() (tunnel.Conn, string) {
	e.t.Helper()
	conn, challenge, err := tunnel.Dial(e.t.Context(), "ws://"+e.addr+messages.ConnectPath, tunnel.DialOptions{})
	if err != nil {
		e.t.Fatal("dial:", err)
	}
	return conn, challenge
}

func (a *agent) handler(registration uint32) http.Handler {
	a.mu.Lock()
	defer a.mu.Unlock()
	if h := a.handlers[registration]; h != nil {
		return h
	}
	return a.handlers[0]
}

// signed is a RegistrationRequest for r, whose audience and challenge are the right ones unless they are set.
func signed(t testing.TB, key identity.Key, challenge string, r identity.Registration) []byte {
	t.Helper()
	if r.Audience == "" {
		r.Audience = testDomain
	}
	if r.Challenge == "" {
		r.Challenge = challenge
	}
	jws, err := key.Sign(r)
	if err != nil {
		t.Fatal("sign:", err)
	}
	text, err := messages.EncodeRegistrationRequest(messages.RegistrationRequest{JWS: jws})
	if err != nil {
		t.Fatal("encode:", err)
	}
	return text
}

// ask sends a registration request and returns the answer.
func (a *agent) ask(r identity.Registration) messages.RegistrationResponse {
	a.e.t.Helper()
	if err := a.session.SendText(signed(a.e.t, a.key, a.challenge, r)); err != nil {
		a.e.t.Fatal("send registration:", err)
	}
	return receive(a.e.t, "the answer to a registration", a.answers)
}

// register is ask for what must be granted.
func (a *agent) register(r identity.Registration) messages.RegistrationResponse {
	a.e.t.Helper()
	answer := a.ask(r)
	if answer.Error != nil {
		a.e.t.Fatalf("registration refused: %s: %s", answer.Error.Code, answer.Error.Message)
	}
	return answer
}

// publish serves h under a key of its own and returns the agent and its host.
func (e *edge) publish(h http.HandlerFunc) (*agent, string) {
	e.t.Helper()
	return e.publishAs(newKey(e.t), identity.Registration{}, h)
}

// publishAs serves h as r.
func (e *edge) publishAs(key identity.Key, r identity.Registration, h http.HandlerFunc) (*agent, string) {
	e.t.Helper()
	a := e.dial(key, h)
	return a, a.register(r).Hostname
}

// saying is a handler that answers with one word.
func saying(word string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, word) }
}

// await waits in a handler until release is closed, or the request is over: so that a test that fails also ends.
func await(r *http.Request, release <-chan struct{}) {
	select {
	case <-release:
	case <-r.Context().Done():
	}
}

// An answer is a response that was read to its end.
type answer struct {
	*http.Response
	body string
	err  error // of reading the body
}

// code is the edge's own error code, empty for the upstream's answers.
func (a answer) code() string { return a.Header.Get("Harp-Error") }

// ask sends a visitor's request. Fields come in pairs of name and value.
func (e *edge) ask(method, url string, body io.Reader, fields ...string) (answer, error) {
	e.t.Helper()
	r, err := http.NewRequestWithContext(e.t.Context(), method, url, body)
	if err != nil {
		e.t.Fatal(err)
	}
	for i := 0; i < len(fields); i += 2 {
		r.Header.Add(fields[i], fields[i+1])
	}
	res, err := e.client.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return answer{res, string(b), err}, nil
}

// get is ask for what must get a response.
func (e *edge) get(host, target string, fields ...string) answer {
	e.t.Helper()
	a, err := e.ask("GET", "http://"+host+target, nil, fields...)
	if err != nil {
		e.t.Fatalf("GET %s%s: %v", host, target, err)
	}
	return a
}

// wantBody checks an answer of the upstream's.
func (e *edge) wantBody(why string, a answer, status int, body string) {
	e.t.Helper()
	if a.StatusCode != status || a.body != body || a.err != nil {
		e.t.Errorf("%s: got %d %.80q (%v, %s), want %d %.80q", why, a.StatusCode, a.body, a.err, a.code(), status, body)
	}
}

// wantError checks an answer of the edge's own.
func (e *edge) wantError(why string, a answer, want visitorError) {
	e.t.Helper()
	if a.StatusCode != want.Status || a.code() != want.Code {
		e.t.Errorf("%s: got %d %q (%.80q), want %d %q", why, a.StatusCode, a.code(), a.body, want.Status, want.Code)
	}
}

// A visitor is a connection on which every byte counts.
type visitor struct {
	net.Conn
	t testing.TB
	r *bufio.Reader
}

// visit opens a visitor's connection.
func (e *edge) visit() *visitor {
	e.t.Helper()
	c, err := net.Dial("tcp", e.addr)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(2 * patience))
	return &visitor{Conn: c, t: e.t, r: bufio.NewReader(c)}
}

// says sends text, in which \n stands for CR LF in heads.
func (v *visitor) says(head, body string) {
	v.t.Helper()
	if _, err := io.WriteString(v.Conn, strings.ReplaceAll(head, "\n", "\r\n")+body); err != nil {
		v.t.Errorf("visitor's write: %v", err)
	}
}

// head reads a response head, and returns its first line and fields.
func (v *visitor) head() (status string, fields []string) {
	v.t.Helper()
	for {
		line, err := v.r.ReadString('\n')
		if err != nil {
			v.t.Errorf("visitor's read of a head: %v after %q", err, append([]string{status}, fields...))
			return status, fields
		}
		line, ok := strings.CutSuffix(line, "\r\n")
		switch {
		case !ok:
			v.t.Errorf("a line of a head ends with a bare LF: %q", line)
		case line == "":
			return status, fields
		case status == "":
			status = line
		default:
			fields = append(fields, line)
		}
	}
}

// rest reads until the connection ends.
func (v *visitor) rest() (string, error) {
	b, err := io.ReadAll(v.r)
	return string(b), err
}

// field returns the values of a field in head's lines.
func field(fields []string, name string) (values []string) {
	for _, line := range fields {
		if n, value, ok := strings.Cut(line, ": "); ok && strings.EqualFold(n, name) {
			values = append(values, value)
		}
	}
	return values
}

// isReset reports whether an error is a connection reset.
func isReset(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && strings.Contains(err.Error(), "reset")
}
