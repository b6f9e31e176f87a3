package console

import (
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	boardkeys "halogenos.internal/boot/keyboard"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/hw"
)

// display is what a terminal shows: just the parts of ECMA-48 that are drawn with.
type display struct {
	t      *testing.T
	rows   [][]rune
	x, y   int
	upside bool // whether anything was in reverse
}

func (d *display) write(text string) {
	for rest := []rune(text); len(rest) > 0; {
		r := rest[0]
		rest = rest[1:]
		for d.y >= len(d.rows) {
			d.rows = append(d.rows, nil)
		}
		switch {
		case r == '\r':
			d.x = 0
		case r == '\n':
			d.y++
		case r == 0x1b && rest[0] == '[':
			end := strings.IndexAny(string(rest), "ACJKm")
			n := 0
			for _, c := range rest[1:end] {
				n = 10*n + int(c-'0')
			}
			switch rest[end] {
			case 'A':
				d.y -= max(n, 1)
			case 'C':
				d.x += max(n, 1)
			case 'J':
				d.rows = d.rows[:d.y+1]
				fallthrough
			case 'K':
				d.rows[d.y] = d.rows[d.y][:min(d.x, len(d.rows[d.y]))]
			case 'm':
				d.upside = d.upside || n == 7
			}
			rest = rest[end+1:]
		default:
			for d.x >= len(d.rows[d.y]) {
				d.rows[d.y] = append(d.rows[d.y], ' ')
			}
			d.rows[d.y][d.x] = r
			d.x++
			if d.x > 79 {
				d.t.Errorf("a line that a terminal of 80 columns has no room for: %q", string(d.rows[d.y]))
			}
		}
	}
}

func (d *display) row(n int) string {
	if n >= len(d.rows) {
		return ""
	}
	return strings.TrimRight(string(d.rows[n]), " ")
}

func newKey(t *testing.T) string {
	t.Helper()
	k, err := luks2.NewRecoveryKey(rand.NewChaCha8([32]byte{7}))
	if err != nil {
		t.Fatal(err)
	}
	return string(k.Passphrase())
}

// What is typed is seen in its groups, and a group that is wrong is pointed at while the
// rest is typed; backspace, escape sequences and pasting do what is expected of them.
func TestKeyEditor(t *testing.T) {
	key := newKey(t)
	other := "c"
	if key[2] == 'c' {
		other = "b"
	}
	slip := key[:2] + other + key[3:10]
	for _, tt := range []struct {
		name, typed  string
		checks       bool
		line, remark string
	}{
		{"nothing", "", true, "", "0 of 64 letters; Tab hides them"},
		{"some", strings.ReplaceAll(key[:12], "-", ""), true, key[:12], "11 of 64 letters; Tab hides them"},
		{"with dashes and capitals", strings.ToUpper(key[:12]), true, key[:12], "11 of 64 letters; Tab hides them"},
		{"all", key, true, key, "64 of 64 letters; Tab hides them"},
		{"too many", key + "cc", true, key, "2 letters too many; Tab hides them"},
		{"a slip", slip, true, slip, "WRONG: group 1; 9 of 64 letters; Tab hides them"},
		{"a slip in a key without checks", slip, false, slip, "9 of 64 letters; Tab hides them"},
		{"a slip taken back", slip + strings.Repeat("\x7f", 8) + key[2:10], true, key[:10], "9 of 64 letters; Tab hides them"},
		{"cleared", slip + "\x15" + key[:4], true, key[:4], "4 of 64 letters; Tab hides them"},
		{"another alphabet, taken back", "ψβδ\b", true, "cb", "2 of 64 letters; Greek keyboard; Tab hides them"},
		{"arrows and a pasted piece", "\x1b[200~" + key[:9] + "\x1b[201~\x1b[D\x1bOC", true, key[:8], "8 of 64 letters; Tab hides them"},
		{"F1 to F5 of Linux's console", key[:4] + "\x1b[[A\x1b[[B\x1b[[C\x1b[[D\x1b[[E", true, key[:4], "4 of 64 letters; Tab hides them"},
		{"after Esc", key[:4] + "\x1b\x7fcc\x1b\b\x1bP" + key + "\b\x1b]c\x15" + key[:4], true, key[:4], "4 of 64 letters; Tab hides them"},
		{"hidden", key[:12] + "\t", true, "********-***", "11 of 64 letters; Tab shows them"},
		{"on two lines", key[:9] + "\r\n" + key[9:12], true, key[:12], "11 of 64 letters; Tab hides them"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, piece := range []int{1, 1 << 10} {
				if piece == 1 && strings.Contains(tt.typed, "\n") {
					continue // nobody knows what is still to come
				}
				e := keyEditor{text: make([]byte, 0, maxLine), checks: tt.checks}
				d := display{t: t}
				d.write(e.draw())
				for rest := tt.typed; rest != ""; rest = rest[min(piece, len(rest)):] {
					if e.feed([]byte(rest[:min(piece, len(rest))])) {
						t.Fatal("sent off")
					}
					d.write(e.draw())
				}
				if got := d.row(0); got != strings.TrimRight(margin+tt.line, " ") {
					t.Errorf("shows %q, want %q", got, tt.line)
				}
				if got := d.row(1); got != margin+tt.remark {
					t.Errorf("says %q, want %q", got, tt.remark)
				}
				if len(d.rows) != 2 || d.y != 0 || d.x != len(margin)+len(tt.line) && tt.name != "too many" {
					t.Errorf("%d rows, the cursor is at %d, %d", len(d.rows), d.x, d.y)
				}
				if tt.name == "a slip" && !d.upside || tt.name == "all" && d.upside {
					t.Errorf("a group in reverse: %t", d.upside)
				}
				if !e.feed([]byte("\r")) {
					t.Error("Enter did not send it off")
				}
				d.write(e.end())
				if text := d.row(0); strings.Trim(text, " *-") != "" || d.y != 1 || d.row(1) != "" {
					t.Errorf("afterwards %q, %q stay there", text, d.row(1))
				}
			}
		})
	}
	if e := (keyEditor{text: make([]byte, 0, maxLine)}); !e.feed([]byte{keyEnd}) {
		t.Error("Ctrl-D on an empty line is no answer")
	}
	e := keyEditor{text: make([]byte, 0, maxLine)}
	e.feed([]byte(strings.Repeat("c", 3*maxLine)))
	if len(e.text) != maxLine {
		t.Errorf("%d bytes were kept", len(e.text))
	}
}

// What is said of a key fits the line below it in each language.
func TestRemarkInEachLanguage(t *testing.T) {
	for _, code := range words.Codes() {
		l, err := words.Find(code)
		if err != nil {
			t.Fatal(err)
		}
		e := keyEditor{text: make([]byte, 0, maxLine), checks: true, language: l}
		e.feed([]byte(strings.Repeat("cccccccb", 8) + "c"))
		d := display{t: t} // which complains about what is too long
		d.write(e.draw())
		e.hidden = true
		d.write(e.draw())
		if want := l.Say(words.LettersTooMany, 1); !strings.Contains(d.row(1), want) || !strings.Contains(d.row(1), l.Text(words.TabShows)) {
			t.Errorf("%s: it says %q, want %q", code, d.row(1), want)
		}
	}
}

// The same with the keyboard that has the longest name, however many groups are wrong: what can be
// seen elsewhere is not said there.
func TestRemarkOfEachKeyboard(t *testing.T) {
	for _, code := range words.Codes() {
		l, err := words.Find(code)
		if err != nil {
			t.Fatal(err)
		}
		e := keyEditor{text: make([]byte, 0, maxLine), checks: true, language: l}
		e.feed([]byte(strings.Repeat("0", 200))) // a pasted text that is something else
		d := display{t: t}
		d.write(e.draw())
		for _, layout := range boardkeys.Layouts() {
			for n := range maxGroups + 1 {
				r := luks2.Reading{Letters: []byte(strings.Repeat("cccccccb", n) + "c"), Layout: layout.Name}
				said := e.remark(&r)
				if wide := utf8.RuneCountInString(margin + said); wide > 79 {
					t.Errorf("%s, %s: %d columns: %s", code, layout.Name, wide, said)
				}
				if n := len(r.Wrong(true)); n > 0 && !strings.HasPrefix(said, l.Say(words.WrongGroup, "1")) {
					t.Errorf("%s: %d groups are wrong, and it says %q", code, n, said)
				}
			}
		}
	}
}

// read reads what a terminal shows until it holds text.
func read(t *testing.T, terminal *os.File, text string) string {
	t.Helper()
	shown, buf := "", make([]byte, 4096)
	for !strings.Contains(shown, text) {
		fds := []unix.PollFd{{Fd: int32(terminal.Fd()), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 5000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n != 1 || err != nil {
			t.Fatalf("it shows %q, %v; want %q", shown, err, text)
		}
		if n, err = terminal.Read(buf); err != nil {
			t.Fatal(err)
		}
		shown += string(buf[:n])
	}
	return shown
}

// The key that is typed at one terminal is shown nowhere else, and there no longer once
// it is sent off; where nobody types, the other terminals are not kept waiting.
func TestAskKey(t *testing.T) {
	key := newKey(t)
	keyboard, tty := terminal(t)
	other, second := terminal(t)
	c, err := open([]string{second, tty})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var swaps []string
	us, err := boardkeys.FindKeymap("us")
	if err != nil {
		t.Fatal(err)
	}
	c.swap = func(entries []boardkeys.Entry) (func() error, error) {
		if !slices.Equal(entries, us.Entries()) {
			t.Error("the keys are set to something else than a US keyboard's")
		}
		swaps = append(swaps, "positions")
		return func() error { swaps = append(swaps, "as before"); return nil }, nil
	}
	type answer struct {
		text []byte
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		got, err := c.AskKey("the key? ", true, time.Minute)
		answers <- answer{got, err}
	}()
	read(t, keyboard, "0 of 64")
	if !slices.Equal(swaps, []string{"positions"}) {
		t.Errorf("while the key is asked for the keys were %q", swaps)
	}
	for i := range 3 {
		if _, err := keyboard.WriteString(key[9*i : 9*i+9]); err != nil {
			t.Fatal(err)
		}
		read(t, keyboard, key[:9*i+8])
	}
	if _, err := keyboard.WriteString(key[27:] + "\r"); err != nil {
		t.Fatal(err)
	}
	if got := <-answers; got.err != nil || string(got.text) != key {
		t.Fatalf("%q, %v", got.text, got.err)
	}
	if !slices.Equal(swaps, []string{"positions", "as before"}) {
		t.Errorf("after the answer the keys were %q", swaps)
	}
	if shown := read(t, other, "answered on"); strings.Contains(shown, key[:8]) {
		t.Errorf("the other terminal shows %q", shown)
	}
}

func TestAskKeyNobody(t *testing.T) {
	_, tty := terminal(t)
	c, err := open([]string{tty})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.AskKey("the key? ", true, time.Millisecond); !errors.Is(err, hw.ErrNobody) {
		t.Errorf("nobody answers: %v", err)
	}
}

// A keymap that is set in half is taken back at once; one that lacks a character is as good as set.
func TestPositions(t *testing.T) {
	for _, tt := range []struct {
		err      error
		at, last int // how often it is undone at once, and after the answer
	}{{nil, 0, 1}, {unix.EINVAL, 0, 1}, {unix.EIO, 1, 1}} {
		undone := 0
		c := &Console{swap: func([]boardkeys.Entry) (func() error, error) {
			return func() error { undone++; return nil }, tt.err
		}}
		restore := c.Positions()
		if undone != tt.at {
			t.Errorf("%v: undone %d times while the key is asked for, want %d", tt.err, undone, tt.at)
		}
		if restore(); undone != tt.last {
			t.Errorf("%v: undone %d times, want %d", tt.err, undone, tt.last)
		}
	}
	c := &Console{swap: func([]boardkeys.Entry) (func() error, error) { return nil, unix.ENOTTY }}
	c.Positions()()
}
