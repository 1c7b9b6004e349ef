package tunnel

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/harp-tunnel/harp/messages"
)

// A peer plays the other end of a link: it speaks raw messages to a Session, in a bubble of synctest. To an edge
// (no Handler in the Config) it is the agent, to an agent the edge.
type peer struct {
	t    *testing.T
	s    *Session
	conn *memConn
	ran  chan error // gets what Run returned
	rest []byte     // messages that came and were not looked at
}

// newPeer starts a session and ends it with the test.
func newPeer(t *testing.T, config Config) *peer { return newPeerQueue(t, config, 1024) }

// newPeerQueue is newPeer with a link on which only so many WebSocket messages can be under way.
func newPeerQueue(t *testing.T, config Config, queue int) *peer {
	t.Helper()
	here, there := newMemLink(queue)
	p := &peer{t: t, s: NewSession(there, config), conn: here, ran: make(chan error, 1)}
	go func() { p.ran <- p.s.Run(context.Background()) }() // ends with the test
	t.Cleanup(func() {
		p.conn.Close()
		<-p.s.Done()
		if n := p.s.Streams(); n != 0 {
			t.Errorf("%d streams are left after the end of the link", n)
		}
		if n := p.s.grown.Load(); n != 0 {
			t.Errorf("windows have %d bytes of the budget after the end of the link", n)
		}
	})
	return p
}

// newAgent is a peer of an agent with this handler.
func newAgent(t *testing.T, h http.HandlerFunc) *peer {
	t.Helper()
	return newPeer(t, Config{Handler: func(uint32) http.Handler { return h }})
}

// sends sends messages in one batch.
func (p *peer) sends(list ...[]byte) {
	p.t.Helper()
	batch := list[0]
	if len(list) > 1 {
		batch = bytes.Join(list, nil)
	}
	if err := p.conn.WriteBinary(batch); err != nil {
		p.t.Fatalf("peer cannot send: %v", err)
	}
	synctest.Wait()
}

// pending reports whether the session has sent something that was not looked at.
func (p *peer) pending() bool {
	p.t.Helper()
	synctest.Wait()
	for len(p.rest) == 0 {
		select {
		case m := <-p.conn.in:
			if m.text {
				p.t.Fatalf("session sent the text %q", m.b)
			}
			p.rest = m.b
		default:
			return false
		}
	}
	return true
}

// next returns the next message that the session sent.
func (p *peer) next(why string) (messages.Header, []byte) {
	p.t.Helper()
	if !p.pending() {
		p.t.Fatalf("%s: nothing was sent", why)
	}
	h, payload, rest, err := messages.Next(p.rest)
	if err != nil {
		p.t.Fatalf("%s: session sent %v", why, err)
	}
	p.rest = rest
	return h, payload
}

// wants expects these messages.
func (p *peer) wants(why string, list ...[]byte) {
	p.t.Helper()
	for _, b := range list {
		want, payload, _, err := messages.Next(b)
		if err != nil {
			p.t.Fatal(err)
		}
		h, got := p.next(why)
		if h != want || !bytes.Equal(got, payload) {
			p.t.Fatalf("%s: session sent %s, want %s", why, show(h, got), show(want, payload))
		}
	}
}

// wantsCancel expects the cancel of a stream.
func (p *peer) wantsCancel(why string, id uint32, want messages.CancelCode) {
	p.t.Helper()
	h, payload := p.next(why)
	code, _, err := messages.ParseCancel(payload)
	if h.Type != messages.TypeCancel && h.Type != messages.TypeWSTeardown || h.Stream != id || err != nil || code != want {
		p.t.Fatalf("%s: session sent %s, want a cancel of stream %d: %s", why, show(h, payload), id, want)
	}
}

// wantsResponse expects a response head.
func (p *peer) wantsResponse(why string, id uint32, status int, flags messages.Flags) http.Header {
	p.t.Helper()
	h, payload := p.next(why)
	head, err := messages.ParseHTTPResponse(string(payload))
	if h.Type != messages.TypeHTTPResponse && h.Type != messages.TypeWSResponse || err != nil ||
		h.Stream != id || head.Status != status || h.Flags != flags {
		p.t.Fatalf("%s: session sent %s, want a response head with status %d and flags %d", why, show(h, payload), status, flags)
	}
	return decodeHeader(head.Fields)
}

// wantsRequest expects a request head and returns it with its stream.
func (p *peer) wantsRequest(why string) (uint32, messages.HTTPRequest) {
	p.t.Helper()
	h, payload := p.next(why)
	head, err := messages.ParseHTTPRequest(string(payload))
	if h.Type != messages.TypeHTTPRequest && h.Type != messages.TypeWSRequest || err != nil {
		p.t.Fatalf("%s: session sent %s (%v), want a request", why, show(h, payload), err)
	}
	return h.Stream, head
}

// gathers takes what comes on a stream until its end, and returns the bytes. Credit is given for all of it.
func (p *peer) gathers(why string, id uint32) []byte {
	p.t.Helper()
	var all []byte
	for {
		h, payload := p.next(why)
		if h.Stream != id || h.Type != messages.TypeBody && h.Type != messages.TypeWSMessage {
			p.t.Fatalf("%s: session sent %s, want a piece of a body", why, show(h, payload))
		}
		all = append(all, payload...)
		if h.Flags&messages.FlagEnd != 0 {
			return all
		}
		if len(payload) > 0 {
			p.sends(credit(id, uint32(len(payload))))
		}
	}
}

// idle expects that nothing is sent.
func (p *peer) idle(why string) {
	p.t.Helper()
	if p.pending() {
		h, payload := p.next(why)
		p.t.Fatalf("%s: session sent %s, want nothing", why, show(h, payload))
	}
}

// alive expects that the link has survived, by a ping that is answered.
func (p *peer) alive(why string) {
	p.t.Helper()
	data := [messages.PingLen]byte{'a', 'l', 'i', 'v', 'e'}
	p.sends(messages.AppendPing(nil, 0, data))
	for p.s.Err() == nil && p.pending() {
		if h, payload := p.next(why); h.Type == messages.TypePing && h.Flags == messages.FlagAck && string(payload) == string(data[:]) {
			return
		}
	}
	p.t.Fatalf("%s: the link is dead: %v", why, p.s.Err())
}

// dead expects that the link has ended, and returns why.
func (p *peer) dead(why string) error {
	p.t.Helper()
	synctest.Wait()
	select {
	case <-p.s.Ended():
		return p.s.Err()
	default:
		p.t.Fatalf("%s: the link is still alive", why)
		return nil
	}
}

func show(h messages.Header, payload []byte) string {
	switch h.Type {
	case messages.TypeCancel, messages.TypeWSTeardown:
		if code, reason, err := messages.ParseCancel(payload); err == nil {
			return fmt.Sprintf("%s stream %d: %s %q", h.Type, h.Stream, code, reason)
		}
	}
	return fmt.Sprintf("%s stream %d flags %d, %d bytes %.60q", h.Type, h.Stream, h.Flags, len(payload), payload)
}

// A call is a RoundTrip under way.
type call struct {
	t      *testing.T
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when RoundTrip has returned
	res    *http.Response
	err    error
}

// calls starts a RoundTrip of the session under test, which is an edge.
func (p *peer) calls(req *http.Request) *call { return goRoundTrip(p.t, p.s, req) }

func goRoundTrip(t *testing.T, s *Session, req *http.Request) *call {
	ctx, cancel := context.WithCancelCause(req.Context())
	c := &call{t: t, cancel: cancel, done: make(chan struct{})}
	go func() { // ends with the call
		defer close(c.done)
		c.res, c.err = s.RoundTrip(1, req.WithContext(ctx))
	}()
	t.Cleanup(func() {
		cancel(context.Canceled)
		<-c.done
	})
	return c
}

// opens starts a request and takes its head from the link: the agent has stream id now.
func (p *peer) opens(method, target string, body io.Reader, fields ...string) (*call, uint32) {
	p.t.Helper()
	c := p.calls(request(method, target, body, fields...))
	id, _ := p.wantsRequest("a request was made")
	return c, id
}

// answered waits for the response head.
func (c *call) answered(why string) *http.Response {
	c.t.Helper()
	synctest.Wait()
	select {
	case <-c.done:
	default:
		c.t.Fatalf("%s: RoundTrip still waits", why)
	}
	if c.err != nil {
		c.t.Fatalf("%s: %v", why, c.err)
	}
	return c.res
}

// failed waits for the error.
func (c *call) failed(why string) error {
	c.t.Helper()
	synctest.Wait()
	select {
	case <-c.done:
	default:
		c.t.Fatalf("%s: RoundTrip still waits", why)
	}
	if c.err == nil {
		c.t.Fatalf("%s: RoundTrip succeeded with status %d, want an error", why, c.res.StatusCode)
	}
	return c.err
}

// request is a visitor's request. Fields are "Name: value".
func request(method, target string, body io.Reader, fields ...string) *http.Request {
	r := (&http.Request{
		Method: method, RequestURI: target, Host: "label.example.com", RemoteAddr: "192.0.2.7:1234",
		Header: make(http.Header),
	}).WithContext(context.Background())
	if body != nil {
		var ok bool
		if r.Body, ok = body.(io.ReadCloser); !ok {
			r.Body = io.NopCloser(body)
		}
	}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		r.Header.Add(name, value)
	}
	return r
}

// requests is a request head as the edge sends it.
func requests(id uint32, method, target string, flags messages.Flags, fields ...string) []byte {
	return requestHead(messages.TypeHTTPRequest, id, method, target, flags, fields...)
}

func requestHead(kind messages.Type, id uint32, method, target string, flags messages.Flags, fields ...string) []byte {
	b := messages.BeginHTTPRequest(nil, kind, flags, id, &messages.HTTPRequest{
		Registration: 1, Method: method, Scheme: "https", Authority: "label.example.com", Target: target,
		Visitor: "192.0.2.7:1234", Fields: encodeFields(fields),
	})
	return finished(b)
}

// responds is a response head as the agent sends it.
func responds(id uint32, status int, flags messages.Flags, fields ...string) []byte {
	return responseHead(messages.TypeHTTPResponse, id, status, flags, fields...)
}

func responseHead(kind messages.Type, id uint32, status int, flags messages.Flags, fields ...string) []byte {
	return finished(messages.BeginHTTPResponse(nil, kind, flags, id, &messages.HTTPResponse{
		Status: status, Fields: encodeFields(fields),
	}))
}

func encodeFields(fields []string) messages.Fields {
	var b []byte
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		b = messages.AppendField(b, name, value)
	}
	return messages.Fields(b)
}

func finished(b []byte) []byte {
	b, err := messages.Finish(b, 0)
	if err != nil {
		panic(err)
	}
	return b
}

func body(id uint32, p string) []byte {
	return messages.AppendBody(nil, messages.TypeBody, 0, id, []byte(p))
}

func end(id uint32, p string) []byte {
	return messages.AppendBody(nil, messages.TypeBody, messages.FlagEnd, id, []byte(p))
}

func upgraded(id uint32, p string) []byte {
	return messages.AppendBody(nil, messages.TypeWSMessage, 0, id, []byte(p))
}

func upgradedEnd(id uint32, p string) []byte {
	return messages.AppendBody(nil, messages.TypeWSMessage, messages.FlagEnd, id, []byte(p))
}

func trailers(id uint32, fields ...string) []byte {
	return finished(messages.AppendTrailers(nil, id, encodeFields(fields)))
}

func credit(id, n uint32) []byte { return messages.AppendCredit(nil, id, n) }

func cancels(id uint32, code messages.CancelCode, reason string) []byte {
	return messages.AppendCancel(nil, messages.TypeCancel, id, code, reason)
}
