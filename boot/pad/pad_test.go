package pad_test

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/pad"
	"halogenos.internal/boot/words"
)

// walk types a text by two buttons and the power key: one goes through the cells until the next
// letter is there. Choosing is the only thing that types, so a pad of the same moves is asked first.
func walk(t *testing.T, p *pad.Pad, text string) (typed []byte) {
	t.Helper()
	for _, want := range []byte(text) {
		for moves := 0; ; moves++ {
			try := *p
			if try.Do(pad.Choose) == want {
				break
			}
			if moves == 44 {
				t.Fatalf("%q is nowhere on the pad", want)
			}
			if key := p.Do(pad.Forward); key != 0 {
				t.Fatalf("moving types %q", key)
			}
		}
		typed = append(typed, p.Do(pad.Choose))
	}
	return typed
}

// A whole recovery key is typed by two buttons and a third.
func TestKeyByButtons(t *testing.T) {
	k, err := luks2.NewRecoveryKey(rand.NewChaCha8([32]byte{3}))
	if err != nil {
		t.Fatal(err)
	}
	var p pad.Pad
	if p.Do(pad.Choose) != 0 || p.Shown() {
		t.Error("the power key alone does something")
	}
	if p.Do(pad.Forward) != 0 || !p.Shown() {
		t.Error("a volume key does not show the pad")
	}
	typed := walk(t, &p, strings.ReplaceAll(string(k.Passphrase()), "-", ""))
	got, err := luks2.ParseRecoveryKey(typed)
	if err != nil || got != k {
		t.Errorf("%q is another key, or none: %v", typed, err)
	}
	if got := walk(t, &p, "\x7f\x15\t\r"); string(got) != "\x7f\x15\t\r" {
		t.Errorf("the last row types %q", got)
	}
}

// Every answer to a question can be typed: words, numbers, names of machines.
func TestLineByButtons(t *testing.T) {
	p := pad.ForLine()
	p.Do(pad.Back)
	const answer = "y\rmy-machine_2.1\x7f\x15\tabcdefghijklmnopqrstuvwxyz 0123456789\r"
	if got := walk(t, &p, answer); string(got) != answer {
		t.Errorf("it types %q", got)
	}
	p = pad.ForLine()
	p.Show()
	if p.Do(pad.Back); p.Do(pad.Choose) != '\r' {
		t.Error("the last cell is not a button before the first")
	}
	if got := p.Touch(3*3+1, 3, 50); got != 'y' {
		t.Errorf("a touch types %q", got)
	}
}

func TestArrows(t *testing.T) {
	for _, tt := range []struct {
		name  string
		moves []pad.Move
		want  byte
	}{
		{"the first only shows it", []pad.Move{pad.Left}, 'c'},
		{"right", []pad.Move{pad.Up, pad.Right, pad.Right}, 'd'},
		{"round to the left", []pad.Move{pad.Up, pad.Left}, 'i'},
		{"down", []pad.Move{pad.Up, pad.Right, pad.Down}, 'k'},
		{"down to a wide cell", []pad.Move{pad.Up, pad.Left, pad.Down, pad.Down}, '\r'},
		{"along the wide cells", []pad.Move{pad.Up, pad.Up, pad.Right, pad.Right}, '\t'},
		{"round from a wide cell", []pad.Move{pad.Up, pad.Up, pad.Left, pad.Up}, 'u'},
		{"round downwards", []pad.Move{pad.Up, pad.Up, pad.Right, pad.Down}, 'd'},
		{"back by a button", []pad.Move{pad.Up, pad.Back}, '\r'},
		{"there and back", []pad.Move{pad.Up, pad.Forward, pad.Back}, 'c'},
	} {
		var p pad.Pad
		for _, m := range tt.moves {
			p.Arrow(m)
		}
		if got := p.Enter(); got != tt.want {
			t.Errorf("%s: Enter types %q, want %q", tt.name, got, tt.want)
		}
	}
	var p pad.Pad
	if p.Show(); p.Enter() != 0 {
		t.Error("Enter chooses though nobody has touched an arrow key")
	}
	p.Arrow(pad.Right)
	if p.Hide(); p.Shown() || p.Enter() != 0 {
		t.Error("Enter chooses on a pad that is not shown")
	}
	if p.Arrow(pad.Right); p.Enter() == 0 {
		t.Error("an arrow key does not show it again")
	}
}

// The pad fits a screen of 80 by 25 below the key, and marks one cell.
func TestDraw(t *testing.T) {
	for _, tt := range []struct {
		pad                 pad.Pad
		screen, rows, lines int
	}{
		{pad.Pad{}, 25, 3, 7}, {pad.Pad{}, pad.Roomy, 3, 10}, {pad.Pad{}, 67, 3, 10},
		{pad.ForLine(), 25, 6, 13}, {pad.ForLine(), 50, 6, 19},
	} {
		p := tt.pad
		p.Show()
		for range tt.rows * 8 {
			lines := p.Draw(words.English, tt.screen)
			if len(lines) != tt.lines || p.Lines(tt.screen) != tt.lines {
				t.Errorf("%d lines on a screen of %d, want %d", len(lines), tt.screen, tt.lines)
			}
			marked := 0
			for _, line := range lines {
				marked += strings.Count(line, ">")
				plain := strings.NewReplacer("\033[7m", "", "\033[0m", "").Replace(line)
				if strings.ContainsAny(plain, "\033\r\n") || len(plain) > pad.Width {
					t.Errorf("a line of %d characters: %q", len(plain), line)
				}
			}
			if marked != 1 {
				t.Errorf("%d cells are marked:\n%s", marked, strings.Join(lines, "\n"))
			}
			p.Do(pad.Forward)
		}
	}
}

func encode(events ...pad.Event) (raw []byte) {
	for _, e := range events {
		raw = append(raw, make([]byte, 16)...) // the time
		raw = binary.NativeEndian.AppendUint16(raw, e.Type)
		raw = binary.NativeEndian.AppendUint16(raw, e.Code)
		raw = binary.NativeEndian.AppendUint32(raw, uint32(e.Value))
	}
	return raw
}

func TestReader(t *testing.T) {
	report, dropped := pad.Event{}, pad.Event{Code: 3}
	key := func(code uint16, value int32) pad.Event { return pad.Event{Type: 1, Code: code, Value: value} }
	for _, tt := range []struct {
		name   string
		events []pad.Event
		want   []pad.Move
	}{
		{"volume keys", []pad.Event{{4, 4, 1}, key(114, 1), report, key(114, 0), report, key(115, 1), report}, []pad.Move{pad.Forward, pad.Back}},
		{"held", []pad.Event{key(114, 1), key(114, 2), key(114, 2), key(114, 0)}, []pad.Move{pad.Forward, pad.Forward, pad.Forward}},
		{"power", []pad.Event{key(116, 1), report, key(116, 2), key(116, 2), key(116, 0)}, []pad.Move{pad.Choose}},
		{"a keyboard", []pad.Event{key(103, 1), key(28, 1), key(46, 1)}, nil}, // the kernel's console has them
		{"lost", []pad.Event{key(114, 1), dropped, key(116, 1), report, key(115, 1)}, []pad.Move{pad.Forward, pad.Back}},
		{"touched without a place", []pad.Event{{3, 0, 5}, {3, 1, 5}, key(0x14a, 1), report}, nil},
		{"noise", []pad.Event{{9, 114, 1}, {0xffff, 0xffff, -1}, key(0xffff, 1), {3, 116, 1}}, nil},
	} {
		var r pad.Reader
		var got []pad.Move
		for e := range pad.Decode(append(encode(tt.events...), 1, 2, 3)) {
			if m := r.Read(e).Move; m != pad.None {
				got = append(got, m)
			}
		}
		if string(moves(got)) != string(moves(tt.want)) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func moves(m []pad.Move) (b []byte) {
	for _, one := range m {
		b = append(b, byte(one))
	}
	return b
}

// What kernels say of devices of real machines.
func TestCodes(t *testing.T) {
	for _, tt := range []struct {
		name, keys              string
		letters, moves, chooses bool
	}{
		{"AT Translated Set 2 keyboard", "402000000 3803078f800d001 feffffdfffefffff fffffffffffffffe", true, true, true},
		{"gpio-keys of a tablet", "c000000000000 0", false, true, false},
		{"Power Button", "10000000000000 0", false, false, true},
		{"Logitech USB Optical Mouse", "1f0000 0 0 0 0", false, false, false},
		{"Lid Switch", "0", false, false, false},
		{"nothing", "", false, false, false},
	} {
		c, err := pad.ParseCodes(tt.keys)
		if err != nil || c.Letters() != tt.letters || c.Moves() != tt.moves || c.Chooses() != tt.chooses {
			t.Errorf("%s: letters %t, moves %t, chooses %t, %v", tt.name, c.Letters(), c.Moves(), c.Chooses(), err)
		}
	}
	for _, bad := range []string{"x", "-1", "10000000000000000", strings.Repeat("0 ", 13), strings.Repeat("f", pad.MaxCodes+1)} {
		if _, err := pad.ParseCodes(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// FuzzDecode: whatever a device sends, nothing but a press of a key it has does anything.
func FuzzDecode(f *testing.F) {
	f.Add(encode(pad.Event{Type: 1, Code: 114, Value: 1}, pad.Event{}, pad.Event{Type: 1, Code: 116, Value: 1}))
	f.Add([]byte(strings.Repeat("\xff", 3*pad.EventSize+5)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		events := slices.Collect(pad.Decode(raw))
		if len(events) != len(raw)/pad.EventSize {
			t.Fatalf("%d events in %d bytes", len(events), len(raw))
		}
		r := pad.NewReader(pad.Axis{Min: -5, Max: 1 << 30}, pad.Axis{Max: 9})
		var p pad.Pad
		for _, e := range events {
			asked := r.Read(e)
			m, at := asked.Move, asked.At
			if m != pad.None && m != pad.Touched && (e.Type != 1 || e.Value == 0) {
				t.Errorf("%+v does something", e)
			}
			if at.X < 0 || at.X >= pad.Whole || at.Y < 0 || at.Y >= pad.Whole {
				t.Errorf("touched at %v", at)
			}
			if key := p.Do(m); key != 0 && m != pad.Choose {
				t.Errorf("%v types %q", m, key)
			}
		}
		p.Draw(words.English, 25)
	})
}

func FuzzParseCodes(f *testing.F) {
	f.Add("402000000 3803078f800d001 feffffdfffefffff fffffffffffffffe")
	f.Add(strings.Repeat("0 ", 13))
	f.Fuzz(func(t *testing.T, text string) {
		c, err := pad.ParseCodes(text)
		if err != nil && (c.Letters() || c.Moves() || c.Chooses()) {
			t.Errorf("%q is no set of codes, and has some", text)
		}
	})
}

// What the cells bear fits into them in each language, and so does what is said below, with the
// margin that a console leaves.
func TestLabels(t *testing.T) {
	t.Parallel()
	for _, code := range words.Codes() {
		l, err := words.Find(code)
		if err != nil {
			t.Fatal(err)
		}
		for _, label := range []string{words.PadErase, words.PadClear, words.PadShow, words.PadDone} {
			if n := utf8.RuneCountInString(l.Text(label)); n > pad.Width/4-3 {
				t.Errorf("%s: %q has %d columns", code, l.Text(label), n)
			}
		}
		if n := utf8.RuneCountInString(l.Text(words.PadSpace)); n > pad.Width/8-3 {
			t.Errorf("%s: %q has %d columns", code, l.Text(words.PadSpace), n)
		}
		line := pad.ForLine()
		for _, p := range []*pad.Pad{{}, &line} {
			for _, drawn := range p.Draw(l, pad.Roomy) {
				if n := utf8.RuneCountInString(drawn) - strings.Count(drawn, "\033[7m")*len("\033[7m\033[0m"); n > 77 {
					t.Errorf("%s: %d columns: %s", code, n, drawn)
				}
			}
		}
	}
}
