package tls

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// ErrDataDirInUse says that another process holds a data folder.
var ErrDataDirInUse = errors.New("another process uses it")

// LockDataDir makes the folder, for its owner alone, and holds it for this process until release is called or the process
// ends. The error is ErrDataDirInUse, or says why nothing can be written there.
func LockDataDir(dir string) (release func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	if err := lockFile(f); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("data folder %s: %w", dir, err)
	}
	return func() { _ = f.Close() }, nil // which unlocks it
}
