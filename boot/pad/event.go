package pad

import (
	"encoding/binary"
	"fmt"
	"iter"
	"strconv"
	"strings"
)

// EventSize is how many bytes a struct input_event has on a machine of 64 bits
// (linux/input.h): the time in 16, type and code in 2 each, the value in 4.
const EventSize = 24

// An Event is what an input device reports (Documentation/input/event-codes.rst).
type Event struct {
	Type, Code uint16
	Value      int32
}

// Types and codes of events (linux/input-event-codes.h).
const (
	typeSync = 0x00
	typeKey  = 0x01
	typeAxis = 0x03

	syncReport  = 0
	syncDropped = 3

	keyVolumeDown = 114
	keyVolumeUp   = 115
	keyPower      = 116

	axisX = 0
	axisY = 1
)

// Buttons lists the keys of keyboards and of a machine's sides that move the pad or choose on it
// (linux/input-event-codes.h).
func Buttons() []uint8 { return []uint8{keyVolumeDown, keyVolumeUp, keyPower} }

// Decode goes through the events that were read from a device. It stops at bytes that are not a whole event. It
// keeps none of them: a keyboard that has volume keys reports the letters of a secret as well.
func Decode(read []byte) iter.Seq[Event] {
	return func(yield func(Event) bool) {
		for ; len(read) >= EventSize; read = read[EventSize:] {
			e := Event{
				Type:  binary.NativeEndian.Uint16(read[16:]),
				Code:  binary.NativeEndian.Uint16(read[18:]),
				Value: int32(binary.NativeEndian.Uint32(read[20:])),
			}
			if !yield(e) {
				return
			}
		}
	}
}

// An Input is what somebody asks of the pad.
type Input struct {
	Move Move
	At   Point // where the panel was touched, of Touched
}

// A Reader reads the events of one device.
type Reader struct {
	lost  bool // events were lost: what follows up to the next report is incomplete
	axes  [2]Axis
	fresh [2]bool // nothing was lost of what the axis has reported
	down  bool    // a finger is down; its place is complete with the next report
}

// NewReader returns the reader of a device with these axes, which have no length where it is not
// touched.
func NewReader(x, y Axis) Reader {
	return Reader{axes: [2]Axis{x, y}, fresh: [2]bool{x.known(), y.known()}}
}

// Read returns what an event asks of the pad. Keys that are held move it on, but choose once: so
// a power key that is held to switch the machine off types one letter at most.
func (r *Reader) Read(e Event) Input {
	const released, pressed = 0, 1
	switch {
	case e.Type == typeSync && e.Code == syncDropped:
		r.lost, r.down, r.fresh = true, false, [2]bool{}
	case e.Type == typeSync && e.Code == syncReport:
		touched := r.down && r.fresh == [2]bool{true, true}
		r.lost, r.down = false, false
		if touched {
			return Input{Touched, Point{r.axes[axisX].at(r.axes[axisX].Value), r.axes[axisY].at(r.axes[axisY].Value)}}
		}
	case r.lost:
	case e.Type == typeAxis && e.Code <= axisY:
		r.axes[e.Code].Value, r.fresh[e.Code] = e.Value, r.axes[e.Code].known()
	case e.Type != typeKey || e.Value == released:
	case e.Code == keyVolumeUp:
		return Input{Move: Back}
	case e.Code == keyVolumeDown:
		return Input{Move: Forward}
	case e.Code == keyPower && e.Value == pressed:
		return Input{Move: Choose}
	case e.Code == codeTouch && e.Value == pressed:
		r.down = true
	}
	return Input{}
}

// maxCodes bounds a set of codes: KEY_CNT (linux/input-event-codes.h).
const maxCodes = 0x300

// Codes are the codes of one type that a device can report.
type Codes [maxCodes / wordBits]uint64

const wordBits = 64

// MaxCodes bounds the text of ParseCodes, in bytes.
const MaxCodes = maxCodes/4 + maxCodes/wordBits

// ParseCodes reads what sysfs has of a device (capabilities/key): words of 64 bits in
// hexadecimal with spaces between them, the highest first.
func ParseCodes(text string) (Codes, error) {
	var c Codes
	if len(text) > MaxCodes {
		return c, fmt.Errorf("keys of an input device: %d bytes, more than %d", len(text), MaxCodes)
	}
	words := strings.Fields(text)
	if len(words) > len(c) {
		return c, fmt.Errorf("keys of an input device: %d words, more than %d", len(words), len(c))
	}
	for i, word := range words {
		n, err := strconv.ParseUint(word, 16, wordBits)
		if err != nil {
			return Codes{}, fmt.Errorf("keys of an input device: %w", err)
		}
		c[len(words)-1-i] = n
	}
	return c, nil
}

func (c *Codes) has(code int) bool { return c[code/wordBits]>>(code%wordBits)&1 == 1 }

// Letters reports whether a device with these keys is a keyboard: it has Enter and all letters
// that a recovery key can have, by their places on a US keyboard.
func (c *Codes) Letters() bool {
	for _, code := range [...]int{28, 46, 48, 32, 18, 33, 34, 35, 23, 36, 37, 38, 49, 19, 20, 22, 47} {
		if !c.has(code) {
			return false
		}
	}
	return true
}

// Moves reports whether a device with these keys moves the pad.
func (c *Codes) Moves() bool { return c.has(keyVolumeDown) || c.has(keyVolumeUp) }

// Chooses reports whether a device with these keys chooses on the pad.
func (c *Codes) Chooses() bool { return c.has(keyPower) }
