package server

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"testing"
)

// frame is a WebSocket frame's head, and payload bytes if they are not too many to be there.
func frame(first byte, size uint64, masked bool, payload int) []byte {
	b := []byte{first}
	mask := byte(0)
	if masked {
		mask = 0x80
	}
	switch {
	case size < 126:
		b = append(b, mask|byte(size))
	case size < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, mask|126), uint16(size))
	default:
		b = binary.BigEndian.AppendUint64(append(b, mask|127), size)
	}
	if masked {
		b = append(b, 1, 2, 3, 4)
	}
	return append(b, bytes.Repeat([]byte{0x81}, payload)...) // what looks like a head must not be taken for one
}

func frames(all ...[]byte) []byte { return bytes.Join(all, nil) }

const (
	fin            = 0x80
	opContinuation = 0x0
	opText         = 0x1
	opBinary       = 0x2
	opClose        = 0x8
	opPing         = 0x9
)

func TestFrameFollower(t *testing.T) {
	full := func(first byte, n int, masked bool) []byte { return frame(first, uint64(n), masked, n) }
	for _, test := range []struct {
		why   string
		limit int64
		pass  []byte // what must pass
		stop  []byte // what must not, empty if nothing is over the limit
	}{
		{"nothing", 10, nil, nil},
		{"no limit", 0, full(fin|opText, 1000, true), nil},
		{"no limit, and no WebSocket", -1, []byte("anything"), nil},
		{"exactly the limit, masked", 1000, full(fin|opText, 1000, true), nil},
		{"exactly the limit, unmasked", 1000, full(fin|opBinary, 1000, false), nil},
		{"a byte more", 1000, nil, full(fin|opText, 1001, true)},
		{"a byte more in 7 bits", 10, nil, full(fin|opText, 11, false)},
		{"a byte more in 64 bits", 1 << 16, nil, frame(fin|opText, 1<<16+1, false, 3)},
		{"a length with its highest bit", math.MaxInt64, nil, frame(fin|opBinary, 1<<63, true, 9)},
		{"all bits of the length", math.MaxInt64, nil, frame(fin|opBinary, math.MaxUint64, false, 9)},
		{"the largest length", math.MaxInt64, frame(fin|opBinary, math.MaxInt64, false, 100), nil},
		{"many messages at the limit", 200, bytes.Repeat(full(fin|opText, 200, true), 10), nil},
		{"the second is too large", 200, full(fin|opText, 200, true), full(fin|opText, 201, true)},
		{"fragments up to the limit", 300, frames(full(opText, 100, true), full(opContinuation, 100, true), full(fin|opContinuation, 100, true)), nil},
		{"a fragment over the limit", 300, frames(full(opText, 100, true), full(opContinuation, 100, true)), full(fin|opContinuation, 101, true)},
		{"fragments whose sum overflows", math.MaxInt64 - 10, full(opText, 100, false), frame(opContinuation, math.MaxInt64-50, false, 5)},
		{"control frames between fragments do not count", 200,
			frames(full(opText, 100, true), full(fin|opPing, 125, true), full(fin|opContinuation, 100, true)), nil},
		{"nor do they end the message", 200,
			frames(full(opText, 100, true), full(fin|opPing, 10, true)), full(fin|opContinuation, 101, true)},
		{"a new message has the whole limit again", 200,
			frames(full(opText, 100, true), full(fin|opContinuation, 100, true), full(fin|opBinary, 200, true), full(fin|opClose, 2, true)), nil},
		{"a message begun inside another one still counts", 200, full(opText, 150, true), full(opText, 150, true)},
		{"a small limit does not stop control frames", 1, frames(full(fin|opText, 1, true), full(fin|opPing, 125, true)), nil},
		{"a control frame of 126 bytes, which there is not", 1000, nil, full(fin|opPing, 126, true)},
		{"a huge control frame", 1000, full(fin|opText, 5, true), frame(fin|opClose, 1<<40, true, 50)},
		{"a control frame of a negative length", 1000, nil, frame(fin|opPing, 1<<63, true, 50)},
		{"a reserved opcode counts as data", 100, full(fin|0x3, 100, true), full(fin|0x7, 101, true)},
		{"empty frames", 10, bytes.Repeat(full(opContinuation, 0, true), 100), nil},
	} {
		stream := frames(test.pass, test.stop)
		got, err := followAll(test.limit, stream, nil)
		if !bytes.Equal(got, test.pass) {
			t.Errorf("%s: %d bytes passed, want %d", test.why, len(got), len(test.pass))
		}
		if over := len(test.stop) > 0; errors.Is(err, errMessageTooLarge) != over {
			t.Errorf("%s: verdict %v, want over the limit: %v", test.why, err, over)
		}
		if split, splitErr := followAll(test.limit, stream, bytes.Repeat([]byte{1}, len(stream))); !bytes.Equal(split, got) || splitErr != err {
			t.Errorf("%s, byte by byte: %d bytes passed and %v, not %d and %v", test.why, len(split), splitErr, len(got), err)
		}
	}
}

// followAll carries stream through a follower as upgrade does, in pieces of the given sizes and then the rest at once.
func followAll(limit int64, stream, sizes []byte) (passed []byte, err error) {
	f := frameFollower{limit: limit}
	var held []byte
	for len(stream) > 0 && err == nil {
		n := len(stream)
		if len(sizes) > 0 {
			n, sizes = min(n, int(sizes[0])), sizes[1:]
		}
		piece := append(held, stream[:n]...)
		stream = stream[n:]
		var pass int
		pass, err = f.follow(piece)
		passed = append(passed, piece[:pass]...)
		held = bytes.Clone(piece[pass:])
	}
	return passed, err
}

func TestFrameFollowerHoldsLittle(t *testing.T) {
	f := frameFollower{limit: 1 << 20}
	p := frame(fin|opText, 70000, true, 0)
	for i := range p[:len(p)-1] {
		if pass, err := f.follow(p[:i+1]); pass != 0 || err != nil {
			t.Errorf("%d bytes of a head: %d passed, %v", i+1, pass, err)
		}
	}
	if !f.between() {
		t.Error("in the middle of a frame before its head is complete")
	}
	if pass, err := f.follow(append(p, 1, 2, 3)); pass != len(p)+3 || err != nil || f.between() {
		t.Errorf("a head and three bytes: %d passed, %v, between frames: %v", pass, err, f.between())
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = f.follow(make([]byte, 0, 8)) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzFrameFollower: how the bytes are cut changes nothing, and what passes is whole frames whose messages keep to the
// limit, as a plain reading of RFC 6455 finds.
func FuzzFrameFollower(f *testing.F) {
	f.Add(int64(5), frames(frame(fin|opText, 5, true, 5), frame(fin|opText, 6, false, 6)), []byte{1, 2, 3})
	f.Add(int64(300), frames(frame(opText, 200, true, 200), frame(fin|opPing, 3, true, 3), frame(fin|opContinuation, 200, true, 200)), []byte{7})
	f.Add(int64(10), frame(fin|opBinary, 1<<63, true, 4), []byte{1, 1, 1, 1, 1, 1, 1, 1, 1, 1})
	f.Add(int64(1000), frame(fin|opClose, 1<<40, false, 4), []byte{})
	f.Add(int64(0), []byte("no limit"), []byte{3})
	f.Fuzz(func(t *testing.T, limit int64, stream, sizes []byte) {
		passed, verdict := followAll(limit, stream, nil)
		if !bytes.HasPrefix(stream, passed) {
			t.Fatal("what passed is not the beginning of what came")
		}
		split, splitVerdict := followAll(limit, stream, sizes)
		if !bytes.Equal(passed, split) || verdict != splitVerdict {
			t.Fatalf("cut as %v: %d bytes and %v, in one piece %d and %v", sizes, len(split), splitVerdict, len(passed), verdict)
		}
		if limit <= 0 {
			if len(passed) != len(stream) || verdict != nil {
				t.Fatalf("no limit, and %d of %d bytes passed: %v", len(passed), len(stream), verdict)
			}
			return
		}
		want, over := plainReading(limit, stream)
		if len(passed) != want || (verdict != nil) != over {
			t.Fatalf("%d bytes passed (%v), want %d, over the limit: %v", len(passed), verdict, want, over)
		}
	})
}

// plainReading returns how many bytes of the stream may pass, and whether the rest is over the limit.
func plainReading(limit int64, stream []byte) (pass int, over bool) {
	message := uint64(0)
	for rest := stream; ; rest = stream[pass:] {
		if len(rest) < 2 {
			return pass, false
		}
		size, n := uint64(rest[1]&0x7f), 2
		switch size {
		case 126:
			n += 2
		case 127:
			n += 8
		}
		if rest[1]&0x80 != 0 {
			n += 4
		}
		if len(rest) < n {
			return pass, false
		}
		switch rest[1] & 0x7f {
		case 126:
			size = uint64(binary.BigEndian.Uint16(rest[2:]))
		case 127:
			size = binary.BigEndian.Uint64(rest[2:])
		}
		if rest[0]&0x08 != 0 {
			if size > 125 {
				return pass, true
			}
		} else {
			if size > uint64(limit) || message+size > uint64(limit) {
				return pass, true
			}
			if message += size; rest[0]&fin != 0 {
				message = 0
			}
		}
		if size > uint64(len(rest)-n) {
			return len(stream), false
		}
		pass += n + int(size)
	}
}
