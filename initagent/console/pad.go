package console

import (
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"halogenos.internal/boot/keyboard"
	"halogenos.internal/boot/pad"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/hw"
)

// A board is the pad at one terminal.
type board struct {
	pad     pad.Pad
	columns int // of a terminal that says so; 0 elsewhere
	lines   int // of a screen that has room for the pad; 0 elsewhere
	unasked int // how many lines the screen has to have for the pad to be shown unasked
}

// newBoard is the pad of a terminal for a recovery key. At the other end of a line there is a
// keyboard, and so no pad.
func newBoard(t *hw.Terminal) board {
	columns, lines := size(t)
	if !hw.IsScreen(t.Path) || columns < len(margin)+pad.Width {
		return board{columns: columns}
	}
	return board{lines: lines, columns: columns}
}

// buttons opens the machine's buttons for the pad of its first screen, and shows the pad where there are
// buttons and no keyboard. The function pressed handles what was pressed or touched since its last call.
// It reports the terminal, whether there was anything, and whether press has said that the answer is
// done.
func (c *Console) buttons(boards []*board, press func(at int, key byte) (done bool)) (pressed func() (from int, moved, done bool), closed func()) {
	at := -1
	for i := range boards {
		if boards[i].lines > 0 {
			at = i
			break
		}
	}
	if at < 0 {
		return func() (int, bool, bool) { return 0, false, false }, func() {}
	}
	open, sys := c.inputs, c.sys
	if open == nil {
		open = func() *hw.Inputs { return hw.OpenInputs(os.DirFS("/sys"), "/dev/input", hw.InputAxis) }
	}
	if sys == nil {
		sys = os.DirFS("/sys")
	}
	restore := c.swapKeys(silent())
	in, b := open(), boards[at]
	offered := b.offer(in)
	pressed = func() (from int, moved, done bool) {
		in.Read(func(asked pad.Input) {
			if done {
				return
			}
			moved = true
			if key := b.asked(c.terminals[at], sys, asked); key != 0 {
				done = press(at, key)
			}
		})
		if !offered && b.offer(in) {
			offered, moved = true, true
		}
		return at, moved, done
	}
	return pressed, func() {
		in.Close()
		restore()
	}
}

// offer shows the pad where it is the only way to answer, and reports whether it does.
func (b *board) offer(in *hw.Inputs) bool {
	offers := in.Types && !in.Letters && b.lines >= b.unasked
	if offers {
		b.pad.Show()
	}
	return offers
}

// silent keeps the pad's buttons from typing: Linux's console has the sequence of F14 for the volume
// key of a keyboard, which would get into the line that the kernel edits, and onto the screen.
func silent() (entries []keyboard.Entry) {
	for _, key := range pad.Buttons() {
		entries = append(entries, keyboard.Entry{Key: key, Value: hw.NoKey})
	}
	return entries
}

// asked carries out an input at the pad of a terminal, and returns the key that it types; 0 is
// none. Where the cursor's row is not known, and so the pad's, a finger shows it.
func (b *board) asked(t *hw.Terminal, sys fs.FS, in pad.Input) (key byte) {
	if in.Move != pad.Touched {
		return b.pad.Do(in.Move)
	}
	rows, cursor, err := t.Cursor()
	if err != nil {
		b.pad.Show()
		return 0
	}
	at := in.At.Turned(turned(sys))
	row := at.Y*rows/pad.Whole - (cursor + 2) // the pad is below the answer and one line more
	column := at.X*b.columns/pad.Whole - len(margin)
	return b.pad.Touch(row, column, b.lines)
}

// turned is by how many quarters the console is turned on its panel.
func turned(sys fs.FS) int {
	quarters, _ := strconv.Atoi(attribute(sys, "class/graphics/fbcon/rotate")) // 0 where there is none
	return quarters
}

// leastLines is how many lines a page has at most that is drawn for a screen.
const leastLines = 25

// A lineEditor is an answer that is typed by the pad at one terminal, beside the line that the
// kernel edits there.
type lineEditor struct {
	keyEditor
	drawn bool
}

// newLineEditor returns the editor of a terminal. Its pad is shown unasked where that takes nothing
// of a page off the screen, such as the upper part of a QR code.
func newLineEditor(t *hw.Terminal, l words.Language, hidden bool) lineEditor {
	e := lineEditor{keyEditor: keyEditor{text: make([]byte, 0, maxLine), hidden: hidden, board: newBoard(t), language: l}}
	e.pad = pad.ForLine()
	e.unasked = leastLines + e.rows()
	return e
}

// rows is how many lines below the question are drawn.
func (e *lineEditor) rows() int { return 1 + e.pad.Lines(e.lines) }

// draw draws the answer below the question, and the pad below that. The cursor stays where it is, as
// somebody may type there; the first time room is made below it.
func (e *lineEditor) draw() string {
	if !e.pad.Shown() {
		return ""
	}
	var b strings.Builder
	if !e.drawn {
		e.drawn = true
		b.WriteString(strings.Repeat("\033D", e.rows()) + fmt.Sprintf("\033[%dA", e.rows()))
	}
	b.WriteString("\0337\r\n" + margin + e.shows() + "\033[K")
	for _, line := range e.pad.Draw(e.language, e.lines) {
		b.WriteString("\r\n" + margin + line + "\033[K")
	}
	return b.String() + "\0338"
}

// shows is what may be seen of the answer.
func (e *lineEditor) shows() string {
	if e.hidden {
		return strings.Repeat("*", len(e.text))
	}
	return string(e.text)
}

// end takes the pad away, once the cursor is below the question or after it.
func (e *lineEditor) end() string {
	if !e.drawn {
		return ""
	}
	return "\033[J"
}
