package server

import (
	"encoding/binary"
	"errors"
)

var errMessageTooLarge = errors.New("WebSocket message is over the limit")

// maxControl is the largest payload of a control frame in bytes (RFC 6455, section 5.5).
const maxControl = 125

// A frameFollower watches the bytes of one direction of a WebSocket go by (RFC 6455, section 5.2) and holds every
// message to a limit. It changes nothing. The size of a compressed message is its size on the wire.
type frameFollower struct {
	limit   int64 // bytes of a message; zero or less for none
	message int64 // bytes of the message that is not finished yet, all its fragments
	left    int64 // bytes of the frame's payload still to come
}

// follow returns how many bytes of p may pass. What is left is the beginning of a frame's head, at most 13 bytes, and
// has to come again at the beginning of the next p; or with errMessageTooLarge the frame that takes its message over
// the limit, of which nothing may pass.
func (f *frameFollower) follow(p []byte) (pass int, err error) {
	if f.limit <= 0 {
		return len(p), nil
	}
	for {
		n := int(min(f.left, int64(len(p)-pass)))
		pass += n
		f.left -= int64(n)
		if f.left > 0 {
			return pass, nil
		}
		head, size, ok := parseFrameHead(p[pass:])
		if !ok {
			return pass, nil
		}
		if !f.admit(p[pass], size) {
			return pass, errMessageTooLarge
		}
		pass += head
		f.left = int64(size)
	}
}

// between reports whether what has passed ends at the end of a frame.
func (f *frameFollower) between() bool { return f.left == 0 }

// finish returns how many of the next n bytes belong to the frame that is under way, and counts them as passed.
func (f *frameFollower) finish(n int) int {
	n = int(min(f.left, int64(n)))
	f.left -= int64(n)
	return n
}

// admit counts a frame, and reports whether it may pass. A control frame that is longer than there are counts as too
// large: it could hold anything.
func (f *frameFollower) admit(first byte, size uint64) bool {
	if first&0x08 != 0 {
		return size <= maxControl
	}
	if size > uint64(f.limit-f.message) {
		return false
	}
	f.message += int64(size)
	if first&0x80 != 0 { // FIN
		f.message = 0
	}
	return true
}

// parseFrameHead reads a frame's head: its own length and that of the payload, in bytes. It is not ok if b is too short.
func parseFrameHead(b []byte) (head int, size uint64, ok bool) {
	if len(b) < 2 {
		return 0, 0, false
	}
	head, size = 2, uint64(b[1]&0x7f)
	switch size {
	case 126:
		head += 2
	case 127:
		head += 8
	}
	if b[1]&0x80 != 0 { // masked
		head += 4
	}
	if len(b) < head {
		return 0, 0, false
	}
	switch size {
	case 126:
		size = uint64(binary.BigEndian.Uint16(b[2:]))
	case 127:
		size = binary.BigEndian.Uint64(b[2:])
	}
	return head, size, true
}
