package tunnel

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestRequestContext holds it against what the context package promises, with contexts made from it.
func TestRequestContext(t *testing.T) {
	type key struct{}
	synctest.Test(t, func(t *testing.T) {
		c := new(requestContext)
		early := c.Done()
		child, cancel := context.WithTimeout(context.WithValue(c, key{}, "value"), time.Hour)
		defer cancel()
		var ran atomic.Int32
		context.AfterFunc(c, func() { ran.Add(1) })
		c.AfterFunc(func() { ran.Add(10) })
		stopped := c.AfterFunc(func() { ran.Add(100) })
		if !stopped() || stopped() {
			t.Error("stop does not say once, and only once, that it stopped")
		}
		if c.Err() != nil || child.Err() != nil || isClosed(early) {
			t.Error("it has ended before its end")
		}
		late := c.AfterFunc(func() { ran.Add(1000) })
		c.end()
		c.end()
		synctest.Wait()
		if ran.Load() != 1011 {
			t.Errorf("ran %d, want each function that was not stopped once", ran.Load())
		}
		if c.Err() != context.Canceled || context.Cause(c) != context.Canceled || child.Err() != context.Canceled {
			t.Errorf("ended with %v, its child with %v", c.Err(), child.Err())
		}
		if !isClosed(early) || !isClosed(c.Done()) {
			t.Error("Done is not closed")
		}
		if late() {
			t.Error("stop says that it stopped what ran")
		}
		after := c.AfterFunc(func() { ran.Add(1) })
		synctest.Wait()
		if ran.Load() != 1012 || after() {
			t.Errorf("ran %d, want what comes after the end to run at once", ran.Load())
		}
	})
}
