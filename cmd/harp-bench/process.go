package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// patience is how long anything may take that is done in milliseconds when all is well.
const patience = 30 * time.Second

// A process is a program that was started, and ends with stop or with the context it was started with.
type process struct {
	name  string
	cmd   *exec.Cmd
	lines chan string   // gets the first line of stdout
	ended chan struct{} // closed when the process is gone; err is set before
	err   error
	words *tail // what it said on stderr
}

// start starts a program. The process is killed when ctx ends; the caller stops it before that.
func start(ctx context.Context, name string, args ...string) (*process, error) {
	p := &process{name: filepath.Base(name), lines: make(chan string, 1), ended: make(chan struct{}), words: &tail{}}
	p.cmd = exec.CommandContext(ctx, name, args...)
	p.cmd.SysProcAttr = childAttributes()
	p.cmd.Stdout = &firstLine{lines: p.lines}
	p.cmd.Stderr = p.words
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() { // ends with the process
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// line waits for the first line that the process prints, which says that it is ready.
func (p *process) line(ctx context.Context, limit time.Duration) (string, error) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case line := <-p.lines:
		return line, nil
	case <-p.ended:
		return "", p.failure()
	case <-timer.C:
		return "", fmt.Errorf("%s was not ready within %v: %s", p.name, limit, p.words)
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// failure says how the process ended, which it must have.
func (p *process) failure() error {
	<-p.ended
	err := p.err
	if err == nil {
		err = errors.New("it ended early")
	}
	return fmt.Errorf("%s: %w: %s", p.name, err, p.words)
}

// stop kills the process and waits until it is gone. A nil process has been stopped.
func (p *process) stop() {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Kill() // the error says that it is gone already
	<-p.ended
}

// cpu returns the CPU time that the process has used.
func (p *process) cpu() (time.Duration, error) { return cpuTime(p.cmd.Process.Pid) }

// runOnce runs a program to its end and returns what it printed.
func runOnce(ctx context.Context, name string, args ...string) ([]byte, error) {
	words := &tail{}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = childAttributes()
	cmd.Stderr = words
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", args[0], err, words)
	}
	return out, nil
}

// A firstLine passes the first line that is written to it on and drops the rest.
type firstLine struct {
	lines chan<- string // has room for it
	seen  []byte
	done  bool
}

func (f *firstLine) Write(p []byte) (int, error) {
	if f.done {
		return len(p), nil
	}
	f.seen = append(f.seen, p...)
	if i := bytes.IndexByte(f.seen, '\n'); i >= 0 {
		f.lines <- string(f.seen[:i])
		f.done, f.seen = true, nil
	}
	return len(p), nil
}

// A tail keeps the last bytes that were written to it. It may be read while it is written.
type tail struct {
	mu   sync.Mutex
	text []byte // at most maxTail bytes
}

const maxTail = 2 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	t.text = t.text[max(0, len(t.text)-maxTail):]
	return len(p), nil
}

// String returns the last line that is not a hint.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	last := "it said nothing"
	for line := range strings.Lines(string(t.text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "hint:") {
			last = line
		}
	}
	return last
}
