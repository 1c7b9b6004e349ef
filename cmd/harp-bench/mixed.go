package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// smallConnections is how many connections the small requests beside downloads come on: so many that each answer has
// time before the next request on its connection is due, even on a machine that is busy.
const smallConnections = 64

// mixedRun measures small requests while large downloads run through the same link. On a machine with few processors
// these have to wait for each other whatever the link does; the second row has that on both sides.
func mixedRun() run {
	rows := []row{
		{name: "mixed-p99", what: "p99 of small requests beside downloads", unit: "ms", yardstick: "without them", bar: 4, aim: 2},
		{name: "mixed-link", what: "p99 beside downloads on the same link", unit: "ms", yardstick: "on another link"},
	}
	return run{rows: rows, measure: func(ctx context.Context, b *bench) ([]sample, error) {
		harp, err := b.startHARP(ctx, harpOptions{})
		if err != nil {
			return nil, err
		}
		defer harp.stop()
		other, err := b.startHARP(ctx, harpOptions{})
		if err != nil {
			return nil, err
		}
		defer other.stop()
		hops, err := b.startHops(ctx, 2)
		if err != nil {
			return nil, err
		}
		defer hops.stop()
		without, err := b.smallRequests(ctx, harp)
		if err != nil {
			return nil, err
		}
		beside, n, err := b.smallBeside(ctx, harp, harp)
		if err != nil {
			return nil, err
		}
		elsewhere, _, err := b.smallBeside(ctx, harp, other)
		if err != nil {
			return nil, err
		}
		yard, _, err := b.smallBeside(ctx, hops, hops)
		if err != nil {
			return nil, err
		}
		return []sample{
			{HARP: beside, Yardstick: without, Note: fmt.Sprintf("%d downloads meanwhile; %s with as many: %s ms", n, twoHops, number(yard))},
			{HARP: beside, Yardstick: elsewhere},
		}, nil
	}}
}

// smallRequests returns the p99 of small requests through s, in ms.
func (b *bench) smallRequests(ctx context.Context, s *subject) (float64, error) {
	l := load{target: s.target, connections: smallConnections, length: b.plan.warmup, rate: float64(b.plan.small)}
	if _, err := l.run(ctx, b); err != nil {
		return 0, fmt.Errorf("%s: %w", s.name, err)
	}
	l.length = b.plan.load
	result, err := l.run(ctx, b)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", s.name, err)
	}
	return float64(result.P99) / float64(time.Millisecond), nil
}

// smallBeside is smallRequests while downloads run through t, and how many of these were complete.
func (b *bench) smallBeside(ctx context.Context, s, t *subject) (p99 float64, downloads int, err error) {
	stop := b.keepDownloading(ctx, t.target)
	p99, err = b.smallRequests(ctx, s)
	downloads, failed := stop()
	return p99, downloads, errors.Join(err, failed)
}

// keepDownloading begins downloads, as many at once as the plan says, each followed by the next. stop cuts them off and
// returns how many were complete, and the error of one that failed before.
func (b *bench) keepDownloading(ctx context.Context, t target) (stop func() (int, error)) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var mu sync.Mutex // guards the two below
	finished := 0
	var failed error
	for range b.plan.downloads {
		wg.Go(func() { // ends with ctx
			for ctx.Err() == nil {
				err := download(ctx, t, b.plan.download)
				mu.Lock()
				if err == nil {
					finished++
				} else if ctx.Err() == nil {
					failed = err
					cancel()
				}
				mu.Unlock()
			}
		})
	}
	return func() (int, error) {
		cancel()
		wg.Wait()
		return finished, failed
	}
}
