package console

import (
	"os"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/pad"
	"halogenos.internal/initagent/hw"
)

// padLines is how many lines a terminal has, if it is a screen that has room for the pad; 0
// where it is none. At the other end of a line there is a keyboard.
func padLines(t *hw.Terminal) int {
	if !hw.IsScreen(t.Path) {
		return 0
	}
	size, err := unix.IoctlGetWinsize(t.Fd(), unix.TIOCGWINSZ)
	if err != nil || int(size.Col) < len(margin)+pad.Width {
		return 0
	}
	return int(size.Row)
}

// buttons opens the machine's buttons for the pad of its first screen, and shows the pad where
// there is no keyboard. What it returns takes what was pressed since, and reports which terminal
// that is for, whether anything was, and whether the key was sent off.
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
	open := c.inputs
	if open == nil {
		open = func() *hw.Inputs { return hw.OpenInputs(os.DirFS("/sys"), "/dev/input") }
	}
	in, e := open(), &editors[at]
	if in.Moves && !in.Letters {
		e.pad.Show()
	}
	return func() (from int, moved, done bool) {
		in.Read(func(m pad.Move) {
			moved = true
			done = done || e.move(m)
		})
		return at, moved, done
	}, in.Close
}
