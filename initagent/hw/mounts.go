package hw

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// LinuxMounts is the mount table of the running kernel.
type LinuxMounts struct{}

// baseMounts are in the order they are made; the ones that may be missing are
// those of machines without UEFI or kernels without the file system.
var baseMounts = []struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
	optional               bool
}{
	{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "", false},
	{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "", false},
	{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755", false},
	{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755", false},
	{"securityfs", "/sys/kernel/security", "securityfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "", true},
}

// movedMounts go along into the new root; what is mounted below them does too.
var movedMounts = []string{"/dev", "/proc", "/sys", "/run"}

// Base implements Mounts.
func (m LinuxMounts) Base() error {
	for _, b := range baseMounts {
		if !b.optional {
			if err := os.MkdirAll(b.target, 0o755); err != nil {
				return err
			}
		}
		err := unix.Mount(b.source, b.target, b.fstype, b.flags, b.data)
		if err != nil && !errors.Is(err, unix.EBUSY) && !b.optional {
			return fmt.Errorf("mount %s on %s: %w", b.fstype, b.target, err)
		}
	}
	return nil
}

// Firmware implements Mounts. The mount point exists only on UEFI machines.
func (m LinuxMounts) Firmware() error {
	err := unix.Mount("efivarfs", EFIVars, "efivarfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	switch {
	case errors.Is(err, unix.ENOENT):
		return errors.New("this machine was not started by UEFI firmware, or its kernel cannot reach the firmware's variables")
	case err != nil:
		return fmt.Errorf("mount the firmware's variables: %w", err)
	}
	return nil
}

// Mount implements Mounts; it makes the target when it is missing.
func (m LinuxMounts) Mount(source, target, fstype string, flags uintptr, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil && !errors.Is(err, unix.EROFS) {
		return err
	}
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s (%s) on %s: %w", source, fstype, target, err)
	}
	return nil
}

// Unmount implements Mounts.
func (m LinuxMounts) Unmount(target string) error {
	if err := unix.Unmount(target, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	return nil
}

// SwitchRoot implements Mounts. It first makes sure that init is there, while
// there is still a way back.
func (m LinuxMounts) SwitchRoot(newRoot string, init []string) error {
	if err := reachable(newRoot, init[0]); err != nil {
		return fmt.Errorf("the system has no %s: %w", init[0], err)
	}
	old, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the initramfs: %w", err)
	}
	for _, target := range movedMounts {
		if err := unix.Mount(target, filepath.Join(newRoot, target), "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s into the system: %w", target, err)
		}
	}
	if err := unix.Chdir(newRoot); err != nil {
		return fmt.Errorf("enter the system: %w", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the system to /: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter the new root: %w", err)
	}
	emptyInitramfs(old)
	err = unix.Exec(init[0], init, []string{"HOME=/", "TERM=linux", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"})
	return fmt.Errorf("execute %s: %w", init[0], err)
}

// reachable reports whether a file is there once newRoot is the root: a link such as
// Alpine's /sbin/init -> /bin/busybox leads to what is in there, not in the initramfs.
func reachable(newRoot, name string) error {
	root, err := unix.Open(newRoot, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	file, err := unix.Openat2(root, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return err
	}
	return unix.Close(file)
}

// emptyInitramfs gives the memory of the initramfs back. A file that stays
// costs memory and nothing else, so errors are not worth a boot.
func emptyInitramfs(directory int) {
	var root unix.Stat_t
	if unix.Fstat(directory, &root) != nil {
		return
	}
	emptyDirectory(directory, root.Dev)
	unix.Close(directory)
}

// emptyDirectory removes what is in the directory, but nothing on another device:
// whatever is still mounted below is not ours to delete.
func emptyDirectory(directory int, device uint64) {
	dup, err := unix.Dup(directory)
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(dup), "initramfs")
	defer f.Close()
	names, _ := f.Readdirnames(-1)
	for _, name := range names {
		var st unix.Stat_t
		if unix.Fstatat(directory, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Dev != device {
			continue
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			_ = unix.Unlinkat(directory, name, 0)
			continue
		}
		if sub, err := unix.Openat(directory, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err == nil {
			emptyDirectory(sub, device)
			unix.Close(sub)
			_ = unix.Unlinkat(directory, name, unix.AT_REMOVEDIR)
		}
	}
}
