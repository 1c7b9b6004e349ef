package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// bulkRun measures a large download and a large upload beside two plain Go hops.
func bulkRun() run {
	rows := []row{
		{name: "download", what: "large download", unit: "MB/s", yardstick: twoHops, more: true, bar: 0.8, aim: 1},
		{name: "upload", what: "large upload", unit: "MB/s", yardstick: twoHops, more: true, bar: 0.8, aim: 1},
		{name: "download-cpu", what: "CPU per GiB downloaded", unit: "s", yardstick: twoHops, bar: 1.6, aim: 1.2},
		{name: "upload-cpu", what: "CPU per GiB uploaded", unit: "s", yardstick: twoHops, bar: 1.6, aim: 1.2},
	}
	return run{rows: rows, measure: func(ctx context.Context, b *bench) ([]sample, error) {
		hops, err := b.startHops(ctx, 2)
		if err != nil {
			return nil, err
		}
		defer hops.stop()
		harp, err := b.startHARP(ctx, harpOptions{})
		if err != nil {
			return nil, err
		}
		defer harp.stop()
		down, err := transferCosts(ctx, hops, harp, download, b.plan.bulk)
		if err != nil {
			return nil, err
		}
		up, err := transferCosts(ctx, hops, harp, upload, b.plan.bulk)
		if err != nil {
			return nil, err
		}
		return []sample{
			{HARP: down[1].speed(), Yardstick: down[0].speed()},
			{HARP: up[1].speed(), Yardstick: up[0].speed()},
			{HARP: down[1].perGiB(), Yardstick: down[0].perGiB()},
			{HARP: up[1].perGiB(), Yardstick: up[0].perGiB()},
		}, nil
	}}
}

// A transfer moves so many MiB on a connection of its own.
type transfer func(ctx context.Context, t target, mib int) error

// A transferCost is what large transfers through a subject took, over all turns.
type transferCost struct {
	mib    int
	length time.Duration
	cpu    time.Duration
}

// speed is in MB/s.
func (c transferCost) speed() float64 { return megabytes(c.mib) / c.length.Seconds() }

// perGiB is the CPU time of a GiB in seconds.
func (c transferCost) perGiB() float64 { return c.cpu.Seconds() * 1024 / float64(c.mib) }

// transferCosts moves mib MiB through two subjects in turns, after a little to warm up.
func transferCosts(ctx context.Context, s, t *subject, move transfer, mib int) (costs [2]transferCost, err error) {
	subjects := [2]*subject{s, t}
	for _, x := range subjects {
		if err := move(ctx, x.target, max(1, mib/16)); err != nil {
			return costs, fmt.Errorf("%s: %w", x.name, err)
		}
	}
	for range turns {
		for i, x := range subjects {
			if err := costs[i].add(ctx, x, move, mib); err != nil {
				return costs, fmt.Errorf("%s: %w", x.name, err)
			}
		}
	}
	return costs, nil
}

// add adds one turn.
func (c *transferCost) add(ctx context.Context, s *subject, move transfer, mib int) error {
	before, err := s.cpu()
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := move(ctx, s.target, mib); err != nil {
		return err
	}
	c.length += time.Since(begin)
	after, err := s.cpu()
	if err != nil {
		return err
	}
	c.cpu += after - before
	c.mib += mib
	return nil
}

// megabytes returns how many MB, of 10^6 bytes, mib MiB are.
func megabytes(mib int) float64 { return float64(mib) * (1 << 20) / 1e6 }

// blockSize is how many bytes a visitor reads or writes at once: as io.Copy does. Larger blocks take less of the
// processors from the subjects, which flatters whichever of them needs more.
const blockSize = 32 << 10

// download gets mib MiB on a connection of its own.
func download(ctx context.Context, t target, mib int) error {
	v, err := t.visit(ctx)
	if err != nil {
		return fmt.Errorf("download: %w", err)
	}
	defer v.close()
	if err := v.askBulk(t, mib); err != nil {
		return fmt.Errorf("download: %w", err)
	}
	if err := v.body(int64(mib)<<20, make([]byte, blockSize)); err != nil {
		return fmt.Errorf("download: %w", err)
	}
	return nil
}

// askBulk asks for mib MiB and reads the head of the answer.
func (v *visitor) askBulk(t target, mib int) error {
	if _, err := v.conn.Write(t.request("GET", bulkPath+strconv.Itoa(mib), "Connection: close")); err != nil {
		return err
	}
	length, err := v.head()
	if err == nil && length != int64(mib)<<20 {
		err = fmt.Errorf("the answer has %d bytes, not %d MiB", length, mib)
	}
	return err
}

// upload sends mib MiB on a connection of its own and waits until the upstream has said how many bytes it got.
func upload(ctx context.Context, t target, mib int) error {
	v, err := t.visit(ctx)
	if err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	defer v.close()
	size := int64(mib) << 20
	if _, err := v.conn.Write(t.request("POST", sinkPath, "Connection: close", "Content-Length: "+strconv.FormatInt(size, 10))); err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	block := make([]byte, blockSize)
	for range size / blockSize {
		if _, err := v.conn.Write(block); err != nil {
			return fmt.Errorf("upload: %w", err)
		}
	}
	length, err := v.head()
	if err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(v.in, min(length, 100)))
	if err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	if got := strings.TrimSpace(string(text)); got != strconv.FormatInt(size, 10) {
		return fmt.Errorf("upload: %s bytes arrived of %d", got, size)
	}
	return nil
}
