// Package pad is the pad of letters on the screen by which a machine without a keyboard is
// answered: what moves it, what it types, how it is drawn, and how the events of the kernel's
// input devices (evdev) are read for it.
//
// It refuses to know what was typed: it says which key of a keyboard was meant.
package pad

import (
	"strings"
	"unicode/utf8"

	"halogenos.internal/boot/words"
)

// A Move is what somebody asks of the pad.
type Move uint8

// The moves. Back and Forward go through all cells in turn, for two buttons alone.
const (
	None Move = iota
	Up
	Down
	Right
	Left
	Back
	Forward
	Choose
	Touched // see Pad.Touch
)

// A cell is one of the pad's: what it bears, and what a keyboard types for it.
type cell struct {
	label string
	key   byte
}

// columns is how many letters a row has. A row with fewer cells has wider ones.
const columns = 8

// forKey is the pad for a recovery key: its letters (luks2), and what a keyboard has besides:
// Backspace, Ctrl-U, Tab, which hides the letters, and Enter.
var forKey = [][]cell{
	letters("cbdefghi"),
	letters("jklnrtuv"),
	{{words.PadErase, 0x7f}, {words.PadClear, 0x15}, {words.PadShow, '\t'}, {words.PadDone, '\r'}},
}

// forLine is the pad for any other answer.
var forLine = [][]cell{
	letters("abcdefgh"),
	letters("ijklmnop"),
	letters("qrstuvwx"),
	letters("yz012345"),
	letters("6789-._ "),
	{{words.PadErase, 0x7f}, {words.PadClear, 0x15}, {words.PadShow, '\t'}, {words.PadDone, '\r'}},
}

// letters are cells that bear what they type.
func letters(of string) (row []cell) {
	for _, c := range []byte(of) {
		label := string(c)
		if c == ' ' {
			label = words.PadSpace
		}
		row = append(row, cell{label, c})
	}
	return row
}

// A Pad is the pad at one screen. The zero Pad is for a recovery key, and is not shown.
type Pad struct {
	line        bool
	row, number int // the cell that Choose takes: its row, and its place in that row
	shown       bool
	arrows      bool // moved by the arrows of a keyboard, whose Enter chooses then
}

// ForLine returns the pad for answers that are not a recovery key. It is not shown.
func ForLine() Pad { return Pad{line: true} }

// rows are the pad's cells.
func (p *Pad) rows() [][]cell {
	if p.line {
		return forLine
	}
	return forKey
}

// chosen is the key of the cell that Choose takes.
func (p *Pad) chosen() byte { return p.rows()[p.row][p.number].key }

// Shown reports whether the pad is to be drawn.
func (p *Pad) Shown() bool { return p.shown }

// Show shows the pad.
func (p *Pad) Show() { p.shown = true }

// Hide takes the pad away, as when somebody types on a keyboard.
func (p *Pad) Hide() { p.shown, p.arrows = false, false }

// Do does what a button asks, and returns the key that it types; 0 is none. The first move of
// a pad that was not shown shows it, and Choose does nothing there.
func (p *Pad) Do(m Move) (key byte) {
	p.arrows = false
	switch {
	case m == None || m == Touched:
	case !p.shown:
		p.shown = m != Choose
	case m == Choose:
		return p.chosen()
	default:
		p.move(m)
	}
	return 0
}

// Arrow does what an arrow key of a keyboard asks. From then on its Enter chooses.
func (p *Pad) Arrow(m Move) {
	p.Do(m)
	p.arrows = p.shown
}

// Enter returns the key that Enter of a keyboard types by the pad; 0 where it is Enter.
func (p *Pad) Enter() (key byte) {
	if !p.arrows {
		return 0
	}
	return p.chosen()
}

// move goes to another cell. All ways go round.
func (p *Pad) move(m Move) {
	rows := p.rows()
	cells, column := len(rows[p.row]), p.number*wide(rows[p.row])
	switch m {
	case Left:
		p.number = (p.number + cells - 1) % cells
	case Right:
		p.number = (p.number + 1) % cells
	case Up:
		p.row = (p.row + len(rows) - 1) % len(rows)
		p.number = column / wide(rows[p.row])
	case Down:
		p.row = (p.row + 1) % len(rows)
		p.number = column / wide(rows[p.row])
	case Back:
		if p.number--; p.number < 0 {
			p.row = (p.row + len(rows) - 1) % len(rows)
			p.number = len(rows[p.row]) - 1
		}
	case Forward:
		if p.number++; p.number == cells {
			p.row, p.number = (p.row+1)%len(rows), 0
		}
	}
}

// wide is how many columns a cell of a row takes.
func wide(row []cell) int { return columns / len(row) }

// The pad's measures in characters.
const (
	// Width is that of the pad.
	Width = columns * cellWidth
	// Roomy is how many lines a screen has on which the cells are three lines high, as a
	// finger wants them; on others they have a line, and a line between them.
	Roomy = 30

	cellWidth = 8
)

// Lines is how many lines the pad takes on a screen of so many.
func (p *Pad) Lines(screen int) int { return len(p.rows())*height(screen) + 1 }

// Draw draws the pad for a screen of so many lines, a line each. The cell that Choose takes is
// marked, in reverse and by an arrow. What its cells bear is in the language.
func (p *Pad) Draw(l words.Language, screen int) (lines []string) {
	for row, cells := range p.rows() {
		for at := range height(screen) {
			var b strings.Builder
			for number, c := range cells {
				marked := row == p.row && number == p.number
				text := draw(l.Text(c.label), wide(cells)*cellWidth-1, at, height(screen), marked)
				if marked && strings.TrimSpace(text) != "" {
					text = "\033[7m" + text + "\033[0m"
				}
				b.WriteString(text + " ")
			}
			lines = append(lines, strings.TrimRight(b.String(), " "))
		}
	}
	if p.line {
		return append(lines, l.Text(words.PadHelpLine))
	}
	return append(lines, l.Text(words.PadHelp))
}

// height is how many lines a cell takes on a screen of so many.
func height(screen int) int {
	if screen >= Roomy {
		return 3
	}
	return 2
}

// draw draws a line of a cell.
func draw(label string, width, line, high int, marked bool) string {
	left, right := "[", "]"
	switch {
	case high == 2 && line == 1:
		return strings.Repeat(" ", width)
	case high == 3 && line != 1:
		return "+" + strings.Repeat("-", width-2) + "+"
	case high == 3:
		left, right = "|", "|"
	}
	if marked {
		left, right = ">", "<"
	}
	empty := width - 2 - utf8.RuneCountInString(label)
	before := empty / 2
	return left + strings.Repeat(" ", before) + label + strings.Repeat(" ", empty-before) + right
}
