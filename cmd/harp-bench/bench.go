package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
)

// A bench is what all runs share. Its fields do not change once it is open.
type bench struct {
	plan     plan
	dir      string // scratch folder
	bin      string // folder of harpd and harp-agent
	self     string // this program
	upstream string // address of the web service at the far end
	files    pair   // certificate of everything that serves HTTPS; none without TLS
}

// measureAll measures what the plan says and prints the table to out; what goes on is told to log. A measurement that
// fails leaves a gap in the table, and the error says how many did.
func measureAll(ctx context.Context, p plan, out, log io.Writer) error {
	rep, failed, err := measure(ctx, p, log)
	if err != nil {
		return err
	}
	if err := rep.write(out, p.json); err != nil {
		return err
	}
	if failed > 0 {
		hint := "harp-bench --smoke says whether it is this machine"
		if p.bin != "" {
			hint = "without --bin, harp-bench builds harpd and harp-agent itself"
		}
		return &cli.Error{Err: fmt.Errorf("%d measurements failed, see above", failed), Hint: hint}
	}
	return nil
}

// measure does everything that needs processes and files; both are gone when it returns.
func measure(ctx context.Context, p plan, log io.Writer) (rep *report, failed int, err error) {
	dir, err := os.MkdirTemp("", "harp-bench-")
	if err != nil {
		return nil, 0, err
	}
	defer func() {
		if e := os.RemoveAll(dir); err == nil {
			err = e
		}
	}()
	b, service, err := openBench(ctx, p, dir, log)
	if err == nil {
		rep, failed = b.rounds(ctx, log)
		service.stop()
	}
	if err := context.Cause(ctx); err != nil {
		return nil, 0, &cli.Error{Err: fmt.Errorf("stopped: %w", err), Hint: "--only takes some rows, --rounds 1 a third of the time"}
	}
	return rep, failed, err
}

// openBench finds or builds the programs and starts the upstream, which the caller stops.
func openBench(ctx context.Context, p plan, dir string, log io.Writer) (*bench, *process, error) {
	b := &bench{plan: p, dir: dir}
	var err error
	if b.self, err = os.Executable(); err != nil {
		return nil, nil, err
	}
	if b.bin, err = programs(ctx, p.bin, dir, log); err != nil {
		return nil, nil, err
	}
	if p.tls {
		if b.files, err = newPair(dir); err != nil {
			return nil, nil, err
		}
	}
	service, err := b.startSelf(ctx, "upstream")
	if err != nil {
		return nil, nil, err
	}
	b.upstream = service.addr
	return b, service.process, nil
}

// rounds does the runs in turns and returns what they found and how many failed.
func (b *bench) rounds(ctx context.Context, log io.Writer) (rep *report, failed int) {
	rep = &report{plan: b.plan}
	var todo []run
	for _, r := range runs() {
		if r.wanted(b.plan) {
			todo = append(todo, r)
			rep.add(r.rows)
		}
	}
	for round := range b.plan.rounds {
		for _, r := range todo {
			samples, err := r.measure(ctx, b)
			if ctx.Err() != nil {
				return rep, failed
			}
			if err != nil {
				failed++
				fmt.Fprintf(log, "round %d: %s failed: %v\n", round+1, r.names(b.plan), err)
				continue
			}
			for i, s := range samples {
				if rep.record(r.rows[i], s) {
					fmt.Fprintf(log, "round %d: %s\n", round+1, describe(r.rows[i], s))
				}
			}
		}
	}
	return rep, failed
}

// A service is a process of this program that listens.
type service struct {
	*process
	addr string
}

// startSelf starts one of the hidden commands that print the address they listen on.
func (b *bench) startSelf(ctx context.Context, args ...string) (service, error) {
	p, err := start(ctx, b.self, args...)
	if err != nil {
		return service{}, err
	}
	addr, err := p.line(ctx, patience)
	if err != nil {
		p.stop()
		return service{}, err
	}
	return service{process: p, addr: addr}, nil
}
