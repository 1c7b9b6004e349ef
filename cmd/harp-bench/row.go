package main

import (
	"context"
	"slices"
	"strings"
)

// The yardsticks that have processes of their own.
const (
	oneHop  = "1 Go hop"
	twoHops = "2 Go hops"
)

// A row is one line of the table.
type row struct {
	name      string // what --only is matched with
	what      string // for people
	unit      string
	yardstick string  // what the figure is divided by; empty if bar and aim are in the row's unit
	more      bool    // more is better
	bar, aim  float64 // what the ratio, or the figure, has to reach; zero means that nothing is asked
}

// A sample is what one round found for a row, in the row's unit.
type sample struct {
	HARP      float64 `json:"harp"`
	Yardstick float64 `json:"yardstick,omitempty"`
	Note      string  `json:"note,omitempty"` // what else is worth knowing
}

// A run measures some rows together.
type run struct {
	rows    []row
	measure func(context.Context, *bench) ([]sample, error) // one sample for each row, in their order
}

// runs returns everything that can be measured, in the order of the table.
func runs() []run {
	return []run{requestRun(), bulkRun(), linkRun(), mixedRun(), slowRun(), longPathRun()}
}

// wanted reports whether the plan asks for one of the rows of r.
func (r run) wanted(p plan) bool { return r.names(p) != "" }

// names returns the names of those rows of r that the plan asks for.
func (r run) names(p plan) string {
	var names []string
	for _, w := range r.rows {
		if p.wants(w.name) {
			names = append(names, w.name)
		}
	}
	return strings.Join(names, ", ")
}

// A result is a row with what all rounds found.
type result struct {
	row
	samples []sample // of the rounds that did not fail
}

// compared returns what bar and aim are for: the ratio to the yardstick, or the figure itself.
func (r row) compared(s sample) float64 {
	if r.yardstick == "" {
		return s.HARP
	}
	if s.Yardstick == 0 {
		return 0
	}
	return s.HARP / s.Yardstick
}

// reaches reports whether x is as good as bound.
func (r row) reaches(x, bound float64) bool {
	if r.more {
		return x >= bound
	}
	return x <= bound
}

// verdict says what the rounds come to: the medians, of which the ratio is that of the rounds' own ratios, as the two
// halves of a round saw the same machine.
func (r result) verdict() (harp, yardstick, compared float64, word string) {
	var h, y, c []float64
	for _, s := range r.samples {
		h, y, c = append(h, s.HARP), append(y, s.Yardstick), append(c, r.compared(s))
	}
	if len(c) == 0 {
		return 0, 0, 0, "failed"
	}
	harp, yardstick, compared = median(h), median(y), median(c)
	switch {
	case r.bar == 0:
		word = ""
	case r.reaches(compared, r.aim):
		word = "aim"
	case r.reaches(compared, r.bar):
		word = "ok"
	default:
		word = "MISS"
	}
	return harp, yardstick, compared, word
}

// median returns the middle of the values, the mean of the two middle ones if their number is even.
func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	return (s[len(s)/2] + s[(len(s)-1)/2]) / 2
}
