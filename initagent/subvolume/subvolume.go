// Package subvolume makes, copies and removes subvolumes of btrfs, each by one ioctl.
//
// It refuses to go into a subvolume that lies in another one: neither a snapshot nor a
// removal includes it.
package subvolume

import (
	"errors"
	"fmt"
	"io/fs"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Kind is what has a name.
type Kind int

// The kinds.
const (
	Absent    Kind = iota
	Directory      // or whatever else is not a subvolume
	Subvolume
)

// ErrNested says that a subvolume is not removed, since others lie in it.
var ErrNested = errors.New("it holds subvolumes of others")

// Of the kernel's include/uapi/linux/btrfs.h and btrfs_tree.h, as are the two structures.
const (
	iocResize        = 0x50009403 // BTRFS_IOC_RESIZE, _IOW(0x94, 3, struct btrfs_ioctl_vol_args)
	iocSubvolCreate  = 0x5000940e // BTRFS_IOC_SUBVOL_CREATE, _IOW(0x94, 14, struct btrfs_ioctl_vol_args)
	iocSnapDestroy   = 0x5000940f // BTRFS_IOC_SNAP_DESTROY, _IOW(0x94, 15, struct btrfs_ioctl_vol_args)
	iocSnapCreateV2  = 0x50009417 // BTRFS_IOC_SNAP_CREATE_V2, _IOW(0x94, 23, struct btrfs_ioctl_vol_args_v2)
	iocGetFlags      = 0x80089419 // BTRFS_IOC_SUBVOL_GETFLAGS, _IOR(0x94, 25, __u64)
	iocSetFlags      = 0x4008941a // BTRFS_IOC_SUBVOL_SETFLAGS, _IOW(0x94, 26, __u64)
	iocSync          = 0x9408     // BTRFS_IOC_SYNC, _IO(0x94, 8)
	iocQuotaCtl      = 0xc0109428 // BTRFS_IOC_QUOTA_CTL, _IOWR(0x94, 40, struct btrfs_ioctl_quota_ctl_args)
	quotaDisable     = 2          // BTRFS_QUOTA_CTL_DISABLE
	subvolReadOnly   = 1 << 1     // BTRFS_SUBVOL_RDONLY
	firstFreeObject  = 256        // BTRFS_FIRST_FREE_OBJECTID: the inode of a subvolume's top
	maxName          = 255        // BTRFS_VOL_NAME_MAX
	volArgsName      = 4087 + 1   // BTRFS_PATH_NAME_MAX + 1
	volArgsV2Name    = 4039 + 1   // BTRFS_SUBVOL_NAME_MAX + 1
	volArgsV2Reserve = 4
)

// volArgs is struct btrfs_ioctl_vol_args.
type volArgs struct {
	fd   int64
	name [volArgsName]byte
}

// volArgsV2 is struct btrfs_ioctl_vol_args_v2.
type volArgsV2 struct {
	fd      int64
	transid uint64
	flags   uint64
	unused  [volArgsV2Reserve]uint64
	name    [volArgsV2Name]byte
}

// Supported reports whether a directory, which is open, lies on btrfs.
func Supported(directory int) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(directory, &st); err != nil {
		return false, fmt.Errorf("look at the file system: %w", err)
	}
	return int64(st.Type) == unix.BTRFS_SUPER_MAGIC, nil
}

// Look says what has a name in a directory. It follows no link.
func Look(parent int, name string) (Kind, error) {
	var st unix.Stat_t
	err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) {
		return Absent, nil
	}
	if err != nil {
		return Absent, &fs.PathError{Op: "look at", Path: name, Err: err}
	}
	btrfs, err := Supported(parent)
	if err != nil {
		return Absent, err
	}
	if btrfs && st.Ino == firstFreeObject && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return Subvolume, nil
	}
	return Directory, nil
}

// Create makes an empty subvolume for root alone.
func Create(parent int, name string) error {
	args := new(volArgs)
	if err := setName(args.name[:], name); err != nil {
		return err
	}
	if err := ioctl(parent, iocSubvolCreate, unsafe.Pointer(args)); err != nil {
		return &fs.PathError{Op: "make subvolume", Path: name, Err: err}
	}
	return unix.Fchmodat(parent, name, 0o700, 0)
}

// Snapshot makes a subvolume that holds what another one, which is open, holds now. When
// it has returned, the snapshot is on the disk: the kernel commits it with all that was
// written before. A cut leaves the whole of it, or nothing.
func Snapshot(from, parent int, name string, readOnly bool) error {
	args := &volArgsV2{fd: int64(from)}
	if readOnly {
		args.flags = subvolReadOnly
	}
	if err := setName(args.name[:], name); err != nil {
		return err
	}
	if err := ioctl(parent, iocSnapCreateV2, unsafe.Pointer(args)); err != nil {
		return &fs.PathError{Op: "make snapshot", Path: name, Err: err}
	}
	return nil
}

// Remove removes a subvolume, a read-only one too, with all that is in it; [ErrNested]
// where another one lies in it. The kernel frees its room later.
func Remove(parent int, name string) error {
	args := new(volArgs)
	if err := setName(args.name[:], name); err != nil {
		return err
	}
	err := ioctl(parent, iocSnapDestroy, unsafe.Pointer(args))
	switch {
	case errors.Is(err, unix.ENOTEMPTY):
		return &fs.PathError{Op: "remove subvolume", Path: name, Err: ErrNested}
	case err != nil:
		return &fs.PathError{Op: "remove subvolume", Path: name, Err: err}
	}
	return nil
}

// frozen are the flags that keep even root from changing, renaming or removing something:
// FS_IMMUTABLE_FL and FS_APPEND_FL (include/uapi/linux/fs.h).
const frozen = 0x10 | 0x20

// A Hold is what keeps even root from renaming or removing something. A snapshot has that
// of what it is of.
type Hold struct {
	ReadOnly bool // of a subvolume
	Flags    int  // immutable and append-only (chattr)
}

// Held returns it of a file or directory, which is open. A file system without flags has
// none.
func Held(fd int) (h Hold) {
	var flags uint64
	if err := ioctl(fd, iocGetFlags, unsafe.Pointer(&flags)); err == nil {
		h.ReadOnly = flags&subvolReadOnly != 0
	}
	if flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS); err == nil {
		h.Flags = int(flags & frozen)
	}
	return h
}

// Release takes it away. A subvolume is made writable first: its flags cannot be changed
// before.
func (h Hold) Release(fd int) error {
	if h.ReadOnly {
		if err := setReadOnly(fd, false); err != nil {
			return err
		}
	}
	if h.Flags != 0 {
		return setFrozen(fd, 0)
	}
	return nil
}

// Restore puts it back.
func (h Hold) Restore(fd int) error {
	if h.Flags != 0 {
		if err := setFrozen(fd, h.Flags); err != nil {
			return err
		}
	}
	if h.ReadOnly {
		return setReadOnly(fd, true)
	}
	return nil
}

func setReadOnly(fd int, on bool) error {
	var flags uint64
	if err := ioctl(fd, iocGetFlags, unsafe.Pointer(&flags)); err != nil {
		return fmt.Errorf("look at a subvolume's flags: %w", err)
	}
	flags &^= subvolReadOnly
	if on {
		flags |= subvolReadOnly
	}
	if err := ioctl(fd, iocSetFlags, unsafe.Pointer(&flags)); err != nil {
		return fmt.Errorf("set a subvolume's flags: %w", err)
	}
	return nil
}

// setFrozen leaves the other flags as they are.
func setFrozen(fd, to int) error {
	flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if err != nil {
		return fmt.Errorf("look at flags: %w", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(flags&^frozen)|to); err != nil {
		return fmt.Errorf("set flags: %w", err)
	}
	return nil
}

// quotaArgs is struct btrfs_ioctl_quota_ctl_args.
type quotaArgs struct{ cmd, status uint64 }

// Unlimit takes away what limits how much the subvolumes of a file system hold, root's writes, too
// (btrfs-quota(8)): of all of them, since a limit may be that of any group that a subvolume is in.
func Unlimit(fd int) error {
	if err := ioctl(fd, iocQuotaCtl, unsafe.Pointer(&quotaArgs{cmd: quotaDisable})); err != nil {
		return fmt.Errorf("take limits of subvolumes away: %w", err)
	}
	return nil
}

// Clean has the kernel free the room of subvolumes that were removed, which it otherwise
// begins with when half a minute is over. It does not wait for the end.
func Clean(fd int) error { return ioctl(fd, iocSync, nil) }

func setName(to []byte, name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("subvolume %.30q: its name has %d bytes, want 1 to %d", name, len(name), maxName)
	}
	copy(to, name)
	return nil
}

func ioctl(fd int, request uintptr, args unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(args)); errno != 0 {
		return errno
	}
	return nil
}

// Resize makes the file system that a directory lies on, which has one device, so many bytes
// long. The kernel moves what lies beyond in transactions: a cut leaves the old size. Where
// there is no room for that the error is ENOSPC.
func Resize(fd int, size int64) error {
	args := new(volArgs)
	copy(args.name[:], fmt.Sprintf("1:%d", size))
	if err := ioctl(fd, iocResize, unsafe.Pointer(args)); err != nil {
		return fmt.Errorf("make the file system %d bytes long: %w", size, err)
	}
	return unix.Syncfs(fd)
}
