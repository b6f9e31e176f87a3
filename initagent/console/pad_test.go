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

	"halogenos.internal/boot/pad"
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
			e := keyEditor{text: make([]byte, 0, maxLine), lines: tt.lines}
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
				rows += len(e.pad.Draw(tt.lines))
			}
			if d.y != 0 || d.x != len(margin)+len(tt.line) || len(d.rows) != rows {
				t.Errorf("%d rows, want %d; the cursor is at %d, %d", len(d.rows), rows, d.x, d.y)
			}
			if tt.shown != strings.Contains(d.row(rows-1), "power key chooses") {
				t.Errorf("the last row is %q", d.row(rows-1))
			}
			d.write(e.end())
			if len(d.rows) != 2 || d.y != 1 || d.row(1) != "" {
				t.Errorf("afterwards the rows are %d, the last %q", len(d.rows), d.row(1))
			}
		})
	}
	e := keyEditor{text: make([]byte, 0, maxLine), lines: 25}
	if !e.feed([]byte(down + "c\r")) {
		t.Error("Enter after a letter does not send the key off")
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
	return func() *hw.Inputs { return hw.OpenInputs(sys, dir) }, func(code uint16) {
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
	read(t, keyboard, "power key chooses")
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
	if shown := read(t, other, "answered on tty1"); strings.Contains(shown, "power key") {
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
	shown += read(t, keyboard, "power key chooses")
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

// A screen that is too narrow for the pad, or a line, has none.
func TestPadLines(t *testing.T) {
	keyboard, tty := screen(t)
	c, err := open([]string{tty})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var got []int
	for _, columns := range []uint16{80, 66, 65, 0} {
		if err := unix.IoctlSetWinsize(int(keyboard.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: columns}); err != nil {
			t.Fatal(err)
		}
		got = append(got, padLines(c.terminals[0]))
	}
	_, line := terminal(t)
	other, err := open([]string{line})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if got = append(got, padLines(other.terminals[0])); !slices.Equal(got, []int{50, 50, 0, 0, 0}) {
		t.Errorf("lines for the pad: %v", got)
	}
}
