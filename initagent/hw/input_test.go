package hw

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
)

// inputs makes input devices of what sysfs has of their keys: FIFOs, which are read as the
// kernel's are. The files are the devices' own ends.
func inputs(t *testing.T, keys ...string) (sys fstest.MapFS, dir string, ends []*os.File) {
	t.Helper()
	sys, dir = fstest.MapFS{}, t.TempDir()
	for i, k := range keys {
		name := "event" + string(rune('0'+i))
		sys["class/input/"+name+"/device/capabilities/key"] = &fstest.MapFile{Data: []byte(k + "\n")}
		path := filepath.Join(dir, name)
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		end, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { end.Close() })
		ends = append(ends, end)
	}
	return sys, dir, ends
}

// event is a struct input_event.
func event(kind, code uint16, value int32) []byte {
	raw := make([]byte, pad.EventSize)
	binary.NativeEndian.PutUint16(raw[16:], kind)
	binary.NativeEndian.PutUint16(raw[18:], code)
	binary.NativeEndian.PutUint32(raw[20:], uint32(value))
	return raw
}

const (
	volumeKeys = "c000000000000 0"
	powerKey   = "10000000000000 0"
	atKeyboard = "402000000 3803078f800d001 feffffdfffefffff fffffffffffffffe"
)

func TestInputs(t *testing.T) {
	sys, dir, ends := inputs(t, volumeKeys, "1f0000 0 0 0 0", powerKey, "no keys", strings.Repeat("f", 1<<20))
	in := OpenInputs(sys, dir, InputAxis)
	defer in.Close()
	if in.Letters || !in.Types || len(in.devices) != 2 {
		t.Fatalf("letters %t, types %t, %d devices", in.Letters, in.Types, len(in.devices))
	}
	var got []pad.Move
	read := func() []pad.Move {
		got = nil
		in.Read(func(asked pad.Input) { got = append(got, asked.Move) })
		return got
	}
	if moves := read(); moves != nil {
		t.Errorf("before anything was pressed: %v", moves)
	}
	for i, raw := range [][]byte{event(1, 114, 1), event(1, 30, 1), event(1, 116, 1)} {
		if _, err := ends[i].Write(raw); err != nil {
			t.Fatal(err)
		}
	}
	if moves := read(); !slices.Equal(moves, []pad.Move{pad.Forward, pad.Choose}) {
		t.Errorf("pressed: %v", moves)
	}
	if slices.ContainsFunc(in.events, func(b byte) bool { return b != 0 }) {
		t.Error("what was typed stays in memory")
	}
	// One that never falls silent is read once, and the others are heard.
	noise := slices.Repeat(event(1, 114, 1), 2*maxEvents)
	if _, err := ends[0].Write(noise); err != nil {
		t.Fatal(err)
	}
	if _, err := ends[2].Write(event(1, 116, 1)); err != nil {
		t.Fatal(err)
	}
	if moves := read(); len(moves) != maxEvents+1 || moves[maxEvents] != pad.Choose {
		t.Errorf("beside noise: %d moves", len(moves))
	}
	ends[0].Close() // unplugged, with what was still to be read
	read()
	if read(); len(in.devices) != 1 {
		t.Errorf("%d devices after one was unplugged", len(in.devices))
	}
}

// A keyboard is one, and devices that pretend to be many are not all opened; without input
// devices there is nothing to read.
func TestInputsOfOthers(t *testing.T) {
	sys, dir, _ := inputs(t, atKeyboard)
	in := OpenInputs(sys, dir, InputAxis)
	if !in.Letters {
		t.Error("a keyboard is none")
	}
	in.Close()
	in.Read(func(pad.Input) { t.Error("something was pressed") })
	many := fstest.MapFS{}
	for range 2 * maxInputs {
		name := "event" + strings.Repeat("1", len(many)+1)
		many["class/input/"+name+"/device/capabilities/key"] = &fstest.MapFile{Data: []byte(volumeKeys)}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	in = OpenInputs(many, dir, InputAxis)
	if len(in.devices) != maxInputs || in.Types {
		t.Errorf("%d devices are open; headsets type: %t", len(in.devices), in.Types)
	}
	in.Close()
	for _, sys := range []fstest.MapFS{{}, {"class/input/event0/device/capabilities/key": &fstest.MapFile{Data: []byte(volumeKeys)}}} {
		in = OpenInputs(sys, t.TempDir(), InputAxis)
		if in.Letters || in.Types {
			t.Errorf("of nothing: %+v", in)
		}
		in.Read(func(pad.Input) { t.Error("something was pressed") })
		in.Close()
	}
}

// A device that comes after the question is read, as is one that was gone and comes back; one whose
// opening takes long does not have all others waited for.
func TestInputsThatCome(t *testing.T) {
	t.Parallel()
	all, dir, ends := inputs(t, volumeKeys, powerKey, atKeyboard)
	sys := fstest.MapFS{}
	in := OpenInputs(sys, dir, InputAxis)
	defer in.Close()
	plug := func(names ...string) {
		for _, name := range names {
			file := "class/input/" + name + "/device/capabilities/key"
			sys[file] = all[file]
		}
	}
	// pressed presses a key of a device until it is heard, or for two looks.
	pressed := func(end *os.File, code uint16) (heard bool) {
		for start := time.Now(); !heard && time.Since(start) < 2*lookEvery+lookEvery/2; time.Sleep(lookEvery / 20) {
			_, _ = end.Write(event(1, code, 1))
			in.Read(func(pad.Input) { heard = true })
		}
		return heard
	}
	if in.Types {
		t.Fatal("there is something before it is plugged in")
	}
	plug("event0", "event1")
	if !pressed(ends[0], 114) || !in.Types || in.Letters {
		t.Errorf("the volume keys are not heard; types %t, letters %t", in.Types, in.Letters)
	}
	delete(sys, "class/input/event0/device/capabilities/key")
	path := ends[0].Name()
	ends[0].Close()
	in.Read(func(pad.Input) {})
	in.Read(func(pad.Input) {})
	if len(in.devices) != 1 {
		t.Fatalf("%d devices after one was unplugged", len(in.devices))
	}
	end, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer end.Close()
	plug("event0", "event2")
	if !pressed(end, 114) || !in.Letters {
		t.Errorf("the volume keys are not heard when they are back; letters %t", in.Letters)
	}
	touched, dir, _ := inputs(t, "400 0 0 0 0 0", "400 0 0 0 0 0", "400 0 0 0 0 0", "400 0 0 0 0 0", "400 0 0 0 0 0")
	for i := range 5 {
		touched["class/input/event"+string(rune('0'+i))+"/device/properties"] = &fstest.MapFile{Data: []byte("2\n")}
	}
	slow := OpenInputs(touched, dir, func(fd, number int) (pad.Axis, error) {
		time.Sleep(maxLooking / 2)
		return pad.Axis{Max: 9}, nil
	})
	defer slow.Close()
	if n := len(slow.devices); n == 0 || n > 2 {
		t.Errorf("%d slow devices are waited for", n)
	}
}

// A touchscreen is read by what it says of its axes; one that does not say it is none.
func TestInputsTouched(t *testing.T) {
	sys, dir, ends := inputs(t, "400 0 0 0 0 0")
	sys["class/input/event0/device/properties"] = &fstest.MapFile{Data: []byte("2\n")}
	in := OpenInputs(sys, dir, func(fd, number int) (pad.Axis, error) { return pad.Axis{Max: int32(10*number + 9)}, nil })
	defer in.Close()
	raw := slices.Concat(event(1, 0x14a, 1), event(3, 0, 5), event(3, 1, 5), event(0, 0, 0))
	if _, err := ends[0].Write(raw); err != nil {
		t.Fatal(err)
	}
	var got []pad.Input
	in.Read(func(asked pad.Input) { got = append(got, asked) })
	want := []pad.Input{{Move: pad.Touched, At: pad.Point{X: pad.Whole / 2, Y: pad.Whole / 4}}}
	if !in.Types || !slices.Equal(got, want) {
		t.Errorf("types %t: %v, want %v", in.Types, got, want)
	}
	silent := OpenInputs(sys, dir, InputAxis) // no pipe has axes
	defer silent.Close()
	if silent.Types {
		t.Error("what says nothing of its axes is touched")
	}
	if _, err := ends[0].Write(raw); err != nil {
		t.Fatal(err)
	}
	silent.Read(func(asked pad.Input) { t.Errorf("it was touched: %v", asked) })
}

// The request is the one that C's macro makes, and takes what the kernel's structure has.
func TestInputAxis(t *testing.T) {
	const read, size = 2, 6 * 4
	if inputAxis != read<<30|size<<16|'E'<<8|0x40 {
		t.Errorf("EVIOCGABS(0) is %#x", inputAxis)
	}
	if _, err := InputAxis(-1, 0); err == nil {
		t.Error("what is not open has an axis")
	}
}

func TestCursor(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"vcsa1": "\x32\xa0\x05\x11 \x07", "vcsa2": "\x32"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if rows, row, err := (&Terminal{Path: filepath.Join(dir, "tty1")}).Cursor(); rows != 50 || row != 17 || err != nil {
		t.Errorf("%d rows, the cursor in %d, %v", rows, row, err)
	}
	for _, name := range []string{"tty2", "tty3", "ttyS1"} {
		if _, _, err := (&Terminal{Path: filepath.Join(dir, name)}).Cursor(); err == nil {
			t.Errorf("%s has a cursor", name)
		}
	}
}
