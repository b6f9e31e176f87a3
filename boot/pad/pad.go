// Package pad is the pad of letters on the screen by which a recovery key is typed at a
// machine without a keyboard: what moves it, what it types, how it is drawn, and how the events
// of the kernel's input devices (evdev) are read for it.
//
// It refuses to know what was typed: it says which key of a keyboard was meant.
package pad

import "strings"

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

// columns is how many letters a row has. The last row has cells of two columns each.
const columns = 8

// cells are the letters of recovery keys (luks2), and what a keyboard has besides: Backspace,
// Ctrl-U, Tab, which hides the letters, and Enter.
var cells = [...]cell{
	{"c", 'c'}, {"b", 'b'}, {"d", 'd'}, {"e", 'e'}, {"f", 'f'}, {"g", 'g'}, {"h", 'h'}, {"i", 'i'},
	{"j", 'j'}, {"k", 'k'}, {"l", 'l'}, {"n", 'n'}, {"r", 'r'}, {"t", 't'}, {"u", 'u'}, {"v", 'v'},
	{"erase", 0x7f}, {"clear", 0x15}, {"hide/show", '\t'}, {"done", '\r'},
}

const letters = 2 * columns

// A Pad is the pad at one screen. The zero Pad is not shown.
type Pad struct {
	at     int // the cell that Choose takes
	shown  bool
	arrows bool // moved by the arrows of a keyboard, whose Enter chooses then
}

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
		return cells[p.at].key
	default:
		p.at = next(p.at, m)
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
	return cells[p.at].key
}

// next is the cell that a move leads to from a cell. All ways go round.
func next(at int, m Move) int {
	row, column := at/columns, at%columns
	if at >= letters {
		row, column = 2, (at-letters)*2
	}
	switch m {
	case Back:
		return (at + len(cells) - 1) % len(cells)
	case Forward:
		return (at + 1) % len(cells)
	case Up:
		row = (row + 2) % 3
	case Down:
		row = (row + 1) % 3
	case Left:
		column = (column + columns - step(row)) % columns
	case Right:
		column = (column + step(row)) % columns
	}
	return index(row, column)
}

// step is how many columns a cell of a row has.
func step(row int) int {
	if row == 2 {
		return 2
	}
	return 1
}

// index is the cell of a row and a column.
func index(row, column int) int {
	if row == 2 {
		return letters + column/2
	}
	return row*columns + column
}

// The pad's measures in characters.
const (
	// Width is that of the pad.
	Width = columns * cellWidth
	// Roomy is how many lines a screen has on which the cells are three lines high, as a
	// finger wants them; on others they have a line, and a line between them.
	Roomy = 30

	cellWidth = 8
)

// help is said below the pad.
const help = "Arrow or volume keys move, Enter or power chooses; or touch it."

// Draw draws the pad for a screen of so many lines, a line each. The cell that Choose takes is
// marked, in reverse and by an arrow.
func (p *Pad) Draw(screen int) (lines []string) {
	for row := range 3 {
		for line := range height(screen) {
			var b strings.Builder
			for column := 0; column < columns; column += step(row) {
				at := index(row, column)
				text := draw(cells[at].label, step(row)*cellWidth-1, line, height(screen), at == p.at)
				if at == p.at && strings.TrimSpace(text) != "" {
					text = "\033[7m" + text + "\033[0m"
				}
				b.WriteString(text + " ")
			}
			lines = append(lines, strings.TrimRight(b.String(), " "))
		}
	}
	return append(lines, help)
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
	before := (width - 2 - len(label)) / 2
	return left + strings.Repeat(" ", before) + label + strings.Repeat(" ", width-2-len(label)-before) + right
}
