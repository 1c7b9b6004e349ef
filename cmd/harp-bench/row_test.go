package main

import (
	"strings"
	"testing"
	"time"
)

func TestVerdict(t *testing.T) {
	more := row{name: "speed", unit: "MB/s", yardstick: oneHop, more: true, bar: 0.8, aim: 1}
	less := row{name: "memory", unit: "KB", bar: 25, aim: 15}
	ratios := func(of ...float64) (all []sample) {
		for _, x := range of {
			all = append(all, sample{HARP: 100 * x, Yardstick: 100})
		}
		return all
	}
	for _, test := range []struct {
		why      string
		row      row
		samples  []sample
		compared float64
		word     string
	}{
		{"below the bar", more, ratios(0.5, 0.7, 3), 0.7, "MISS"},
		{"at the bar", more, ratios(0.8), 0.8, "ok"},
		{"at the aim", more, ratios(1, 1.5), 1.25, "aim"},
		{"more memory than the bar", less, ratios(0.26), 26, "MISS"},
		{"at the bar for memory", less, ratios(0.25), 25, "ok"},
		{"at the aim for memory", less, ratios(0.15, 0.01), 8, "aim"},
		{"no round did not fail", less, nil, 0, "failed"},
		{"nothing is asked", row{yardstick: oneHop}, ratios(7), 7, ""},
		{"a yardstick of nothing", more, []sample{{HARP: 1}}, 0, "MISS"},
	} {
		if _, _, compared, word := (result{row: test.row, samples: test.samples}).verdict(); compared != test.compared || word != test.word {
			t.Errorf("%s: %v %q, want %v %q", test.why, compared, word, test.compared, test.word)
		}
	}
}

// TestRatioOfRounds: the ratio is the median of the rounds' own, so that a round in which the machine was slow counts no
// less and no more.
func TestRatioOfRounds(t *testing.T) {
	r := result{row: row{yardstick: oneHop}, samples: []sample{{HARP: 10, Yardstick: 10}, {HARP: 4, Yardstick: 2}, {HARP: 30, Yardstick: 10}}}
	harp, yardstick, compared, _ := r.verdict()
	if harp != 10 || yardstick != 10 || compared != 2 {
		t.Errorf("%v, %v, %v; want the medians 10 and 10, and 2, the median of the ratios 1, 2 and 3", harp, yardstick, compared)
	}
}

func TestTable(t *testing.T) {
	r := &report{plan: plan{rounds: 2, bars: true, only: []string{"spee*", "memory"}}}
	speed := row{name: "speed", what: "how fast", unit: "MB/s", yardstick: oneHop, more: true, bar: 0.8, aim: 1}
	memory := row{name: "memory", what: "how much", unit: "KB", bar: 25, aim: 15}
	other := row{name: "other"}
	r.add([]row{speed, memory, other})
	for _, w := range []row{speed, memory, other} {
		if got := r.record(w, sample{HARP: 1234.5, Yardstick: 1543.125, Note: "a note"}); got != (w.name != "other") {
			t.Errorf("%s: recorded is %v", w.name, got)
		}
	}
	_, got, _ := strings.Cut(r.table(), "\n\n")
	var lines []string
	for line := range strings.Lines(got) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	want := []string{
		"ROW UNIT HARP YARDSTICK RATIO BAR AIM",
		"speed how fast MB/s 1234 1543 1 Go hop 0.80 ≥ 0.8 ≥ 1 ok",
		"memory how much KB 1234 ≤ 25 ≤ 15 MISS",
		"",
		"speed, round 1: a note",
		"memory, round 1: a note",
	}
	if strings.Join(lines, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

// TestBarsForLinks: with few links their fixed cost shows, and they are not held against the bars.
func TestBarsForLinks(t *testing.T) {
	for links, want := range map[int]bool{enoughLinks - 1: false, enoughLinks: true} {
		r := &report{plan: plan{bars: true, links: links}}
		r.add(linkRun().rows)
		r.add(requestRun().rows)
		for _, res := range r.results {
			if got := res.bar > 0; got != (want || !strings.HasPrefix(res.name, linkRows)) {
				t.Errorf("%d links: %s has a bar is %v", links, res.name, got)
			}
		}
	}
}

func TestNames(t *testing.T) {
	seen := make(map[string]bool)
	for _, r := range runs() {
		for _, w := range r.rows {
			if seen[w.name] {
				t.Errorf("two rows are called %s", w.name)
			}
			seen[w.name] = true
		}
	}
}

func TestQuantile(t *testing.T) {
	var ten []time.Duration
	for i := range time.Duration(10) {
		ten = append(ten, i+1)
	}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 6, 0.99: 10, 1: 10} {
		if got := quantile(ten, q); got != want {
			t.Errorf("quantile %v of 1 to 10 is %d, want %d", q, got, want)
		}
	}
	if got := quantile(nil, 0.5); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
}
