package console

import (
	"strings"
	"testing"
)

// The drawing is taken apart into modules again; finder patterns at three
// corners say that nothing is shifted or inverted (ISO/IEC 18004, 6.3.3).
func TestQR(t *testing.T) {
	drawn, err := QR("ubhellkj-gndvbjji-nfccvilv-uclrunvh-virtnbbt-bucfrbkh-tikiilie-lbhruuut")
	if err != nil {
		t.Fatal(err)
	}
	var rows [][]bool // true is black
	for line := range strings.Lines(strings.TrimRight(drawn, "\n")) {
		var upper, lower []bool
		for _, r := range strings.TrimRight(line, "\n") {
			upper = append(upper, r == ' ' || r == '▄')
			lower = append(lower, r == ' ' || r == '▀')
		}
		rows = append(rows, upper, lower)
	}
	if len(rows[0]) > 80 || len(rows)/2 > 25 {
		t.Errorf("%d columns and %d lines do not fit a screen", len(rows[0]), len(rows)/2)
	}
	size := len(rows[0]) - 2*quiet
	for _, corner := range [][2]int{{0, 0}, {size - 7, 0}, {0, size - 7}} {
		for y := range 7 {
			for x := range 7 {
				ring := min(x, y, 6-x, 6-y)
				if got, want := rows[quiet+corner[1]+y][quiet+corner[0]+x], ring != 1; got != want {
					t.Fatalf("finder pattern at %v: module %d,%d is %v", corner, x, y, got)
				}
			}
		}
	}
	if strings.Trim(strings.SplitN(drawn, "\n", 2)[0], "█") != "" {
		t.Errorf("the first line is not border alone: %q", strings.SplitN(drawn, "\n", 2)[0])
	}
	if _, err := QR(strings.Repeat("x", 4000)); err == nil {
		t.Error("a text that no code holds was drawn")
	}
}
