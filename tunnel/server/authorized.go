package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/harp-tunnel/harp/identity"
)

// authorizedKeysPoll is how often the file is looked at.
const authorizedKeysPoll = 2 * time.Second

// maxAuthorizedKeysFile is one byte more than identity.ParseAuthorizedKeys takes, so that it refuses a longer file.
const maxAuthorizedKeysFile = 16<<20 + 1

// authorizedKeys are the identities that may register: those of a file, as it is now.
type authorizedKeys struct {
	path string // empty: anyone may register
	log  *slog.Logger

	keys atomic.Pointer[identity.AuthorizedKeys] // read from any goroutine, replaced by watch only

	// The fields below belong to newAuthorizedKeys, then to watch.
	seen     os.FileInfo       // of the file when it was last read; nil if it has to be read again
	readAt   time.Time         // when that was
	current  [sha256.Size]byte // of the content that keys came from
	rejected [sha256.Size]byte // of the content that the log complained of last
	failing  bool              // the file cannot be read, and the log says so
	emptied  bool              // the last poll found no keys, where there were some before
}

// newAuthorizedKeys reads the file; for its form see identity.ParseAuthorizedKeys. An empty path lets anyone
// register. It starts nothing: watch follows the file.
func newAuthorizedKeys(path string, log *slog.Logger) (*authorizedKeys, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	a := &authorizedKeys{path: path, log: log}
	if path == "" {
		return a, nil
	}
	data, info, err := readRegular(path)
	if err != nil {
		return nil, fmt.Errorf("read authorized keys: %w", err)
	}
	keys, err := identity.ParseAuthorizedKeys(data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	a.keys.Store(&keys)
	a.seen, a.readAt, a.current = info, time.Now(), sha256.Sum256(data)
	if len(keys) == 0 {
		log.Warn("the authorized keys file names no keys: nobody can register", "file", path)
	}
	return a, nil
}

// allowed reports whether the identity may register, and keep what it has registered.
func (a *authorizedKeys) allowed(t identity.Thumbprint) bool {
	return a.path == "" || a.keys.Load().Has(t)
}

// watch looks at the file every 2 s until ctx ends and calls changed, in this goroutine, when it has taken over
// other content: allowed has changed then, and links may have to be cut. A file that is broken or cannot be read
// leaves the old keys in force, and the log says so, once. A file without keys counts from the second look on,
// since some editors empty a file before they write it. With an empty path watch returns at once.
func (a *authorizedKeys) watch(ctx context.Context, changed func()) {
	if a.path == "" {
		return
	}
	tick := time.NewTicker(authorizedKeysPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if a.poll() {
				changed()
			}
		}
	}
}

// poll reports whether it has taken over other content.
func (a *authorizedKeys) poll() bool {
	info, err := os.Stat(a.path)
	if err == nil && a.unchanged(info) {
		return false
	}
	now := time.Now()
	data, info, err := readRegular(a.path)
	if err != nil {
		a.cannotRead(err)
		return false
	}
	if a.failing {
		a.failing = false
		a.log.Info("the authorized keys file can be read again", "file", a.path)
	}
	a.seen, a.readAt = info, now
	sum := sha256.Sum256(data)
	if sum == a.current {
		if a.rejected != [sha256.Size]byte{} {
			a.log.Info("the authorized keys file is in order again, and as it was before", "file", a.path)
		}
		a.rejected, a.emptied = [sha256.Size]byte{}, false
		return false
	}
	if sum == a.rejected {
		return false
	}
	keys, err := identity.ParseAuthorizedKeys(data)
	if err != nil {
		a.rejected, a.emptied = sum, false
		a.log.Error("the authorized keys file is broken and is ignored: the old keys stay in force until it is repaired",
			"file", a.path, "error", err)
		return false
	}
	if len(keys) == 0 && !a.emptied {
		a.emptied, a.seen = true, nil
		return false
	}
	before := len(*a.keys.Load())
	a.keys.Store(&keys)
	a.current, a.rejected, a.emptied = sum, [sha256.Size]byte{}, false
	a.log.Info("authorized keys read again", "file", a.path, "keys", len(keys), "keys_before", before)
	if len(keys) == 0 {
		a.log.Warn("the authorized keys file names no keys: nobody can register", "file", a.path)
	}
	return true
}

// unchanged reports whether the file is surely the one that was read. Times of files are coarse, so one that was
// written shortly before it was read may have been written again since.
func (a *authorizedKeys) unchanged(info os.FileInfo) bool {
	return a.seen != nil && !a.failing && os.SameFile(a.seen, info) && a.seen.Size() == info.Size() &&
		a.seen.ModTime().Equal(info.ModTime()) && info.ModTime().Add(authorizedKeysPoll).Before(a.readAt)
}

// cannotRead tells the log once for each time that the file goes.
func (a *authorizedKeys) cannotRead(err error) {
	a.seen, a.emptied = nil, false
	if a.failing {
		return
	}
	a.failing = true
	if errors.Is(err, os.ErrNotExist) {
		a.log.Warn("the authorized keys file is gone: the old keys stay in force; empty the file to shut everybody out",
			"file", a.path)
		return
	}
	a.log.Error("the authorized keys file cannot be read: the old keys stay in force", "file", a.path, "error", err)
}

// readRegular reads a file, at most maxAuthorizedKeysFile bytes of it. It refuses what is no regular file: a pipe
// would block.
func readRegular(path string) ([]byte, os.FileInfo, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxAuthorizedKeysFile))
	if err != nil {
		return nil, nil, err
	}
	return data, info, nil
}
