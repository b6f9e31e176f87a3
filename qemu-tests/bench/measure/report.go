package measure

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"
)

// Values are what the runs of a side cost, in their order.
type Values struct {
	Name   string               `json:"name"`
	Absent string               `json:"absent,omitempty"`
	Of     map[Metric][]float64 `json:"values,omitempty"`
}

// A Result is what was measured of one job or growth.
type Result struct {
	Name   string    `json:"name"`
	Date   time.Time `json:"date"`
	Commit string    `json:"commit"`
	Goals  []Goal    `json:"goals,omitempty"`
	Sides  []Values  `json:"sides,omitempty"`
	Growth *Grown    `json:"growth,omitempty"`
}

// Grown is the result of a growth.
type Grown struct {
	Number int        `json:"number"`
	Work   string     `json:"work"`
	Over   string     `json:"over"`
	Metric Metric     `json:"metric"`
	Points []Measured `json:"points"`
}

// Measured is a point of a growth.
type Measured struct {
	At    string   `json:"at"`
	Sides []Values `json:"sides"`
}

// A Report is the results of a machine.
type Report struct {
	Machine string            `json:"machine"`
	Tools   map[string]string `json:"tools"` // versions of what was compared
	Rows    []Row             `json:"rows"`  // computed from the results
	Results []Result          `json:"results"`
}

// A Row is how one goal came out.
type Row struct {
	Number  int     `json:"number"`
	Work    string  `json:"work"`
	Metric  Metric  `json:"metric"`
	Against string  `json:"against,omitempty"`
	Kind    Kind    `json:"kind"`
	Goal    float64 `json:"goal"`
	Ours    float64 `json:"ours"` // medians
	Theirs  float64 `json:"theirs,omitempty"`
	// Value is what the goal is about: a ratio, or ours. Low and High are the
	// least and the greatest of the single rounds.
	Value   float64 `json:"value"`
	Low     float64 `json:"low"`
	High    float64 `json:"high"`
	Reached bool    `json:"reached"`
	Note    string  `json:"note,omitempty"` // why it was not measured or not reached
	Absent  bool    `json:"absent,omitempty"`
}

// Load reads a report that Save wrote; without one it is empty.
func Load(file string) (*Report, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return &Report{}, nil
	}
	if err != nil {
		return nil, err
	}
	r := new(Report)
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return r, nil
}

// Save writes the report.
func (r *Report) Save(file string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}

// Add puts results in place of those of the same name, and judges all goals.
func (r *Report) Add(results []Result) {
	for _, n := range results {
		if i := slices.IndexFunc(r.Results, func(o Result) bool { return o.Name == n.Name }); i >= 0 {
			r.Results[i] = n
		} else {
			r.Results = append(r.Results, n)
		}
	}
	r.Rows = nil
	for _, result := range r.Results {
		for _, g := range result.Goals {
			r.Rows = append(r.Rows, judge(g, result.Sides))
		}
	}
	slices.SortStableFunc(r.Rows, func(a, b Row) int { return cmp.Compare(a.Number, b.Number) })
}

// judge says how a goal came out.
func judge(g Goal, sides []Values) Row {
	row := Row{Number: g.Number, Work: g.Work, Metric: g.Metric, Against: g.Against, Kind: g.Kind, Goal: g.N}
	ours := sides[0]
	theirs := Values{Absent: "no such side"}
	if i := slices.IndexFunc(sides, func(v Values) bool { return v.Name == g.Against }); i >= 0 {
		theirs = sides[i]
	}
	alone := g.Kind == AtMost || g.Kind == AtLeast
	a, b := ours.Of[g.Metric], theirs.Of[g.Metric]
	switch {
	case ours.Absent != "":
		row.Absent, row.Note = true, ours.Absent
	case len(a) == 0:
		row.Absent, row.Note = true, "not measured"
	case !alone && theirs.Absent != "":
		row.Absent, row.Note = true, theirs.Absent
	case !alone && len(b) != len(a):
		row.Absent, row.Note = true, "not measured of "+g.Against
	}
	if len(a) > 0 {
		row.Ours = median(a)
	}
	if row.Absent {
		return row
	}
	single := a
	switch g.Kind {
	case TimesBetter:
		row.Theirs, single = median(b), ratios(b, a)
		row.Value = row.Theirs / row.Ours
		row.Reached = row.Value >= g.N
	case TimesAtMost:
		row.Theirs, single = median(b), ratios(a, b)
		row.Value = row.Ours / row.Theirs
		row.Reached = row.Value <= g.N
	case AtMost:
		row.Value = row.Ours
		row.Reached = row.Value <= g.N
	case AtLeast:
		row.Value = row.Ours
		row.Reached = row.Value >= g.N
	}
	row.Low, row.High = slices.Min(single), slices.Max(single)
	if !row.Reached {
		row.Note = g.Hindrance
	}
	return row
}

// ratios of the rounds.
func ratios(over, under []float64) []float64 {
	r := make([]float64, len(over))
	for i := range r {
		r[i] = over[i] / under[i]
	}
	return r
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// better is how many times better than the other side, or than the goal, a row
// is, and want how many times it shall be; above 1 is better in both.
func (r *Row) better() (is, want float64) {
	switch r.Kind {
	case TimesBetter:
		return r.Value, r.Goal
	case TimesAtMost:
		return 1 / r.Value, 1 / r.Goal
	case AtMost:
		return r.Goal / r.Value, 1
	default:
		return r.Value / r.Goal, 1
	}
}

// missed is by how much a goal was not reached: 0.1 for a value that is 10 % off.
func (r *Row) missed() float64 {
	switch r.Kind {
	case TimesBetter, AtLeast:
		return 1 - r.Value/r.Goal
	default:
		return r.Value/r.Goal - 1
	}
}
