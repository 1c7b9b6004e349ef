package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/harp-tunnel/harp/identity"
)

// testThumbprint is a made-up identity and its line in the file.
func testThumbprint(t *testing.T, seed string) (identity.Thumbprint, string) {
	t.Helper()
	sum := sha256.Sum256([]byte(seed))
	line := base64.RawURLEncoding.EncodeToString(sum[:])
	th, err := identity.ParseThumbprint(line)
	if err != nil {
		t.Fatalf("thumbprint of %q: %v", seed, err)
	}
	return th, line + " " + seed + "\n"
}

// A keysFile is a watched file in virtual time.
type keysFile struct {
	t       *testing.T
	path    string
	keys    *authorizedKeys
	cancel  context.CancelFunc
	changes atomic.Int32

	mu  sync.Mutex // guards log
	log bytes.Buffer
}

// Write takes the log.
func (f *keysFile) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.log.Write(b)
}

// watchKeys begins to watch a file with this content; it runs inside synctest.Test.
func watchKeys(t *testing.T, content string) *keysFile {
	t.Helper()
	f := &keysFile{t: t, path: filepath.Join(t.TempDir(), "authorized_keys")}
	f.write(content)
	keys, err := newAuthorizedKeys(f.path, slog.New(slog.NewTextHandler(f, nil)))
	if err != nil {
		t.Fatalf("newAuthorizedKeys: %v", err)
	}
	f.keys = keys
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	f.cancel = cancel
	go keys.watch(ctx, func() { f.changes.Add(1) }) // ends with ctx
	return f
}

func (f *keysFile) write(content string) {
	f.t.Helper()
	if err := os.WriteFile(f.path, []byte(content), 0o600); err != nil {
		f.t.Fatalf("write the file: %v", err)
	}
}

// polls lets n polls pass.
func (f *keysFile) polls(n int) {
	time.Sleep(time.Duration(n) * authorizedKeysPoll)
	synctest.Wait()
}

func (f *keysFile) wants(why string, th identity.Thumbprint, allowed bool, changes int) {
	f.t.Helper()
	if got := f.keys.allowed(th); got != allowed {
		f.t.Errorf("%s: allowed is %v, want %v", why, got, allowed)
	}
	if got := int(f.changes.Load()); got != changes {
		f.t.Errorf("%s: changed was called %d times, want %d", why, got, changes)
	}
}

// logged wants n lines that hold text since the last call.
func (f *keysFile) logged(n int, text string) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if got := strings.Count(f.log.String(), text); got != n {
		f.t.Errorf("%d log lines with %q, want %d:\n%s", got, text, n, f.log.String())
	}
	f.log.Reset()
}

func TestAuthorizedKeysAnyone(t *testing.T) {
	th, _ := testThumbprint(t, "a")
	a, err := newAuthorizedKeys("", nil)
	if err != nil || !a.allowed(th) {
		t.Errorf("without a file anyone may register: %v", err)
	}
	a.watch(t.Context(), func() { t.Error("changed was called, and there is no file") }) // must return
}

func TestAuthorizedKeysAtStart(t *testing.T) {
	dir := t.TempDir()
	_, line := testThumbprint(t, "a")
	broken := filepath.Join(dir, "broken")
	if err := os.WriteFile(broken, []byte(line+"# fine\nnonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{filepath.Join(dir, "absent"): "no such file", broken: "line 3", dir: "not a regular file"} {
		if _, err := newAuthorizedKeys(path, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one that says %q", path, err, want)
		}
	}
}

func TestAuthorizedKeysFollowTheFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, lineA := testThumbprint(t, "a")
		b, lineB := testThumbprint(t, "b")
		f := watchKeys(t, lineA)
		f.wants("at start", a, true, 0)
		f.wants("at start", b, false, 0)
		f.polls(3)
		f.wants("nothing changed", a, true, 0)
		f.write(lineA + lineB)
		f.polls(1)
		f.wants("b was added", b, true, 1)
		f.write(lineB)
		f.polls(1)
		f.wants("a was removed", a, false, 2)
		f.wants("b stayed", b, true, 2)
		f.write(lineB)
		f.polls(1)
		f.wants("written again, the same", b, true, 2)

		next := f.path + ".new"
		if err := os.WriteFile(next, []byte(lineA), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, f.path); err != nil {
			t.Fatal(err)
		}
		f.polls(1)
		f.wants("another file was moved there", a, true, 3)
		f.cancel()
		f.write(lineB)
		f.polls(2)
		f.wants("watch has ended", a, true, 3)
	})
}

func TestAuthorizedKeysSurviveABrokenFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, lineA := testThumbprint(t, "a")
		b, lineB := testThumbprint(t, "b")
		f := watchKeys(t, lineA)
		f.write(lineB + "nonsense\n")
		f.polls(3)
		f.wants("the broken file is ignored", a, true, 0)
		f.logged(1, "line 2")
		f.write(lineA)
		f.polls(1)
		f.wants("as before", a, true, 0)
		f.logged(1, "in order again")
		f.write(lineB)
		f.polls(1)
		f.wants("repaired", b, true, 1)
	})
}

func TestAuthorizedKeysSurviveADeletedFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, lineA := testThumbprint(t, "a")
		b, lineB := testThumbprint(t, "b")
		f := watchKeys(t, lineA)
		if err := os.Remove(f.path); err != nil {
			t.Fatal(err)
		}
		f.polls(3)
		f.wants("deleted", a, true, 0)
		f.logged(1, "level=WARN")
		f.write(lineA)
		f.polls(1)
		f.wants("back", a, true, 0)
		f.logged(1, "can be read again")
		if err := os.Remove(f.path); err != nil {
			t.Fatal(err)
		}
		f.polls(1)
		f.write(lineB)
		f.polls(1)
		f.wants("back with another key", b, true, 1)
		f.wants("back with another key", a, false, 1)
	})
}

func TestAuthorizedKeysEmptyFileCountsTheSecondTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, lineA := testThumbprint(t, "a")
		f := watchKeys(t, lineA)
		f.write("")
		f.polls(1)
		f.wants("an editor may be about to write it", a, true, 0)
		f.write(lineA)
		f.polls(1)
		f.wants("written", a, true, 0)
		f.write("")
		f.polls(2)
		f.wants("it is meant to be empty", a, false, 1)
		f.logged(1, "nobody can register")
	})
}

func TestAuthorizedKeysLeaveASettledFileAlone(t *testing.T) {
	_, line := testThumbprint(t, "a")
	path := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(path, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := newAuthorizedKeys(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if a.unchanged(info) {
		t.Error("a file that was written just before it was read may have been written again: it has to be read")
	}
	a.readAt = info.ModTime().Add(authorizedKeysPoll + time.Second)
	if !a.unchanged(info) {
		t.Error("an old file that has not changed is read again")
	}
}
