package tunnel

import (
	"io"
	"net/http/httputil"

	"github.com/harp-tunnel/harp/messages"
)

// hijackedChunks takes the chunks that a hijacker frames itself apart: a link has no transfer codings. Trailers behind
// them are lost.
type hijackedChunks struct {
	c    *UpgradedConn
	in   *io.PipeWriter
	done chan struct{} // closed when the last chunk was passed on, or err is set
	err  error
}

func newHijackedChunks(c *UpgradedConn) *hijackedChunks {
	r, w := io.Pipe()
	h := &hijackedChunks{c: c, in: w, done: make(chan struct{})}
	go h.run(r) // ends with the last chunk, the stream, or close
	return h
}

func (h *hijackedChunks) run(r *io.PipeReader) {
	defer close(h.done)
	_, h.err = io.Copy(h, httputil.NewChunkedReader(r))
	if h.err == nil {
		h.err = h.c.st.endBody()
	}
	_ = r.CloseWithError(errEnded)
}

// Write passes a chunk's data on.
func (h *hijackedChunks) Write(p []byte) (int, error) { return h.c.st.write(p, h.c.writeBy.wait()) }

// close ends the response, which is broken if the last chunk has not come.
func (h *hijackedChunks) close() error {
	_ = h.in.Close()
	<-h.done
	if h.err != nil {
		h.c.st.cancel(messages.CancelBroken, "the service closed the connection within a chunked answer")
	}
	return h.err
}
