package main

import (
	"context"
	"flag"
	"fmt"
	"io"
)

// A part is what harp-bench starts itself as: a process of its own that is measured, or that measures. It declares its
// flags and returns what does the work, until ctx ends.
//
// Parts stay out of cli.Main: its heap floor takes a fifth to a third off the CPU time of a Go proxy, and then it is not a
// plain one.
type part func(*flag.FlagSet) func(ctx context.Context, out io.Writer) error

// partNamed returns the part that is started with name as first argument; nil if there is none.
func partNamed(name string) part {
	switch name {
	case "upstream":
		return upstreamPart
	case "hop":
		return hopPart
	case "load":
		return loadPart
	case "links":
		return linksPart
	case "delay":
		return delayPart
	}
	return nil
}

// main is the whole process; it returns the exit code. args come after the part's name.
func (p part) main(args []string, out, errs io.Writer) int {
	f := flag.NewFlagSet("", flag.ContinueOnError)
	f.SetOutput(errs)
	run := p(f)
	if err := f.Parse(args); err != nil {
		return 1 // f has said why
	}
	if err := run(context.Background(), out); err != nil {
		fmt.Fprintln(errs, err)
		return 1
	}
	return 0
}
