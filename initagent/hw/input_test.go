package hw

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

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
	in := OpenInputs(sys, dir)
	defer in.Close()
	if in.Letters || !in.Moves || len(in.devices) != 2 {
		t.Fatalf("letters %t, moves %t, %d devices", in.Letters, in.Moves, len(in.devices))
	}
	var got []pad.Move
	read := func() []pad.Move { got = nil; in.Read(func(m pad.Move) { got = append(got, m) }); return got }
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
	in := OpenInputs(sys, dir)
	if !in.Letters {
		t.Error("a keyboard is none")
	}
	in.Close()
	in.Read(func(pad.Move) { t.Error("something was pressed") })
	many := fstest.MapFS{}
	for range 2 * maxInputs {
		name := "event" + strings.Repeat("1", len(many)+1)
		many["class/input/"+name+"/device/capabilities/key"] = &fstest.MapFile{Data: []byte(volumeKeys)}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	in = OpenInputs(many, dir)
	if len(in.devices) != maxInputs {
		t.Errorf("%d devices are open", len(in.devices))
	}
	in.Close()
	for _, sys := range []fstest.MapFS{{}, {"class/input/event0/device/capabilities/key": &fstest.MapFile{Data: []byte(volumeKeys)}}} {
		in = OpenInputs(sys, t.TempDir())
		if in.Letters || in.Moves {
			t.Errorf("of nothing: %+v", in)
		}
		in.Read(func(pad.Move) { t.Error("something was pressed") })
		in.Close()
	}
}
