package tunnel

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/harp-tunnel/harp/messages"
)

// raw is a message with any payload.
func raw(kind messages.Type, flags messages.Flags, id uint32, payload string) []byte {
	return append(messages.AppendHeader(nil, messages.Header{Length: len(payload), Type: kind, Flags: flags, Stream: id}), payload...)
}

const garbage = "\xff\xff\xff\xff\xff\xff garbage \x00"

// TestBrokenHeaders wants the link to end, with the reason as the last message.
func TestBrokenHeaders(t *testing.T) {
	for _, c := range []struct {
		name string
		b    []byte
	}{
		{"header cut short", []byte{0, 0, 0, 1}},
		{"header cut short behind a message", append(messages.AppendReserved(nil, 0), 0)},
		{"payload cut short", body(1, "hello")[:12]},
		{"payload too long", []byte{0x10, 0, 1, byte(messages.TypeBody), 0, 0, 0, 0, 1}},
		{"longest length", []byte{0xff, 0xff, 0xff, 0x99, 0, 0, 0, 0, 1}},
		{"body on stream 0", body(0, "x")},
		{"credit on stream 0", credit(0, 1)},
		{"cancel on stream 0", cancels(0, messages.CancelAborted, "")},
		{"trailers on stream 0", trailers(0)},
		{"response on stream 0", responds(0, 200, 0)},
		{"request on stream 0", requests(0, "GET", "/", 0)},
		{"garbage in a ping", raw(messages.TypePing, 0, 0, garbage)},
		{"garbage in a disconnect", raw(messages.TypeDisconnect, 0, 0, "\x00")},
	} {
		for _, handler := range []func(uint32) http.Handler{nil, func(uint32) http.Handler { return http.NotFoundHandler() }} {
			synctest.Test(t, func(t *testing.T) {
				p := newPeer(t, Config{Handler: handler})
				if handler == nil {
					call, _ := p.opens("GET", "/", nil)
					defer func() {
						if err := call.failed(c.name); !errors.Is(err, ErrClosed) || !errors.Is(err, ErrProtocol) || Unprocessed(err) {
							t.Errorf("%s: RoundTrip failed with %v, want %v", c.name, err, ErrClosed)
						}
					}()
				}
				p.sends(c.b)
				h, payload := p.next(c.name)
				if d, err := messages.ParseDisconnect(payload); h.Type != messages.TypeDisconnect || err != nil || d.Code != messages.DisconnectProtocol || d.Reason == "" {
					t.Errorf("%s: session sent %s, want a Disconnect that says protocol error, and why", c.name, show(h, payload))
				}
				if err := p.dead(c.name); !errors.Is(err, ErrProtocol) {
					t.Errorf("%s: link died of %v, want %v", c.name, err, ErrProtocol)
				}
			})
		}
	}
}

func TestDisconnectForProtocolIsNotAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		p.sends(messages.AppendDisconnect(nil, messages.Disconnect{Code: messages.DisconnectProtocol, Reason: "you are wrong"}))
		if err := p.dead("the peer found an error"); errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), "you are wrong") {
			t.Errorf("link died of %v, want the peer's reason", err)
		}
		p.idle("it is closed without a word")
	})
}

func TestUnexpectedText(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		_ = p.conn.WriteText([]byte("{}"))
		if err := p.dead("text where none is wanted"); !errors.Is(err, ErrProtocol) {
			t.Errorf("link died of %v, want %v", err, ErrProtocol)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		refused := errors.New("refused")
		p := newPeer(t, Config{OnText: func(text []byte) error {
			if string(text) != "{}" {
				t.Errorf("text %q, want {}", text)
			}
			return refused
		}})
		_ = p.conn.WriteText([]byte("{}"))
		if err := p.dead("OnText did not like it"); !errors.Is(err, refused) {
			t.Errorf("link died of %v, want the error of OnText", err)
		}
	})
}

// TestBadStreams breaks the protocol on one stream in every way. Each time that stream ends with the error of
// PROTOCOL.md, section 7.1, another one on the link goes on, and nothing is left.
func TestBadStreams(t *testing.T) {
	const head, ended, gone = 1, 2, 3 // how far the response has come: final head, end, cancelled
	for _, c := range []struct {
		name  string
		stage int
		bad   func(id uint32) []byte
		want  messages.CancelCode // 0: it is dropped
	}{
		{"body before the head", 0, func(id uint32) []byte { return body(id, "x") }, messages.CancelProtocol},
		{"end before the head", 0, func(id uint32) []byte { return end(id, "") }, messages.CancelProtocol},
		{"trailers before the head", 0, func(id uint32) []byte { return trailers(id) }, messages.CancelProtocol},
		{"garbage for a head", 0, func(id uint32) []byte { return raw(messages.TypeHTTPResponse, 0, id, garbage) }, messages.CancelProtocol},
		{"nothing for a head", 0, func(id uint32) []byte { return raw(messages.TypeHTTPResponse, 0, id, "") }, messages.CancelProtocol},
		{"status 99", 0, func(id uint32) []byte { return responds(id, 99, 0) }, messages.CancelProtocol},
		{"status 1000", 0, func(id uint32) []byte { return responds(id, 1000, 0) }, messages.CancelProtocol},
		{"line break in a field", 0, func(id uint32) []byte { return responds(id, 200, 0, "X: a\r\nX-Injected: b") }, messages.CancelProtocol},
		{"too many fields", 0, func(id uint32) []byte {
			return responds(id, 200, 0, strings.Split(strings.Repeat("a: b,", messages.MaxFields)+"a: b", ",")...)
		}, messages.CancelProtocol},
		{"huge head", 0, func(id uint32) []byte { return responds(id, 200, 0, "X: "+strings.Repeat("x", maxResponseHead)) }, messages.CancelTooLarge},
		{"interim head that ends", 0, func(id uint32) []byte { return responds(id, 103, messages.FlagEnd) }, messages.CancelProtocol},
		{"101 without Upgrade", 0, func(id uint32) []byte { return responds(id, 101, 0) }, messages.CancelProtocol},
		{"WSResponse to HTTPRequest", 0, func(id uint32) []byte { return responseHead(messages.TypeWSResponse, id, 200, 0) }, messages.CancelProtocol},
		{"WSMessage on an HTTP stream", 0, func(id uint32) []byte { return upgraded(id, "x") }, messages.CancelProtocol},
		{"WSMessage in a body", head, func(id uint32) []byte { return upgraded(id, "x") }, messages.CancelProtocol},
		{"second head", head, func(id uint32) []byte { return responds(id, 200, 0) }, messages.CancelProtocol},
		{"interim head after the final one", head, func(id uint32) []byte { return responds(id, 103, 0) }, messages.CancelProtocol},
		{"huge trailers", head, func(id uint32) []byte { return trailers(id, "X: "+strings.Repeat("x", maxTrailers)) }, messages.CancelTooLarge},
		{"garbage in trailers", head, func(id uint32) []byte { return raw(messages.TypeTrailers, 0, id, garbage) }, messages.CancelProtocol},
		{"garbage in credit", head, func(id uint32) []byte { return raw(messages.TypeCredit, 0, id, garbage) }, messages.CancelProtocol},
		{"body after the end", ended, func(id uint32) []byte { return body(id, "x") }, messages.CancelProtocol},
		{"end after the end", ended, func(id uint32) []byte { return end(id, "") }, messages.CancelProtocol},
		{"trailers after the end", ended, func(id uint32) []byte { return trailers(id) }, messages.CancelProtocol},
		{"trailers twice", ended, func(id uint32) []byte { return append(trailers(id), trailers(id)...) }, messages.CancelProtocol},
		{"head after the end", ended, func(id uint32) []byte { return responds(id, 200, 0) }, messages.CancelProtocol},
		{"body after a cancel", gone, func(id uint32) []byte { return body(id, "x") }, 0},
		{"garbage after a cancel", gone, func(id uint32) []byte { return raw(messages.TypeCredit, 0, id, garbage) }, 0},
		{"garbage in a second cancel", gone, func(id uint32) []byte { return raw(messages.TypeCancel, 0, id, garbage) }, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPeer(t, Config{})
			other, good := p.streams()
			call, id := p.opens("POST", "/", newLentBody("").asLent(t))
			switch c.stage {
			case head:
				p.sends(responds(id, 200, 0))
			case ended:
				p.sends(responds(id, 200, 0), end(id, "all"))
			case gone:
				p.sends(cancels(id, messages.CancelAborted, ""))
			}
			p.sends(c.bad(id))
			if c.want != 0 {
				p.wantsCancel(c.name, id, c.want)
			}
			p.idle(c.name)
			if c.stage == 0 {
				if err := call.failed(c.name); c.want == messages.CancelProtocol && !errors.Is(err, ErrProtocol) || Unprocessed(err) {
					t.Errorf("%s: RoundTrip failed with %v, want an error that wraps %v", c.name, err, ErrProtocol)
				}
			} else if c.stage != gone {
				if got, err := io.ReadAll(call.answered(c.name).Body); err == nil {
					t.Errorf("%s: the body ended well with %q", c.name, got)
				}
				call.res.Body.Close()
			}
			p.sends(body(other, "fine"), end(other, ""))
			if got, err := io.ReadAll(good); string(got) != "fine" || err != nil {
				t.Errorf("%s: another stream got %q, %v", c.name, got, err)
			}
			if n := p.s.Streams(); n != 0 {
				t.Errorf("%s: %d streams are left", c.name, n)
			}
		})
	}
}

// asLent ends the body with the test.
func (b *lentBody) asLent(t *testing.T) *lentBody {
	t.Cleanup(b.end)
	return b
}

// TestBadCancel sends cancels that are none: they count as a broken protocol, and are not answered.
func TestBadCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		for _, payload := range []string{"", "\x01\xff\xfe", "\x01" + strings.Repeat("x", 1025)} {
			call, id := p.opens("GET", "/", nil)
			p.sends(raw(messages.TypeCancel, 0, id, payload))
			var cancelled *CancelError
			if err := call.failed("cancelled"); !errors.As(err, &cancelled) || cancelled.Code != messages.CancelProtocol || Unprocessed(err) {
				t.Errorf("RoundTrip failed with %v, want a cancel for protocol error", err)
			}
			p.idle("a cancel is not answered")
		}
	})
}

// TestStreamsThatWereNeverOpened has an agent answer for streams that it does not own.
func TestStreamsThatWereNeverOpened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		call, id := p.opens("GET", "/", nil)
		for _, b := range [][]byte{responds(id+1, 200, 0), body(id+1, "x"), trailers(id + 1), credit(id+1, 1), upgraded(id+1, "x"),
			responds(1<<32-1, 200, 0), raw(messages.TypeCredit, 0, id+1, garbage)} {
			p.sends(b)
			h, _, _, _ := messages.Next(b)
			p.wantsCancel("it was never opened", h.Stream, messages.CancelProtocol)
		}
		p.sends(cancels(id+1, messages.CancelRefused, ""), raw(messages.TypeWSTeardown, 0, id+1, garbage))
		p.idle("a cancel is not answered")
		p.sends(requests(id+1, "GET", "/", 0), requestHead(messages.TypeWSRequest, id+2, "GET", "/", 0), raw(messages.TypeTLSRequest, 0, id+3, garbage))
		for i := range uint32(3) {
			p.wantsCancel("an agent opens no streams", id+1+i, messages.CancelProtocol)
		}
		p.sends(responds(id, 204, messages.FlagEnd))
		call.answered("nobody else was hurt")
		_, next := p.opens("GET", "/", nil)
		if next != id+1 {
			t.Errorf("next stream is %d, want %d", next, id+1)
		}
	})
}

// TestBadRequests plays an edge that breaks the protocol.
func TestBadRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newAgent(t, func(w http.ResponseWriter, r *http.Request) {
			if r.RequestURI == "/waits" {
				<-r.Context().Done()
			}
			_, err := io.Copy(io.Discard, r.Body)
			if r.RequestURI == "/bad" && !errors.Is(err, ErrProtocol) {
				t.Errorf("handler got %v, want an error that wraps %v", err, ErrProtocol)
			}
		})
		p.sends(requests(10, "GET", "/waits", 0))
		p.sends(requests(10, "GET", "/", 0))
		p.wantsCancel("number in use", 10, messages.CancelProtocol)
		p.sends(requests(10, "GET", "/", 0))
		p.wantsCancel("number used before", 10, messages.CancelProtocol)
		p.sends(requests(9, "GET", "/", 0))
		p.wantsCancel("number out of order", 9, messages.CancelProtocol)
		id := uint32(10)
		for name, b := range map[string][]byte{
			"garbage":             raw(messages.TypeHTTPRequest, 0, 0, garbage),
			"nothing":             raw(messages.TypeHTTPRequest, 0, 0, ""),
			"garbage to upgrade":  raw(messages.TypeWSRequest, 0, 0, garbage),
			"no method":           requests(0, "", "/", 0),
			"no target":           requests(0, "GET", "", 0),
			"target in two":       requests(0, "GET", "/ HTTP/1.1", 0),
			"line break":          requests(0, "GET", "/", 0, "X: a\r\nX-Injected: b"),
			"target that is none": requests(0, "GET", "/%zz", 0),
		} {
			id++
			b[8] = byte(id)
			p.sends(b)
			p.wantsCancel(name, id, messages.CancelProtocol)
			p.sends(body(id, "x"), end(id, ""))
			p.idle(name + ": what follows is dropped")
		}
		p.sends(requests(29, "GET", "/", 0, "X: "+strings.Repeat("x", maxRequestHead)))
		p.wantsCancel("huge head", 29, messages.CancelTooLarge)
		p.sends(raw(messages.TypeTLSRequest, 0, 30, garbage))
		p.wantsCancel("TLS at the agent", 30, messages.CancelUnsupported)
		p.sends(requests(31, "POST", "/bad", 0))
		p.sends(responds(31, 200, 0))
		p.wantsCancel("a response from the edge", 31, messages.CancelProtocol)
		p.sends(requests(32, "POST", "/", 0))
		p.sends(end(32, "x"), body(32, "y"))
		p.next("answered")
		p.sends(requests(40, "GET", "/", messages.FlagEnd))
		for p.pending() {
			if h, _ := p.next("the rest"); h.Stream == 40 && h.Type == messages.TypeHTTPResponse {
				return
			}
		}
		t.Error("a good request is no longer answered")
	})
}

func TestUnknownTypesAreSkipped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		call, id := p.opens("GET", "/", nil)
		for kind := range 256 {
			if messages.Type(kind) >= messages.TypeHTTPRequest && messages.Type(kind) <= messages.TypeDisconnect {
				continue
			}
			p.sends(raw(messages.Type(kind), 0xff, 0, garbage), raw(messages.Type(kind), 0, id, ""), raw(messages.Type(kind), 0, id+1, garbage))
		}
		p.idle("types that are not known are skipped")
		p.sends(responds(id, 204, messages.FlagEnd))
		call.answered("the stream goes on")
	})
}

// TestInterimFlood sends interim heads faster than the visitor takes them.
func TestInterimFlood(t *testing.T) {
	many := func(id uint32, n int, fields ...string) (b []byte) {
		for range n {
			b = append(b, responds(id, 103, 0, fields...)...)
		}
		return b
	}
	large := "X: " + strings.Repeat("x", maxInterimBytes/2)
	for _, c := range []struct {
		name  string
		flood func(id uint32) []byte
		want  messages.CancelCode
	}{
		{"as many as may wait", func(id uint32) []byte { return many(id, maxInterim) }, 0},
		{"one more", func(id uint32) []byte { return many(id, maxInterim+1) }, messages.CancelProtocol},
		{"too many bytes", func(id uint32) []byte { return many(id, 2, large) }, messages.CancelProtocol},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPeer(t, Config{})
			takes := make(chan struct{})
			trace := &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error {
				<-takes
				return nil
			}}
			req := request("GET", "/", nil)
			call := p.calls(req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
			id, _ := p.wantsRequest("a request was made")
			p.sends(responds(id, 103, 0)) // this one the visitor takes, slowly
			p.sends(c.flood(id))
			if c.want != 0 {
				p.wantsCancel(c.name, id, c.want)
				close(takes)
				call.failed(c.name)
				return
			}
			p.sends(responds(id, 204, messages.FlagEnd))
			p.idle(c.name)
			close(takes)
			call.answered(c.name)
		})
	}
}
