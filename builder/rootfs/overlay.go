package rootfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// mountPoint is what to give in place of a part of an overlay.
const mountPoint = "give the directory that the overlay is mounted on"

// overlayMark reports whether an attribute of overlayfs or fuse-overlayfs says what
// of the layers below counts (Linux, Documentation/filesystems/overlayfs.rst): a
// directory that hides them, or a file that stands for one that was deleted.
func overlayMark(name, value string) (opaque, deleted bool) {
	for _, prefix := range []string{"trusted.overlay.", "user.overlay.", "user.fuseoverlayfs."} {
		mark, ok := strings.CutPrefix(name, prefix)
		switch {
		case ok && mark == "opaque":
			// "x" says that there are files with .whiteout inside, and hides nothing.
			return value == "y", false
		case ok && mark == "whiteout":
			return false, true
		}
	}
	return false, false
}

// overlaid takes what an overlay means by a file out of it: a character device 0:0
// stands for a file that was deleted.
func (e *Entry) overlaid() (opaque, deleted bool) {
	deleted = e.Kind == CharDevice && e.Major == 0 && e.Minor == 0
	for name, value := range e.Xattrs {
		hides, gone := overlayMark(name, value)
		if hides || gone {
			delete(e.Xattrs, name)
		}
		opaque, deleted = opaque || hides && e.Kind == Directory, deleted || gone && e.Kind == Regular && e.Size == 0
	}
	return opaque, deleted
}

// whole refuses a file of a root file system that is only a part of one.
func (e *Entry) whole() error {
	opaque, deleted := e.overlaid()
	switch {
	case deleted:
		return errors.New("stands for a file that was deleted in an overlay (a whiteout), the rest of which lies in another directory: " + mountPoint)
	case opaque:
		return errors.New("hides a directory of an overlay's lower layers (opaque), and these lie in another directory: " + mountPoint)
	}
	return nil
}

// The third version of security.capability (linux/capability.h, struct
// vfs_ns_cap_data): 24 bytes, the last four of which are the user that is root where
// the capabilities count.
const (
	capability       = "security.capability"
	capabilityBytes  = 24
	capabilityThird  = 3
	capabilityRootAt = 20
)

// countsHere refuses capabilities of a user namespace: the kernel takes no notice of
// them on the machine, where another user is root.
func (e *Entry) countsHere() error {
	value := e.Xattrs[capability]
	if len(value) != capabilityBytes || value[3] != capabilityThird {
		return nil
	}
	if root := binary.LittleEndian.Uint32([]byte(value[capabilityRootAt:])); root != 0 {
		return fmt.Errorf("has capabilities that count only where the user %d is root, as in the storage of rootless containers: pack it from there (podman unshare tar --xattrs --xattrs-include='*' -C DIRECTORY -cf FILE .)", root)
	}
	return nil
}
