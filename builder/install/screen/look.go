package screen

import (
	"fmt"
	"strings"

	"github.com/gdamore/tcell/v2"
	"github.com/rivo/tview"

	"halogenos.internal/boot/words"
	"halogenos.internal/builder/install"
)

// A look is how what stands out does. The eight colours of a Linux console are all it
// takes, and a terminal without colours swaps text and background.
type look struct{ bar, chosen tcell.Style }

func lookFor(colors int) look {
	if colors < 8 {
		return look{bar: tcell.StyleDefault.Reverse(true), chosen: tcell.StyleDefault.Reverse(true)}
	}
	return look{
		bar:    tcell.StyleDefault.Foreground(tcell.ColorSilver).Background(tcell.ColorNavy).Bold(true),
		chosen: tcell.StyleDefault.Foreground(tcell.ColorBlack).Background(tcell.ColorTeal),
	}
}

// colors is how many the terminal has; 0 where that is not known.
func colors(screen tcell.Screen) int {
	if screen == nil {
		var err error
		if screen, err = tcell.NewScreen(); err != nil { // which opens nothing yet
			return 0
		}
	}
	return screen.Colors()
}

// plainBorders draws frames with characters that every terminal has.
func plainBorders() {
	b := &tview.Borders
	b.Horizontal, b.Vertical = '-', '|'
	b.TopLeft, b.TopRight, b.BottomLeft, b.BottomRight = '+', '+', '+', '+'
	b.HorizontalFocus, b.VerticalFocus = '-', '|'
	b.TopLeftFocus, b.TopRightFocus, b.BottomLeftFocus, b.BottomRightFocus = '+', '+', '+', '+'
	tview.Styles.PrimitiveBackgroundColor = tcell.ColorDefault
	tview.Styles.PrimaryTextColor = tcell.ColorDefault
	tview.Styles.SecondaryTextColor = tcell.ColorDefault
	tview.Styles.TertiaryTextColor = tcell.ColorDefault
	tview.Styles.BorderColor, tview.Styles.TitleColor = tcell.ColorDefault, tcell.ColorDefault
}

// margin is how many columns stay empty left and right of a page.
const margin = 2

// frame fills the screen: a title above a page, and the keys below it.
func (u *ui) frame(title, keys string, content tview.Primitive) tview.Primitive {
	bar := func(text string) tview.Primitive {
		_, background, _ := u.look.bar.Decompose()
		view := tview.NewTextView().SetWrap(false).SetText(strings.Repeat(" ", margin) + text).SetTextStyle(u.look.bar)
		view.SetBackgroundColor(background)
		return reversed{view, u.look.bar}
	}
	columns := tview.NewFlex().AddItem(nil, margin, 0, false).AddItem(content, 0, 1, true).AddItem(nil, margin, 0, false)
	return tview.NewFlex().SetDirection(tview.FlexRow).
		AddItem(bar(title), 1, 0, false).AddItem(nil, 1, 0, false).
		AddItem(columns, 0, 1, true).
		AddItem(nil, 1, 0, false).AddItem(bar(keys), 1, 0, false)
}

// reversed is a line whose whole width has one style.
type reversed struct {
	*tview.TextView
	style tcell.Style
}

// Draw implements tview.Primitive.
func (r reversed) Draw(screen tcell.Screen) {
	r.TextView.Draw(screen)
	x, y, width, _ := r.GetRect()
	for i := range width {
		c, more, _, _ := screen.GetContent(x+i, y)
		screen.SetContent(x+i, y, c, more, r.style)
	}
}

// A line is one choice of a list, and what is said of it.
type line struct{ text, below string }

// list makes a list: take gets the line that Enter is pressed on, moved the one that
// is chosen now. The chosen line stands out by its style, and by a sign before it
// where a terminal has no styles.
func (u *ui) list(lines []line, chosen int, take func(i int), leave func(), moved func(i int)) *tview.List {
	list := tview.NewList().SetSelectedStyle(u.look.chosen).SetHighlightFullLine(true).SetUseStyleTags(false, false).SetWrapAround(false)
	main := func(i, chosen int) string {
		if i == chosen {
			return "> " + lines[i].text
		}
		return "  " + lines[i].text
	}
	for i, l := range lines {
		list.AddItem(main(i, chosen), "    "+l.below, 0, nil)
	}
	list.SetCurrentItem(chosen)
	list.SetChangedFunc(func(now int, _, _ string, _ rune) {
		for i, l := range lines {
			list.SetItemText(i, main(i, now), "    "+l.below)
		}
		moved(now)
	})
	return list.SetSelectedFunc(func(i int, _, _ string, _ rune) { take(i) }).SetDoneFunc(leave)
}

func text(format string, args ...any) *tview.TextView {
	return tview.NewTextView().SetWordWrap(true).SetText(fmt.Sprintf(format, args...))
}

func title(d install.Disk) string {
	return strings.TrimSpace(fmt.Sprintf("%s  %.1f GB  %s", d.Path, float64(d.Size())/1e9, strings.TrimSpace(d.Model+" "+d.Serial)))
}

func contents(l words.Language, d install.Disk) string {
	switch {
	case len(d.Uses) > 0:
		return l.Say(words.InUse, l.List(d.Uses, "; "))
	case len(d.Contents) > 0:
		return l.Say(words.InHas, d.Contents)
	}
	return l.Text(words.InEmpty)
}

// about says all that is known of a disk.
func about(l words.Language, d install.Disk, refused string) string {
	var out strings.Builder
	fmt.Fprintf(&out, "%s\n%s", title(d), l.Say(words.InSectorsOf, d.Sectors, d.SectorSize))
	if d.Removable {
		out.WriteString(l.Text(words.InAndRemovable))
	}
	out.WriteString("\n\n")
	if refused != "" {
		fmt.Fprintf(&out, "%s\n\n", l.Say(words.InRefusedDisk, refused))
	}
	for _, use := range d.Uses {
		fmt.Fprintf(&out, "%s\n", l.Say(words.InUse, use))
	}
	for _, have := range d.Contents {
		fmt.Fprintf(&out, "%s\n", l.Say(words.InHas, have))
	}
	if len(d.Uses)+len(d.Contents) == 0 {
		out.WriteString(l.Text(words.InItIsEmpty) + "\n")
	}
	return out.String()
}
