package machine

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// stickDirectory is where a stick is mounted for as long as it is read.
const stickDirectory = "run/halogen/stick"

// kinds are the file systems that a stick can have, with options that let the worker
// read it and write nothing, not even the journal of one that was pulled out.
func stickKinds() []struct{ name, options string } {
	return []struct{ name, options string }{{"vfat", "umask=0022"}, {"ext4", "noload"}, {"exfat", "umask=0022"}}
}

// mountStick mounts a partition's file system, from which no program runs and no
// device opens.
func (m *Machine) mountStick(device string) (directory string, err error) {
	directory = m.path(stickDirectory)
	// They are modules of the initramfs. In a running system the kernel asks for
	// them itself.
	for _, name := range []string{"vfat", "nls_cp437", "nls_ascii", "ext4", "exfat"} {
		_ = m.Hardware.Kernel.Load(name) // a kind that it has not got fails below
	}
	var all []error
	for _, kind := range stickKinds() {
		err := m.Hardware.Mounts.Mount(device, directory, kind.name, unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, kind.options)
		if err == nil {
			return directory, nil
		}
		all = append(all, err)
	}
	return "", fmt.Errorf("%s: %w", device, errors.Join(all...))
}

// isDisk reports whether it is a disk or a partition.
func isDisk(info os.FileInfo) bool {
	return info.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice
}
