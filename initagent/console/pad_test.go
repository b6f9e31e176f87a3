package console

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/keyboard"
	"halogenos.internal/boot/pad"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/hw"
)

// Arrow keys show the pad, and Enter chooses on it; whatever else is typed is typed, and takes it
// away. Nothing of it stays on the screen, and on a line the arrows do nothing.
func TestKeyEditorPad(t *testing.T) {
	const down, right, left = "\x1b[B", "\x1bOC", "\x1b[D"
	for _, tt := range []struct {
		name, typed, line string
		lines             int
		shown             bool
	}{
		{"a letter", down + right + "\r", "b", 25, true},
		{"two letters, one erased", down + right + "\r\r" + right + "\r" + down + down + left + "\r", "bb", 25, true},
		{"letters of a keyboard after it", down + "\rrt", "crt", 25, false},
		{"and arrows again", down + "\rrt" + down + right + "\r", "crtb", 40, true},
		{"F2 is no arrow", "\x1b[[Bc", "c", 25, false},
		{"a line", down + right + "c", "c", 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := keyEditor{text: make([]byte, 0, maxLine), board: board{lines: tt.lines}}
			d := display{t: t}
			d.write(e.draw())
			for _, b := range []byte(tt.typed) {
				if e.feed([]byte{b}) {
					t.Fatal("sent off")
				}
				d.write(e.draw())
			}
			if got := strings.TrimSpace(d.row(0)); got != tt.line {
				t.Errorf("shows %q, want %q", got, tt.line)
			}
			rows := 2
			if tt.shown {
				rows += len(e.pad.Draw(words.English, tt.lines))
			}
			if d.y != 0 || d.x != len(margin)+len(tt.line) || len(d.rows) != rows {
				t.Errorf("%d rows, want %d; the cursor is at %d, %d", len(d.rows), rows, d.x, d.y)
			}
			if tt.shown != strings.Contains(d.row(rows-1), "or touch it.") {
				t.Errorf("the last row is %q", d.row(rows-1))
			}
			d.write(e.end())
			if len(d.rows) != 2 || d.y != 1 || d.row(1) != "" {
				t.Errorf("afterwards the rows are %d, the last %q", len(d.rows), d.row(1))
			}
		})
	}
	e := keyEditor{text: make([]byte, 0, maxLine), board: board{lines: 25}}
	if !e.feed([]byte(down + "c\r")) {
		t.Error("Enter after a letter does not send the key off")
	}
}

// On the narrowest screen that has room for the pad a whole key takes a line, and so does what is said
// of it: a touch would mean another row.
func TestKeyEditorNarrow(t *testing.T) {
	const columns = 66
	e := keyEditor{text: make([]byte, 0, maxLine), checks: true, board: board{lines: 25, columns: columns}}
	e.feed([]byte(strings.Repeat("cccccccb", 8)))
	d := display{t: t}
	d.write(e.draw())
	if d.row(0) != margin+strings.Repeat("cccccccb", 8) || d.y != 0 || d.x != columns {
		t.Errorf("shows %q, the cursor is at %d, %d", d.row(0), d.x, d.y)
	}
	if says := d.row(1); len(says) >= columns || !strings.HasPrefix(says, margin+"WRONG: group 1, ") {
		t.Errorf("says %q", says)
	}
}

// buttons makes a machine with the keys of one input device, which may have letters, and returns
// what presses one.
func buttons(t *testing.T, keys string) (open func() *hw.Inputs, press func(code uint16)) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "event0")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	end, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end.Close() })
	sys := fstest.MapFS{"class/input/event0/device/capabilities/key": &fstest.MapFile{Data: []byte(keys)}}
	return func() *hw.Inputs { return hw.OpenInputs(sys, dir, hw.InputAxis) }, func(code uint16) {
		raw := make([]byte, 2*pad.EventSize)
		binary.NativeEndian.PutUint16(raw[16:], 1)
		binary.NativeEndian.PutUint16(raw[18:], code)
		binary.NativeEndian.PutUint32(raw[20:], 1) // and a report follows
		if _, err := end.Write(raw); err != nil {
			t.Error(err)
		}
	}
}

// screen makes a pseudoterminal that has the name of a screen, and its size.
func screen(t *testing.T) (keyboard *os.File, path string) {
	t.Helper()
	keyboard, tty := terminal(t)
	path = filepath.Join(t.TempDir(), "tty1")
	if err := os.Symlink(tty, path); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(keyboard.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 25, Col: 80}); err != nil {
		t.Fatal(err)
	}
	return keyboard, path
}

// silences has a console's buttons type nothing on a keyboard that says, of each, whether it types
// something: while it is asked, and afterwards.
func silences(t *testing.T, c *Console) (types *string) {
	types = new(string)
	c.swap = func(entries []keyboard.Entry) (func() error, error) {
		want := []keyboard.Entry{{Key: volumeDown, Value: hw.NoKey}, {Key: volumeDown + 1, Value: hw.NoKey}, {Key: power, Value: hw.NoKey}}
		if !slices.Equal(entries, want) {
			t.Errorf("the keyboard types %v", entries)
		}
		*types += "no"
		return func() error {
			*types += " yes"
			return nil
		}, nil
	}
	return types
}

const (
	volumeDown = 114
	power      = 116
	// tabletKeys are those of a tablet's side: volume and power.
	tabletKeys = "1c000000000000 0"
)

// A recovery key is typed by volume and power buttons on a machine without a keyboard, whose
// screen has the pad from the start, with some of it typed at a keyboard that was plugged in
// meanwhile; the serial line has no pad.
func TestAskKeyByButtons(t *testing.T) {
	key := strings.ReplaceAll(newKey(t), "-", "")
	keyboard, tty := screen(t)
	other, line := terminal(t)
	c, err := open([]string{line, tty})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	silences(t, c)
	var press func(uint16)
	c.inputs, press = buttons(t, tabletKeys)
	type answer struct {
		text []byte
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		got, err := c.askKey("the key? ", true, time.Minute, true)
		answers <- answer{got, err}
	}()
	read(t, keyboard, "or touch it.")
	at := 0
	choose := func(want byte) {
		cells := "cbdefghijklnrtuv\x7f\x15\t\r"
		for ; cells[at] != want; at = (at + 1) % len(cells) {
			press(volumeDown)
		}
		press(power)
	}
	for i := range 3 {
		choose(key[i])
	}
	read(t, keyboard, "3 of 64")
	if _, err := keyboard.WriteString(key[3:60]); err != nil {
		t.Fatal(err)
	}
	read(t, keyboard, "60 of 64")
	press(volumeDown) // shows the pad again, where it stood
	for i := 60; i < 64; i++ {
		choose(key[i])
	}
	choose('\r')
	if got := <-answers; got.err != nil || string(got.text) != key {
		t.Fatalf("%q, %v", got.text, got.err)
	}
	if shown := read(t, other, "answered on tty1"); strings.Contains(shown, "touch it") {
		t.Errorf("the line shows a pad: %q", shown)
	}
}

// Beside a keyboard there is no pad until a volume key is pressed; the power key alone does
// nothing, and noise neither sends anything off nor keeps the question beyond its time.
func TestButtonsBesideKeyboard(t *testing.T) {
	keyboard, tty := screen(t)
	c, err := open([]string{tty})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	silences(t, c)
	var press func(uint16)
	c.inputs, press = buttons(t, "402000000 3803078f800d001 feffffdfffefffff fffffffffffffffe")
	const wait = 3 * time.Second
	start, ended := time.Now(), make(chan error, 1)
	go func() {
		_, err := c.askKey("the key? ", true, wait, true)
		ended <- err
	}()
	shown := read(t, keyboard, "0 of 64")
	press(power)
	press(volumeDown)
	shown += read(t, keyboard, "or touch it.")
	if n := strings.Count(shown, "of 64"); strings.Contains(shown, "1 of 64") || n < 2 {
		t.Errorf("it shows %q", shown)
	}
	buf := make([]byte, 1<<16)
	for {
		select {
		case err := <-ended:
			if took := time.Since(start); err == nil || took > 10*maxLonger*wait {
				t.Errorf("after %s: %v", took, err)
			}
			return
		default:
		}
		press(volumeDown)
		if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(keyboard.Fd()), Events: unix.POLLIN}}, 1); n > 0 {
			_, _ = keyboard.Read(buf)
		}
	}
}

// Where a tablet's buttons get their driver after the question, it has its pad from then on.
func TestButtonsThatCome(t *testing.T) {
	keyboard, tty := screen(t)
	c, err := open([]string{tty})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	silences(t, c)
	sys, dir := t.TempDir(), t.TempDir()
	c.inputs = func() *hw.Inputs { return hw.OpenInputs(os.DirFS(sys), dir, hw.InputAxis) }
	ended := make(chan error, 1)
	go func() {
		_, err := c.askKey("the key? ", true, time.Minute, true)
		ended <- err
	}()
	if shown := read(t, keyboard, "Tab hides them"); strings.Contains(shown, "touch it") {
		t.Errorf("without buttons it shows %q", shown)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "event3"), 0o600); err != nil {
		t.Fatal(err)
	}
	keys := filepath.Join(sys, "class/input/event3/device/capabilities/key")
	if err := os.MkdirAll(filepath.Dir(keys), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(keys+".new", []byte(tabletKeys), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(keys+".new", keys); err != nil {
		t.Fatal(err)
	}
	read(t, keyboard, "or touch it.")
	if _, err := keyboard.WriteString("\r"); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A screen that is too narrow for the pad, or a line, has none.
func TestNewBoard(t *testing.T) {
	keyboard, tty := screen(t)
	c, err := open([]string{tty})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var got []int
	size := func(c *Console) int {
		b := newBoard(c.terminals[0])
		if b.lines != 0 && b.columns == 0 {
			t.Errorf("%d lines, %d columns", b.lines, b.columns)
		}
		return b.lines
	}
	for _, columns := range []uint16{80, 66, 65, 0} {
		if err := unix.IoctlSetWinsize(int(keyboard.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: columns}); err != nil {
			t.Fatal(err)
		}
		got = append(got, size(c))
	}
	_, line := terminal(t)
	other, err := open([]string{line})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if got = append(got, size(other)); !slices.Equal(got, []int{50, 50, 0, 0, 0}) {
		t.Errorf("lines for the pad: %v", got)
	}
}

// A finger chooses what stands where it touches, by where the cursor is, also on a panel that is
// turned; where the kernel does not say that, it shows the pad.
func TestTouch(t *testing.T) {
	keyboard, tty := screen(t)
	if err := unix.IoctlSetWinsize(int(keyboard.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: 160}); err != nil {
		t.Fatal(err)
	}
	const cursor = 10
	vcs := filepath.Join(filepath.Dir(tty), "vcsa1")
	if err := os.WriteFile(vcs, []byte{50, 160, 2, cursor}, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := open([]string{tty})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	dir := t.TempDir()
	device := filepath.Join(dir, "event0")
	if err := unix.Mkfifo(device, 0o600); err != nil {
		t.Fatal(err)
	}
	end, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer end.Close()
	sys := fstest.MapFS{
		"class/input/event0/device/capabilities/key": &fstest.MapFile{Data: []byte("400 0 0 0 0 0\n")},
		"class/input/event0/device/properties":       &fstest.MapFile{Data: []byte("2\n")},
		"class/graphics/fbcon/rotate":                &fstest.MapFile{Data: []byte("1\n")},
	}
	silences(t, c)
	c.sys = sys
	c.inputs = func() *hw.Inputs {
		return hw.OpenInputs(sys, dir, func(int, int) (pad.Axis, error) { return pad.Axis{Max: 1<<16 - 1}, nil })
	}
	// touch touches a row and a column of the screen: turned clockwise, its rows are the columns
	// of the panel, from the right.
	touch := func(row, column int) {
		x, y := pad.Whole-1-(2*row+1)*pad.Whole/100, (2*column+1)*pad.Whole/320
		var raw []byte
		for _, e := range [][3]int{{1, 0x14a, 1}, {3, 0, x}, {3, 1, y}, {}, {1, 0x14a, 0}, {}} {
			raw = append(raw, make([]byte, 16)...)
			raw = binary.NativeEndian.AppendUint16(raw, uint16(e[0]))
			raw = binary.NativeEndian.AppendUint16(raw, uint16(e[1]))
			raw = binary.NativeEndian.AppendUint32(raw, uint32(e[2]))
		}
		if _, err := end.Write(raw); err != nil {
			t.Error(err)
		}
	}
	answers := make(chan string, 1)
	go func() {
		got, err := c.askKey("the key? ", true, time.Minute, true)
		if err != nil {
			t.Error(err)
		}
		answers <- string(got)
	}()
	read(t, keyboard, "or touch it.")
	const first, left = cursor + 2, len(margin)
	touch(first+1, left+8*2+3) // d
	touch(first-1, left)       // what is said of the key
	touch(first+3, left)       // j
	touch(first+5, left+63)    // v
	touch(first+8, left+1)     // erase
	read(t, keyboard, "2 of 64")
	touch(first+6, left+60) // done
	if got := <-answers; got != "dj" {
		t.Errorf("typed %q", got)
	}
	if err := os.Remove(vcs); err != nil {
		t.Fatal(err)
	}
	b := board{lines: 50, columns: 160}
	for range 2 {
		key := b.asked(c.terminals[0], sys, pad.Input{Move: pad.Touched, At: pad.Point{X: 63000, Y: 2000}})
		if key != 0 || !b.pad.Shown() {
			t.Errorf("typed %q where nobody knows what is touched", key)
		}
	}
}

// A question is answered by buttons on a machine without a keyboard, shown or hidden; the pad
// leaves the screen with it. A keyboard answers it as well.
func TestAskByButtons(t *testing.T) {
	for _, tt := range []struct {
		name   string
		rows   uint16
		hidden bool
		looked bool // at what is typed
		typed  string
		shown  string // below the question
		seen   string // behind it, once it is answered
	}{
		{"yes", 50, false, false, "", "  y", "y"},
		{"a PIN", 50, true, false, "", "  *", "*"},
		{"a PIN that was looked at", 50, true, true, "", "  *", "*"},
		{"a small screen", 25, false, false, "", "  y", "y"},
		{"a keyboard", 50, false, false, "y\r", "", "y"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			keyboard, tty := screen(t)
			if err := unix.IoctlSetWinsize(int(keyboard.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: tt.rows, Col: 80}); err != nil {
				t.Fatal(err)
			}
			c, err := open([]string{tty})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			silenced := silences(t, c)
			var press func(uint16)
			c.inputs, press = buttons(t, tabletKeys)
			answers := make(chan string, 1)
			go func() {
				got, err := c.Ask("sure? ", tt.hidden, time.Minute)
				if err != nil {
					got = []byte(err.Error())
				}
				c.Print("\nafterwards")
				answers <- string(got)
			}()
			shown := ""
			if tt.rows == 25 {
				shown = read(t, keyboard, "sure? ")
				press(volumeDown)
			}
			shown += read(t, keyboard, "or touch it.\x1b[K\x1b8")
			if tt.typed != "" {
				if _, err := keyboard.WriteString(tt.typed); err != nil {
					t.Fatal(err)
				}
			} else {
				for range 24 { // a to y
					press(volumeDown)
				}
				press(power)
				shown += read(t, keyboard, "\n"+tt.shown+"\x1b[K")
				more := 19 // to "done"
				if tt.looked {
					for range 18 { // to "hide/show"
						press(volumeDown)
					}
					press(power)
					more = 1
					shown = read(t, keyboard, "\n  y\x1b[K")
				}
				for range more {
					press(volumeDown)
				}
				press(power)
			}
			rest := read(t, keyboard, "afterwards")
			if drowned := strings.Contains(rest, strings.Repeat("\r", 4<<10)); drowned != tt.hidden {
				t.Errorf("the kernel's buffers are drowned: %t, want %t", drowned, tt.hidden)
			}
			if got := <-answers; got != "y" {
				t.Errorf("the answer is %q", got)
			}
			if *silenced != "no yes" {
				t.Errorf("the buttons type something: %q", *silenced)
			}
			rest = strings.ReplaceAll(rest, "\r", "")
			if !strings.Contains(rest, tt.seen+"\n\x1b[J") {
				t.Errorf("at the end it shows %q", rest)
			}
			if tt.hidden && !tt.looked && strings.Contains(shown+rest, "\n  y\x1b[K") {
				t.Errorf("the answer is shown: %q", shown)
			}
		})
	}
}
