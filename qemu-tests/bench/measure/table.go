package measure

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// Table writes the rows and growths for a terminal.
func (r *Report) Table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "#\twork\tagainst\tours\ttheirs\tratio\tof the rounds\tgoal\t")
	for _, row := range r.Rows {
		fmt.Fprintln(t, strings.Join(append(row.cells(), ""), "\t"))
	}
	for _, g := range r.growths() {
		fmt.Fprintf(t, "\n%d\t%s, by %s\t", g.Number, g.Work, g.Over)
		for _, p := range g.Points {
			fmt.Fprintf(t, "%s\t", p.At)
		}
		fmt.Fprintln(t)
		for _, line := range g.lines() {
			fmt.Fprintln(t, "\t"+strings.Join(append(line, ""), "\t"))
		}
	}
	return t.Flush()
}

// Markdown writes the same as tables for a document.
func (r *Report) Markdown(w io.Writer) error {
	var b strings.Builder
	line := func(cells ...string) { b.WriteString("| " + strings.Join(cells, " | ") + " |\n") }
	line("#", "work", "against", "ours", "theirs", "ratio", "of the rounds", "goal")
	line("---", "---", "---", "---", "---", "---", "---", "---")
	for _, row := range r.Rows {
		cells := row.cells()
		for i, c := range cells {
			cells[i] = strings.ReplaceAll(c, "|", "\\|")
		}
		line(cells...)
	}
	var over []string
	for _, g := range r.growths() {
		var at []string
		for _, p := range g.Points {
			at = append(at, p.At)
		}
		if !slices.Equal(over, at) {
			over = at
			b.WriteByte('\n')
			line(append([]string{"cost by " + g.Over, ""}, at...)...)
			line(slices.Repeat([]string{"---"}, len(at)+2)...)
		}
		for _, cells := range g.lines() {
			line(append([]string{g.Work}, cells...)...)
		}
	}
	fmt.Fprintf(&b, "\n%s.", r.Machine)
	for _, name := range slices.Sorted(maps.Keys(r.Tools)) {
		fmt.Fprintf(&b, " %s %s.", name, r.Tools[name])
	}
	b.WriteByte('\n')
	_, err := io.WriteString(w, b.String())
	return err
}

// Missed returns the rows whose goals were not reached.
func (r *Report) Missed() []Row {
	return slices.DeleteFunc(slices.Clone(r.Rows), func(row Row) bool { return row.Reached })
}

func (r *Report) growths() []*Grown {
	var all []*Grown
	for _, result := range r.Results {
		if result.Growth != nil {
			all = append(all, result.Growth)
		}
	}
	return all
}

// lines are the medians of each side at each point.
func (g *Grown) lines() [][]string {
	var all [][]string
	for i, side := range g.Points[0].Sides {
		line := []string{side.Name}
		for _, p := range g.Points {
			if v := p.Sides[i].Of[g.Metric]; len(v) > 0 {
				line = append(line, show(median(v), g.Metric.Unit))
			} else {
				line = append(line, p.Sides[i].Absent)
			}
		}
		all = append(all, line)
	}
	return all
}

func (r *Row) cells() []string {
	number, against := fmt.Sprint(r.Number), "`"+r.Against+"`"
	if r.Against == "" {
		against = ""
	}
	if r.Absent {
		ours := ""
		if r.Ours > 0 {
			ours = show(r.Ours, r.Metric.Unit)
		}
		return []string{number, r.Work, against, ours, "", "", "", r.goal() + ": " + r.Note}
	}
	theirs, ratio := "", show(r.Value, r.Metric.Unit)
	spread := show(r.Low, r.Metric.Unit) + " to " + show(r.High, r.Metric.Unit)
	if r.Against != "" {
		theirs, ratio = show(r.Theirs, r.Metric.Unit), factor(r.Value)
		spread = factor(r.Low) + " to " + factor(r.High)
	}
	if r.Low == r.High {
		spread = ""
	}
	verdict := r.goal() + ": reached"
	if !r.Reached {
		verdict = fmt.Sprintf("%s: missed by %.0f %%", r.goal(), 100*r.missed())
		if r.Note != "" {
			verdict += " (" + r.Note + ")"
		}
	}
	return []string{number, r.Work, against, show(r.Ours, r.Metric.Unit), theirs, ratio, spread, verdict}
}

func (r *Row) goal() string {
	switch r.Kind {
	case TimesBetter:
		return "≥ " + factor(r.Goal)
	case TimesAtMost:
		return "≤ " + factor(r.Goal)
	case AtMost:
		return "≤ " + show(r.Goal, r.Metric.Unit)
	default:
		return "≥ " + show(r.Goal, r.Metric.Unit)
	}
}

func factor(v float64) string { return digits(v) + "×" }

// digits shows three digits that count.
func digits(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// show is a value with its unit.
func show(v float64, unit string) string {
	switch {
	case unit == "s" && v < 1:
		return digits(v*1e3) + " ms"
	case unit == "s":
		return digits(v) + " s"
	case unit == "B":
		return digits(v/1e6) + " MB"
	case unit == "" && v == float64(int64(v)):
		return fmt.Sprintf("%d", int64(v))
	case unit == "":
		return digits(v)
	default:
		return digits(v) + " " + unit
	}
}
