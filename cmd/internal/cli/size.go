package cli

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// units are the suffixes of a size, largest first so that FormatSize finds the shortest text. Each step is 1024: 500kb
// is 512,000 bytes, and kib means the same.
var units = [...]struct {
	name  string
	bytes int64
}{{"tb", 1 << 40}, {"gb", 1 << 30}, {"mb", 1 << 20}, {"kb", 1 << 10}, {"b", 1}}

// ParseSize returns the number of bytes that s means: a whole number and one of the units b, k, kb, kib, m, mb, mib, g,
// gb, gib, t, tb, tib in upper or lower case, or none for bytes. What zero means is up to the setting.
func ParseSize(s string) (int64, error) {
	text := strings.ToLower(strings.TrimSpace(s))
	digits := strings.TrimRight(text, "abcdefghijklmnopqrstuvwxyz ")
	unit, ok := unitBytes(strings.TrimSpace(text[len(digits):]))
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || !ok || n < 0 {
		return 0, &Error{Err: errors.New("not a size"), Hint: "write a whole number with its unit: 500kb, 1mb, 64kib or 512000"}
	}
	if n > math.MaxInt64/unit {
		return 0, &Error{Err: errors.New("too large"), Hint: "the largest size is 8388607tb; 0 means no limit"}
	}
	return n * unit, nil
}

// FormatSize returns the shortest text that ParseSize turns into n.
func FormatSize(n int64) string {
	for _, u := range units {
		if n != 0 && n%u.bytes == 0 && u.bytes > 1 {
			return fmt.Sprintf("%d%s", n/u.bytes, u.name)
		}
	}
	return strconv.FormatInt(n, 10)
}

func unitBytes(name string) (int64, bool) {
	if name == "" {
		return 1, true
	}
	for _, u := range units {
		if name == u.name || name == u.name[:1] || (u.bytes > 1 && name == u.name[:1]+"ib") {
			return u.bytes, true
		}
	}
	return 0, false
}
