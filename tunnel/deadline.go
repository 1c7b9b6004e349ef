package tunnel

import (
	"sync"
	"time"
)

// A deadline closes a channel when its time has come. The zero value never does; what waits already when one is first
// set does not notice, unless it came from newDeadline.
type deadline struct {
	mu      sync.Mutex
	timer   *time.Timer
	expired chan struct{} // nil until a deadline is first set
}

func newDeadline() deadline { return deadline{expired: make(chan struct{})} }

// set moves the deadline; the zero time means never.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	if t.IsZero() && d.expired == nil {
		return
	}
	if d.expired == nil || isClosed(d.expired) {
		d.expired = make(chan struct{})
	}
	if t.IsZero() {
		return
	}
	if wait := time.Until(t); wait <= 0 {
		close(d.expired)
	} else {
		var timer *time.Timer
		timer = time.AfterFunc(wait, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.timer == timer { // else it was set anew meanwhile
				close(d.expired)
			}
		})
		d.timer = timer
	}
}

// wait returns a channel that is closed once the deadline that is set now has passed. It blocks for ever if none is.
func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.expired
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
