package identity

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"
)

const maxPath = 256 // bytes

// CleanPath checks a path prefix and returns it in the one form to compare with: empty for all paths, else a slash and
// segments parted by single slashes, without a slash at the end. "" and "/" give "", "/a" and "/a/" give "/a".
//
// The prefix must be at most 256 bytes of valid UTF-8. It must not hold "?", "#", "\", spaces, control characters, empty
// or dot segments, and percent-encoded bytes must not smuggle in a slash, backslash, control character or dot segment:
// such a prefix would be read in two ways. Letter case and percent-encoding are left as they are.
func CleanPath(path string) (string, error) {
	if len(path) > maxPath {
		return "", fmt.Errorf("path has %d bytes, at most %d are allowed", len(path), maxPath)
	}
	if path == "" || path == "/" {
		return "", nil
	}
	if path[0] != '/' {
		return "", fmt.Errorf("path %q does not begin with a slash", path)
	}
	clean := strings.TrimSuffix(path, "/")
	for segment := range strings.SplitSeq(clean[1:], "/") {
		if err := checkSegment(segment); err != nil {
			return "", fmt.Errorf("path %q: %w", path, err)
		}
	}
	return clean, nil
}

func checkSegment(raw string) error {
	if raw == "" {
		return errors.New("empty segment")
	}
	if !utf8.ValidString(raw) {
		return errors.New("not UTF-8")
	}
	if strings.ContainsAny(raw, "?# ") {
		return errors.New("question mark, hash sign or space")
	}
	decoded, err := url.PathUnescape(raw)
	if err != nil {
		return errors.New("broken percent-encoding")
	}
	if decoded == "." || decoded == ".." {
		return errors.New("dot segment")
	}
	if strings.ContainsAny(decoded, `/\`) {
		return errors.New("backslash or encoded slash")
	}
	if strings.ContainsFunc(decoded, unicode.IsControl) {
		return errors.New("control character")
	}
	return nil
}
