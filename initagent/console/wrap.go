package console

import (
	"cmp"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/pad"
	"halogenos.internal/initagent/hw"
)

// Wrap breaks lines that are longer than a screen is wide between two words, or behind the hyphen of a word
// that has no room: a screen itself breaks them in the middle of a word. What follows is indented as its
// line is. Lines that move the cursor, and those of a QR code, stay as they are, and all lines where
// the width is 0.
func Wrap(text string, columns int) string {
	if columns <= 0 {
		return text
	}
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if utf8.RuneCountInString(line) > columns && !strings.ContainsAny(line, "\r\033█▀▄") {
			lines[i] = strings.Join(broken(line, columns), "\n")
		}
	}
	return strings.Join(lines, "\n")
}

// broken are the pieces of a line.
func broken(line string, columns int) (pieces []string) {
	indent := line[:len(line)-len(strings.TrimLeft(line, " "))]
	rest := []rune(line)
	for len(rest) > columns {
		at := last(rest, len(indent), columns)
		pieces = append(pieces, strings.TrimRight(string(rest[:at]), " "))
		following := strings.TrimLeft(string(rest[at:]), " ")
		if following == "" { // the last space of a question, behind which the answer stands
			return append(pieces, "")
		}
		rest = []rune(indent + following)
		if len(indent) >= columns {
			rest = []rune(following)
		}
	}
	return append(pieces, string(rest))
}

// last is where a piece ends that has room: at a space, else behind a hyphen, else where the screen ends.
func last(line []rune, indent, columns int) int {
	for at := columns; at > indent; at-- {
		if line[at] == ' ' {
			return at
		}
	}
	for at := columns; at > indent+1; at-- {
		if line[at-1] == '-' {
			return at
		}
	}
	return columns
}

// Rows is how many rows a text takes on a screen up to its last line end.
func Rows(text string, columns int) int { return strings.Count(Wrap(text, columns), "\n") }

// Room implements hw.Console. A terminal that does not say its size has 80 columns and 25 lines. On a
// screen of more lines those of the pad are left out.
func (c *Console) Room() (columns, lines int) { return c.room(hasScreen(os.DirFS("/sys"))) }

func (c *Console) room(screen bool) (columns, lines int) {
	names := make([]string, len(c.terminals))
	for i, t := range c.terminals {
		names[i] = t.Path
	}
	for i, here := range forSecrets(names, screen) {
		if !here {
			continue
		}
		wide, high := size(c.terminals[i])
		wide, high = cmp.Or(wide, usualColumns), cmp.Or(high, leastLines)
		if b := newBoard(c.terminals[i]); b.lines > 0 {
			letters, line := pad.Pad{}, pad.ForLine()
			high = max(high-max(letters.Lines(b.lines), line.Lines(b.lines)), min(high, leastLines))
		}
		if columns == 0 || wide < columns {
			columns = wide
		}
		if lines == 0 || high < lines {
			lines = high
		}
	}
	return columns, max(lines, 1)
}

// size is what a terminal says of its size, 0 for nothing.
func size(t *hw.Terminal) (columns, lines int) {
	of, err := unix.IoctlGetWinsize(t.Fd(), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	return int(of.Col), int(of.Row)
}
