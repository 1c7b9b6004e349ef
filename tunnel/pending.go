package tunnel

import (
	"context"
	"net/http"

	"github.com/harp-tunnel/harp/messages"
)

// A Pending is a request without a body that was sent, and for whose answer nobody waits: whoever sent it is called. Without
// goroutines that wait for the head, and are woken for it, the edge takes half the CPU time for a small request.
type Pending struct{ x exchange }

// An Awaiter is called when there is something new about a Pending.
type Awaiter interface {
	// Ready is called when something of the answer has come, after all that came with it, or the stream has ended early. It
	// is called by the reader of the link, or by who ends that, and must not wait.
	Ready()
}

// Progress is how much of an answer has come.
type Progress int

const (
	NoAnswer    Progress = iota // nothing
	PartAnswer                  // the final head, and maybe some of the body
	WholeAnswer                 // the end, without trailers, and the body in one piece of at most 32 KiB
	OtherAnswer                 // an interim head, an upgrade, trailers, a longer body, or an error: Await tells
)

// Send sends a request without a body to the registration that head names: as it is, with fields, in the form of
// messages.AppendField, after those of head. It is for the caller to leave hop-by-hop fields out. a is called until Take,
// Await or Cancel, also while Send runs; a call that has begun by then may come late.
//
// p, which must be new, is what the answer is asked of. Send does not wait for a link that is busy; an error means that
// nothing was sent.
func (s *Session) Send(p *Pending, head *messages.HTTPRequest, fields []byte, a Awaiter) error {
	st := &p.x.stream
	st.init(s, 0, messages.TypeBody)
	st.outEnded = true
	st.awaiter = a
	return s.begin(impatient, st, func(b []byte) ([]byte, error) {
		start := len(b)
		b = messages.BeginHTTPRequest(b, messages.TypeHTTPRequest, messages.FlagEnd, st.id, head)
		return messages.Finish(append(b, fields...), start)
	})
}

// impatient is the context of who does not wait for room.
var impatient = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// Look returns how much of the answer has come; with PartAnswer and WholeAnswer, also its head and the length of its body so
// far, in bytes.
func (p *Pending) Look() (so Progress, head messages.HTTPResponse, size int) {
	st := &p.x.stream
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case st.inErr != nil || st.interims != nil || st.in.size > chunkSize || st.trailers != "" ||
		st.head.Status == http.StatusSwitchingProtocols:
		return OtherAnswer, head, 0
	case !st.finalHead:
		return NoAnswer, head, 0
	case !st.inEnded:
		return PartAnswer, st.head, st.in.size
	}
	return WholeAnswer, st.head, st.in.size
}

// Take ends a whole answer, of which it appends the body to b. It reports false, and has done nothing, if the link or the
// stream broke since Look.
func (p *Pending) Take(b []byte) ([]byte, bool) {
	st := &p.x.stream
	st.mu.Lock()
	if st.inErr != nil || !st.inEnded {
		st.mu.Unlock()
		return b, false
	}
	for c := st.in.take(); c != nil; c = st.in.take() {
		b = append(b, c.b[c.r:c.w]...)
		releaseChunk(c)
	}
	st.awaiter = nil
	st.mu.Unlock()
	st.session.remove(st)
	return b, true
}

// Cancel gives the answer up, and tells the agent that the visitor is gone.
func (p *Pending) Cancel() {
	p.unawait()
	p.x.cancel(messages.CancelAborted, "visitor is gone")
}

// Await waits for the answer as Exchange does: with ctx, req and w as they would be there, and its errors. Afterwards p is
// of no use.
func (p *Pending) Await(ctx context.Context, req *http.Request, w Watcher) (*http.Response, error) {
	p.unawait()
	p.x.ctx = ctx
	return p.x.await(req, w)
}

func (p *Pending) unawait() {
	p.x.mu.Lock()
	defer p.x.mu.Unlock()
	p.x.awaiter = nil
}
