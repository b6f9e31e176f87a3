// Package measure runs the sides of a job in turn (ABAB...), and says from the
// medians which goals were reached.
//
// It refuses to report a side whose output is wrong: its check fails the job.
// Absolute times depend on the machine and on who else uses it; what counts is
// the ratio of two sides of one run.
package measure

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Metric is something that is measured.
type Metric struct {
	Name string
	Unit string // "s", "B" (bytes), "/s", or empty for a plain number
}

// What most jobs measure.
var (
	Wall   = Metric{"time", "s"}           // from start to end
	CPU    = Metric{"processor time", "s"} // user and system, of the process and its children
	Memory = Metric{"memory", "B"}         // the most that was resident in one process
	Size   = Metric{"size", "B"}
)

// MarshalText makes a metric a key in JSON: "time [s]".
func (m Metric) MarshalText() ([]byte, error) { return []byte(m.Name + " [" + m.Unit + "]"), nil }

// UnmarshalText reads what MarshalText writes.
func (m *Metric) UnmarshalText(text []byte) error {
	name, unit, ok := strings.Cut(strings.TrimSuffix(string(text), "]"), " [")
	if !ok {
		return fmt.Errorf("metric %q: want NAME [UNIT]", text)
	}
	m.Name, m.Unit = name, unit
	return nil
}

// A Sample is what one run of a side cost.
type Sample map[Metric]float64

// A Side does the work of a job in one way.
type Side struct {
	Name string
	// Absent says why the side cannot be measured here; it is then shown and
	// not run.
	Absent string
	// Before, which may be nil, prepares one run and is not measured. Sides
	// that are compared prepare alike: the same caches warm, the same flushed.
	Before func(context.Context) error
	// Run does the work once and measures it.
	Run func(context.Context) (Sample, error)
	// Check, which may be nil, looks at the output of the run. Its error fails
	// the job.
	Check func(context.Context) error
}

// A Kind is how a goal compares.
type Kind string

// The kinds of goals.
const (
	TimesBetter Kind = "times better" // the other side's value over ours is at least N
	TimesAtMost Kind = "times"        // ours over the other side's is at most N
	AtMost      Kind = "at most"      // our value is at most N
	AtLeast     Kind = "at least"     // our value is at least N
)

// A Goal is one row of the table.
type Goal struct {
	Number  int    // by which it is selected
	Work    string // a few words
	Metric  Metric
	Against string // the name of a side of the job; empty with AtMost and AtLeast
	Kind    Kind
	N       float64
	// Hindrance says what stands in the way, where it is known. It is shown
	// when the goal is not reached.
	Hindrance string
}

// A Job is work that is done by all of its sides.
type Job struct {
	Name  string // one word, unique
	Sides []Side // ours is the first
	Goals []Goal
	// Once is for values that cannot differ from run to run, such as sizes.
	Once bool
}

// A Growth is how a cost grows.
type Growth struct {
	Number int
	Name   string // one word, unique
	Work   string
	Over   string // what grows: "image"
	Metric Metric
	Points []Point
	Runs   int // of each side, where it shall be fewer than of the jobs
}

// A Point of a growth is one size.
type Point struct {
	At    string // "4 GiB"
	Sides []Side // as of a job, the same names at all points
}

// Options of a measurement.
type Options struct {
	Runs   int // of each side
	Commit string
	Log    io.Writer // what is being measured, for people
}

// Run measures the jobs and growths and returns their results. A job that fails
// does not keep the others from running; its result is left out.
func Run(ctx context.Context, jobs []Job, growths []Growth, o Options) ([]Result, error) {
	var results []Result
	var failed error
	for _, j := range jobs {
		runs := o.Runs
		if j.Once {
			runs = 1
		}
		sides, err := inTurn(ctx, j.Name, j.Sides, runs, o.Log)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", j.Name, err))
			continue
		}
		results = append(results, Result{Name: j.Name, Date: now(), Commit: o.Commit, Goals: j.Goals, Sides: sides})
	}
	for _, g := range growths {
		r := Result{Name: g.Name, Date: now(), Commit: o.Commit, Growth: &Grown{Number: g.Number, Work: g.Work, Over: g.Over, Metric: g.Metric}}
		if len(g.Points) == 0 {
			continue
		}
		runs := o.Runs
		if g.Runs > 0 {
			runs = min(runs, g.Runs)
		}
		for _, p := range g.Points {
			sides, err := inTurn(ctx, g.Name+" "+p.At, p.Sides, runs, o.Log)
			if err != nil {
				failed = errors.Join(failed, fmt.Errorf("%s at %s: %w", g.Name, p.At, err))
				continue
			}
			r.Growth.Points = append(r.Growth.Points, Measured{At: p.At, Sides: sides})
		}
		if len(r.Growth.Points) > 0 {
			results = append(results, r)
		}
	}
	return results, failed
}

func now() time.Time { return time.Now().UTC().Truncate(time.Second) }

// inTurn runs the sides one after the other, again and again.
func inTurn(ctx context.Context, name string, sides []Side, runs int, log io.Writer) ([]Values, error) {
	all := make([]Values, len(sides))
	for i, s := range sides {
		all[i] = Values{Name: s.Name, Absent: s.Absent, Of: map[Metric][]float64{}}
	}
	for n := range runs {
		for i, s := range sides {
			if s.Absent != "" {
				continue
			}
			sample, err := s.once(ctx)
			if err != nil {
				return nil, fmt.Errorf("%s, run %d: %w", s.Name, n+1, err)
			}
			for m, v := range sample {
				all[i].Of[m] = append(all[i].Of[m], v)
			}
			if v, ok := sample[Wall]; ok {
				fmt.Fprintf(log, "%s: %s: %s\n", name, s.Name, show(v, "s"))
			}
		}
	}
	return all, nil
}

func (s *Side) once(ctx context.Context) (Sample, error) {
	if s.Before != nil {
		if err := s.Before(ctx); err != nil {
			return nil, fmt.Errorf("prepare: %w", err)
		}
	}
	unix.Sync() // what came before is not written to the disk in this side's time
	sample, err := s.Run(ctx)
	if err != nil {
		return nil, err
	}
	if s.Check != nil {
		if err := s.Check(ctx); err != nil {
			return nil, fmt.Errorf("wrong output: %w", err)
		}
	}
	return sample, nil
}
