package measure

import (
	"fmt"
	"slices"
)

// Baseline returns the rows that another machine can be compared with: ratios to a side that
// was measured in the same rounds.
func (r *Report) Baseline() *Report {
	rows := slices.DeleteFunc(slices.Clone(r.Rows), func(row Row) bool { return row.Absent || row.Against == "" })
	return &Report{Machine: r.Machine, Tools: r.Tools, Rows: rows}
}

// Worse says which rows became worse than a baseline: the best of the rounds is worse there
// than the worst of the baseline's, so that no noise of either makes it so. A row that one of
// them lacks is not compared.
func (r *Report) Worse(baseline *Report) []string {
	var worse []string
	for _, was := range baseline.Rows {
		i := slices.IndexFunc(r.Rows, func(row Row) bool { return row.same(was) && !row.Absent })
		if i < 0 {
			continue
		}
		is := r.Rows[i]
		if is.Kind == TimesBetter && is.High < was.Low || is.Kind == TimesAtMost && is.Low > was.High {
			worse = append(worse, fmt.Sprintf("%s: %s (%s to %s), and was %s (%s to %s)", is.label(), factor(is.Value), factor(is.Low), factor(is.High), factor(was.Value), factor(was.Low), factor(was.High)))
		}
	}
	return worse
}

// same reports whether two rows are of the same comparison, whatever goal it has.
func (r *Row) same(o Row) bool {
	return r.Number == o.Number && r.Work == o.Work && r.Metric == o.Metric && r.Against == o.Against && r.Kind == o.Kind
}
