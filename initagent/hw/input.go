package hw

import (
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/pad"
)

const (
	// maxInputs bounds how many input devices are opened: a device on USB can pretend to be any number.
	maxInputs = 32
	// maxEvents is how many events of a device are taken at once.
	maxEvents = 256
)

// Inputs are the buttons of the machine, and what can be touched of it, that move the pad (evdev).
type Inputs struct {
	// Letters says that there is a keyboard, and Types that the pad types with what there is: keys
	// that move it and one that chooses, or something to touch.
	Letters, Types bool
	devices        []input
}

type input struct {
	fd     int
	reader pad.Reader
}

// OpenInputs looks in sysfs for the input devices of the machine, and opens those that are of
// use to the pad in a directory such as /dev/input; axis is InputAxis. One that cannot be read or
// opened is left out: no question may depend on a device.
func OpenInputs(sys fs.FS, dir string, axis func(fd, number int) (pad.Axis, error)) *Inputs {
	in := new(Inputs)
	moves, chooses := false, false                 // a headset has volume keys alone
	names, _ := fs.Glob(sys, "class/input/event*") // the pattern is a good one
	for _, name := range names {
		keys, err := codesOf(sys, name, "capabilities/key")
		if err != nil {
			continue
		}
		properties, _ := codesOf(sys, name, "properties") // none, where they cannot be read
		touches := pad.Touches(&keys, &properties)
		in.Letters = in.Letters || keys.Letters()
		if !keys.Moves() && !keys.Chooses() && !touches || len(in.devices) == maxInputs {
			continue
		}
		fd, err := unix.Open(filepath.Join(dir, path.Base(name)), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		var x, y pad.Axis
		if touches {
			x, y, touches = axes(fd, axis)
		}
		moves, chooses = moves || keys.Moves(), chooses || keys.Chooses()
		in.Types = in.Types || touches
		in.devices = append(in.devices, input{fd: fd, reader: pad.NewReader(x, y)})
	}
	in.Types = in.Types || moves && chooses
	return in
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
// It does not wait, and takes no more than a read of each device: one that never falls silent
// keeps nobody waiting. One that is gone is read no longer.
func (in *Inputs) Read(do func(pad.Input)) {
	buf := make([]byte, maxEvents*pad.EventSize)
	left := in.devices[:0]
	for _, d := range in.devices {
		n, err := unix.Read(d.fd, buf)
		if err != nil && err != unix.EAGAIN && err != unix.EINTR || err == nil && n == 0 {
			_ = unix.Close(d.fd) // nothing was written
			continue
		}
		for _, e := range pad.Decode(buf[:max(n, 0)]) {
			if asked := d.reader.Read(e); asked.Move != pad.None {
				do(asked)
			}
		}
		left = append(left, d)
	}
	in.devices = left
}

// Close closes the devices.
func (in *Inputs) Close() {
	for _, d := range in.devices {
		_ = unix.Close(d.fd) // nothing was written
	}
	in.devices = nil
}
