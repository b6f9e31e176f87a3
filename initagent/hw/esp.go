package hw

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/enroll"
)

// LinuxESP reads the ESP by itself, and writes it through the kernel's vfat.
type LinuxESP struct {
	Disks     Disks
	Kernel    Kernel
	Mounts    Mounts
	Directory string // where it is mounted while it is written to
}

// Read implements ESP.
func (l LinuxESP) Read(d Disk, read func(files fs.FS) error) error {
	f, err := l.Disks.OpenPartition(d, layout.ESP, false)
	if err != nil {
		return err
	}
	defer f.Close()
	files, err := fat.Open(f)
	if err != nil {
		return fmt.Errorf("read the ESP: %w", err)
	}
	return read(files)
}

// Write implements ESP.
func (l LinuxESP) Write(d Disk, write func(dir ESPDir) error) error {
	device, err := l.Disks.PartitionPath(d, layout.ESP)
	if err != nil {
		return err
	}
	if err := l.Kernel.Load("vfat"); err != nil {
		return err
	}
	for _, table := range []string{"nls_cp437", "nls_ascii"} {
		_ = l.Kernel.Load(table) // it may be built in, or not be needed
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := l.Mounts.Mount(device, l.Directory, "vfat", flags, "umask=0077,errors=continue"); err != nil {
		return err
	}
	return errors.Join(write(enroll.MountedDir{Root: l.Directory}), l.Mounts.Unmount(l.Directory))
}

// Repair implements ESP.
func (l LinuxESP) Repair(d Disk, names []string) (int64, error) {
	f, err := l.Disks.OpenPartition(d, layout.ESP, true)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for _, name := range names {
		if err := fat.Forget(f, name); err != nil {
			return 0, err
		}
	}
	freed, err := fat.Reclaim(f)
	if errors.Is(err, fat.ErrDamaged) {
		err = nil // there is more that is damaged: nothing is freed today
	}
	return freed, errors.Join(err, f.Close())
}

// Exchange implements ESP.
func (l LinuxESP) Exchange(d Disk, a, b string) error {
	f, err := l.Disks.OpenPartition(d, layout.ESP, true)
	if err != nil {
		return err
	}
	return errors.Join(fat.Exchange(f, a, b, int64(d.SectorSize)), f.Close())
}
