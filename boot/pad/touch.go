package pad

// Whole is the width and the height of a screen, as Point measures them.
const Whole = 1 << 16

// A Point is a place on a screen, from its upper left corner, from 0 up to and without Whole.
type Point struct{ X, Y int }

// An Axis is what a device says of one of its axes: the least and the greatest value that it
// reports, and the last (struct input_absinfo, linux/input.h).
type Axis struct{ Value, Min, Max int32 }

// known reports whether an axis has a length.
func (a Axis) known() bool { return a.Max > a.Min }

// at is where a value lies on the axis.
func (a Axis) at(value int32) int {
	if !a.known() {
		return 0
	}
	low, high := int64(a.Min), int64(a.Max)
	return int((min(max(int64(value), low), high) - low) * Whole / (high - low + 1))
}

// Turned converts a place on a panel to the place on Linux's console, which is turned on the panel by
// that many quarters, clockwise (fbcon's rotate; Documentation/fb/fbcon.rst).
func (p Point) Turned(quarters int) Point {
	switch quarters {
	case 1:
		return Point{p.Y, Whole - 1 - p.X}
	case 2:
		return Point{Whole - 1 - p.X, Whole - 1 - p.Y}
	case 3:
		return Point{Whole - 1 - p.Y, p.X}
	}
	return p
}

// Touch does what a finger asks that touches the screen, at a row and a column from the upper left
// corner of the pad, as it is drawn on a screen of so many lines. It returns the key that this
// types; 0 is none. The first touch of a pad that was not shown shows it.
func (p *Pad) Touch(row, column, screen int) (key byte) {
	p.arrows = false
	if !p.shown {
		p.shown = true
		return 0
	}
	row = floor(row, height(screen))
	column = floor(column, cellWidth)
	if row < 0 || row >= len(p.rows()) || column < 0 || column >= columns {
		return 0
	}
	p.row, p.number = row, column/wide(p.rows()[row])
	return p.chosen()
}

// floor divides, rounding down; any negative result is -1.
func floor(n, by int) int {
	if n < 0 {
		return -1
	}
	return n / by
}

const (
	codeTouch     = 0x14a // BTN_TOUCH
	propertyTouch = 1     // INPUT_PROP_DIRECT: the device lies over a screen
)

// Touches reports whether a device with these keys and properties is touched where a screen is.
// A driver that tells several fingers apart reports the first as one that knows a single finger does
// (input_mt_report_pointer_emulation).
func Touches(keys, properties *Codes) bool {
	return keys.has(codeTouch) && properties.has(propertyTouch)
}
