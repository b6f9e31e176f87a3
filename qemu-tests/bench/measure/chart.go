package measure

import (
	"fmt"
	"html"
	"io"
	"math"
	"strings"
)

// The chart's measures, in pixels.
const (
	chartWidth = 900
	labelWidth = 400
	plotWidth  = 380
	rowHeight  = 26
	topHeight  = 62
)

// style follows the reader's light or dark scheme.
const style = `
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 15px; }
.small { font-size: 11px; fill: #59636e; }
.grid { stroke: #d1d9e0; }
.one { stroke: #59636e; }
.reached { fill: #1a7f37; }
.missed { fill: #bc4c00; }
.goal { stroke: #1f2328; stroke-width: 2.5; }
.ground { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .small { fill: #9198a1; }
  .grid { stroke: #3d444d; }
  .one { stroke: #9198a1; }
  .reached { fill: #3fb950; }
  .missed { fill: #db6d28; }
  .goal { stroke: #f0f6fc; }
  .ground { fill: #0d1117; }
}
`

// Chart writes the rows as an SVG: one bar a row, how many times better than
// the other side (or than the goal, where there is none) on a logarithmic
// scale, the goal as a mark.
func (r *Report) Chart(w io.Writer) error {
	var rows []Row
	low, high := 0.5, 2.0
	for _, row := range r.Rows {
		if row.Absent || row.Value <= 0 {
			continue
		}
		is, want := row.better()
		low, high = min(low, is, want), max(high, is, want)
		rows = append(rows, row)
	}
	x := func(v float64) float64 {
		return labelWidth + plotWidth*(math.Log(v)-math.Log(low))/(math.Log(high)-math.Log(low))
	}
	bottom := topHeight + rowHeight*len(rows)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="how many times better, and the goals">`+"\n", chartWidth, bottom+30)
	fmt.Fprintf(&b, "<style>%s</style>\n<rect class=\"ground\" width=\"100%%\" height=\"100%%\"/>\n", style)
	text := func(x, y float64, class, anchor, s string) {
		fmt.Fprintf(&b, `<text x="%.0f" y="%.0f" class="%s" text-anchor="%s">%s</text>`+"\n", x, y, class, anchor, html.EscapeString(s))
	}
	text(12, 24, "title", "start", "How many times better")
	text(12, 42, "small", "start", "right of 1× is better; the mark is the goal; medians of runs in turn, logarithmic scale")
	for _, tick := range []float64{0.01, 0.1, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000, 10000} {
		if tick < low || tick > high {
			continue
		}
		class := "grid"
		if tick == 1 {
			class = "one"
		}
		fmt.Fprintf(&b, `<line class="%s" x1="%.1f" x2="%.1f" y1="%d" y2="%d"/>`+"\n", class, x(tick), x(tick), topHeight-6, bottom)
		text(x(tick), float64(bottom)+18, "small", "middle", fmt.Sprintf("%g×", tick))
	}
	for i, row := range rows {
		is, want := row.better()
		y := float64(topHeight + i*rowHeight)
		class := "reached"
		if !row.Reached {
			class = "missed"
		}
		from, to := min(x(1), x(is)), max(x(1), x(is))
		fmt.Fprintf(&b, `<rect class="%s" x="%.1f" y="%.1f" width="%.1f" height="%d" rx="2"/>`+"\n", class, from, y+3, max(to-from, 1.5), rowHeight-8)
		fmt.Fprintf(&b, `<line class="goal" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`+"\n", x(want), x(want), y, y+rowHeight-2)
		text(labelWidth-10, y+17, "", "end", row.label())
		text(max(to, x(want))+8, y+17, "small", "start", row.cells()[5])
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// label names a row in the chart.
func (r *Row) label() string {
	label := fmt.Sprintf("%d  %s", r.Number, r.Work)
	if r.Metric != Wall {
		label += ", " + r.Metric.Name
	}
	if r.Against != "" {
		label += " / " + r.Against
	}
	return label
}
