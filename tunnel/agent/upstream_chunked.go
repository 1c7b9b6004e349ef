package agent

import (
	"bytes"
	"errors"
)

const (
	maxChunkLine   = 1 << 10  // bytes of a chunk's size and extensions
	maxChunkExcess = 16 << 10 // bytes of framing beyond what honest small chunks need
)

var errBadChunk = errors.New("malformed chunked body")

// chunkState is what a chunkDecoder waits for.
type chunkState uint8

const (
	chunkSize chunkState = iota // a line with the size
	chunkData                   // remain bytes of data
	chunkEnd                    // the CRLF behind the data
	chunkLast                   // nothing: the last chunk came, trailers follow
)

// A chunkDecoder takes the chunked transfer coding (RFC 9112 section 7.1) off a body.
type chunkDecoder struct {
	state  chunkState
	remain int64
	excess int64 // bytes of framing without data to justify them
}

// decode takes as much data from p as is there, moves it together in p, and returns it with the number of bytes of p
// that are used up. Both are 0 if p holds no more than the beginning of a line. An error comes only without data.
func (d *chunkDecoder) decode(p []byte) (data []byte, used int, err error) {
	start, out, i := 0, 0, 0 // data is p[start:out], and p[:i] is used up
	for d.state != chunkLast {
		if d.state == chunkData {
			n := int(min(d.remain, int64(len(p)-i)))
			if n == 0 {
				break
			}
			if out == start {
				start, out = i, i
			}
			if out != i {
				copy(p[out:], p[i:i+n])
			}
			out, i = out+n, i+n
			if d.remain -= int64(n); d.remain == 0 {
				d.state = chunkEnd
			}
			continue
		}
		n, err := d.line(p[i:])
		if err != nil && out == start {
			return nil, i, err
		}
		if err != nil || n == 0 {
			break // an error is found again when the data is out of the way
		}
		i += n
	}
	return p[start:out], i, nil
}

// line reads the line with a size, or the one behind the data; it returns 0 if it is not all there.
func (d *chunkDecoder) line(p []byte) (int, error) {
	if d.state == chunkEnd {
		switch {
		case len(p) > 0 && p[0] != '\r', len(p) > 1 && p[1] != '\n':
			return 0, errBadChunk
		case len(p) < 2:
			return 0, nil
		}
		d.state = chunkSize
		return 2, nil
	}
	end := bytes.IndexByte(p[:min(len(p), maxChunkLine)], '\n')
	switch {
	case end < 0 && len(p) >= maxChunkLine:
		return 0, errBadChunk
	case end < 0:
		return 0, nil
	case end == 0 || p[end-1] != '\r':
		return 0, errBadChunk
	}
	size, ok := parseChunkSize(p[:end-1])
	if !ok {
		return 0, errBadChunk
	}
	// A byte a chunk is honest; a kilobyte of extensions for a byte of data is not.
	d.excess = max(0, d.excess+int64(end)-16-2*size)
	if d.excess > maxChunkExcess {
		return 0, errBadChunk
	}
	if d.remain, d.state = size, chunkData; size == 0 {
		d.state = chunkLast
	}
	return end + 1, nil
}

// parseChunkSize reads the hexadecimal size at the beginning of a line, and checks that the rest can be extensions.
func parseChunkSize(line []byte) (size int64, ok bool) {
	i := 0
	for ; i < len(line); i++ {
		c := line[i]
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			rest := bytes.TrimLeft(line[i:], " \t")
			return size, i > 0 && (len(rest) == 0 || rest[0] == ';') && !bytes.ContainsAny(rest, "\r\x00")
		}
		if size >= 1<<54 {
			return 0, false
		}
		size = size<<4 | int64(c)
	}
	return size, i > 0
}
