package hw

import (
	"fmt"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/pad"
)

const (
	// maxInputs bounds how many input devices are opened: a device on USB can pretend to be any number.
	maxInputs = 32
	// maxEvents is how many events of a device are taken at once.
	maxEvents = 256
	// lookEvery is how often Read looks for devices that have come.
	lookEvery = time.Second
	// maxLooking bounds how long Read opens devices at once; what is left is opened the next time. A
	// device may take seconds to answer when it is opened.
	maxLooking = time.Second
)

// Inputs are the buttons of the machine, and what can be touched of it, that move the pad (evdev).
type Inputs struct {
	// Letters says that there is a keyboard, and Types that the pad types with what there is: keys
	// that move it and one that chooses, or something to touch.
	Letters, Types bool

	moves, chooses bool // something does; a headset has volume keys alone
	sys            fs.FS
	dir            string
	axis           func(fd, number int) (pad.Axis, error)
	known          map[string]bool // names in sysfs of devices that are open, or of no use
	devices        []input
	events         []byte // as they were read; zeros in between
	looked         time.Time
}

type input struct {
	name   string // in sysfs
	fd     int
	reader *pad.Reader
}

// OpenInputs looks in sysfs for the input devices of the machine, and opens those that are of
// use to the pad in a directory such as /dev/input; axis is InputAxis. One that cannot be read or
// opened is left out: no question may depend on a device.
func OpenInputs(sys fs.FS, dir string, axis func(fd, number int) (pad.Axis, error)) *Inputs {
	in := &Inputs{sys: sys, dir: dir, axis: axis, known: map[string]bool{}, events: make([]byte, maxEvents*pad.EventSize)}
	in.look()
	return in
}

// look opens the devices that have come. A touchscreen may get its driver after the question, and
// a keyboard is plugged in when somebody sees it.
func (in *Inputs) look() {
	in.looked = time.Now()
	names, _ := fs.Glob(in.sys, "class/input/event*") // the pattern is valid
	maps.DeleteFunc(in.known, func(name string, _ bool) bool { return !slices.Contains(names, name) })
	for _, name := range names {
		if time.Since(in.looked) > maxLooking {
			return
		}
		if !in.known[name] {
			in.known[name] = in.open(name)
		}
	}
}

// open opens a device of sysfs if it is of use, and reports whether it is known then. A device that has
// just come may have no node yet, and the node of one that is leaving may be gone.
func (in *Inputs) open(name string) (known bool) {
	keys, err := codesOf(in.sys, name, "capabilities/key")
	if err != nil {
		return false
	}
	properties, _ := codesOf(in.sys, name, "properties") // none, where they cannot be read
	touches := pad.Touches(&keys, &properties)
	in.Letters = in.Letters || keys.Letters()
	if !keys.Moves() && !keys.Chooses() && !touches {
		return true
	}
	if len(in.devices) == maxInputs {
		return false
	}
	fd, err := unix.Open(filepath.Join(in.dir, path.Base(name)), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err != unix.ENOENT && err != unix.ENODEV && err != unix.ENXIO
	}
	var x, y pad.Axis
	if touches {
		x, y, touches = axes(fd, in.axis)
	}
	in.moves, in.chooses = in.moves || keys.Moves(), in.chooses || keys.Chooses()
	in.Types = in.Types || touches || in.moves && in.chooses
	reader := pad.NewReader(x, y)
	in.devices = append(in.devices, input{name, fd, &reader})
	return true
}

// codesOf are the codes of an input device that sysfs has in an attribute.
func codesOf(sys fs.FS, name, attribute string) (pad.Codes, error) {
	text, err := fs.ReadFile(sys, path.Join(name, "device", attribute))
	if err != nil {
		return pad.Codes{}, err
	}
	return pad.ParseCodes(strings.TrimSpace(string(text)))
}

// axes asks a device for the axes by which it says where it is touched.
func axes(fd int, axis func(fd, number int) (pad.Axis, error)) (x, y pad.Axis, ok bool) {
	x, err := axis(fd, 0)
	if err != nil {
		return pad.Axis{}, pad.Axis{}, false
	}
	if y, err = axis(fd, 1); err != nil {
		return pad.Axis{}, pad.Axis{}, false
	}
	return x, y, true
}

// inputAxis is EVIOCGABS(0) (linux/input.h); those of the other axes follow.
const inputAxis = 0x80184540

// InputAxis asks an open input device for one of its axes.
func InputAxis(fd, number int) (pad.Axis, error) {
	var info struct {
		pad.Axis
		fuzz, flat, resolution int32
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), inputAxis+uintptr(number), uintptr(unsafe.Pointer(&info)))
	if errno != 0 {
		return pad.Axis{}, fmt.Errorf("axis %d of an input device: %w", number, errno)
	}
	return info.Axis, nil
}

// Read takes what has happened at the devices since, and calls do with what it asks of the pad.
// It does not wait, and reads each device once, so that a device that reports without end delays
// nobody. A device that is gone is dropped, and one that has come is read, after a second at most.
func (in *Inputs) Read(do func(pad.Input)) {
	if in.sys != nil && time.Since(in.looked) > lookEvery {
		in.look()
	}
	in.devices = slices.DeleteFunc(in.devices, func(d input) (gone bool) {
		if gone = !d.read(in.events, do); gone {
			_ = unix.Close(d.fd)     // nothing was written
			delete(in.known, d.name) // it may come back
		}
		return gone
	})
}

// read reads a device once, and reports whether it is still there. A keyboard with volume keys has
// reported the letters of a secret, too: the buffer is wiped.
func (d *input) read(buf []byte, do func(pad.Input)) (there bool) {
	defer clear(buf)
	n, err := unix.Read(d.fd, buf)
	if err != nil && err != unix.EAGAIN && err != unix.EINTR || err == nil && n == 0 {
		return false
	}
	for e := range pad.Decode(buf[:max(n, 0)]) {
		if asked := d.reader.Read(e); asked.Move != pad.None {
			do(asked)
		}
	}
	return true
}

// Close closes the devices.
func (in *Inputs) Close() {
	for _, d := range in.devices {
		_ = unix.Close(d.fd) // nothing was written
	}
	in.devices, in.sys = nil, nil // and none is looked for
}
