package main

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// slowRun measures what the server holds for visitors that read large answers slowly.
func slowRun() run {
	rows := []row{
		{name: "slow-memory", what: "server memory over idle, 100 slow visitors", unit: "MiB", bar: 150, aim: 64},
	}
	return run{rows: rows, measure: func(ctx context.Context, b *bench) ([]sample, error) {
		harp, err := b.startHARP(ctx, harpOptions{})
		if err != nil {
			return nil, err
		}
		defer harp.stop()
		edge, agent := harp.procs[0].cmd.Process.Pid, harp.procs[1].cmd.Process.Pid
		idle, err := resident(edge)
		if err != nil {
			return nil, err
		}
		agentIdle, err := resident(agent)
		if err != nil {
			return nil, err
		}
		if err := b.readSlowly(ctx, harp.target); err != nil {
			return nil, err
		}
		peak, err := peakResident(edge)
		if err != nil {
			return nil, err
		}
		agentPeak, err := peakResident(agent)
		if err != nil {
			return nil, err
		}
		return []sample{{
			HARP: mebibytes(peak - idle),
			Note: fmt.Sprintf("%d visitors; idle %.1f MiB; the agent %.1f MiB over its idle %.1f",
				b.plan.slowVisitors, mebibytes(idle), mebibytes(agentPeak-agentIdle), mebibytes(agentIdle)),
		}}, nil
	}}
}

// readSlowly lets all visitors read their answers for as long as the plan says.
func (b *bench) readSlowly(ctx context.Context, t target) error {
	ctx, cancel := context.WithTimeout(ctx, b.plan.slow)
	defer cancel()
	errs := make([]error, b.plan.slowVisitors)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { // ends with ctx
			err := b.trickle(ctx, t)
			if ctx.Err() == nil {
				errs[i] = fmt.Errorf("a slow visitor: %w", err)
			}
		})
	}
	wg.Wait()
	return first(errs)
}

// trickle asks for a large answer and reads it at the plan's speed, in steps, until ctx ends or the answer does.
func (b *bench) trickle(ctx context.Context, t target) error {
	const steps = 10 // a second
	v, err := t.visit(ctx)
	if err != nil {
		return err
	}
	defer v.close()
	if err := v.askBulk(t, b.plan.slowAnswer); err != nil {
		return err
	}
	tick := time.NewTicker(time.Second / steps)
	defer tick.Stop()
	buf := make([]byte, b.plan.slowBytes/steps)
	for left := int64(b.plan.slowAnswer) << 20; left > 0; left -= int64(len(buf)) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := v.body(min(left, int64(len(buf))), buf); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

// mebibytes returns n bytes in MiB.
func mebibytes(n int64) float64 { return float64(n) / (1 << 20) }
