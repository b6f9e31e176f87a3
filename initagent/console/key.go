package console

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/keyboard"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/pad"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/hw"
)

// maxLonger is how many times as long as it waits for the first key AskKey waits for
// somebody who types: 64 letters take longer than one, and a line that makes noise must
// not keep a boot for ever.
const maxLonger = 3

// AskKey implements hw.Console. Where secrets are not shown on a terminal (PrintSecret),
// the letters that are typed there are not shown either, but their groups are.
func (c *Console) AskKey(prompt string, checks bool, timeout time.Duration) ([]byte, error) {
	defer c.Positions()()
	return c.askKey(prompt, checks, timeout, hasScreen(os.DirFS("/sys")))
}

// Positions implements hw.Console. A kernel that says nothing of its keys, or fails while they are
// set, has them as they were: the key can be typed with the keymap's own letters then.
func (c *Console) Positions() (restore func()) {
	us, err := keyboard.FindKeymap("us")
	if err != nil {
		return func() {}
	}
	return c.swapKeys(us.Entries())
}

// swapKeys has keys of a screen's keyboard type something else until restore is called. Where the
// kernel does not take that they are as they were.
func (c *Console) swapKeys(entries []keyboard.Entry) (restore func()) {
	swap := c.swap
	if swap == nil {
		swap = func(entries []keyboard.Entry) (func() error, error) { return hw.SwapKeymap(hw.Screen, entries) }
	}
	undo, err := swap(entries)
	if undo == nil {
		return func() {}
	}
	restore = func() { _ = undo() } // the next start sets the keymap again
	if err != nil && !errors.Is(err, unix.EINVAL) {
		restore() // half of one keymap and half of another is none
		return func() {}
	}
	return restore
}

func (c *Console) askKey(prompt string, checks bool, timeout time.Duration, screen bool) ([]byte, error) {
	c.Print(prompt + "\n")
	fds := make([]unix.PollFd, len(c.terminals))
	names := make([]string, len(c.terminals))
	for i, t := range c.terminals {
		fds[i] = unix.PollFd{Fd: int32(t.Fd()), Events: unix.POLLIN}
		names[i] = t.Path
		restore := mode(t.Fd(), byKey)
		defer restore()
	}
	editors := make([]keyEditor, len(c.terminals))
	for i, here := range forSecrets(names, screen) {
		editors[i] = keyEditor{text: make([]byte, 0, maxLine), checks: checks, hidden: !here, board: newBoard(c.terminals[i]), language: c.language}
		defer luks2.Wipe(editors[i].text[:maxLine])
	}
	boards := make([]*board, len(editors))
	for i := range editors {
		boards[i] = &editors[i].board
	}
	buttons, closeButtons := c.buttons(boards, func(at int, key byte) (done bool) { return editors[at].press(key) })
	defer closeButtons()
	for i, t := range c.terminals {
		show(t, editors[i].draw())
	}
	start, last := time.Now(), time.Now()
	patience := func() time.Duration {
		if timeout == 0 {
			return 0
		}
		return min(timeout*maxLonger, timeout+last.Sub(start))
	}
	_, from, err := await(fds, patience, func(from int, typed []byte) bool {
		defer luks2.Wipe(typed)
		e := &editors[from]
		last = time.Now()
		done := e.feed(typed)
		if !done {
			show(c.terminals[from], e.draw())
		}
		return done
	}, func() (from int, done bool) {
		from, moved, done := buttons()
		if moved {
			last = time.Now()
		}
		if moved && !done {
			show(c.terminals[from], editors[from].draw())
		}
		return from, done
	})
	for i, t := range c.terminals {
		show(t, editors[i].end())
		if editors[i].shown {
			drown(t)
		}
		if err == nil && i != from {
			c.answered(i, from)
		}
	}
	if err != nil {
		return nil, err
	}
	return append([]byte(nil), editors[from].text...), nil
}

// byKey has a terminal hand on each key at once, and echo nothing.
func byKey(now *unix.Termios) {
	now.Lflag &^= unix.ICANON | unix.ECHO
	now.Iflag &^= unix.ICRNL | unix.IXON
	now.Cc[unix.VMIN], now.Cc[unix.VTIME] = 1, 0
}

// drown pushes what was shown out of the kernel's buffers of a terminal, which keep the
// last 4 KiB at most, and waits for a slow line: what comes next must not be lost.
func drown(t *hw.Terminal) {
	_, _ = t.Write([]byte(strings.Repeat("\r", 4<<10))) // a line that is stuck keeps it
	for range 100 {
		if n, err := unix.IoctlGetInt(t.Fd(), unix.TIOCOUTQ); err != nil || n == 0 {
			return
		}
		time.Sleep(slice / 2)
	}
}

// A keyEditor is a recovery key that is being typed at one terminal.
type keyEditor struct {
	text     []byte // as it was typed; never grows beyond its capacity
	checks   bool
	hidden   bool
	shown    bool // letters were
	language words.Language
	sequence sequence
	padded   bool // the pad was drawn
	board
}

// The keys that do something.
const (
	keyEnd       = 0x04 // Ctrl-D
	keyBackspace = 0x08
	keyTab       = '\t'
	keyClear     = 0x15 // Ctrl-U
	keyDelete    = 0x7f
)

// feed takes what was typed, and reports whether the key was sent off, which a line end
// within what was pasted does not do. Arrow keys move the pad on a screen, and then Enter
// chooses; anything else that is typed there takes it away.
func (e *keyEditor) feed(typed []byte) (done bool) {
	for i, b := range typed {
		if move := e.sequence.arrow(b); move != pad.None && e.lines > 0 {
			e.pad.Arrow(move)
		}
		if !e.sequence.outside(b) {
			continue
		}
		if b == '\r' || b == '\n' {
			if chosen := e.pad.Enter(); chosen != 0 {
				if e.press(chosen) {
					return true
				}
				continue
			}
			if len(bytes.TrimSpace(typed[i+1:])) > 0 {
				continue
			}
		}
		e.pad.Hide()
		if e.press(b) {
			return true
		}
	}
	return false
}

// press does what a key does, and reports whether that sends the recovery key off.
func (e *keyEditor) press(b byte) (done bool) {
	switch b {
	case '\r', '\n':
		return true
	case keyEnd:
		return len(e.text) == 0
	case keyBackspace, keyDelete:
		_, size := utf8.DecodeLastRune(e.text)
		e.text = e.text[:len(e.text)-size]
	case keyClear:
		e.text = e.text[:0]
	case keyTab:
		e.hidden = !e.hidden
	default:
		if b >= ' ' && len(e.text) < cap(e.text) {
			e.text = append(e.text, b)
		}
	}
	return false
}

// draw draws the key in its groups, and what is to be said of it below, over what was
// drawn before. The cursor stays behind the last letter.
func (e *keyEditor) draw() string {
	r := luks2.ReadTyped(e.text)
	defer r.Wipe()
	wrong := map[int]bool{}
	for _, n := range r.Wrong(e.checks) {
		wrong[n] = true
	}
	var line strings.Builder
	column := len(margin)
	groups := r.Groups()
	groups = groups[:min(len(groups), maxGroups)]
	first := e.first(groups)
	if first > 0 {
		line.WriteString(cut)
		column += len(cut)
	}
	for i, letters := range groups {
		if i < first {
			continue
		}
		if i > 0 && !e.narrow() {
			line.WriteByte('-')
			column++
		}
		text := string(letters)
		if e.hidden {
			text = strings.Repeat("*", len(letters))
		} else {
			e.shown = true
		}
		if wrong[i+1] {
			text = "\033[7m" + text + "\033[0m"
		}
		line.WriteString(text)
		column += len(letters)
	}
	below, rows := e.below()
	return fmt.Sprintf("\r%s%s\033[K\r\n%s%s\033[K%s\033[%dA\r\033[%dC", margin, line.String(), margin, e.remark(&r), below, rows+1, column)
}

// first is the first group that is drawn: on a screen that has no room for all of them in a line the
// last ones are.
func (e *keyEditor) first(groups [][]byte) (first int) {
	if e.columns == 0 {
		return 0
	}
	for wide := e.wide(groups); first < len(groups)-1 && wide > e.columns-len(margin); wide = len(cut) + e.wide(groups[first:]) {
		first++
	}
	return first
}

// wide is how many columns groups take.
func (e *keyEditor) wide(groups [][]byte) (columns int) {
	for _, letters := range groups {
		columns += len(letters)
		if !e.narrow() {
			columns++ // the dash
		}
	}
	return columns
}

// narrow reports whether a screen with room for the pad has none for the dashes between groups: a line
// that goes on in the next one would move all that is below it at each key.
func (e *keyEditor) narrow() bool { return e.columns > 0 && e.columns < len(margin)+maxGroups*9 }

// below draws the pad below what is said of the key, or takes it away where it was, and
// returns how many rows further down the cursor is then.
func (e *keyEditor) below() (drawn string, rows int) {
	switch {
	case e.pad.Shown():
		e.padded = true
		e.shown = true // by where the pad stands
		lines := e.pad.Draw(e.language, e.lines)
		for _, line := range lines {
			drawn += "\r\n" + margin + line + "\033[K"
		}
		return drawn, len(lines)
	case e.padded:
		return "\033[J", 0
	}
	return "", 0
}

const (
	margin    = "  "
	cut       = "<" // stands for groups that are further left
	maxGroups = 8
	// usualColumns is what a terminal has that does not say so.
	usualColumns = 80
)

// remark is what is said of a key that is being typed, in one line: what comes last is left out
// where it has no room, since the rows are counted to draw over them.
func (e *keyEditor) remark(r *luks2.Reading) string {
	var says []string
	if wrong := r.Wrong(e.checks); len(wrong) > 0 {
		wrong = wrong[:min(len(wrong), maxGroups)]
		says = append(says, e.language.Say(words.WrongGroup, strings.Trim(strings.ReplaceAll(fmt.Sprint(wrong), " ", ", "), "[]")))
	}
	if n := len(r.Letters); n > luks2.RecoveryLetters {
		says = append(says, e.language.Say(words.LettersTooMany, n-luks2.RecoveryLetters))
	} else {
		says = append(says, e.language.Say(words.LettersTyped, n, luks2.RecoveryLetters))
	}
	if r.Layout != "" {
		says = append(says, e.language.Say(words.OfKeyboard, r.Layout))
	}
	if e.hidden {
		says = append(says, e.language.Text(words.TabShows))
	} else {
		says = append(says, e.language.Text(words.TabHides))
	}
	// In the last column the cursor may be in the next line.
	room := cmp.Or(e.columns, usualColumns) - 1 - len(margin)
	line := []rune(strings.Join(says, "; "))
	for len(says) > 1 && len(line) > room {
		says = says[:len(says)-1]
		line = []rune(strings.Join(says, "; "))
	}
	return string(line[:min(len(line), room)])
}

// end draws the key without its letters, and leaves the cursor below.
func (e *keyEditor) end() string {
	e.hidden = true
	drawn := e.draw()
	drawn, _, _ = strings.Cut(drawn, "\r\n")
	if e.padded {
		return drawn + "\r\n\033[J"
	}
	return drawn + "\r\n\033[K"
}
