package tunnel

import (
	"context"
	"slices"
	"sync"
	"time"
)

// A requestContext is the context of a handler's request: it ends with the stream, or when the handler has returned. It is
// part of the stream's one allocation, and has a channel only for who asks for it.
type requestContext struct {
	mu    sync.Mutex
	err   error         // context.Canceled once it has ended
	done  chan struct{} // nil until somebody asks
	after []*func()     // what Watch was given and Unwatch was not
	room  [1]*func()    // behind after, for the one that there mostly is
}

func (c *requestContext) Deadline() (deadline time.Time, ok bool) { return }

func (c *requestContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		if c.done = make(chan struct{}); c.err != nil {
			close(c.done)
		}
	}
	return c.done
}

func (c *requestContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *requestContext) Value(any) any { return nil }

// AfterFunc is what context.AfterFunc, and each context that is made from this one, looks for.
func (c *requestContext) AfterFunc(f func()) (stop func() bool) {
	c.Watch(&f)
	return func() bool { return c.Unwatch(&f) }
}

// Watch is AfterFunc for who has a pointer to the function, and so needs no allocation.
func (c *requestContext) Watch(f *func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		go (*f)() // ends with f
		return
	}
	if c.after == nil {
		c.after = c.room[:0]
	}
	c.after = append(c.after, f)
}

// Unwatch is the stop of Watch: it reports whether f was given to Watch, and now will not be called.
func (c *requestContext) Unwatch(f *func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.Index(c.after, f)
	if i >= 0 {
		c.after = slices.Delete(c.after, i, i+1)
	}
	return i >= 0
}

// end ends the context; once more does nothing.
func (c *requestContext) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = context.Canceled
	if c.done != nil {
		close(c.done)
	}
	for _, f := range c.after {
		go (*f)() // ends with f
	}
	c.after = nil
}
