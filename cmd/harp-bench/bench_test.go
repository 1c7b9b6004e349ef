package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/harp-tunnel/harp/cmd/internal/cli"
)

// asProgram set in the environment makes the test binary harp-bench: the bench starts itself.
const asProgram = "TEST_BE_HARP_BENCH"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

// buildPrograms returns a folder with harpd and harp-agent. They are built as the test was, so that the packages are at hand.
func buildPrograms(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	args := []string{"build", "-o", dir + string(filepath.Separator)}
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		args = append(args, "-race")
	}
	out, err := exec.CommandContext(t.Context(), "go", append(args, module+"/cmd/harpd", module+"/cmd/harp-agent")...).CombinedOutput()
	if err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	return dir
}

// skipElsewhere skips a test where there is nothing to measure with.
func skipElsewhere(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("NOT TESTED: harp-bench reads CPU time and memory as only Linux has them")
	}
}

// TestProcesses measures with real processes, and leaves none behind.
func TestProcesses(t *testing.T) {
	skipElsewhere(t)
	bin := buildPrograms(t)
	broken, fake, scratch := t.TempDir(), t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", scratch)
	t.Setenv(asProgram, "1")
	t.Setenv("GORACE", "atexit_sleep_ms=0") // else each of some sixty processes takes a second to end
	for name, test := range map[string]func(*testing.T, string){
		"smoke":       testSmoke,
		"interrupted": testInterrupted,
		"hangup":      func(t *testing.T, _ string) { testHangup(t, fake) },
		"broken":      func(t *testing.T, _ string) { testBroken(t, broken) },
	} {
		t.Run(name, func(t *testing.T) {
			test(t, bin)
			if left, _ := os.ReadDir(scratch); len(left) != 0 {
				t.Errorf("files stay behind: %v", left)
			}
			if left := children(t); len(left) != 0 {
				t.Errorf("processes stay behind: %q", left)
			}
		})
	}
}

// testSmoke measures everything, tiny, with TLS; CI does it without, too. What the figures are is of no interest, but they are there.
func testSmoke(t *testing.T, bin string) {
	var out, log bytes.Buffer
	if code := cli.Main(newCommand(), "HARP_BENCH_", []string{"--smoke", "--tls", "--json", "--bin", bin}, &out, &log); code != 0 {
		t.Fatalf("exit code %d: %s", code, log.String())
	}
	var rep shownReport
	if err := json.Unmarshal(out.Bytes(), &rep); err != nil {
		t.Fatalf("%v in %s", err, out.String())
	}
	var want, got []string
	for _, r := range runs() {
		for _, w := range r.rows {
			want = append(want, w.name)
		}
	}
	for _, r := range rep.Rows {
		got = append(got, r.Name)
		if len(r.Rounds) != 1 || r.Verdict == "failed" {
			t.Errorf("%s: %d rounds, verdict %q; want what the one round found", r.Name, len(r.Rounds), r.Verdict)
		}
		if !(r.Median.HARP > 0) || r.Yardstick != "" && !(r.Median.Yardstick > 0 && r.Ratio > 0) {
			t.Errorf("%s: %+v, ratio %v; want more than nothing", r.Name, r.Median, r.Ratio)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("rows %q, want %q", got, want)
	}
}

// A stopWriter calls stop when something is written that holds what it waits for.
type stopWriter struct {
	waits string
	stop  func()
}

func (w stopWriter) Write(p []byte) (int, error) {
	if strings.Contains(string(p), w.waits) {
		w.stop()
	}
	return len(p), nil
}

// testInterrupted stops it in the middle.
func testInterrupted(t *testing.T, bin string) {
	p, err := settings{rounds: 1, seconds: 1, bulk: 1, links: 1, only: []string{"requests", "download*"}, smoke: true, bin: bin}.plan()
	if err != nil {
		t.Fatal(err)
	}
	p.rounds = 1000
	ctx, cancel := context.WithCancel(t.Context())
	var out bytes.Buffer
	err = measureAll(ctx, p, &out, stopWriter{"round 1: requests", cancel})
	if err == nil || out.Len() != 0 {
		t.Errorf("error %v and the table %q, want an error alone", err, out.String())
	}
}

// testHangup closes the terminal while go builds: go ends in its own way, and is not blamed. dir is an empty folder.
func testHangup(t *testing.T, dir string) {
	if signal.Ignored(syscall.SIGHUP) {
		t.Skip("NOT TESTED: SIGHUP is ignored, as nohup does")
	}
	script := "#!/bin/sh\ntrap 'echo > \"$0.cleaned\"; exit 1' INT\nkill -HUP $PPID\nwhile :; do sleep 0.05; done\n"
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
	var log bytes.Buffer
	code := cli.Main(newCommand(), "HARP_BENCH_", []string{"--smoke"}, io.Discard, &log)
	if !strings.Contains(log.String(), "stopped: hangup") || code != 1 {
		t.Errorf("exit code %d and %q, want 1 and that it was stopped", code, log.String())
	}
	if _, err := os.Stat(filepath.Join(dir, "go.cleaned")); err != nil {
		t.Errorf("go could not clean up: %v", err)
	}
}

// testBroken has a harpd that does not start: one line says why. bin is an empty folder.
func testBroken(t *testing.T, bin string) {
	for _, name := range []string{"harpd", "harp-agent"} {
		script := "#!/bin/sh\necho first words >&2\necho 'no room' >&2\necho 'hint: make room' >&2\nexit 3\n"
		if err := os.WriteFile(filepath.Join(bin, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var out, log bytes.Buffer
	code := cli.Main(newCommand(), "HARP_BENCH_", []string{"--smoke", "--only", "latency", "--bin", bin}, &out, &log)
	if want := "round 1: latency failed: harpd: exit status 3: no room\n"; code != 1 || !strings.Contains(log.String(), want) {
		t.Errorf("exit code %d and %q, want 1 and %q", code, log.String(), want)
	}
	if !strings.Contains(out.String(), "failed") || strings.Contains(out.String(), "0.00") || !strings.HasPrefix(out.String(), "SMOKE") {
		t.Errorf("the table is %q, want that the row of a smoke failed, and no figures", out.String())
	}
}

// children returns the command lines of the processes that this one has started.
func children(t *testing.T) (lines []string) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil || len(stats) == 0 {
		t.Fatalf("no processes in /proc: %v", err)
	}
	for _, file := range stats {
		stat, err := os.ReadFile(file)
		if err != nil { // it has ended
			continue
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if fields[1] == fmt.Sprint(os.Getpid()) {
			line, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
			lines = append(lines, string(line))
		}
	}
	return lines
}

func TestPlanRefuses(t *testing.T) {
	skipElsewhere(t)
	good := settings{rounds: 3, seconds: 6, bulk: 512, links: 10_000}
	if _, err := good.plan(); err != nil {
		limit, _ := fileLimit()
		t.Logf("the defaults: %v, with %d files", err, limit)
	}
	for why, change := range map[string]func(*settings){
		"no rounds":           func(s *settings) { s.rounds = 0 },
		"no time":             func(s *settings) { s.seconds = 0 },
		"nothing to transfer": func(s *settings) { s.bulk = -1 },
		"no links":            func(s *settings) { s.links = 0 },
		"no pattern":          func(s *settings) { s.only = []string{"["} },
		"no such row":         func(s *settings) { s.only = []string{"latency", "speed of light"} },
		"too many links":      func(s *settings) { s.links = 1 << 30 },
	} {
		s := good
		change(&s)
		_, err := s.plan()
		if e, ok := errors.AsType[*cli.Error](err); !ok || e.Hint == "" {
			t.Errorf("%s: %v, want an error with a hint", why, err)
		}
	}
	good.links, good.only = 1<<30, []string{"requests"}
	if _, err := good.plan(); err != nil {
		t.Errorf("too many links that nobody wants: %v", err)
	}
}

// TestUselessFlags: a flag that would count for nothing is refused.
func TestUselessFlags(t *testing.T) {
	for _, args := range [][]string{{"--only", ""}, {"--only", ","}, {"--smoke", "--rounds", "2"}, {"--links=5", "--smoke"}} {
		var log bytes.Buffer
		if code := cli.Main(newCommand(), "HARP_BENCH_", args, io.Discard, &log); code != 1 || !strings.Contains(log.String(), "\nhint: ") {
			t.Errorf("%q: exit code %d and %q, want 1 and a hint", args, code, log.String())
		}
	}
}

// TestPrograms: a folder without the programs is told at once, and so is a program that cannot be run.
func TestPrograms(t *testing.T) {
	bin := t.TempDir()
	for _, why := range []string{"an empty folder", "a file that is no program"} {
		_, err := programs(t.Context(), bin, "", io.Discard)
		if e, ok := errors.AsType[*cli.Error](err); !ok || !strings.Contains(e.Error(), "harpd") || e.Hint == "" {
			t.Errorf("%s: %v, want the name of what is missing, and a hint", why, err)
		}
		if err := os.WriteFile(filepath.Join(bin, "harpd"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestGist(t *testing.T) {
	for out, want := range map[string]string{
		"": "it said nothing",
		"go: downloading a v1\n# b\nb.go:1: bad\n":         "b.go:1: bad",
		"go: no main module\n\tto create one:\n\tinit\n\n": "go: no main module ... init",
	} {
		if got := gist(out); got != want {
			t.Errorf("of %q: %q, want %q", out, got, want)
		}
	}
}
