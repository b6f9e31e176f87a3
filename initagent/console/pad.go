package console

import (
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/pad"
	"halogenos.internal/initagent/hw"
)

// padSize is how many lines and columns a terminal has, if it is a screen that has room for the
// pad; 0 where it is none. At the other end of a line there is a keyboard.
func padSize(t *hw.Terminal) (lines, columns int) {
	if !hw.IsScreen(t.Path) {
		return 0, 0
	}
	size, err := unix.IoctlGetWinsize(t.Fd(), unix.TIOCGWINSZ)
	if err != nil || int(size.Col) < len(margin)+pad.Width {
		return 0, 0
	}
	return int(size.Row), int(size.Col)
}

// buttons opens the machine's buttons for the pad of its first screen, and shows the pad where
// there is no keyboard. What it returns takes what was pressed or touched since, and reports which
// terminal that is for, whether anything was, and whether the key was sent off.
func (c *Console) buttons(editors []keyEditor) (pressed func() (from int, moved, done bool), closed func()) {
	at := -1
	for i := range editors {
		if editors[i].lines > 0 {
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
	in, e := open(), &editors[at]
	if in.Moves && !in.Letters {
		e.pad.Show()
	}
	return func() (from int, moved, done bool) {
		in.Read(func(asked pad.Input) {
			moved = true
			if asked.Move == pad.Touched {
				done = done || e.touch(c.terminals[at], asked.At.Turned(turned(sys)))
			} else {
				done = done || e.move(asked.Move)
			}
		})
		return at, moved, done
	}, in.Close
}

// turned is by how many quarters the console is turned on its panel.
func turned(sys fs.FS) int {
	quarters, _ := strconv.Atoi(attribute(sys, "class/graphics/fbcon/rotate")) // 0 where there is none
	return quarters
}

// touch does what a finger asks of the pad at a place of the screen, and reports whether the key
// was sent off. Where the cursor's row is not known, and so the pad's, the finger shows it.
func (e *keyEditor) touch(t *hw.Terminal, at pad.Point) (done bool) {
	rows, cursor, err := t.Cursor()
	if err != nil {
		e.pad.Show()
		return false
	}
	row := at.Y*rows/pad.Whole - (cursor + 2) // the pad is below the key and what is said of it
	column := at.X*e.columns/pad.Whole - len(margin)
	key := e.pad.Touch(row, column, e.lines)
	return key != 0 && e.press(key)
}
