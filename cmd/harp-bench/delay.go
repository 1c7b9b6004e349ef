package main

import (
	"context"
	"errors"
	"flag"
	"io"
	"net"
	"strconv"
	"sync"
	"time"
)

// A delay is a path for TCP that takes its time: what goes in comes out half a round trip later, at any speed, but with
// no more than a window under way in each direction, as with real TCP, where the sender's buffer is the bound.
type delay struct {
	to     string
	half   time.Duration // of the round trip
	window int64         // bytes
}

// delayPart is a long path.
func delayPart(f *flag.FlagSet) func(context.Context, io.Writer) error {
	to := f.String("to", "", "where connections go")
	roundTrip := f.Duration("round-trip", 0, "there and back")
	window := f.Int64("window", 0, "most MiB under way in one direction")
	return func(ctx context.Context, out io.Writer) error {
		return delay{to: *to, half: *roundTrip / 2, window: *window << 20}.serve(ctx, out)
	}
}

// startDelay starts a long path to addr.
func (b *bench) startDelay(ctx context.Context, addr string, roundTrip time.Duration) (service, error) {
	return b.startSelf(ctx, "delay", "--to", addr, "--round-trip", roundTrip.String(), "--window", strconv.Itoa(b.plan.pathWindow))
}

// serve listens, prints its address, and carries connections until ctx ends.
func (d delay) serve(ctx context.Context, out io.Writer) error {
	l, err := listen(out)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		near, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		wg.Go(func() { d.carry(ctx, near) }) // ends with the connection, or ctx
	}
}

// carry carries one connection and closes it.
func (d delay) carry(ctx context.Context, near net.Conn) {
	defer near.Close()
	far, err := (&net.Dialer{}).DialContext(ctx, "tcp", d.to)
	if err != nil {
		return
	}
	defer far.Close()
	stop := context.AfterFunc(ctx, func() {
		_ = near.Close()
		_ = far.Close()
	})
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { d.oneWay(far, near) }) // both end with their connections
	wg.Go(func() { d.oneWay(near, far) })
	wg.Wait()
}

// A parcel is bytes on their way.
type parcel struct {
	bytes []byte
	due   time.Time // when they come out, and then when the sender knows that
}

const (
	parcelSize = 64 << 10 // how many bytes are read at once
	maxParcels = 4 << 10  // on their way
)

// oneWay carries what src sends to dst, and its end. If one of them breaks it closes the other.
func (d delay) oneWay(dst, src net.Conn) {
	under := make(chan parcel, maxParcels)  // on their way; closed after the last
	landed := make(chan parcel, maxParcels) // came out, and the sender does not know yet; closed after the last
	window := newWindow(d.window)
	var wg sync.WaitGroup
	wg.Go(func() { // ends with src
		defer close(under)
		for {
			buf := make([]byte, parcelSize)
			n, err := src.Read(buf)
			if n > 0 {
				window.take(int64(n))
				under <- parcel{buf[:n], time.Now().Add(d.half)}
			}
			if err != nil {
				if !errors.Is(err, io.EOF) {
					_ = dst.Close()
				}
				return
			}
		}
	})
	wg.Go(func() { // ends after the last that landed
		for p := range landed {
			waitUntil(p.due)
			window.put(int64(len(p.bytes)))
		}
	})
	for p := range under {
		waitUntil(p.due)
		if _, err := dst.Write(p.bytes); err != nil {
			_ = src.Close()
		}
		landed <- parcel{p.bytes, time.Now().Add(d.half)}
	}
	close(landed)
	if half, ok := dst.(*net.TCPConn); ok {
		_ = half.CloseWrite()
	}
	wg.Wait()
}

// waitUntil returns at t, or at once if that is past.
func waitUntil(t time.Time) {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	<-timer.C
}

// A window is how many bytes may be under way.
type window struct {
	mu   sync.Mutex
	more *sync.Cond // told when free grows
	free int64
}

func newWindow(size int64) *window {
	w := &window{free: size}
	w.more = sync.NewCond(&w.mu)
	return w
}

// take waits until anything is free and takes n bytes, which may be a parcel too many.
func (w *window) take(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.free <= 0 {
		w.more.Wait()
	}
	w.free -= n
}

func (w *window) put(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.free += n
	w.more.Signal()
}
