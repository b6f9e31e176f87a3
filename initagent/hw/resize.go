package hw

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/shrink"
	"halogenos.internal/initagent/subvolume"
)

// resizers are the programs that make a file system which is not mounted smaller, by its kind.
var resizers = map[string][]string{"ext4": {"/sbin/e2fsck", "/sbin/resize2fs"}}

// CanResize implements Store.
func (l LinuxStore) CanResize(kind, system string) error {
	for _, program := range resizers[kind] {
		if err := reachable(system, program); err != nil {
			return fmt.Errorf("the system image lacks %s: %w", program, err)
		}
	}
	return nil
}

// FileSystemEnd implements Store.
func (l LinuxStore) FileSystemEnd(kind, device string) (int64, error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return shrink.FileSystemEnd(kind, f)
}

// Resize implements Store. The kernel makes a mounted btrfs smaller, in transactions. For ext4 the
// system image's programs run, as mkfs does. Each of them syncs the device before it ends.
func (l LinuxStore) Resize(kind, device, system string, size int64) error {
	if kind == "btrfs" {
		root, err := l.open(".", unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer unix.Close(root)
		return subvolume.Resize(root, size)
	}
	if resizers[kind] == nil {
		return fmt.Errorf("make the root partition's file system smaller: %q is not known here", kind)
	}
	return l.inImage(system, func() error {
		if err := run(system, "/sbin/e2fsck", "-f", "-p", device); err != nil {
			return fmt.Errorf("check the root partition's file system: %w", err)
		}
		return run(system, "/sbin/resize2fs", device, fmt.Sprintf("%dK", size>>10))
	})
}

// repaired is e2fsck's exit code where it has found something, and repaired it (e2fsck(8)).
const repaired = 1

// run runs a program of the system image, inside it.
func run(system, program string, args ...string) error {
	cmd := exec.Command(program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: system}
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	out, err := cmd.CombinedOutput()
	exit, ended := errors.AsType[*exec.ExitError](err)
	if ended && filepath.Base(program) == "e2fsck" && exit.ExitCode() == repaired {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s of the system image: %w: %s", filepath.Base(program), err, out)
	}
	return nil
}

// inImage runs what runs programs of the system image, with /dev and /proc in it: mkfs.btrfs
// makes nothing, and resize2fs resizes nothing, where they cannot read what is mounted.
func (l LinuxStore) inImage(system string, do func() error) (err error) {
	var made []string
	for _, what := range []string{"/dev", "/proc"} {
		at := filepath.Join(system, what)
		if err = l.Mounts.Mount(what, at, "", unix.MS_BIND, ""); err != nil {
			break
		}
		made = append(made, at)
	}
	if err == nil {
		err = do()
	}
	for _, at := range slices.Backward(made) {
		err = errors.Join(err, l.Mounts.Unmount(at))
	}
	return err
}
