package measure

import (
	"io"
	"path/filepath"
	"strings"
	"testing"
)

func TestWorseThanTheBaseline(t *testing.T) {
	measured := func(ours, theirs []float64, kind Kind) *Report {
		t.Helper()
		job := Job{Name: "j", Sides: []Side{side("ours", ours...), side("theirs", theirs...)}, Goals: []Goal{
			{Number: 3, Work: "image", Metric: Wall, Kind: kind, N: 1, Against: "theirs"},
			{Number: 3, Work: "image", Metric: Wall, Kind: AtMost, N: 1},
		}}
		results, err := Run(t.Context(), []Job{job}, nil, Options{Runs: len(ours), Log: io.Discard})
		if err != nil {
			t.Fatal(err)
		}
		var r Report
		r.Add(results)
		return &r
	}
	// Kept in a file, as the tree has it.
	file := filepath.Join(t.TempDir(), "baseline.json")
	keep := func(r *Report) *Report {
		t.Helper()
		if err := r.Baseline().Save(file); err != nil {
			t.Fatal(err)
		}
		b, err := Load(file)
		if err != nil || len(b.Rows) != 1 || len(b.Results) != 0 {
			t.Fatalf("%d rows, %d results, %v", len(b.Rows), len(b.Results), err)
		}
		return b
	}
	for _, c := range []struct {
		ours  []float64
		kind  Kind
		worse bool
	}{
		{[]float64{10, 11, 12}, TimesAtMost, false},
		{[]float64{12, 13, 14}, TimesAtMost, false}, // one round is as it was
		{[]float64{13, 14, 15}, TimesAtMost, true},
		{[]float64{5, 5, 5}, TimesAtMost, false},
		{[]float64{13, 14, 15}, TimesBetter, true},
		{[]float64{12, 13, 14}, TimesBetter, false},
		{[]float64{5, 5, 5}, TimesBetter, false},
	} {
		base := keep(measured([]float64{10, 11, 12}, []float64{10, 10, 10}, c.kind))
		// Another machine, half as fast: ratios count.
		for i := range c.ours {
			c.ours[i] *= 2
		}
		worse := measured(c.ours, []float64{20, 20, 20}, c.kind).Worse(base)
		if (len(worse) > 0) != c.worse || len(worse) > 0 && !strings.HasPrefix(worse[0], "3  image / theirs: ") {
			t.Errorf("%v, %s: %q", c.ours, c.kind, worse)
		}
	}
	// What was not measured is not worse.
	base := keep(measured([]float64{1}, []float64{1}, TimesAtMost))
	if worse := new(Report).Worse(base); len(worse) > 0 {
		t.Errorf("without rows: %q", worse)
	}
}
