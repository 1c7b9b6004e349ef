package main

import (
	"context"
	"fmt"
	"time"
)

// longPathRun measures one stream over a path with a long round trip between agent and edge.
func longPathRun() run {
	rows := []row{
		{name: "long-download", what: "one download, 100 ms between agent and edge", unit: "MB/s", yardstick: bareTCP, more: true, bar: 0.8, aim: 0.95},
		{name: "long-upload", what: "one upload, 100 ms between agent and edge", unit: "MB/s", yardstick: bareTCP, more: true, bar: 0.8, aim: 0.95},
	}
	return run{rows: rows, measure: func(ctx context.Context, b *bench) ([]sample, error) {
		pipe, err := b.startDelay(ctx, b.upstream, b.plan.roundTrip)
		if err != nil {
			return nil, err
		}
		defer pipe.stop()
		bare := target{addr: pipe.addr, host: domain}
		harp, err := b.startHARP(ctx, harpOptions{roundTrip: b.plan.roundTrip})
		if err != nil {
			return nil, err
		}
		defer harp.stop()
		samples := make([]sample, len(rows))
		for i, move := range []transfer{download, upload} {
			yard, err := b.streamSpeed(ctx, bare, move)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", bareTCP, err)
			}
			ours, err := b.streamSpeed(ctx, harp.target, move)
			if err != nil {
				return nil, err
			}
			samples[i] = sample{HARP: ours, Yardstick: yard}
		}
		return samples, nil
	}}
}

const bareTCP = "bare TCP"

// streamSpeed moves one stream and returns its speed in MB/s.
func (b *bench) streamSpeed(ctx context.Context, t target, move transfer) (float64, error) {
	begin := time.Now()
	if err := move(ctx, t, b.plan.stream); err != nil {
		return 0, err
	}
	return megabytes(b.plan.stream) / time.Since(begin).Seconds(), nil
}
