package tls

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

var (
	// ErrDataDirInUse says that another process holds a data folder.
	ErrDataDirInUse = errors.New("another process uses it")
	// ErrNotADir says that a data folder is a file.
	ErrNotADir = errors.New("it is a file, not a folder")
)

// LockDataDir makes the folder, for its owner alone, and holds it for this process until release is called or the process
// ends. The error is ErrDataDirInUse, ErrNotADir, or says why nothing can be written there (fs.ErrPermission and others).
func LockDataDir(dir string) (release func(), err error) {
	fail := func(err error) (func(), error) { return nil, fmt.Errorf("data folder %s: %w", dir, err) }
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		return fail(ErrNotADir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fail(err)
	}
	if err := lockFile(f); err != nil {
		_ = f.Close()
		return fail(err)
	}
	probe, err := os.CreateTemp(dir, ".probe-*") // the lock may be older than the folder's present rights
	if err != nil {
		_ = f.Close()
		return fail(err)
	}
	_, _ = probe.Close(), os.Remove(probe.Name())
	return func() { _ = f.Close() }, nil // which unlocks it
}
