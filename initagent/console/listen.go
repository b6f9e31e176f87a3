package console

import (
	"golang.org/x/sys/unix"

	"halogenos.internal/boot/pad"
)

// Key is what somebody presses during the boot who wants the recovery console.
const Key = 'r'

// A Listener notices that somebody asks for the recovery console while the boot goes
// on. It never waits: what was typed is looked at when the boot asks for it.
//
// A terminal that answers a question of the firmware's or of a shell's before us
// types too: what is part of an escape sequence is nobody's wish.
type Listener struct {
	terminals      []*listened
	asked, touched bool
}

// Listen starts to listen on every terminal that the kernel writes to, and shows
// nothing of what is typed there. A terminal that cannot be opened is not listened to.
// To be called again when there may be more of them.
func Listen() *Listener { return listen(Terminals()) }

func listen(paths []string) *Listener {
	l := new(Listener)
	for _, path := range paths {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // as above
		}
		t := &listened{fd: fd}
		if was, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil {
			now := *was
			now.Lflag &^= unix.ICANON | unix.ECHO
			now.Cc[unix.VMIN], now.Cc[unix.VTIME] = 0, 0
			_ = unix.IoctlSetTermios(fd, unix.TCSETS, &now) // it then needs the key and Enter
			t.was = was
		}
		l.terminals = append(l.terminals, t)
	}
	return l
}

// Asked reports whether the key was pressed on any terminal since Listen. What was
// typed is consumed, so it must not be called while somebody is asked something else.
func (l *Listener) Asked() bool {
	buf := make([]byte, maxLine)
	for _, t := range l.terminals {
		// Bounded: a line that never falls silent must not keep the boot.
		for range 16 {
			n, err := unix.Read(t.fd, buf)
			if n <= 0 || err != nil {
				break
			}
			l.asked, l.touched = t.heard(buf[:n]) || l.asked, true
		}
	}
	return l.asked
}

// Touched reports whether Asked has found that anything at all was typed.
func (l *Listener) Touched() bool { return l.touched }

// Close stops to listen and leaves the terminals as they were. It can be called more
// than once.
func (l *Listener) Close() {
	for _, t := range l.terminals {
		if t.was != nil {
			_ = unix.IoctlSetTermios(t.fd, unix.TCSETS, t.was) // the next program sets its own
		}
		_ = unix.Close(t.fd) // nothing was written
	}
	l.terminals = nil
}

// listened is one terminal.
type listened struct {
	fd       int
	was      *unix.Termios // nil where there is nothing to put back
	sequence sequence      // where in an escape sequence the input stands
}

// sequence is how far an escape sequence has come (ECMA-48).
type sequence uint8

const (
	none      sequence = iota
	escaped            // after ESC
	shifted            // after ESC N or ESC O: one character
	control            // in a control sequence, after ESC [
	function           // after ESC [ [, which Linux's console sends for F1 to F5: one character
	text               // in a string: after ESC ] P X ^ or _
	textEnded          // after ESC in a string
)

// heard reports whether the key is in the input, outside of all escape sequences.
func (t *listened) heard(input []byte) (key bool) {
	for _, b := range input {
		key = t.sequence.outside(b) && b|0x20 == Key || key
	}
	return key
}

// arrow returns what an arrow key asks of the pad, of which a byte is the last.
func (s sequence) arrow(b byte) pad.Move {
	if (s == control || s == shifted) && 'A' <= b && b <= 'D' {
		return pad.Up + pad.Move(b-'A')
	}
	return pad.None
}

// outside goes on by one byte, and reports whether it is part of no escape sequence. A control character
// ends one, and is none of it: else Enter would do nothing after Esc, and nothing at all after Esc and P.
func (s *sequence) outside(b byte) bool {
	const escape, bell = 0x1b, 0x07 // which end a string
	if b < ' ' && b != escape && b != bell {
		*s = none
		return true
	}
	switch *s {
	case none:
		if b == 0x1b {
			*s = escaped
		}
		return b != 0x1b
	case escaped:
		switch {
		case b == '[':
			*s = control
		case b == ']' || b == 'P' || b == 'X' || b == '^' || b == '_':
			*s = text
		case b == 'N' || b == 'O':
			*s = shifted
		case b >= 0x30:
			*s = none
		}
	case shifted, function:
		*s = none
	case control:
		if b == '[' {
			*s = function
		} else if b >= 0x40 && b <= 0x7e {
			*s = none
		}
	case text:
		if b == 0x07 {
			*s = none
		} else if b == 0x1b {
			*s = textEnded
		}
	case textEnded:
		if b == '\\' {
			*s = none
		} else {
			*s = text
		}
	}
	return false
}
