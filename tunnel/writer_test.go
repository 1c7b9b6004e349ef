package tunnel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/harp-tunnel/harp/messages"
)

// TestTryBinary fills a connection that nobody reads, without ever waiting. What was kept then comes out whole, and in
// order.
func TestTryBinary(t *testing.T) {
	server, client := loopback(t)
	defer server.Close()
	defer client.Close()
	for _, ends := range [][2]Conn{{server, client}, {client, server}} {
		var sent [][]byte
		c := ends[0].(tryConn)
		for all := true; all; {
			part := pattern(inlineBatch, uint32(len(sent)))
			sent = append(sent, part)
			var err error
			if all, err = c.TryBinary(part[:100], part[100:]); err != nil {
				t.Fatal(err)
			}
			if len(sent) > 10_000 {
				t.Fatal("the connection takes everything")
			}
		}
		go func() { _ = c.Flush() }()
		for i, part := range sent {
			for _, want := range [][]byte{part[:100], part[100:]} {
				_, r, err := ends[1].NextMessage()
				if err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("batch %d of %d: %d others of %d bytes, %v", i, len(sent), len(got), len(want), err)
				}
			}
		}
		if all, err := c.TryBinary([]byte("more")); !all || err != nil {
			t.Errorf("after Flush: %v, %v; want that all is taken again", all, err)
		}
		if _, r, err := ends[1].NextMessage(); err != nil {
			t.Error(err)
		} else if got, _ := io.ReadAll(r); string(got) != "more" {
			t.Errorf("after Flush came %q", got)
		}
	}
}

// TestStalledLinkHoldsNobody has an agent that reads nothing: requests fill the connection, and whoever sent them still
// leaves when he wants to.
func TestStalledLinkHoldsNobody(t *testing.T) {
	server, client := loopback(t)
	defer client.Close()
	edge := run(t, NewSession(server, Config{}))
	head := http.Header{"X-Large": {string(bytes.Repeat([]byte("x"), 12<<10))}}
	gathered := func() int {
		edge.out.mu.Lock()
		defer edge.out.mu.Unlock()
		return len(edge.out.urgent)
	}
	for sent := 0; gathered() < 100<<10; sent++ {
		if sent > 10_000 {
			t.Fatal("the link takes everything")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		r := request("GET", "/", nil).WithContext(ctx)
		r.Header = head
		began := time.Now()
		_, err := edge.RoundTrip(1, r)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("request %d: %v, want %v", sent, err, context.DeadlineExceeded)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Fatalf("request %d held its sender for %v", sent, took)
		}
	}
	edge.Close(nil)
	<-edge.Done()
}

// TestWriteErrorEndsTheLink wants the first failed write to be the cause of death, whoever made it.
func TestWriteErrorEndsTheLink(t *testing.T) {
	for _, self := range []bool{true, false} {
		broken := errors.New("broken")
		c := &brokenConn{Conn: new(partConn), err: broken}
		var cause error
		o := newOutbox(c, func(err error) { cause = err })
		o.writing = false
		if self {
			_, _ = o.head(never, false, func(b []byte) ([]byte, error) { return append(b, responds(1, 200, 0)...), nil })
		} else {
			_ = o.control(func(b []byte) []byte { return messages.AppendReserved(b, 0) })
		}
		<-o.written
		_ = o.control(func(b []byte) []byte { return messages.AppendReserved(b, 0) })
		o.close(ErrClosed)
		if !errors.Is(cause, broken) {
			t.Errorf("the link was ended with %v, want %v", cause, broken)
		}
		if c.writes != 1 {
			t.Errorf("%d writes, want none after the first, which failed", c.writes)
		}
	}
}

// A brokenConn fails all writes.
type brokenConn struct {
	Conn
	err    error
	writes int
}

func (c *brokenConn) WriteBinary(...[]byte) error {
	c.writes++
	return c.err
}

func (c *brokenConn) TryBinary(parts ...[]byte) (bool, error) { return false, c.WriteBinary(parts...) }

func (c *brokenConn) Flush() error { return net.ErrClosed }

// TestInlineWritesAreSmall has many add at once: who writes himself writes no text, as such may wait, and no more than
// inlineBatch; and no text is lost.
func TestInlineWritesAreSmall(t *testing.T) {
	const senders, rounds = 8, 10_000
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(8)) // so that threads are stopped anywhere
	c := &inlineConn{t: t}
	o := newOutbox(c, func(error) {})
	o.begin()
	var wg sync.WaitGroup
	sent := 0
	wg.Go(func() {
		for range rounds {
			if o.text([]byte("text")) == nil { // else there were too many
				sent++
			}
			runtime.Gosched()
		}
	})
	for range senders {
		wg.Go(func() {
			for range rounds {
				_, _ = o.head(never, false, func(b []byte) ([]byte, error) {
					return append(b, raw(messages.TypeHTTPResponse, 0, 7, string(make([]byte, 12<<10)))...), nil
				})
			}
		})
	}
	wg.Wait()
	o.close(ErrClosed)
	<-o.written
	if got := int(c.texts.Load()); got != sent {
		t.Errorf("%d texts were written, want the %d that were taken", got, sent)
	}
}

// An inlineConn takes everything at once.
type inlineConn struct {
	batchChan
	t     *testing.T
	texts atomic.Int64
}

func (c *inlineConn) WriteText([]byte) error { c.texts.Add(1); return nil }

func (c *inlineConn) WriteBinary(...[]byte) error { return nil }

func (c *inlineConn) TryBinary(parts ...[]byte) (bool, error) {
	if n := len(parts[0]) + len(parts[1]); n > inlineBatch {
		c.t.Errorf("%d bytes are written inline, want at most %d", n, inlineBatch)
	}
	return true, nil
}

func (c *inlineConn) Flush() error { return nil }
