package console

import (
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/hw"
)

func TestWrap(t *testing.T) {
	t.Parallel()
	qr, err := QR("a QR code")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		text    string
		columns int
		want    string
	}{
		{"", 40, ""},
		{"short\n\nlines\n", 10, "short\n\nlines\n"},
		{"one two three four", 0, "one two three four"},
		{"one two three four", 9, "one two\nthree\nfour"},
		{"one two three four\nfive\n", 13, "one two three\nfour\nfive\n"},
		{"  one two three\n", 9, "  one two\n  three\n"},
		{"\n    one two\n", 3, "\n\none\ntwo\n"},
		{"größer größer", 6, "größer\ngrößer"},
		{"the key: ", 8, "the key:\n"},
		{"the key? ", 9, "the key? "},
		{"    abcdefgh-abcdefgh-abcdefgh-abcdefgh\n", 24, "    abcdefgh-abcdefgh-\n    abcdefgh-abcdefgh\n"},
		{"see --keep-home there", 12, "see\n--keep-home\nthere"},
		{"abcdefghij klm", 4, "abcd\nefgh\nij\nklm"},
		{"\033[7mabc def\033[0m", 4, "\033[7mabc def\033[0m"},
		{qr, 10, qr},
	} {
		if got := Wrap(c.text, c.columns); got != c.want {
			t.Errorf("%q in %d columns is %q, want %q", c.text, c.columns, got, c.want)
		}
		if got, want := Rows(c.text, c.columns), strings.Count(c.want, "\n"); got != want {
			t.Errorf("%q in %d columns has %d rows, want %d", c.text, c.columns, got, want)
		}
	}
}

// Whatever is broken has the words that it had, fits, and is broken no further.
func FuzzWrap(f *testing.F) {
	f.Add(words.WithoutTPM, 40)
	f.Add("  a-b   c ", 3)
	f.Fuzz(func(t *testing.T, text string, columns int) {
		if !utf8.ValidString(text) || strings.ContainsAny(text, "\r\033█▀▄") {
			return
		}
		columns %= 200
		got := Wrap(text, columns)
		bare := func(s string) string { return strings.NewReplacer(" ", "", "\n", "").Replace(s) }
		if bare(got) != bare(text) {
			t.Errorf("%q in %d columns is %q", text, columns, got)
		}
		for line := range strings.SplitSeq(got, "\n") {
			if columns > 0 && utf8.RuneCountInString(line) > columns {
				t.Errorf("%q in %d columns has the line %q", text, columns, line)
			}
		}
	})
}

// The room is that of the smallest terminal that secrets are shown on, without the pad's; one that does not
// say its size has that of a screen.
func TestRoom(t *testing.T) {
	_, silent := terminal(t)
	big, bigName := terminal(t)
	small, smallName := terminal(t)
	if err := unix.IoctlSetWinsize(int(big.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: 160}); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(small.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 15, Col: 40}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		names         []string
		screens       int // how many of them are screens
		columns, rows int
	}{
		{[]string{silent}, 0, 80, 25},
		{[]string{bigName}, 0, 160, 50},
		{[]string{bigName, silent}, 0, 80, 25},
		{[]string{silent, smallName, bigName}, 0, 40, 15},
		{[]string{bigName, smallName}, 1, 160, 31}, // the other is a line, where no secret is shown
		{[]string{smallName}, 1, 40, 15},           // it has no room for the pad
	} {
		c, err := open(tt.names)
		if err != nil {
			t.Fatal(err)
		}
		for i := range tt.screens {
			c.terminals[i].Path = hw.Screen
		}
		if columns, rows := c.room(tt.screens > 0); columns != tt.columns || rows != tt.rows {
			t.Errorf("%q, %d of them screens: %d by %d, want %d by %d", tt.names, tt.screens, columns, rows, tt.columns, tt.rows)
		}
		c.Close()
	}
}

// A text is broken by how wide each terminal is.
func TestPrintNarrow(t *testing.T) {
	keyboard, name := terminal(t)
	if err := unix.IoctlSetWinsize(int(keyboard.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 25, Col: 40}); err != nil {
		t.Fatal(err)
	}
	c, err := open([]string{name})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Print("This machine's phrase:  correct horse battery staple\n")
	read(t, keyboard, "phrase:  correct horse\r\r\nbattery staple\r\r\n")
}

// On a screen with less room than a whole key takes, its last groups are seen, and nothing takes a second line.
func TestNarrowKey(t *testing.T) {
	key := newKey(t)
	for _, columns := range []int{20, 40, 65} {
		e := keyEditor{text: make([]byte, 0, maxLine), checks: true, board: board{columns: columns}}
		d := display{t: t}
		d.write(e.draw())
		for i := range key {
			e.feed([]byte{key[i]})
			d.write(e.draw())
			if d.y != 0 || len(d.rows) != 2 {
				t.Fatalf("%d columns, %d letters: %d rows, the cursor in row %d", columns, i+1, len(d.rows), d.y)
			}
			for n := range d.rows {
				if row := d.row(n); utf8.RuneCountInString(row) > columns {
					t.Fatalf("%d columns: %q", columns, row)
				}
			}
		}
		if row := d.row(0); !strings.HasPrefix(row, margin+cut) || !strings.HasSuffix(row, key[len(key)-8:]) {
			t.Errorf("%d columns: %q does not show the end of %q", columns, row, key)
		}
	}
}
