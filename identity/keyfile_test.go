package identity_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/harp-tunnel/harp/identity"
)

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "folder", "id.jwk")
	k := parseKey(t, rfcKey)
	if err := identity.WriteKeyFile(path, k, false); err != nil {
		t.Fatal(err)
	}
	got, err := identity.ReadKeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got.Public() != k.Public() {
		t.Error("another key was read than written")
	}
	if runtime.GOOS == "windows" {
		return
	}
	for name, want := range map[string]fs.FileMode{path: 0o600, filepath.Dir(path): 0o700, filepath.Dir(filepath.Dir(path)): 0o700} {
		fi, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm() != want {
			t.Errorf("%s has mode %04o, want %04o", name, fi.Mode().Perm(), want)
		}
	}
}

func TestWriteKeyFileOverwrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "id.jwk")
	first, second := parseKey(t, rfcKey), generate(t)
	if err := identity.WriteKeyFile(path, first, true); err != nil {
		t.Fatalf("force without a file to replace: %v", err)
	}
	if err := identity.WriteKeyFile(path, second, false); !errors.Is(err, fs.ErrExist) {
		t.Errorf("error %v, want fs.ErrExist", err)
	}
	wantKeyFile(t, "refused to overwrite", path, first)
	if err := identity.WriteKeyFile(path, second, true); err != nil {
		t.Fatal(err)
	}
	wantKeyFile(t, "forced to overwrite", path, second)
	wantFiles(t, filepath.Dir(path), 1)
}

func TestWriteKeyFileLink(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "id.jwk")
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), path); err != nil {
		t.Skip("NOT TESTED: no symbolic link can be made here: ", err)
	}
	if err := identity.WriteKeyFile(path, parseKey(t, rfcKey), false); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a dangling link is a taken name: error %v, want fs.ErrExist", err)
	}
	wantFiles(t, dir, 1)
}

func TestWriteKeyFileOneWinner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "id.jwk")
	keys := make([]identity.Key, 8)
	errs := make([]error, len(keys))
	for i := range keys {
		keys[i] = generate(t)
	}
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() { errs[i] = identity.WriteKeyFile(path, keys[i], false) })
	}
	wg.Wait()
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner < 0:
			winner = i
		case err == nil:
			t.Errorf("both %d and %d were told that they wrote the file", winner, i)
		case !errors.Is(err, fs.ErrExist):
			t.Errorf("error %v, want fs.ErrExist", err)
		}
	}
	if winner < 0 {
		t.Fatal("nobody wrote the file")
	}
	wantKeyFile(t, "the winner's key is in the file", path, keys[winner])
	wantFiles(t, filepath.Dir(path), 1)
}

func TestReadKeyFileRefuses(t *testing.T) {
	dir := t.TempDir()
	write := func(name, data string, mode fs.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := []struct {
		reason, path string
		want         error
	}{
		{"missing", filepath.Join(dir, "missing"), fs.ErrNotExist},
		{"empty", write("empty", "", 0o600), identity.ErrNotKey},
		{"text", write("text", "hello", 0o600), identity.ErrNotKey},
		{"a folder", dir, identity.ErrNotKey},
		{"a device", os.DevNull, identity.ErrNotKey},
		{"too large", write("large", rfcKey+strings.Repeat(" ", 64<<10), 0o600), identity.ErrNotKey},
	}
	if runtime.GOOS != "windows" {
		for _, mode := range []fs.FileMode{0o644, 0o640, 0o604, 0o620, 0o602, 0o610} {
			tests = append(tests, struct {
				reason, path string
				want         error
			}{mode.String(), write(mode.String(), rfcKey, mode), identity.ErrPermissions})
		}
	}
	for _, test := range tests {
		if _, err := identity.ReadKeyFile(test.path); !errors.Is(err, test.want) {
			t.Errorf("%s: error %v, want %v", test.reason, err, test.want)
		}
	}
	if _, err := identity.ReadKeyFile(write("readonly", rfcKey, 0o400)); err != nil {
		t.Errorf("a file that only its owner can read: %v", err)
	}
}

func TestDefaultKeyFile(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	path, err := identity.DefaultKeyFile()
	if err != nil {
		t.Fatal(err)
	}
	if !filepath.IsAbs(path) || !strings.HasSuffix(path, filepath.Join("harp", "id.jwk")) {
		t.Errorf("the default key file is %s", path)
	}
}

func generate(t *testing.T) identity.Key {
	t.Helper()
	k, err := identity.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func wantKeyFile(t *testing.T, reason, path string, want identity.Key) {
	t.Helper()
	k, err := identity.ReadKeyFile(path)
	if err != nil {
		t.Fatalf("%s: %v", reason, err)
	}
	if k.Public() != want.Public() {
		t.Errorf("%s: the file holds %s, want %s", reason, k, want)
	}
}

// wantFiles fails the test if dir does not hold n files, say because a temporary one was left.
func wantFiles(t *testing.T, dir string, n int) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != n {
		t.Errorf("%d files in the folder, want %d: %v", len(entries), n, entries)
	}
}
