package server

import (
	"encoding/binary"
	"errors"
)

var errMessageTooLarge = errors.New("WebSocket message is over the limit")

// A frameFollower watches the bytes of one direction of a WebSocket go by (RFC 6455, section 5.2) and holds every
// message to a limit. It changes nothing. The size of a compressed message is its size on the wire.
type frameFollower struct {
	limit   int64 // bytes of a message; zero or less for none
	message int64 // bytes of the message so far, all its fragments
	head    [14]byte
	have    int   // bytes of head that have come
	left    int64 // bytes of the frame's payload still to come
}

// follow returns how many bytes of p may pass: all of them, or with errMessageTooLarge those before the frame that
// takes its message over the limit.
func (f *frameFollower) follow(p []byte) (int, error) {
	if f.limit <= 0 {
		return len(p), nil
	}
	for i := 0; i < len(p); {
		if f.left > 0 {
			n := min(f.left, int64(len(p)-i))
			f.left -= n
			i += int(n)
			continue
		}
		f.head[f.have] = p[i]
		f.have++
		i++
		if f.have < f.headLen() {
			continue
		}
		size := f.size()
		start := i - f.have // negative if the head began in an earlier piece
		f.have = 0
		if opcode := f.head[0] & 0x0f; opcode < 8 { // a data frame
			if opcode != 0 {
				f.message = 0
			}
			if size < 0 || size > f.limit-f.message {
				return max(start, 0), errMessageTooLarge
			}
			f.message += size
		}
		f.left = max(size, 0)
	}
	return len(p), nil
}

// headLen is how long the frame's head is, as far as its first bytes tell.
func (f *frameFollower) headLen() int {
	n := 2
	if f.have < n {
		return n
	}
	switch f.head[1] & 0x7f {
	case 126:
		n += 2
	case 127:
		n += 8
	}
	if f.head[1]&0x80 != 0 {
		n += 4
	}
	return n
}

// size is the payload length of the frame whose head is complete; negative if it is no valid one.
func (f *frameFollower) size() int64 {
	switch n := f.head[1] & 0x7f; n {
	case 126:
		return int64(binary.BigEndian.Uint16(f.head[2:]))
	case 127:
		return int64(binary.BigEndian.Uint64(f.head[2:]))
	default:
		return int64(n)
	}
}
