package tunnel

import (
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// opensExpecting makes a request whose body waits for 100 Continue. seen gets the interim statuses.
func (p *peer) opensExpecting(seen *[]int) (*call, uint32) {
	p.t.Helper()
	trace := &httptrace.ClientTrace{Got1xxResponse: func(status int, _ textproto.MIMEHeader) error {
		*seen = append(*seen, status)
		return nil
	}}
	req := request("PUT", "/", strings.NewReader("body"), "Expect: 100-continue")
	c := p.calls(req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
	id, head := p.wantsRequest("a request was made")
	if h := decodeHeader(head.Fields); h.Get("Expect") == "" {
		p.t.Errorf("the agent gets %v, want Expect to be passed on", h)
	}
	p.idle("the body waits")
	return c, id
}

func TestContinueLetsBodyGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		var seen []int
		c, id := p.opensExpecting(&seen)
		p.sends(responds(id, 103, 0))
		p.idle("103 is not 100")
		p.sends(responds(id, 100, 0))
		p.wants("the agent wants the body", body(id, "body"), end(id, ""))
		p.sends(responds(id, 200, messages.FlagEnd))
		c.answered("the response came")
		if len(seen) != 2 || seen[0] != 103 || seen[1] != 100 {
			t.Errorf("interim responses %v, want 103 and 100", seen)
		}
	})
}

func TestContinueFallback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		var seen []int
		c, id := p.opensExpecting(&seen)
		time.Sleep(continueTimeout - time.Millisecond)
		p.idle("a second is not over")
		time.Sleep(time.Millisecond)
		p.wants("an agent that never heard of Expect gets the body after a second", body(id, "body"), end(id, ""))
		p.sends(responds(id, 200, messages.FlagEnd))
		c.answered("the response came")
	})
}

func TestRefusedExpectSendsNoBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeer(t, Config{})
		var seen []int
		c, id := p.opensExpecting(&seen)
		p.sends(responds(id, 417, messages.FlagEnd), cancels(id, messages.CancelEnough, ""))
		if res := c.answered("the response came"); res.StatusCode != 417 {
			t.Errorf("status %d, want 417", res.StatusCode)
		}
		time.Sleep(5 * time.Second)
		p.idle("the body of a refused request stays where it is")
	})
}

// TestContinueFromHandler reads a body that the visitor holds back: as in net/http, reading asks for it.
func TestContinueFromHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			name    string
			handler http.HandlerFunc
			want    int
		}{
			{"by reading", func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }, 1},
			{"by hand", func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(http.StatusContinue)
				_, _ = io.Copy(w, r.Body)
			}, 1},
			{"not at all", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(417) }, 0},
			{"after the head", func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(200)
				_ = http.NewResponseController(w).Flush()
				_, _ = io.Copy(w, r.Body)
			}, 0},
		} {
			p := newPair(t, c.handler)
			n := 0
			trace := &httptrace.ClientTrace{Got100Continue: func() {}, Got1xxResponse: func(status int, _ textproto.MIMEHeader) error {
				if status == 100 {
					n++
				}
				return nil
			}}
			start := time.Now()
			req := request("PUT", "/", strings.NewReader("body"), "Expect: 100-continue")
			_, _ = p.get(req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
			if n != c.want {
				t.Errorf("%s: the visitor got 100 Continue %d times, want %d", c.name, n, c.want)
			}
			if d := time.Since(start); d != 0 {
				t.Errorf("%s: it took %v, want no wait", c.name, d)
			}
		}
	})
}
