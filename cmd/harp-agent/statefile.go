package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// A state is what the file of --state-file holds. The names are a promise to other programs; none of it is secret.
type state struct {
	Hostname  string    `json:"hostname"`
	URL       string    `json:"url"`
	Label     string    `json:"label"`
	Session   string    `json:"session"`
	Domains   []string  `json:"domains,omitempty"` // hostnames of one's own under which the service is reached, too
	Server    string    `json:"server"`
	PID       int       `json:"pid"`       // of the agent that wrote the file
	Connected bool      `json:"connected"` // whether the edge serves the URL now
	Since     time.Time `json:"since"`     // when Connected last became what it is
}

// A stateFile tells other programs what the agent's URL is. The file appears with the first registration, and readers
// see each version of it whole. A nil stateFile does nothing.
type stateFile struct {
	path string

	mu    sync.Mutex // guards state, and makes writes follow each other
	state state
}

// newStateFile removes what an earlier agent left at path and makes sure that the file can be written later. first
// holds what is known from the start. An empty path gives nil.
func newStateFile(path string, first state) (*stateFile, error) {
	if path == "" {
		return nil, nil
	}
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	first.PID = os.Getpid()
	f := &stateFile{path: path, state: first}
	temp, err := f.writeTemp()
	if err != nil {
		return nil, err
	}
	if err := os.Remove(temp); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	return f, nil
}

// registered writes that the edge serves url from now on.
func (f *stateFile) registered(hostname, url string) error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.Hostname, f.state.URL = hostname, url
	return f.writeLocked(true)
}

// disconnected writes that this agent does not serve the URL now. It leaves the file alone if there is none yet, or
// if another agent has written it since.
func (f *stateFile) disconnected() error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.oursLocked() {
		return nil
	}
	return f.writeLocked(false)
}

// remove removes the file unless another agent has written it since.
func (f *stateFile) remove() error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.oursLocked() {
		return nil
	}
	if err := os.Remove(f.path); err != nil {
		return fmt.Errorf("remove the state file: %w", err)
	}
	return nil
}

// oursLocked reports whether the file is the one that this process wrote: an agent that takes the name over may have
// been given the same path.
func (f *stateFile) oursLocked() bool {
	data, err := os.ReadFile(f.path)
	if err != nil {
		return false
	}
	var there state
	return json.Unmarshal(data, &there) == nil && there.PID == f.state.PID
}

func (f *stateFile) writeLocked(connected bool) error {
	if connected != f.state.Connected || f.state.Since.IsZero() {
		f.state.Connected, f.state.Since = connected, time.Now().UTC().Truncate(time.Second)
	}
	temp, err := f.writeTemp()
	if err == nil {
		err = os.Rename(temp, f.path)
	}
	if err != nil {
		return fmt.Errorf("write the state file: %w", err)
	}
	return nil
}

// writeTemp writes the state, readable for everybody, to a new file beside path and returns its name.
func (f *stateFile) writeTemp() (string, error) {
	data, err := json.Marshal(f.state)
	if err != nil {
		return "", err
	}
	temp, err := os.CreateTemp(filepath.Dir(f.path), ".harp-state-*.tmp")
	if err != nil {
		if e, ok := errors.AsType[*fs.PathError](err); ok { // nobody knows the temporary name
			err = fmt.Errorf("write %s: %w", f.path, e.Err)
		}
		return "", err
	}
	_, err = temp.Write(append(data, '\n'))
	if err == nil {
		err = temp.Chmod(0o644)
	}
	if closeErr := temp.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		os.Remove(temp.Name())
		return "", err
	}
	return temp.Name(), nil
}
