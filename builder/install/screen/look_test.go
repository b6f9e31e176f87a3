package screen

import (
	"errors"
	"strings"
	"testing"

	"github.com/gdamore/tcell/v2"
	"github.com/gdamore/tcell/v2/terminfo"
	_ "github.com/gdamore/tcell/v2/terminfo/extended" // vt220
)

// FAULTS 112 (M15): the chosen line can be read and told from the others, by eight
// colours, by none and by the characters alone; and the page has the whole screen.
func TestLook(t *testing.T) {
	for name, c := range map[string]struct{ width, height int }{"linux": {160, 50}, "vt220": {80, 24}, "xterm-256color": {100, 30}} {
		t.Run(name, func(t *testing.T) {
			info, err := terminfo.LookupTerminfo(name)
			if err != nil {
				t.Fatal(err)
			}
			p := startOn(t, threeDisks(), c.width, c.height, info.Colors)
			p.sees("> /dev/nvme0n1")
			p.sees("+ This disk -")
			rows := strings.Split(p.seen(), "\n")[1:]
			p.screen.mu.Lock()
			styles := p.screen.styles
			p.screen.mu.Unlock()
			if !strings.Contains(rows[0], "which disk?") || !strings.Contains(rows[c.height-1], "Esc: leave") || !strings.HasPrefix(rows[c.height-3], "  +---") || len(strings.TrimRight(rows[c.height-3], " ")) != c.width-margin {
				t.Errorf("the page does not have the whole screen:%s", p.seen())
			}
			for y, row := range rows {
				bar, chosen := y == 0 || y == c.height-1, strings.HasPrefix(row, "  > ")
				for x := range c.width {
					text, background, attributes := styles[y][x].Decompose()
					stands := attributes&tcell.AttrReverse != 0 || background != tcell.ColorDefault
					if within := bar || chosen && x >= margin && x < c.width-margin; within != stands {
						t.Fatalf("line %d, column %d (%q): stands out: %v", y, x, row, stands)
					}
					if !stands {
						continue
					}
					if info.Colors < 8 && (text != tcell.ColorDefault || background != tcell.ColorDefault) {
						t.Fatalf("line %d: colours %v on %v of a terminal that has none", y, text, background)
					}
					if info.Colors >= 8 && (text == background || text == tcell.ColorDefault || text&0xff > 7 || background&0xff > 7) {
						t.Fatalf("line %d: %v on %v", y, text, background)
					}
				}
			}
			p.presses(tcell.KeyEscape)
			if err := p.ends(); !errors.Is(err, ErrLeft) {
				t.Errorf("error %v", err)
			}
		})
	}
}
