package tunnel

import (
	"bytes"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/harp-tunnel/harp/messages"
)

// maxChunkLine bounds the line before a chunk, in bytes.
const maxChunkLine = 4 << 10

var errChunks = errors.New("tunnel: hijacker wrote no chunk where one is due")

// hijackedChunks takes the chunks that a hijacker frames itself apart (RFC 9112, section 7.1): a link has no transfer
// codings.
type hijackedChunks struct {
	c        *UpgradedConn
	line     []byte      // what has come of a line
	left     int64       // bytes of this chunk that have not come
	inChunk  bool        // a chunk's data, or the line end behind it, is due; else a line is
	last     bool        // the last chunk has come: trailers are due
	trailers http.Header // nil if none have come
	size     int         // of the trailers, in bytes
	done     bool        // the empty line behind the trailers has come
}

// write passes the data of chunks on, and the end behind the last one. It returns how many bytes of p it has used.
func (h *hijackedChunks) write(p []byte) (used int, err error) {
	for used < len(p) {
		var n int
		switch {
		case h.done:
			err = errEnded
		case h.left > 0:
			n, err = h.c.st.write(p[used:used+int(min(int64(len(p)-used), h.left))], h.c.writeBy.wait())
			h.left -= int64(n)
		default:
			n, err = h.writeLine(p[used:])
		}
		if used += n; err != nil {
			return used, err
		}
	}
	return used, nil
}

// writeLine takes the rest of a line that is not data, or as much of it as there is.
func (h *hijackedChunks) writeLine(p []byte) (int, error) {
	n := bytes.IndexByte(p, '\n') + 1
	ends := n > 0
	if !ends {
		n = len(p)
	}
	if len(h.line)+n > maxChunkLine {
		return 0, errChunks
	}
	if h.line = append(h.line, p[:n]...); !ends {
		return n, nil
	}
	line, ok := strings.CutSuffix(string(h.line), "\r\n")
	if h.line = h.line[:0]; !ok {
		return n, errChunks
	}
	return n, h.take(line)
}

// take takes a line that is not data.
func (h *hijackedChunks) take(line string) error {
	switch {
	case h.inChunk: // the end of its data
		h.inChunk = false
		if line != "" {
			return errChunks
		}
	case !h.last:
		size, _, _ := strings.Cut(line, ";") // extensions do not travel
		n, err := strconv.ParseUint(strings.TrimRight(size, " \t"), 16, 62)
		if err != nil {
			return errChunks
		}
		h.left, h.inChunk, h.last = int64(n), n > 0, n == 0
	case line == "":
		h.done = true
		return h.c.st.endWith(h.trailers)
	default:
		name, value, ok := strings.Cut(line, ":")
		if h.size += len(line); !ok || h.size > maxTrailers {
			return errChunks
		}
		if h.trailers == nil {
			h.trailers = make(http.Header)
		}
		h.trailers.Add(name, strings.Trim(value, " \t"))
	}
	return nil
}

// close ends the response, which is broken if the last chunk has not come.
func (h *hijackedChunks) close() error {
	if !h.done {
		h.c.st.cancel(messages.CancelBroken, "the service closed the connection within a chunked answer")
		return errChunks
	}
	return nil
}
