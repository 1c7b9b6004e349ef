package tunnel

import (
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// sendBody sends the request body, then its trailers, and closes it.
func (x *exchange) sendBody(req *http.Request) {
	defer req.Body.Close()
	if !x.mayProceed() {
		return
	}
	c := chunkPool.Get().(*chunk)
	defer releaseChunk(c)
	for {
		n, err := req.Body.Read(c.b[:])
		if n > 0 {
			if _, err := x.write(c.b[:n], nil); err != nil {
				return
			}
		}
		if err == io.EOF {
			_ = x.endWith(req.Trailer)
			return
		}
		if err != nil {
			x.cancel(messages.CancelAborted, "the request body broke off")
			return
		}
	}
}

// mayProceed waits for the agent to want the body, and reports whether it can still be sent.
func (x *exchange) mayProceed() bool {
	if !isClosed(x.proceed) {
		t := time.NewTimer(continueTimeout)
		defer t.Stop()
		select {
		case <-x.proceed:
		case <-t.C:
		case <-x.quits():
		}
	}
	return x.sendError() == nil
}

// endWith ends the body with trailers, or without if there are none. A stream of an Upgrade request has none, even if
// the answer was another than 101.
func (st *stream) endWith(trailers http.Header) error {
	if len(trailers) == 0 || st.kind != messages.TypeBody {
		return st.endBody()
	}
	b, err := messages.Finish(appendHeader(messages.AppendTrailers(buffer(nil), st.id, ""), trailers), 0)
	defer releaseBuffer(b)
	if err != nil || len(b) > messages.HeaderLen+maxTrailers || fieldCount(trailers) > messages.MaxFields {
		st.cancel(messages.CancelTooLarge, "the trailers are too large")
		return messages.ErrTooLong
	}
	return st.end(func() error { return st.session.out.trailers(st, b) })
}

func expectsContinue(h http.Header) bool {
	v := h["Expect"]
	return len(v) > 0 && strings.EqualFold(v[0], "100-continue")
}
