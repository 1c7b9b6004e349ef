package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"time"
)

// A load asks for the small page over and over on keep-alive connections.
type load struct {
	target
	connections int
	length      time.Duration
	rate        float64 // requests a second in all, at fixed times; zero means that each waits only for the one before
}

// A loadResult is what a load found out. Its JSON is how the process that makes the load hands it over.
type loadResult struct {
	Requests int           `json:"requests"`
	Length   time.Duration `json:"length"` // from the first request to the last answer
	Median   time.Duration `json:"median"`
	P99      time.Duration `json:"p99"`
}

// loadPart makes a load: a process of its own, on one processor, as the subjects need the others.
func loadPart(f *flag.FlagSet) func(context.Context, io.Writer) error {
	var l load
	f.StringVar(&l.addr, "addr", "", "where to connect")
	f.StringVar(&l.host, "host", "", "the Host field")
	f.StringVar(&l.roots, "roots", "", "file with the certificates to trust")
	f.IntVar(&l.connections, "connections", 0, "how many")
	f.DurationVar(&l.length, "length", 0, "how long")
	f.Float64Var(&l.rate, "rate", 0, "requests a second")
	return func(ctx context.Context, out io.Writer) error {
		runtime.GOMAXPROCS(1)
		result, err := l.make(ctx)
		if err != nil {
			return err
		}
		return json.NewEncoder(out).Encode(result)
	}
}

// run makes the load in a process of its own.
func (l load) run(ctx context.Context, b *bench) (loadResult, error) {
	out, err := runOnce(ctx, b.self, "load", "--addr", l.addr, "--host", l.host, "--roots", l.roots,
		"--connections", fmt.Sprint(l.connections), "--length", l.length.String(), "--rate", fmt.Sprint(l.rate))
	if err != nil {
		return loadResult{}, err
	}
	var result loadResult
	if err := json.Unmarshal(out, &result); err != nil {
		return loadResult{}, fmt.Errorf("read what the load found: %w", err)
	}
	if result.Requests == 0 || result.Length <= 0 {
		return loadResult{}, errors.New("the load did not get one answer")
	}
	return result, nil
}

// make makes the load. One answer that is not as it should be fails all of it.
func (l load) make(ctx context.Context) (loadResult, error) {
	visitors := make([]*visitor, l.connections)
	for i := range visitors {
		v, err := l.visit(ctx)
		if err != nil {
			return loadResult{}, err
		}
		defer v.close()
		visitors[i] = v
	}
	latencies := make([][]time.Duration, l.connections)
	errs := make([]error, l.connections)
	begin := time.Now()
	var wg sync.WaitGroup
	for i, v := range visitors {
		wg.Go(func() { // ends after l.length, or with ctx
			if l.rate > 0 {
				latencies[i], errs[i] = l.keepTime(v, begin, i)
			} else {
				latencies[i], errs[i] = l.keepAsking(v, begin)
			}
		})
	}
	wg.Wait()
	length := time.Since(begin)
	if err := first(errs); err != nil {
		return loadResult{}, err
	}
	all := slices.Concat(latencies...)
	slices.Sort(all)
	return loadResult{Requests: len(all), Length: length, Median: quantile(all, 0.5), P99: quantile(all, 0.99)}, nil
}

// keepAsking sends each request when the answer before is there.
func (l load) keepAsking(v *visitor, begin time.Time) ([]time.Duration, error) {
	request := l.request("GET", pagePath)
	var latencies []time.Duration
	for now := begin; now.Sub(begin) < l.length; {
		if err := v.page(request); err != nil {
			return nil, err
		}
		then := now
		now = time.Now()
		latencies = append(latencies, now.Sub(then))
	}
	return latencies, nil
}

// keepTime sends the requests of connection i at their times. One that waits for the answer before it has its latency
// counted from its time: else a long stop would count as one slow request.
func (l load) keepTime(v *visitor, begin time.Time, i int) ([]time.Duration, error) {
	request := l.request("GET", pagePath)
	interval := time.Duration(float64(l.connections) / l.rate * float64(time.Second))
	due := begin.Add(interval * time.Duration(i) / time.Duration(l.connections))
	timer := time.NewTimer(0)
	defer timer.Stop()
	var latencies []time.Duration
	for ; due.Sub(begin) < l.length; due = due.Add(interval) {
		start := due
		if wait := time.Until(due); wait > 0 {
			timer.Reset(wait)
			<-timer.C
			start = time.Now() // that the timer was late is not the subject's doing
		}
		if err := v.page(request); err != nil {
			return nil, err
		}
		latencies = append(latencies, time.Since(start))
	}
	return latencies, nil
}

// first returns the first error that is not nil: the others mostly say the same.
func first(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// quantile returns the value that the share q of the sorted values does not exceed; zero of none.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
