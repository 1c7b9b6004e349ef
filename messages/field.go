package messages

import (
	"encoding/binary"
	"fmt"
	"iter"
)

// Fields are header or trailer fields in their encoded form: name, value, name, value…, each a string with its
// length before it. Order and repetition are kept. Only Fields that a Parse function returned, or that AppendField
// built, may be ranged over.
type Fields string

// MaxFields is how many fields a receiver takes in one head or in trailers: each costs it more than its bytes.
const MaxFields = 2000

// All ranges over the fields, in order. Names are as the sender wrote them: compare them without case.
func (f Fields) All() iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		for s := string(f); s != ""; {
			var name, value string
			name, s, _ = cutString(s)
			value, s, _ = cutString(s)
			if !yield(name, value) {
				return
			}
		}
	}
}

// AppendField appends one field in the form of Fields.
func AppendField(b []byte, name, value string) []byte {
	return appendString(appendString(b, name), value)
}

// parseFields checks that s is Fields: names are tokens, values have no control character but the tab, so no CR, LF
// or NUL (RFC 9110, section 5.5).
func parseFields(s string) (Fields, error) {
	n := 0
	for rest := s; rest != ""; {
		if n++; n > MaxFields {
			return "", fmt.Errorf("%w: more than %d fields", ErrMalformed, MaxFields)
		}
		var name, value string
		var ok bool
		if name, rest, ok = cutString(rest); !ok || !isToken(name) {
			return "", fmt.Errorf("%w: bad field name", ErrMalformed)
		}
		if value, rest, ok = cutString(rest); !ok || !isFieldValue(value) {
			return "", fmt.Errorf("%w: bad value of field %.40q", ErrMalformed, name)
		}
	}
	return Fields(s), nil
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// cutString reads a string with its length before it. Lengths that are not in their shortest form are refused,
// so that everything has one encoding only.
func cutString(s string) (v, rest string, ok bool) {
	n, s, ok := cutUvarint(s)
	if !ok || n > uint64(len(s)) {
		return "", "", false
	}
	return s[:n], s[n:], true
}

// cutUvarint reads an unsigned LEB128 number of at most 32 bits in its shortest form.
func cutUvarint(s string) (n uint64, rest string, ok bool) {
	for i := 0; i < len(s) && i < binary.MaxVarintLen32; i++ {
		c := s[i]
		n |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			return n, s[i+1:], (c != 0 || i == 0) && n <= 1<<32-1
		}
	}
	return 0, "", false
}

// token holds the characters of RFC 9110, section 5.6.2.
var token = func() (t [256]bool) {
	for _, c := range "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" {
		t[c] = true
	}
	return t
}()

func isToken(s string) bool {
	for i := 0; i < len(s); i++ {
		if !token[s[i]] {
			return false
		}
	}
	return s != ""
}

func isFieldValue(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// isTarget reports whether s can stand in a request line: not empty, no blank and no control character.
func isTarget(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] == 0x7f {
			return false
		}
	}
	return s != ""
}
