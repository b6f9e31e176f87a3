package pad_test

import (
	"math"
	"slices"
	"testing"

	"halogenos.internal/boot/pad"
)

// What a panel reports of a finger, as a driver of Linux does: the place may come after the touch,
// and what has not changed does not come again.
func TestTouches(t *testing.T) {
	axis := func(number uint16, value int32) pad.Event { return pad.Event{Type: 3, Code: number, Value: value} }
	finger := func(value int32) pad.Event { return pad.Event{Type: 1, Code: 0x14a, Value: value} }
	report, dropped := pad.Event{}, pad.Event{Code: 3}
	const half = pad.Whole / 2
	for _, tt := range []struct {
		name   string
		events []pad.Event
		want   []pad.Point
	}{
		{"a tap", []pad.Event{axis(0x39, 7), axis(0x35, 500), axis(0x36, 0), finger(1), axis(0, 500), axis(1, 0), report, finger(0), report}, []pad.Point{{half, 0}}},
		{"one that moves", []pad.Event{finger(1), axis(0, 500), axis(1, 500), report, axis(0, 600), report}, []pad.Point{{half, half}}},
		{"twice at a place", []pad.Event{finger(1), axis(0, 500), axis(1, 0), report, finger(0), report, finger(1), report}, []pad.Point{{half, 0}, {half, 0}}},
		{"at the place of before", []pad.Event{finger(1), axis(1, 0), report}, []pad.Point{{pad.Whole / 4, 0}}},
		{"no report", []pad.Event{finger(1), axis(0, 500), axis(1, 0)}, nil},
		{"beyond the panel", []pad.Event{finger(1), axis(0, math.MaxInt32), axis(1, math.MinInt32), report}, []pad.Point{{pad.Whole - 66, 0}}},
		{"lost", []pad.Event{finger(1), dropped, axis(0, 500), report, finger(1), axis(0, 500), report}, nil},
		{"and found", []pad.Event{dropped, report, finger(1), axis(0, 500), axis(1, 500), report}, []pad.Point{{half, half}}},
	} {
		r := pad.NewReader(pad.Axis{Value: 250, Max: 999}, pad.Axis{Value: 250, Max: 999})
		var got []pad.Point
		for _, e := range tt.events {
			switch asked := r.Read(e); asked.Move {
			case pad.None:
			case pad.Touched:
				got = append(got, asked.At)
			default:
				t.Errorf("%s: %v", tt.name, asked)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: touched at %v, want %v", tt.name, got, tt.want)
		}
	}
}

// A panel that is turned has its upper left corner elsewhere: where the console's row begins on
// it is where fbcon draws it (fbcon_cw.c, fbcon_ud.c, fbcon_ccw.c).
func TestTurned(t *testing.T) {
	const far = pad.Whole - 1
	for quarters, corner := range []pad.Point{{0, 0}, {far, 0}, {far, far}, {0, far}} {
		if got := corner.Turned(quarters); got != (pad.Point{}) {
			t.Errorf("turned by %d quarters, the panel's %v is the screen's %v", quarters, corner, got)
		}
	}
	// Half of the first row: turned clockwise, it runs down the right side of the panel.
	if got := (pad.Point{X: far, Y: pad.Whole / 2}).Turned(1); got != (pad.Point{X: pad.Whole / 2}) {
		t.Errorf("the first row is at %v", got)
	}
	if got := (pad.Point{X: 3, Y: 4}).Turned(-1); got != (pad.Point{X: 3, Y: 4}) {
		t.Errorf("turned by something else: %v", got)
	}
}

// Each character of a cell that is drawn types what the cell bears; what is beside the pad types
// nothing.
func TestTouch(t *testing.T) {
	const keys = "cbdefghijklnrtuv\x7f\x7f\x15\x15\t\t\r\r" // by columns
	for screen, high := range map[int]int{25: 2, 50: 3} {
		var p pad.Pad
		if p.Touch(0, 0, screen) != 0 || !p.Shown() {
			t.Error("the first touch does not show the pad, or does more")
		}
		for row := -2; row < 3*high+3; row++ {
			for column := -9; column < pad.Width+9; column++ {
				var want byte
				if row >= 0 && row < 3*high && column >= 0 && column < pad.Width {
					want = keys[row/high*8+column/8]
				}
				if got := p.Touch(row, column, screen); got != want {
					t.Errorf("row %d, column %d type %q, want %q", row, column, got, want)
				}
				if want != 0 && p.Do(pad.Choose) != want {
					t.Errorf("row %d, column %d: the cell is not marked", row, column)
				}
			}
		}
	}
}

// A touchpad is none, nor a mouse that knows where it is, such as a virtual machine's.
func TestTouchscreens(t *testing.T) {
	for _, tt := range []struct {
		name, keys, properties string
		want                   bool
	}{
		{"touchscreen", "400 0 0 0 0 0", "2", true},
		{"touchpad", "e520 10000 0 0 0 0", "5", false},
		{"QEMU USB Tablet", "1f0000 0 0 0 0", "0", false},
		{"pen", "1c03 0 0 0 0 0", "2", true},
	} {
		keys, err := pad.ParseCodes(tt.keys)
		if err != nil {
			t.Fatal(err)
		}
		properties, err := pad.ParseCodes(tt.properties)
		if err != nil || pad.Touches(&keys, &properties) != tt.want {
			t.Errorf("%s: %v, %v", tt.name, !tt.want, err)
		}
	}
}
