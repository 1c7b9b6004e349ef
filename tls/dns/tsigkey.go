package dns

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"strings"

	mdns "github.com/miekg/dns"
)

// maxKeyFile bounds a key file, in bytes.
const maxKeyFile = 64 << 10

// A tsigKey signs messages (RFC 8945).
type tsigKey struct {
	name      string // canonical; empty if the file does not say it
	algorithm string // canonical
	secret    string // base64
}

// String names the key, without its secret.
func (k tsigKey) String() string {
	return strings.TrimSuffix(k.name, ".") + " (" + strings.TrimSuffix(k.algorithm, ".") + ")"
}

// readKey reads the key called name from a file, or the only one if name is empty.
func readKey(file, name string) (tsigKey, error) {
	text, err := readSecretFile(file)
	if err != nil {
		return tsigKey{}, err
	}
	keys, err := parseKeys(text)
	if err != nil {
		return tsigKey{}, fmt.Errorf("%s: %w", file, err)
	}
	var names []string
	for _, k := range keys {
		if k.name == "" { // then it is the only one
			if name == "" {
				return tsigKey{}, fmt.Errorf("%s does not say the key's name", file)
			}
			k.name = mdns.CanonicalName(name)
		}
		if _, ok := mdns.IsDomainName(k.name); !ok {
			return tsigKey{}, fmt.Errorf("%s: %q is no key name", file, k.name)
		}
		if k.name == mdns.CanonicalName(name) || name == "" && len(keys) == 1 {
			return k, nil
		}
		names = append(names, strings.TrimSuffix(k.name, "."))
	}
	if name == "" {
		return tsigKey{}, fmt.Errorf("%s has several keys, say which: %s", file, strings.Join(names, ", "))
	}
	return tsigKey{}, fmt.Errorf("%s has the key %s, not %s", file, strings.Join(names, ", "), name)
}

// readSecretFile reads a file that is not for everybody. A group may read it, for a daemon's own user.
func readSecretFile(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if perm := info.Mode().Perm(); perm&0o007 != 0 && runtime.GOOS != "windows" { // there the bits say nothing
		return "", fmt.Errorf("%s is open to everybody (mode %04o); run: chmod 640 %s", file, perm, file)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return "", err
	}
	if len(text) > maxKeyFile {
		return "", fmt.Errorf("%s is no key file: longer than %d bytes", file, maxKeyFile)
	}
	return string(text), nil
}

// algorithms are the TSIG algorithms by the names that people give them.
var algorithms = map[string]string{
	"hmac-sha1": mdns.HmacSHA1, "hmac-sha224": mdns.HmacSHA224, "hmac-sha256": mdns.HmacSHA256,
	"hmac-sha384": mdns.HmacSHA384, "hmac-sha512": mdns.HmacSHA512,
}

var (
	// A quoted string or a comment of named.conf: a secret may hold //.
	bindComment = regexp.MustCompile(`(?s)"[^"]*"|/\*.*?\*/|//[^\n]*|#[^\n]*`)
	bindKey     = regexp.MustCompile(`\bkey\s+"?([^"\s{]+)"?\s*\{([^}]*)\}`)
	bindField   = regexp.MustCompile(`\b(algorithm|secret)\s+"?([^";\s]+)"?\s*;`)
	// What keymgr -t writes, as a comment above the same in YAML.
	knotKey = regexp.MustCompile(`(?mi)^#?[ \t]*(hmac-[a-z0-9-]+\.?):([^:\s]+):(\S+)[ \t\r]*$`)
)

// parseKeys reads a key file's text. There is at least one key if there is no error, and exactly one if it has no name.
func parseKeys(text string) (keys []tsigKey, err error) {
	bare := bindComment.ReplaceAllStringFunc(text, func(s string) string {
		if s[0] == '"' {
			return s
		}
		return " "
	})
	for _, m := range bindKey.FindAllStringSubmatch(bare, -1) {
		algorithm, secret := "hmac-sha256", ""
		for _, f := range bindField.FindAllStringSubmatch(m[2], -1) {
			if f[1] == "algorithm" {
				algorithm = f[2]
			} else {
				secret = f[2]
			}
		}
		keys = append(keys, tsigKey{m[1], algorithm, secret})
	}
	if len(keys) == 0 {
		for _, m := range knotKey.FindAllStringSubmatch(text, -1) {
			keys = append(keys, tsigKey{m[2], m[1], m[3]})
		}
	}
	if len(keys) == 0 {
		keys = []tsigKey{{"", "hmac-sha256", strings.TrimSpace(text)}}
	}
	for i, k := range keys {
		if raw, err := base64.StdEncoding.DecodeString(k.secret); err != nil || len(raw) == 0 {
			return nil, errors.New("neither a key file of BIND, nor algorithm:name:secret, nor a secret in base64")
		}
		algorithm, ok := algorithms[strings.TrimSuffix(strings.ToLower(k.algorithm), ".")]
		if !ok {
			return nil, fmt.Errorf("the algorithm %s is not supported, take hmac-sha256", k.algorithm)
		}
		keys[i].algorithm = algorithm
		if k.name != "" {
			keys[i].name = mdns.CanonicalName(k.name)
		}
	}
	return keys, nil
}
