package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/enrol"
)

// espFolder is where the ESP is mounted while it is written to.
const espFolder = "/run/esp"

// readESP calls read with the ESP's files. It reads the file system itself:
// nothing is mounted for it, and a damaged one is an error and no more.
func (a *Agent) readESP(read func(esp *fat.FS) error) error {
	f, err := a.Disks.OpenPartition(a.disk, layout.ESPNumber, false)
	if err != nil {
		return err
	}
	defer f.Close()
	esp, err := fat.Open(f)
	if err != nil {
		return fmt.Errorf("read the ESP: %w", err)
	}
	return read(esp)
}

// writeESP calls write with the ESP mounted. It is mounted only for so long: a
// file system that is not mounted cannot be left half written by others.
func (a *Agent) writeESP(write func(dir enrol.MountedDir) error) error {
	device, err := a.Disks.PartitionPath(a.disk, layout.ESPNumber)
	if err != nil {
		return err
	}
	if err := a.Kernel.Load("vfat"); err != nil {
		return err
	}
	for _, table := range []string{"nls_cp437", "nls_ascii"} {
		_ = a.Kernel.Load(table) // it may be built in, or not be needed
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := a.Mounts.Mount(device, espFolder, "vfat", flags, "umask=0077,errors=continue"); err != nil {
		return err
	}
	return errors.Join(write(enrol.MountedDir{Root: espFolder}), a.Mounts.Unmount(espFolder))
}

// isOurs reports whether a UKI is the running one.
func (a *Agent) isOurs(n bls.Name) bool {
	return n.ImageID == a.contract.ImageID && n.Version == a.contract.Version
}

// ukiNames are the names of the UKIs on the ESP that follow our rules.
func (a *Agent) ukiNames() (names []bls.Name, err error) {
	err = a.readESP(func(esp *fat.FS) error {
		entries, err := fs.ReadDir(esp, bls.Folder)
		for _, e := range entries {
			if n, err := bls.Parse(e.Name()); err == nil {
				names = append(names, n)
			}
		}
		return err
	})
	return names, err
}

// runningUKI reads the file that this boot was started from.
func (a *Agent) runningUKI() (image []byte, err error) {
	err = a.readESP(func(esp *fat.FS) error {
		entries, err := fs.ReadDir(esp, bls.Folder)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if n, err := bls.Parse(e.Name()); err == nil && a.isOurs(n) {
				image, err = fs.ReadFile(esp, path.Join(bls.Folder, e.Name()))
				return err
			}
		}
		return fmt.Errorf("the ESP has no UKI of %s %s", a.contract.ImageID, a.contract.Version)
	})
	return image, err
}

// condemn takes the running UKI's tries away, so that the boot manager prefers
// the other one from now on.
//
// A rename on FAT is the only way, since the counter is the name. Cut before
// it, the UKI has the tries it had: it boots again, fails again and is
// condemned then. Cut after it, the name is there; the file is flushed once
// more before the folder is, or the new name could be left with no content.
func (a *Agent) condemn() error {
	names, err := a.ukiNames()
	if err != nil {
		return err
	}
	return a.writeESP(func(dir enrol.MountedDir) error {
		for _, n := range names {
			if !a.isOurs(n) || n.Bad() {
				continue
			}
			to := path.Join(bls.Folder, n.Condemned().String())
			if err := os.Rename(filepath.Join(dir.Root, bls.Folder, n.String()), filepath.Join(dir.Root, to)); err != nil {
				return err
			}
			if err := errors.Join(dir.SyncFile(to), dir.SyncDir(bls.Folder)); err != nil {
				return err
			}
			a.Log.Say("%s has no tries left", n.Condemned())
		}
		return nil
	})
}
