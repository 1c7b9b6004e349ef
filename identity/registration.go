package identity

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Values of Registration.Mode: what becomes of several agents that hold the same name.
const (
	ModeTakeover = "takeover" // the newest agent wins and the older one is sent away
	ModeShare    = "share"    // all agents stay and share the requests
	ModeStandby  = "standby"  // used only while no other agent is there
)

const (
	maxText      = 300 // bytes of the audience, and of the challenge
	maxSession   = 64  // bytes
	maxInstance  = 64  // bytes
	maxHostnames = 16
	maxHostname  = 253 // bytes, RFC 1035 section 2.3.4 without the last dot
)

// A Registration is what an agent signs to get a name for one of its services.
type Registration struct {
	// Audience is the host that the agent dialled; the edge compares it with its own names. 1 to 300 bytes of UTF-8.
	Audience string `json:"aud"`

	// Challenge is the text that the edge gave for this link; see HasChallenge. 1 to 300 bytes of UTF-8.
	Challenge string `json:"challenge"`

	// Session tells several names of one identity apart and goes into the label; empty is the main name. At most
	// 64 bytes of printable UTF-8 without spaces.
	Session string `json:"session,omitempty"`

	// Path is the prefix of the request path that is served; empty means all. See CleanPath for what is allowed.
	Path string `json:"path,omitempty"`

	// Mode is one of the Mode constants; empty means ModeTakeover.
	Mode string `json:"mode,omitempty"`

	// Instance tells several agents with one key apart. At most 64 characters of A-Z, a-z, 0-9, _ and -.
	Instance string `json:"instance,omitempty"`

	// Hostnames are further names under which the service wants to be reached: at most 16 lower-case DNS names of at
	// most 253 bytes, without last dot or wildcard. That they are asked for does not mean that they are granted.
	Hostnames []string `json:"hostnames,omitempty"`

	// EndToEnd says that the agent ends TLS itself, so that the edge passes connections on unopened.
	EndToEnd bool `json:"e2e,omitempty"`
}

// Validate returns an error that names the first field that breaks its rule.
func (r Registration) Validate() error {
	if err := checkText(r.Audience); err != nil {
		return fmt.Errorf("audience: %w", err)
	}
	if err := checkText(r.Challenge); err != nil {
		return fmt.Errorf("challenge: %w", err)
	}
	if err := checkSession(r.Session); err != nil {
		return err
	}
	if _, err := CleanPath(r.Path); err != nil {
		return err
	}
	switch r.Mode {
	case "", ModeTakeover, ModeShare, ModeStandby:
	default:
		return fmt.Errorf("mode %.20q is none of %s, %s, %s", r.Mode, ModeTakeover, ModeShare, ModeStandby)
	}
	if err := checkInstance(r.Instance); err != nil {
		return err
	}
	if n := len(r.Hostnames); n > maxHostnames {
		return fmt.Errorf("%d hostnames, at most %d are allowed", n, maxHostnames)
	}
	for _, name := range r.Hostnames {
		if err := checkHostname(name); err != nil {
			return fmt.Errorf("hostname %.80q: %w", name, err)
		}
	}
	return nil
}

// HasChallenge reports whether the registration answers the challenge want; the time it takes does not depend on how
// much of it is right. An empty want is never answered.
func (r Registration) HasChallenge(want string) bool {
	return want != "" && subtle.ConstantTimeCompare([]byte(r.Challenge), []byte(want)) == 1
}

func checkText(s string) error {
	if n := len(s); n == 0 || n > maxText {
		return fmt.Errorf("%d bytes, not 1 to %d", n, maxText)
	}
	if !utf8.ValidString(s) {
		return errors.New("not UTF-8")
	}
	return nil
}

func checkSession(s string) error {
	if len(s) > maxSession {
		return fmt.Errorf("session has %d bytes, at most %d are allowed", len(s), maxSession)
	}
	for _, c := range s {
		// RuneError stands for a broken byte, but also for the half of a pair that JSON can spell and UTF-8 can not.
		if c == ' ' || c == utf8.RuneError || !unicode.IsPrint(c) {
			return fmt.Errorf("session %q holds a space or a character that can not be printed", s)
		}
	}
	return nil
}

func checkInstance(s string) error {
	if len(s) > maxInstance {
		return fmt.Errorf("instance has %d bytes, at most %d are allowed", len(s), maxInstance)
	}
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-') {
			return fmt.Errorf("instance %q holds something else than letters, digits, _ and -", s)
		}
	}
	return nil
}

func checkHostname(name string) error {
	if len(name) > maxHostname {
		return fmt.Errorf("%d bytes, at most %d are allowed", len(name), maxHostname)
	}
	var last string
	for label := range strings.SplitSeq(name, ".") {
		if n := len(label); n == 0 || n > 63 {
			return fmt.Errorf("a part of it has %d characters, not 1 to 63", n)
		}
		if label[0] == '-' || label[len(label)-1] == '-' {
			return errors.New("a part of it begins or ends with a hyphen")
		}
		for i := range len(label) {
			if c := label[i]; !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-') {
				return errors.New("only a-z, 0-9, hyphens and dots are allowed")
			}
		}
		last = label
	}
	if strings.Trim(last, "0123456789") == "" {
		return errors.New("this is an address, not a name")
	}
	return nil
}
