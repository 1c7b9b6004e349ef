package tunnel

import (
	"io"
	"net/http"
)

// requestBody is the request body that a handler reads. It may do so while another goroutine writes the response.
type requestBody struct {
	w  *responseWriter
	st *stream
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.w.askForBody()
	n, err := b.st.read(p, nil)
	if err == io.EOF {
		b.st.mu.Lock()
		trailers := b.st.trailers
		b.st.mu.Unlock()
		for name, values := range decodeHeader(trailers) {
			if b.w.r.Trailer == nil {
				b.w.r.Trailer = make(http.Header)
			}
			b.w.r.Trailer[name] = values
		}
	}
	return n, err
}

// Buffered returns how many bytes can be read without waiting.
func (b *requestBody) Buffered() int {
	b.st.mu.Lock()
	defer b.st.mu.Unlock()
	return b.st.in.size
}

// Close gives up what was not read.
func (b *requestBody) Close() error {
	b.st.leave()
	return nil
}
