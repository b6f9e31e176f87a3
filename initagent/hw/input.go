package hw

import (
	"io/fs"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/pad"
)

const (
	// maxInputs bounds how many input devices are opened: a device on USB can pretend to be any number.
	maxInputs = 32
	// maxEvents is how many events of a device are taken at once.
	maxEvents = 256
)

// Inputs are the buttons of the machine that move the pad (evdev).
type Inputs struct {
	// Letters says that there is a keyboard, and Moves that there are keys that move the pad.
	Letters, Moves bool
	devices        []input
}

type input struct {
	fd     int
	reader pad.Reader
}

// OpenInputs looks in sysfs for the input devices of the machine, and opens those that are of
// use to the pad in a directory such as /dev/input. One that cannot be read or opened is left out:
// no question may depend on a device.
func OpenInputs(sys fs.FS, dir string) *Inputs {
	in := new(Inputs)
	names, _ := fs.Glob(sys, "class/input/event*") // the pattern is a good one
	for _, name := range names {
		codes, err := keysOf(sys, name)
		if err != nil {
			continue
		}
		in.Letters = in.Letters || codes.Letters()
		if !codes.Moves() && !codes.Chooses() || len(in.devices) == maxInputs {
			continue
		}
		fd, err := unix.Open(filepath.Join(dir, path.Base(name)), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		in.Moves = in.Moves || codes.Moves()
		in.devices = append(in.devices, input{fd: fd})
	}
	return in
}

// keysOf are the keys of an input device of sysfs.
func keysOf(sys fs.FS, name string) (pad.Codes, error) {
	text, err := fs.ReadFile(sys, path.Join(name, "device/capabilities/key"))
	if err != nil {
		return pad.Codes{}, err
	}
	return pad.ParseCodes(strings.TrimSpace(string(text)))
}

// Read takes what has happened at the devices since, and calls move with what it asks of the pad.
// It does not wait, and takes no more than a read of each device: one that never falls silent
// keeps nobody waiting. One that is gone is read no longer.
func (in *Inputs) Read(move func(pad.Move)) {
	buf := make([]byte, maxEvents*pad.EventSize)
	left := in.devices[:0]
	for _, d := range in.devices {
		n, err := unix.Read(d.fd, buf)
		if err != nil && err != unix.EAGAIN && err != unix.EINTR || err == nil && n == 0 {
			_ = unix.Close(d.fd) // nothing was written
			continue
		}
		for _, e := range pad.Decode(buf[:max(n, 0)]) {
			if m := d.reader.Move(e); m != pad.None {
				move(m)
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
