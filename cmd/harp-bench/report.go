package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// A report is what all rounds found. The JSON names are a promise to scripts.
type report struct {
	plan    plan
	results []*result
}

// add makes room for the rows that are wanted.
func (r *report) add(rows []row) {
	for _, w := range rows {
		if r.plan.wants(w.name) {
			if !r.plan.bars || strings.HasPrefix(w.name, linkRows) && r.plan.links < enoughLinks {
				w.bar, w.aim = 0, 0
			}
			r.results = append(r.results, &result{row: w})
		}
	}
}

// record adds what one round found, and reports whether anybody wants the row.
func (r *report) record(w row, s sample) bool {
	i := slices.IndexFunc(r.results, func(have *result) bool { return have.name == w.name })
	if i >= 0 {
		r.results[i].samples = append(r.results[i].samples, s)
	}
	return i >= 0
}

// write prints the table, or JSON.
func (r *report) write(out io.Writer, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(r.shown())
	}
	_, err := io.WriteString(out, r.table())
	return err
}

// table is for people. The last column is MISS below the bar, ok from there on, and aim where that is reached too.
func (r *report) table() string {
	var b strings.Builder
	protocol := "plain HTTP"
	if r.plan.tls {
		protocol = "TLS on both sides of the edge"
	}
	rounds := "1 round"
	switch {
	case r.plan.smoke:
		rounds = "SMOKE, everything tiny: the figures mean nothing"
	case r.plan.rounds > 1:
		rounds = fmt.Sprintf("median of %d rounds", r.plan.rounds)
	}
	fmt.Fprintf(&b, "%s; %s; %d processors, %s, %s\n\n", rounds, protocol, runtime.NumCPU(), runtime.Version(), kernel())
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ROW\t\tUNIT\tHARP\tYARDSTICK\t\tRATIO\tBAR\tAIM\t")
	for _, res := range r.results {
		harp, yardstick, compared, word := res.verdict()
		ours, yardsticks, ratio := "", "", ""
		if len(res.samples) > 0 {
			ours = number(harp)
		}
		if len(res.samples) > 0 && res.yardstick != "" {
			yardsticks, ratio = number(yardstick), strconv.FormatFloat(compared, 'f', 2, 64)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n",
			res.name, res.what, res.unit, ours, yardsticks, res.yardstick, ratio, res.bound(res.bar), res.bound(res.aim), word)
	}
	_ = w.Flush() // a strings.Builder takes everything
	for _, res := range r.results {
		for i, s := range res.samples {
			if s.Note != "" {
				fmt.Fprintf(&b, "\n%s, round %d: %s", res.name, i+1, s.Note)
			}
		}
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// bound is a bar or an aim for people; empty if there is none.
func (r row) bound(x float64) string {
	switch {
	case x == 0:
		return ""
	case r.more:
		return "≥ " + strconv.FormatFloat(x, 'f', -1, 64)
	}
	return "≤ " + strconv.FormatFloat(x, 'f', -1, 64)
}

// number is x with three digits that count.
func number(x float64) string {
	switch {
	case x >= 100:
		return strconv.FormatFloat(x, 'f', 0, 64)
	case x >= 10:
		return strconv.FormatFloat(x, 'f', 1, 64)
	}
	return strconv.FormatFloat(x, 'f', 2, 64)
}

// describe is one sample in one line.
func describe(w row, s sample) string {
	text := fmt.Sprintf("%s: %s %s", w.name, number(s.HARP), w.unit)
	if w.yardstick != "" {
		text += fmt.Sprintf(", %s %s, ratio %.2f", w.yardstick, number(s.Yardstick), w.compared(s))
	}
	if s.Note != "" {
		text += " (" + s.Note + ")"
	}
	return text
}

// shownReport is a report in JSON.
type shownReport struct {
	Processors int        `json:"processors"`
	Go         string     `json:"go"`
	Kernel     string     `json:"kernel"`
	TLS        bool       `json:"tls"`   // for visitors, the link and the yardstick
	Smoke      bool       `json:"smoke"` // the figures mean nothing
	Rows       []shownRow `json:"rows"`
}

type shownRow struct {
	Name      string   `json:"name"`
	What      string   `json:"what"`
	Unit      string   `json:"unit"`
	Yardstick string   `json:"yardstick,omitempty"` // its name; without one, bar and aim are in the unit
	Better    string   `json:"better"`              // more or less
	Bar       float64  `json:"bar,omitempty"`
	Aim       float64  `json:"aim,omitempty"`
	Median    sample   `json:"median"`
	Ratio     float64  `json:"ratio,omitempty"` // the median of the rounds' own
	Verdict   string   `json:"verdict"`         // MISS, ok, aim, failed, or empty where nothing is asked
	Rounds    []sample `json:"rounds"`
}

func (r *report) shown() shownReport {
	s := shownReport{Processors: runtime.NumCPU(), Go: runtime.Version(), Kernel: kernel(), TLS: r.plan.tls, Smoke: r.plan.smoke, Rows: []shownRow{}}
	for _, res := range r.results {
		harp, yardstick, compared, word := res.verdict()
		w := shownRow{
			Name: res.name, What: res.what, Unit: res.unit, Yardstick: res.yardstick, Better: "less",
			Bar: res.bar, Aim: res.aim, Median: sample{HARP: harp, Yardstick: yardstick}, Verdict: word, Rounds: res.samples,
		}
		if res.more {
			w.Better = "more"
		}
		if res.yardstick != "" {
			w.Ratio = compared
		}
		s.Rows = append(s.Rows, w)
	}
	return s
}
