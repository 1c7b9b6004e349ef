package main

import (
	"errors"
	"fmt"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
)

// settings are the flags.
type settings struct {
	rounds  int
	seconds float64
	bulk    int // MiB
	links   int
	only    []string
	tls     bool
	json    bool
	bin     string
	smoke   bool
}

func (s *settings) declare(f *cli.Flags) {
	f.Group("What to measure")
	f.Strings(&s.only, "only ROW", "only these rows; * stands for any letters")
	f.Bool(&s.tls, "tls", false, "all of it with TLS: visitors over https, the link over wss, the yardstick over https")
	f.Int(&s.links, "links N", enoughLinks, "idle links whose memory is measured; half as many more for the cost of a request beside them; no bars below 10000")
	f.Int(&s.bulk, "bulk MIB", 512, "size of a large transfer")
	f.Group("How")
	f.Int(&s.rounds, "rounds N", 3, "rounds; every figure is the median of them")
	f.Float(&s.seconds, "seconds S", 6, "length of one load")
	f.Bool(&s.smoke, "smoke", false, "everything tiny and once, to see whether it runs")
	f.String(&s.bin, "bin FOLDER", "", "where harpd and harp-agent are; without it they are built")
	f.Bool(&s.json, "json", false, "print one JSON object with all rounds instead of the table")
	f.ArgOnly("only", "tls", "links", "bulk", "rounds", "seconds", "smoke", "bin", "json")
}

// A plan is the sizes of everything that is measured. It does not change once made.
type plan struct {
	rounds      int
	connections int           // of the load
	warmup      time.Duration // load before a load that counts
	load        time.Duration
	latency     time.Duration // load of one connection
	bulk        int           // MiB of a large transfer

	fewLinks, links, manyLinks int           // idle ones; links is where their memory is measured
	quiet                      time.Duration // how long memory has to keep still to count as settled
	rest                       time.Duration // how long idle links are watched: their pings come every 10 s

	small     int // requests a second beside downloads
	downloads int // at once
	download  int // MiB of each

	slowVisitors int
	slowBytes    int // a second, of each
	slowAnswer   int // MiB of an answer that is read slowly
	slow         time.Duration

	roundTrip  time.Duration // of the long path
	pathWindow int           // MiB that may be under way on it
	stream     int           // MiB sent over it

	only []string // names of rows, with * for any letters; none means all
	bars bool     // whether the figures are held against bars and aims, which are for plain HTTP at full size
	tls  bool
	json bool
	bin  string // empty means build

	smoke bool // the figures mean nothing
}

// checkGiven returns an error if a flag was given that would count for nothing.
func (s settings) checkGiven(given func(flag string) bool) error {
	if given("only") && len(s.only) == 0 {
		return &cli.Error{Err: errors.New("--only names no row"), Hint: "harp-bench --only requests, or without --only for all"}
	}
	for _, flag := range []string{"links", "bulk", "rounds", "seconds"} {
		if s.smoke && given(flag) {
			return &cli.Error{Err: fmt.Errorf("--smoke has sizes of its own, and takes no --%s", flag), Hint: "leave out one of the two"}
		}
	}
	return nil
}

// plan returns what the flags ask for, or the first thing that is wrong with them.
func (s settings) plan() (plan, error) {
	if runtime.GOOS != "linux" {
		return plan{}, &cli.Error{Err: errors.New("this needs Linux and its /proc"), Hint: "go test -bench . ./... measures the parts anywhere"}
	}
	for flag, ok := range map[string]bool{
		"rounds": s.rounds > 0, "seconds": s.seconds > 0, "bulk": s.bulk > 0, "links": s.links > 0,
	} {
		if !ok {
			return plan{}, &cli.Error{Err: fmt.Errorf("--%s must be more than 0", flag), Hint: "see harp-bench --help"}
		}
	}
	p := s.full()
	if s.smoke {
		p = s.tiny()
	}
	p.bars = !s.smoke && !s.tls
	p.only, p.tls, p.json, p.bin, p.smoke = s.only, s.tls, s.json, s.bin, s.smoke
	if err := p.checkRows(); err != nil {
		return plan{}, err
	}
	return p, p.checkFiles()
}

// wants reports whether the plan has the row called name.
func (p plan) wants(name string) bool {
	return len(p.only) == 0 || slices.ContainsFunc(p.only, func(pattern string) bool { return matches(pattern, name) })
}

// matches reports whether name is pattern, in which * stands for any letters. A malformed pattern is no name.
func matches(pattern, name string) bool {
	ok, _ := path.Match(pattern, name)
	return ok
}

// checkRows returns an error if a pattern names no row.
func (p plan) checkRows() error {
	var names []string
	for _, r := range runs() {
		for _, w := range r.rows {
			names = append(names, w.name)
		}
	}
	for _, pattern := range p.only {
		if !slices.ContainsFunc(names, func(name string) bool { return matches(pattern, name) }) {
			return &cli.Error{Err: fmt.Errorf("--only %s: no such row", pattern), Hint: "the rows are " + strings.Join(names, ", ")}
		}
	}
	return nil
}

func (s settings) full() plan {
	load := time.Duration(s.seconds * float64(time.Second))
	return plan{
		rounds: s.rounds, connections: 64, warmup: time.Second, load: load, latency: min(load, 2*time.Second), bulk: s.bulk,
		fewLinks: 10, links: s.links, manyLinks: s.links + s.links/2, quiet: 3 * time.Second, rest: 10 * time.Second,
		small: 300, downloads: 4, download: 256,
		slowVisitors: 100, slowBytes: 100_000, slowAnswer: 100, slow: 30 * time.Second,
		roundTrip: 100 * time.Millisecond, pathWindow: 4, stream: 200,
	}
}

func (s settings) tiny() plan {
	const load = 200 * time.Millisecond
	return plan{
		rounds: 1, connections: 8, warmup: load / 4, load: load, latency: load / 2, bulk: 8,
		fewLinks: 2, links: 200, manyLinks: 300, quiet: load, rest: load,
		small: 200, downloads: 2, download: 4,
		slowVisitors: 20, slowBytes: 100_000, slowAnswer: 8, slow: 2 * load,
		roundTrip: 20 * time.Millisecond, pathWindow: 4, stream: 4,
	}
}

// checkFiles returns an error if harpd could not open as many sockets as the plan has links.
func (p plan) checkFiles() error {
	const beside = 500 // listeners, visitors, and what the system opens
	limit, err := fileLimit()
	if err != nil || p.manyLinks+beside <= limit || !linkRun().wanted(p) {
		return err
	}
	hint := "raise ulimit -Hn, or leave these rows out: --only lists those that are wanted"
	if fit := (limit - beside) * 2 / 3; fit > 0 && !p.smoke {
		hint = fmt.Sprintf("harp-bench --links %d, or raise ulimit -Hn", fit)
	}
	return &cli.Error{
		Err:  fmt.Errorf("%d links: harpd needs %d files open then, and a process may have %d here", p.links, p.manyLinks+beside, limit),
		Hint: hint,
	}
}
