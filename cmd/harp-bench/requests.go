package main

import (
	"context"
	"fmt"
	"time"
)

// requestRun measures many small requests at once, and one at a time, beside one plain Go hop.
func requestRun() run {
	rows := []row{
		{name: "requests", what: "1 KiB requests, 64 connections", unit: "req/s", yardstick: oneHop, more: true, bar: 1.7, aim: 2},
		{name: "cpu", what: "CPU of both processes per request", unit: "µs", yardstick: oneHop, bar: 0.6, aim: 0.45},
		{name: "latency", what: "median latency, one connection", unit: "µs", yardstick: oneHop, bar: 1.35, aim: 1.15},
	}
	return run{rows: rows, measure: func(ctx context.Context, b *bench) ([]sample, error) {
		hop, err := b.startHops(ctx, 1)
		if err != nil {
			return nil, err
		}
		defer hop.stop()
		harp, err := b.startHARP(ctx, harpOptions{})
		if err != nil {
			return nil, err
		}
		defer harp.stop()
		costs, err := b.requestCosts(ctx, hop, harp)
		if err != nil {
			return nil, err
		}
		yard, ours := costs[0], costs[1]
		return []sample{
			{HARP: ours.perSecond(), Yardstick: yard.perSecond()},
			{HARP: ours.perRequest(), Yardstick: yard.perRequest()},
			{HARP: ours.latency(), Yardstick: yard.latency()},
		}, nil
	}}
}

// turns is how often yardstick and HARP alternate within a round: other work on the machine then hits both.
const turns = 3

// A requestCost is what small requests through a subject took, over all turns.
type requestCost struct {
	requests int           // with many connections
	length   time.Duration // of those
	cpu      time.Duration // that the subject's processes used meanwhile
	medians  []float64     // latency with one connection in each turn, in µs
}

// perSecond is how many requests were answered in a second.
func (c requestCost) perSecond() float64 { return float64(c.requests) / c.length.Seconds() }

// perRequest is the CPU time of a request in µs.
func (c requestCost) perRequest() float64 { return micros(c.cpu) / float64(c.requests) }

// latency is in µs.
func (c requestCost) latency() float64 { return median(c.medians) }

// micros returns d in µs.
func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// requestCosts measures two subjects in turns, with many connections and then with one.
func (b *bench) requestCosts(ctx context.Context, s, t *subject) (costs [2]requestCost, err error) {
	subjects := [2]*subject{s, t}
	for _, x := range subjects {
		warm := load{target: x.target, connections: b.plan.connections, length: b.plan.warmup}
		if _, err := warm.run(ctx, b); err != nil {
			return costs, fmt.Errorf("%s: %w", x.name, err)
		}
	}
	for range turns {
		for i, x := range subjects {
			if err := costs[i].addMany(ctx, b, x); err != nil {
				return costs, fmt.Errorf("%s: %w", x.name, err)
			}
		}
	}
	for range turns {
		for i, x := range subjects {
			one, err := load{target: x.target, connections: 1, length: b.plan.latency / turns}.run(ctx, b)
			if err != nil {
				return costs, fmt.Errorf("%s: %w", x.name, err)
			}
			costs[i].medians = append(costs[i].medians, micros(one.Median))
		}
	}
	return costs, nil
}

// addMany adds one turn with many connections.
func (c *requestCost) addMany(ctx context.Context, b *bench, s *subject) error {
	before, err := s.cpu()
	if err != nil {
		return err
	}
	l := load{target: s.target, connections: b.plan.connections, length: b.plan.load / turns}
	many, err := l.run(ctx, b)
	if err != nil {
		return err
	}
	after, err := s.cpu()
	if err != nil {
		return err
	}
	c.requests += many.Requests
	c.length += many.Length
	c.cpu += after - before
	return nil
}
