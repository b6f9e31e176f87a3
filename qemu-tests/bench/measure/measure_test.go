package measure

import (
	"context"
	"encoding/xml"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// side takes the given times, one a run.
func side(name string, times ...float64) Side {
	n := 0
	return Side{Name: name, Run: func(context.Context) (Sample, error) {
		n++
		return Sample{Wall: times[n-1]}, nil
	}}
}

func TestGoals(t *testing.T) {
	for _, c := range []struct {
		goal    Goal
		value   float64
		reached bool
	}{
		{Goal{Kind: TimesBetter, N: 3, Against: "theirs"}, 3, true},
		{Goal{Kind: TimesBetter, N: 3.1, Against: "theirs"}, 3, false},
		{Goal{Kind: TimesAtMost, N: 0.34, Against: "theirs"}, 1.0 / 3, true},
		{Goal{Kind: TimesAtMost, N: 0.33, Against: "theirs"}, 1.0 / 3, false},
		{Goal{Kind: AtMost, N: 2}, 2, true},
		{Goal{Kind: AtMost, N: 1.9}, 2, false},
		{Goal{Kind: AtLeast, N: 2}, 2, true},
		{Goal{Kind: AtLeast, N: 2.1}, 2, false},
	} {
		c.goal.Metric = Wall
		job := Job{Name: "j", Sides: []Side{side("ours", 1, 2, 9), side("theirs", 6, 5, 7)}, Goals: []Goal{c.goal}}
		results, err := Run(t.Context(), []Job{job}, nil, Options{Runs: 3, Log: io.Discard})
		if err != nil {
			t.Fatal(err)
		}
		var r Report
		r.Add(results)
		if row := r.Rows[0]; row.Value != c.value || row.Reached != c.reached {
			t.Errorf("%+v: %v, reached %v", c.goal, row.Value, row.Reached)
		}
	}
}

func TestSidesTakeTurns(t *testing.T) {
	var order []string
	as := func(name string) Side {
		return Side{Name: name,
			Before: func(context.Context) error { order = append(order, "before "+name); return nil },
			Run:    func(context.Context) (Sample, error) { order = append(order, name); return Sample{Wall: 1}, nil },
			Check:  func(context.Context) error { order = append(order, "check "+name); return nil },
		}
	}
	if _, err := Run(t.Context(), []Job{{Name: "j", Sides: []Side{as("a"), as("b")}}}, nil, Options{Runs: 2, Log: io.Discard}); err != nil {
		t.Fatal(err)
	}
	round := []string{"before a", "a", "check a", "before b", "b", "check b"}
	if want := slices.Repeat(round, 2); !slices.Equal(order, want) {
		t.Errorf("ran %q, want %q", order, want)
	}
}

// Wrong output is not a result, and another job's result is not lost by it.
func TestWrongOutputFails(t *testing.T) {
	bad := side("bad", 1)
	bad.Check = func(context.Context) error { return errors.New("another root hash") }
	jobs := []Job{{Name: "broken", Sides: []Side{bad}}, {Name: "sound", Sides: []Side{side("a", 1)}}}
	results, err := Run(t.Context(), jobs, nil, Options{Runs: 1, Log: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "broken: bad, run 1: wrong output: another root hash") {
		t.Errorf("error %v", err)
	}
	if len(results) != 1 || results[0].Name != "sound" {
		t.Errorf("results %v", results)
	}
}

func TestReportIsKept(t *testing.T) {
	jobs := []Job{{Name: "j", Sides: []Side{side("ours", 1, 1), side("theirs", 4, 5), {Name: "third", Absent: "not installed"}}, Goals: []Goal{
		{Number: 2, Work: "work", Metric: Wall, Kind: TimesBetter, N: 5, Against: "theirs", Hindrance: "the disk"},
		{Number: 1, Work: "work", Metric: Wall, Kind: TimesBetter, N: 5, Against: "third"},
	}}}
	growths := []Growth{{Number: 3, Name: "g", Work: "growing", Over: "image", Metric: Wall, Points: []Point{
		{At: "1 GiB", Sides: []Side{side("ours", 1, 1)}}, {At: "4 GiB", Sides: []Side{side("ours", 4, 4)}},
	}}}
	results, err := Run(t.Context(), jobs, growths, Options{Runs: 2, Log: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	r := &Report{Machine: "a machine", Tools: map[string]string{"tool": "1.2"}}
	r.Add(results)
	file := filepath.Join(t.TempDir(), "bench.json")
	if err := r.Save(file); err != nil {
		t.Fatal(err)
	}
	again, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	again.Add(nil)
	var text, was strings.Builder
	if err := errors.Join(r.Markdown(&was), again.Markdown(&text)); err != nil {
		t.Fatal(err)
	}
	if text.String() != was.String() {
		t.Errorf("read back:\n%s\nwas:\n%s", text.String(), was.String())
	}
	for _, want := range []string{
		"| 1 | work | `third` | 1.00 s |  |  |  | ≥ 5.00×: not installed |",
		"| 2 | work | `theirs` | 1.00 s | 4.50 s | 4.50× | 4.00× to 5.00× | ≥ 5.00×: missed by 10 % (the disk) |",
		"| growing | ours | 1.00 s | 4.00 s |",
		"tool 1.2.",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
	if len(again.Missed()) != 2 {
		t.Errorf("missed: %v", again.Missed())
	}
}

func TestChartIsWellFormed(t *testing.T) {
	var r Report
	r.Add([]Result{{Name: "j", Sides: []Values{{Name: "ours", Of: map[Metric][]float64{Wall: {1}}}, {Name: "a & b", Of: map[Metric][]float64{Wall: {4}}}},
		Goals: []Goal{{Number: 1, Work: "<work>", Metric: Wall, Kind: TimesBetter, N: 2, Against: "a & b"}}}})
	var b strings.Builder
	if err := r.Chart(&b); err != nil {
		t.Fatal(err)
	}
	var bars int
	for d := xml.NewDecoder(strings.NewReader(b.String())); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in %s", err, b.String())
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "rect" {
			bars++
		}
	}
	if bars != 2 { // the ground is one
		t.Errorf("%d rectangles", bars)
	}
}

func TestCommandMeasures(t *testing.T) {
	s, err := Script(`test "$1" = word; sleep 0.05`, "word")(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s[Wall] < 0.05 || s[Memory] == 0 {
		t.Errorf("sample %v", s)
	}
	if _, err := Script("echo why >&2; false; true")(t.Context()); err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("a script that fails: %v", err)
	}
}
