package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func readState(t *testing.T, path string) state {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var s state
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatalf("%s: %v", data, err)
	}
	return s
}

func TestStateFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state.json")
	if err := os.WriteFile(path, []byte("of an agent that crashed"), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := newStateFile(path, state{Label: "l", Session: "s", Server: "https://x.example", Domains: []string{"app.example.org"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the old file is still there (%v): its URL is not true", err)
	}
	if err := f.disconnected(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("there is a file before the first registration: %v", err)
	}

	if err := f.registered("l.x.example", "https://l.x.example"); err != nil {
		t.Fatal(err)
	}
	got := readState(t, path)
	want := state{
		Hostname: "l.x.example", URL: "https://l.x.example", Label: "l", Session: "s", Server: "https://x.example",
		Domains: []string{"app.example.org"}, PID: os.Getpid(), Connected: true, Since: got.Since,
	}
	if !reflect.DeepEqual(got, want) || time.Since(got.Since) > time.Minute {
		t.Errorf("state %+v, want %+v", got, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("mode %v, %v; want 0644: other programs read it", info.Mode(), err)
	}

	if err := f.disconnected(); err != nil {
		t.Fatal(err)
	}
	if got := readState(t, path); got.Connected || got.URL == "" {
		t.Errorf("after the link was lost: %+v, want the URL, not connected", got)
	}
	if err := f.remove(); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := f.remove(); err != nil {
		t.Errorf("removing it twice: %v", err)
	}
}

func TestStateFileOfASuccessor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	f, err := newStateFile(path, state{})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.registered("old", "https://old"); err != nil {
		t.Fatal(err)
	}
	other, err := json.Marshal(state{URL: "https://new", PID: os.Getpid() + 1, Connected: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, other, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := f.disconnected(); err != nil {
		t.Fatal(err)
	}
	if err := f.remove(); err != nil {
		t.Fatal(err)
	}
	if got := readState(t, path); got.URL != "https://new" || !got.Connected {
		t.Errorf("the file of the agent that took over is now %+v", got)
	}
}

func TestStateFileRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := newStateFile(dir, state{}); err == nil {
		t.Error("a folder was taken for the state file")
	}
	if _, err := os.Stat(dir); err != nil {
		t.Errorf("the folder is gone: %v", err)
	}
	lost := filepath.Join(dir, "none", "state.json")
	if _, err := newStateFile(lost, state{}); err == nil || !strings.Contains(err.Error(), lost) || strings.Contains(err.Error(), ".tmp") {
		t.Errorf("a file in a folder that does not exist: %v; want an error with the name that was given", err)
	}
	if f, err := newStateFile("", state{}); f != nil || err != nil {
		t.Errorf("no path gave %v, %v; want nothing", f, err)
	}
	var none *stateFile
	if none.registered("h", "u") != nil || none.disconnected() != nil || none.remove() != nil {
		t.Error("a nil state file does something")
	}
}
