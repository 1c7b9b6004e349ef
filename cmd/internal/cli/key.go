package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"

	"github.com/harp-tunnel/harp/identity"
)

// CodeKey is the exit code when there is no key file, or one that cannot be used.
const CodeKey = 4

// DefaultKeyFile returns where an agent's key is unless --key says otherwise; empty if this system has no place for it.
func DefaultKeyFile() string {
	path, err := identity.DefaultKeyFile()
	if err != nil {
		return ""
	}
	return path
}

// OpenKey reads the key in path; if there is no such file it makes one.
func OpenKey(path string, log *slog.Logger) (identity.Key, error) {
	key, err := identity.ReadKeyFile(path)
	if path == "" || !errors.Is(err, fs.ErrNotExist) {
		return key, KeyError(err, path)
	}
	if key, err = identity.Generate(); err != nil {
		return key, KeyError(err, path)
	}
	err = identity.WriteKeyFile(path, key, false)
	if errors.Is(err, fs.ErrExist) { // another agent was faster
		key, err = identity.ReadKeyFile(path)
		return key, KeyError(err, path)
	}
	if err == nil {
		log.Info("made a key; whoever has it has the URL", "file", path)
	}
	return key, KeyError(err, path)
}

// KeyError returns err, which concerns the key file at path, with exit code 4 and what to do about it; nil for nil.
func KeyError(err error, path string) error {
	if err == nil {
		return nil
	}
	withKey := "" // repeats the flag where the default would not do
	if path != DefaultKeyFile() {
		withKey = " --key " + path
	}
	e := &Error{Err: err, Code: CodeKey}
	private, public := strings.CutSuffix(path, ".pub")
	switch {
	case public && (errors.Is(err, identity.ErrPermissions) || errors.Is(err, identity.ErrNotKey)):
		e.Err = fmt.Errorf("%s is a public key, and the private one is needed", path)
		e.Hint = "give " + private + " instead"
	case path == "":
		e.Err = errors.New("this system has no folder for the key")
		e.Hint = "harp-agent --key FILE"
	case errors.Is(err, fs.ErrNotExist):
		e.Err = fmt.Errorf("there is no key in %s", path)
		e.Hint = "harp-agent keygen" + withKey
	case errors.Is(err, fs.ErrExist):
		e.Err = fmt.Errorf("there is a key in %s already", path)
		e.Hint = "harp-agent id" + withKey + " shows it; with keygen --force it is lost, and its URL with it"
	case errors.Is(err, identity.ErrPermissions):
		e.Hint = "chmod 600 " + path
	case errors.Is(err, identity.ErrNotKey):
		e.Hint = "harp-agent keygen --key FILE makes a key in another file"
	case errors.Is(err, fs.ErrPermission):
		e.Hint = "give a file that this user may use: --key FILE"
	}
	return e
}
