package tls

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLockDataDir(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "b")
	release, err := LockDataDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v %v, want a folder for its owner alone", info, err)
	}
	if _, err := LockDataDir(dir); !errors.Is(err, ErrDataDirInUse) || !strings.Contains(err.Error(), dir) {
		t.Errorf("the second got %v", err)
	}
	release()
	release, err = LockDataDir(dir)
	if err != nil {
		t.Fatalf("after the first is gone: %v", err)
	}
	release()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LockDataDir(file); !errors.Is(err, ErrNotADir) || !strings.Contains(err.Error(), file) {
		t.Errorf("a file is no folder, got %v", err)
	}
	if _, err := LockDataDir(filepath.Join(file, "below")); err == nil {
		t.Error("a folder was made below a file")
	}
	if os.Geteuid() == 0 {
		return // may write everywhere
	}
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	if _, err := LockDataDir(dir); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a folder that cannot be written gave %v, though its lock can", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
}
