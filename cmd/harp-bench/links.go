package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// The rows of linkRun.
const (
	linkRows        = "link-" // all of them begin with it
	rowIdleLink     = linkRows + "memory"
	rowLinksCPU     = linkRows + "cpu"
	rowLinksLatency = linkRows + "latency"
)

// enoughLinks is how many it takes for the bars: with fewer, what does not depend on their number shows.
const enoughLinks = 10_000

// perMaker is how many links one process makes: a process has a bounded number of files.
const perMaker = 5000

// linkRun measures what idle links cost: memory, and what they add to a request.
func linkRun() run {
	rows := []row{
		{name: rowIdleLink, what: "server memory per idle link", unit: "KB", bar: 25, aim: 15},
		{name: rowLinksCPU, what: "CPU per request beside many idle links", unit: "µs", yardstick: "few links", bar: 1.15, aim: 1.05},
		{name: rowLinksLatency, what: "median latency beside many idle links", unit: "µs", yardstick: "few links", bar: 1.15, aim: 1.05},
	}
	return run{rows: rows, measure: func(ctx context.Context, b *bench) ([]sample, error) {
		few, err := b.startHARP(ctx, harpOptions{admin: true})
		if err != nil {
			return nil, err
		}
		defer few.stop()
		many, err := b.startHARP(ctx, harpOptions{admin: true})
		if err != nil {
			return nil, err
		}
		defer many.stop()
		memory, err := b.linkMemory(ctx, many)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(b.addLinks(ctx, few, b.plan.fewLinks), b.addLinks(ctx, many, b.plan.manyLinks-b.plan.links)); err != nil {
			return nil, err
		}
		pings, err := many.restingCPU(ctx, b.plan.rest)
		if err != nil {
			return nil, err
		}
		costs, err := b.requestCosts(ctx, few, many)
		if err != nil {
			return nil, err
		}
		if err := many.hasLinks(ctx, b.plan.manyLinks); err != nil {
			return nil, err
		}
		note := fmt.Sprintf("%d links against %d; without requests they take %.0f ms of CPU a second", b.plan.manyLinks, b.plan.fewLinks, pings)
		return []sample{
			memory,
			{HARP: costs[1].perRequest(), Yardstick: costs[0].perRequest(), Note: note},
			{HARP: costs[1].latency(), Yardstick: costs[0].latency()},
		}, nil
	}}
}

// linkMemory adds idle links to a server that has none and returns what each takes of its memory, in KB.
func (b *bench) linkMemory(ctx context.Context, harp *subject) (sample, error) {
	before, err := b.settled(ctx, harp)
	if err != nil {
		return sample{}, err
	}
	if err := b.addLinks(ctx, harp, b.plan.links); err != nil {
		return sample{}, err
	}
	after, err := b.settled(ctx, harp)
	if err != nil {
		return sample{}, err
	}
	if err := harp.hasLinks(ctx, b.plan.links); err != nil {
		return sample{}, err
	}
	each := func(bytes float64) float64 { return bytes / float64(b.plan.links) }
	return sample{
		HARP: each(after.resident-before.resident) / 1000,
		Note: fmt.Sprintf("a link: %.1f KB of heap in use, %.1f KB of stacks, %.2f goroutines",
			each(after.heap-before.heap)/1000, each(after.stacks-before.stacks)/1000, each(after.goroutines-before.goroutines)),
	}, nil
}

// addLinks starts processes that make n links, waits until they are there, and leaves them idle until s stops.
func (b *bench) addLinks(ctx context.Context, s *subject, n int) error {
	var makers []*process
	for left := n; left > 0; left -= perMaker {
		p, err := start(ctx, b.self, "links", "--server", b.url(s.addr), "--roots", b.files.cert, "--count", strconv.Itoa(min(left, perMaker)))
		if err != nil {
			return err
		}
		makers = append(makers, p)
		s.beside = append(s.beside, p)
	}
	for _, p := range makers {
		if _, err := p.line(ctx, patience+time.Duration(n)*10*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// restingCPU watches s for some time in which nobody asks anything, and returns the CPU time that it uses a second, in ms.
func (s *subject) restingCPU(ctx context.Context, length time.Duration) (float64, error) {
	before, err := s.cpu()
	if err != nil {
		return 0, err
	}
	timer := time.NewTimer(length)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	after, err := s.cpu()
	return micros(after-before) / 1000 / length.Seconds(), err
}

// hasLinks returns an error unless the server has n links beside the agent's own.
func (s *subject) hasLinks(ctx context.Context, n int) error {
	text, err := s.ask(ctx, "/metrics")
	if err != nil {
		return err
	}
	if got := int(numberAfter(text, "\nharp_links ")); got != n+1 {
		return fmt.Errorf("the server has %d links, not %d", got, n+1)
	}
	return nil
}

// A footprint is what a process takes, in bytes.
type footprint struct{ resident, heap, stacks, goroutines float64 }

// settled makes harpd collect its garbage, waits until its memory keeps still, and returns it.
func (b *bench) settled(ctx context.Context, s *subject) (footprint, error) {
	const heapPage = "/debug/pprof/heap?debug=1&gc=1"
	for range 2 { // the second takes what pools had kept
		if _, err := s.ask(ctx, heapPage); err != nil {
			return footprint{}, err
		}
	}
	now, err := s.quietMemory(ctx, b.plan.quiet)
	if err != nil {
		return footprint{}, err
	}
	heap, err := s.ask(ctx, heapPage)
	if err != nil {
		return footprint{}, err
	}
	goroutines, err := s.ask(ctx, "/debug/pprof/goroutine?debug=1")
	if err != nil {
		return footprint{}, err
	}
	return footprint{
		resident: float64(now), heap: numberAfter(heap, "# HeapInuse = "), stacks: numberAfter(heap, "# Stack = "),
		goroutines: numberAfter(goroutines, "goroutine profile: total "),
	}, nil
}

// numberAfter returns the number in text that comes after mark; zero if there is none.
func numberAfter(text, mark string) float64 {
	_, rest, _ := strings.Cut(text, mark)
	digits, _, _ := strings.Cut(rest, "\n")
	digits, _, _ = strings.Cut(digits, " ")
	x, err := strconv.ParseFloat(digits, 64)
	if err != nil {
		return 0
	}
	return x
}

// quietMemory waits until the memory of harpd has not shrunk by more than 1 % for as long as quiet, and returns it. The
// runtime gives pages back by and by.
func (s *subject) quietMemory(ctx context.Context, quiet time.Duration) (int64, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*patience, errors.New("the memory of harpd does not settle"))
	defer cancel()
	tick := time.NewTicker(quiet / 10)
	defer tick.Stop()
	var least int64
	for still := 0; still < 10; {
		now, err := resident(s.procs[0].cmd.Process.Pid)
		if err != nil {
			return 0, err
		}
		still++
		if least == 0 || now < least-least/100 {
			least, still = now, 0
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
	return resident(s.procs[0].cmd.Process.Pid)
}

// ask returns a page of harpd's admin listener.
func (s *subject) ask(ctx context.Context, path string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.admin+path, nil)
	if err != nil {
		return "", err
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("harpd answers %s with %s", path, res.Status)
	}
	return string(text), err
}
