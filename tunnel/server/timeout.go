package server

import (
	"context"
	"sync"
	"time"
)

// A timeoutWatch ends a request whose response head does not come in time. Every piece of the request body that moves
// sets it back, so that a long upload over a slow line is no timeout.
type timeoutWatch struct {
	visit  *visit
	cancel context.CancelCauseFunc

	mu      sync.Mutex // guards the fields below
	timer   *time.Timer
	stopped bool
}

func (v *visit) watchTimeout(cancel context.CancelCauseFunc) *timeoutWatch {
	t := &timeoutWatch{visit: v, cancel: cancel}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.timer = time.AfterFunc(v.timeout, t.check)
	return t
}

func (t *timeoutWatch) check() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped {
		return
	}
	moved := t.visit.began
	if b := t.visit.body; b != nil {
		moved = b.lastMove()
	}
	if left := t.visit.timeout - time.Since(moved); left > 0 {
		t.timer.Reset(left)
		return
	}
	t.cancel(errTimeout)
}

// stop ends the watch. Nothing is cancelled after it has returned.
func (t *timeoutWatch) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped = true
	t.timer.Stop()
}
