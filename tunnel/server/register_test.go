package server

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/harp-tunnel/harp/identity"
	"github.com/harp-tunnel/harp/messages"
	"github.com/harp-tunnel/harp/tunnel"
)

// firstAnswer sends one message on a new link and returns the answer, and whether the link was ended after it.
func (e *edge) firstAnswer(send func(c tunnel.Conn, challenge string)) (messages.RegistrationResponse, bool) {
	e.t.Helper()
	c, challenge := e.dialConn()
	defer c.Close()
	send(c, challenge)
	answer := e.readAnswer(c)
	if answer.Error == nil {
		return answer, false
	}
	ended := make(chan error, 1)
	go func() { // ends with the link
		_, _, err := c.NextMessage()
		ended <- err
	}()
	return answer, receive(e.t, "the end of a refused link", ended) != nil
}

// readAnswer reads the next message, which must be a RegistrationResponse.
func (e *edge) readAnswer(c tunnel.Conn) messages.RegistrationResponse {
	e.t.Helper()
	text, r, err := c.NextMessage()
	if err != nil {
		e.t.Fatal("read answer:", err)
	}
	b, err := io.ReadAll(r)
	if err != nil || !text {
		e.t.Fatalf("read answer: text %v, error %v, %.100q", text, err, b)
	}
	answer, err := messages.ParseRegistrationResponse(b)
	if err != nil {
		e.t.Fatalf("answer %.200q: %v", b, err)
	}
	return answer
}

func TestRegistrationIsGranted(t *testing.T) {
	e := newEdge(t, Options{MaxBody: 1234, MaxStreams: 7, RequestTimeout: 3 * time.Second, PingInterval: 4 * time.Second})
	key := newKey(t)
	a := e.dial(key, saying("hello"))
	r := a.register(identity.Registration{Session: "api", Path: "/v1/"})
	if want := key.Public().Thumbprint().Label("api") + "." + testDomain; r.Hostname != want {
		t.Errorf("hostname %s, want %s", r.Hostname, want)
	}
	_, port, _ := strings.Cut(e.addr, ":")
	if want := "http://" + r.Hostname + ":" + port + "/v1"; r.URL != want {
		t.Errorf("URL %s, want %s: the port is the one that the agent dialled", r.URL, want)
	}
	want := messages.Limits{MaxBody: 1234, MaxStreams: 7, RequestTimeout: messages.Duration(3 * time.Second), PingInterval: messages.Duration(4 * time.Second)}
	if r.Registration == 0 || r.Limits == nil || *r.Limits != want {
		t.Errorf("registration %d with limits %+v, want %+v", r.Registration, r.Limits, want)
	}
	e.wantBody("a visitor below the path", e.get(r.Hostname, "/v1/x"), 200, "hello")
}

func TestRegistrationURL(t *testing.T) {
	for _, test := range []struct {
		why  string
		o    Options
		want string
	}{
		{"routing by path alone", Options{NoHostRoute: true, RouteByPath: true}, "http://tunnels.test:PORT/t/LABEL/p"},
		{"routing by header alone", Options{NoHostRoute: true, RouteByHeader: true}, "http://tunnels.test:PORT/p"},
		{"routing by everything", Options{RouteByPath: true, RouteByHeader: true}, "http://LABEL.tunnels.test:PORT/p"},
		{"a domain written with a dot and a port", Options{Domain: "Tunnels.Test.:99"}, "http://LABEL.tunnels.test:PORT/p"},
		{"no limit of bodies", Options{MaxBody: -1}, "http://LABEL.tunnels.test:PORT/p"},
	} {
		e := newEdge(t, test.o)
		_, port, _ := strings.Cut(e.addr, ":")
		key := newKey(t)
		got := e.dial(key, nil).register(identity.Registration{Path: "/p"})
		want := strings.NewReplacer("PORT", port, "LABEL", key.Public().Thumbprint().Label("")).Replace(test.want)
		if got.URL != want {
			t.Errorf("%s: URL %s, want %s", test.why, got.URL, want)
		}
		if most := got.Limits.MaxBody; most < 0 || (test.o.MaxBody < 0) != (most == 0) {
			t.Errorf("%s: max_body %d; 0 is for no limit", test.why, most)
		}
	}
}

func TestPortOfAHost(t *testing.T) {
	for _, test := range [][3]string{
		{"a.test", "http", ""}, {"a.test:80", "http", ""}, {"a.test:443", "https", ""}, {"a.test:80", "https", ":80"},
		{"a.test:8080", "http", ":8080"}, {"[::1]", "http", ""}, {"[::1]:81", "http", ":81"}, {"", "http", ""},
	} {
		if got := portOf(test[0], test[1]); got != test[2] {
			t.Errorf("port of %q by %s is %q, want %q", test[0], test[1], got, test[2])
		}
	}
}

// forged is a request with a good signature over a payload that identity would not sign.
func forged(t *testing.T, alg jose.SignatureAlgorithm, payload string) []byte {
	t.Helper()
	var key any
	var err error
	if alg == jose.EdDSA {
		_, key, err = ed25519.GenerateKey(rand.Reader)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key},
		(&jose.SignerOptions{EmbedJWK: true}).WithType("harp-registration+jwt"))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return []byte(`{"type":"RegistrationRequest","jws":"` + jws + `"}`)
}

// tampered changes the payload of a request after it was signed.
func tampered(t *testing.T, text []byte, change func(claim map[string]any)) []byte {
	t.Helper()
	r, err := messages.ParseRegistrationRequest(text)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(r.JWS, ".")
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var claim map[string]any
	if err := json.Unmarshal(raw, &claim); err != nil {
		t.Fatal(err)
	}
	change(claim)
	raw, _ = json.Marshal(claim)
	parts[1] = base64.RawURLEncoding.EncodeToString(raw)
	text, err = messages.EncodeRegistrationRequest(messages.RegistrationRequest{JWS: strings.Join(parts, ".")})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestRegistrationIsRefused(t *testing.T) {
	key, stranger := newKey(t), newKey(t)
	authorized := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(authorized, []byte(key.Public().Thumbprint().String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	e := newEdge(t, Options{AuthorizedKeys: authorized})
	other, otherChallenge := e.dialConn()
	defer other.Close()
	good := func(challenge string, r identity.Registration) []byte { return signed(t, key, challenge, r) }
	for _, test := range []struct {
		why   string
		text  func(challenge string) []byte
		code  string
		retry bool
	}{
		{"a payload that was changed", func(c string) []byte {
			return tampered(t, good(c, identity.Registration{}), func(m map[string]any) { m["session"] = "mine" })
		}, messages.RefuseSignature, false},
		{"a mode that does not exist", func(c string) []byte {
			return forged(t, jose.EdDSA, `{"aud":"tunnels.test","challenge":"`+c+`","mode":"all"}`)
		}, messages.RefuseMalformed, false},
		{"no challenge", func(c string) []byte { return forged(t, jose.EdDSA, `{"aud":"tunnels.test"}`) }, messages.RefuseMalformed, false},
		{"a key that is no Ed25519 key", func(c string) []byte {
			return forged(t, jose.ES256, `{"aud":"tunnels.test","challenge":"`+c+`"}`)
		}, messages.RefuseMalformed, false},
		{"the challenge of another link", func(string) []byte { return good(otherChallenge, identity.Registration{}) }, messages.RefuseChallenge, true},
		{"a challenge that is a part of the right one", func(c string) []byte { return good(c[:40], identity.Registration{}) }, messages.RefuseChallenge, true},
		{"another server's name", func(c string) []byte { return good(c, identity.Registration{Audience: "evil.test"}) }, messages.RefuseAudience, false},
		{"a name below the server's", func(c string) []byte { return good(c, identity.Registration{Audience: "x.tunnels.test"}) }, messages.RefuseAudience, false},
		{"a name that ends like the server's", func(c string) []byte { return good(c, identity.Registration{Audience: "eviltunnels.test"}) }, messages.RefuseAudience, false},
		{"a key that nobody authorized", func(c string) []byte { return signed(t, stranger, c, identity.Registration{}) }, messages.RefuseNotAuthorized, false},
		{"hostnames of the agent's own", func(c string) []byte {
			return good(c, identity.Registration{Hostnames: []string{"www.example.com"}})
		}, messages.RefuseUnsupported, false},
		{"TLS at the agent", func(c string) []byte { return good(c, identity.Registration{EndToEnd: true}) }, messages.RefuseUnsupported, false},
		{"nothing", func(string) []byte { return nil }, messages.RefuseMalformed, false},
		{"garbage", func(string) []byte { return []byte("hello?") }, messages.RefuseMalformed, false},
		{"bytes that are not UTF-8", func(string) []byte { return []byte("{\"type\":\"\xff\"}") }, messages.RefuseMalformed, false},
		{"a request without a JWS", func(string) []byte { return []byte(`{"type":"RegistrationRequest"}`) }, messages.RefuseMalformed, false},
		{"a response", func(string) []byte { return []byte(`{"type":"RegistrationResponse","registration":1}`) }, messages.RefuseMalformed, false},
		{"a JWS of 9 KiB", func(string) []byte {
			return []byte(`{"type":"RegistrationRequest","jws":"` + strings.Repeat("A", 9<<10) + `"}`)
		}, messages.RefuseMalformed, false},
		{"16 KiB and a byte", func(string) []byte { return []byte(strings.Repeat(" ", messages.MaxText+1)) }, messages.RefuseMalformed, false},
		{"a megabyte", func(string) []byte { return []byte(strings.Repeat("x", 1<<20)) }, messages.RefuseMalformed, false},
		{"a text over what a link carries", func(string) []byte { return []byte(strings.Repeat("x", 2<<20)) }, messages.RefuseMalformed, false},
	} {
		before := e.metric("harp_registrations_total{result=" + test.code + "}")
		answer, ended := e.firstAnswer(func(c tunnel.Conn, challenge string) { _ = c.WriteText(test.text(challenge)) })
		if answer.Error == nil {
			t.Errorf("%s: granted", test.why)
			continue
		}
		if answer.Error.Code != test.code || answer.Error.Retry != test.retry || answer.Error.Message == "" {
			t.Errorf("%s: refused with %+v, want %s, retry %v", test.why, *answer.Error, test.code, test.retry)
		}
		if !ended {
			t.Errorf("%s: the link lives on", test.why)
		}
		if after := e.metric("harp_registrations_total{result=" + test.code + "}"); after != before+1 {
			t.Errorf("%s: counted %v times", test.why, after-before)
		}
	}
	if n := e.metric("harp_registrations"); n != 0 {
		t.Errorf("%v registrations after nothing but refusals", n)
	}
}

func TestReplayedRequestIsRefused(t *testing.T) {
	e := newEdge(t, Options{})
	key := newKey(t)
	a := e.dial(key, nil)
	captured := signed(t, key, a.challenge, identity.Registration{})
	for range 2 { // on its own link it is good for more than once
		if err := a.session.SendText(captured); err != nil {
			t.Fatal(err)
		}
		if got := receive(t, "an answer", a.answers); got.Error != nil {
			t.Errorf("on its own link: %+v", got.Error)
		}
	}
	_ = a.conn.Close()
	receive(t, "the end of the link", a.ended)
	answer, _ := e.firstAnswer(func(c tunnel.Conn, challenge string) { _ = c.WriteText(captured) })
	if answer.Error == nil || answer.Error.Code != messages.RefuseChallenge {
		t.Errorf("on a later link: %+v, want %s", answer, messages.RefuseChallenge)
	}
}

func TestBinaryBeforeRegistrationIsRefused(t *testing.T) {
	e := newEdge(t, Options{})
	for _, size := range []int{0, 9, 20 << 10} {
		answer, ended := e.firstAnswer(func(c tunnel.Conn, challenge string) { _ = c.WriteBinary(append(make([]byte, size), 0)) })
		if answer.Error == nil || answer.Error.Code != messages.RefuseMalformed || !ended {
			t.Errorf("%d bytes: got %+v, link ended: %v", size, answer.Error, ended)
		}
	}
}

func TestRefusalIsSeenByAnAgentThatSentMore(t *testing.T) {
	t.Parallel()
	e := newEdge(t, Options{})
	for range 20 {
		answer, _ := e.firstAnswer(func(c tunnel.Conn, challenge string) {
			_ = c.WriteText(signed(t, newKey(t), challenge, identity.Registration{Audience: "other.test"}))
			for range 63 { // as agents do that have several services
				_ = c.WriteText(signed(t, newKey(t), challenge, identity.Registration{Session: strings.Repeat("s", 60)}))
			}
		})
		if answer.Error == nil || answer.Error.Code != messages.RefuseAudience {
			t.Fatalf("got %+v", answer.Error)
		}
	}
}

func TestAudience(t *testing.T) {
	e := newEdge(t, Options{Audiences: []string{"Old.Example.", "192.0.2.7", "2001:db8::1"}})
	for _, test := range []struct {
		name     string
		loopback bool
		want     bool
	}{
		{"tunnels.test", false, true}, {"TUNNELS.Test", false, true}, {"tunnels.test:8443", false, true}, {"tunnels.test.", false, true},
		{"old.example", false, true}, {"old.example:1", false, true}, {"192.0.2.7", false, true}, {"192.0.2.7:80", false, true},
		{"[2001:db8::1]", false, true}, {"[2001:db8::1]:443", false, true}, {"[2001:DB8:0::1]", false, true},
		{"", false, false}, {".", false, false}, {":80", false, false}, {"a.tunnels.test", false, false}, {"example", false, false},
		{"localhost", false, false}, {"127.0.0.1", false, false}, {"[::1]", false, false},
		{"localhost", true, true}, {"LOCALHOST:99", true, true}, {"a.localhost", true, true}, {"127.0.0.1", true, true},
		{"127.9.9.9:1", true, true}, {"[::1]", true, true}, {"[::1]:8080", true, true}, {"notlocalhost", true, false},
		{"192.0.2.1", true, false}, {"evil.test", true, false},
	} {
		l := &link{server: e.Server, loopback: test.loopback}
		if got := l.hears(test.name); got != test.want {
			t.Errorf("%q on a loopback connection (%v): %v, want %v", test.name, test.loopback, got, test.want)
		}
	}
	a := e.dial(newKey(t), saying("hello"))
	a.register(identity.Registration{Audience: "LocalHost:8080"})
}

func TestSeveralRegistrationsOnOneLink(t *testing.T) {
	e := newEdge(t, Options{})
	key := newKey(t)
	a := e.dial(key, nil)
	const n = maxRegistrations
	for i := range n { // all at once: answers must come in order
		if err := a.session.SendText(signed(t, key, a.challenge, identity.Registration{Session: fmt.Sprint(i)})); err != nil {
			t.Fatal(err)
		}
		if i%32 == 31 {
			for j := i - 31; j <= i; j++ {
				answer := receive(t, "an answer", a.answers)
				if want := key.Public().Thumbprint().Label(fmt.Sprint(j)) + "." + testDomain; answer.Hostname != want {
					t.Fatalf("answer %d is for %s, want %s: answers come in order", j, answer.Hostname, want)
				}
				a.mu.Lock()
				a.handlers[answer.Registration] = saying(fmt.Sprint(j))
				a.mu.Unlock()
			}
		}
	}
	if got := a.ask(identity.Registration{Session: "one-more"}); got.Error == nil || got.Error.Code != messages.RefuseLimit {
		t.Errorf("registration %d: %+v, want %s", n+1, got, messages.RefuseLimit)
	}
	if got := e.metric("harp_limits_total{limit=registrations}"); got != 1 {
		t.Errorf("the limit was counted %v times", got)
	}
	if got := a.ask(identity.Registration{Audience: "other.test"}); got.Error == nil || got.Error.Code != messages.RefuseAudience {
		t.Errorf("a later refusal: %+v", got)
	}
	_ = a.session.SendText([]byte("garbage"))
	if got := receive(t, "the answer to garbage", a.answers); got.Error == nil || got.Error.Code != messages.RefuseMalformed {
		t.Errorf("later garbage: %+v", got)
	}
	if got := e.metric("harp_registrations"); got != n {
		t.Errorf("%v registrations in force, want %d", got, n)
	}
	for _, i := range []int{0, n - 1} {
		host := key.Public().Thumbprint().Label(fmt.Sprint(i)) + "." + testDomain
		e.wantBody("the link lives on after a refusal", e.get(host, "/"), 200, fmt.Sprint(i))
	}
	a.session.Disconnect(messages.Disconnect{Code: messages.DisconnectLeaving, Registration: 1})
	eventually(t, "the registration is given up", func() bool { return e.metric("harp_registrations") == n-1 })
	a.register(identity.Registration{Session: "in-its-place"})
}

// Whoever has the answer has the name: a visitor that comes straight after it is served, and the agent never sees a
// request for a registration that it does not know yet.
func TestVisitorsRightAfterTheAnswer(t *testing.T) {
	e := newEdge(t, Options{})
	for range 50 {
		key := newKey(t)
		a := e.dial(key, nil)
		a.handlers[0] = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if len(a.answers) == 0 {
				t.Error("a request came before the answer that names its registration")
			}
			io.WriteString(w, "here")
		})
		early := make(chan answer, 1)
		host := key.Public().Thumbprint().Label("") + "." + testDomain
		go func() { // a visitor who tries until the name is there
			for {
				if got := e.get(host, "/"); got.StatusCode == 200 || t.Failed() {
					early <- got
					return
				}
			}
		}()
		_ = a.session.SendText(signed(t, key, a.challenge, identity.Registration{}))
		eventually(t, "the answer is there", func() bool { return len(a.answers) > 0 })
		e.wantBody("right after the answer", e.get(host, "/"), 200, "here")
		e.wantBody("the eager visitor", receive(t, "the eager visitor", early), 200, "here")
		_ = a.conn.Close()
	}
}
