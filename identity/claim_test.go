package identity

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// Most file systems have hard links, so that WriteKeyFile does not come here in the other tests.
func TestClaim(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "id.jwk")
	for i, want := range []error{nil, fs.ErrExist} {
		temp, err := writeTemp(dir, []byte{'0' + byte(i)})
		if err != nil {
			t.Fatal(err)
		}
		if err := claim(temp, path); !errors.Is(err, want) {
			t.Errorf("claim %d: error %v, want %v", i, err, want)
		}
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "0" {
		t.Errorf("the file holds %q, %v; want what the first claim wrote", data, err)
	}
	free := filepath.Join(dir, "free")
	if err := claim(filepath.Join(dir, "missing"), free); err == nil {
		t.Error("a file that is not there was given a name")
	}
	if _, err := os.Stat(free); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a failed claim left the name taken: %v", err)
	}
}
