package rootfs

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The staging directory is a directory of the build host, and its files get attributes
// that the source does not have: of a default access control list above it (acl(5)),
// which every new file inherits, and of a security module, which labels every new file
// (SELinux, Smack, IMA). mkfs.erofs copies all that a file has. So
// whatever is not the source's is taken off again, and two hosts give the same bytes.

// clearHost takes off a file's attributes that are not its own.
func (t *Tree) clearHost(dir *parent, base string, own map[string]string) error {
	file := dir.path(base)
	names, err := listXattrs(file)
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, ok := own[name]; ok || !fromHost(name) {
			continue
		}
		err := unix.Lremovexattr(file, name)
		switch {
		case err == nil, errors.Is(err, unix.ENODATA):
		case name == selinux:
			return fmt.Errorf("the build host gives it an SELinux label, which the image would have, and which cannot be taken off (%w): give --out a file system without labels, such as one mounted with -o context=system_u:object_r:tmp_t:s0, or label the whole root file system (setfiles -r)", err)
		default:
			return fmt.Errorf("the build host gives it the extended attribute %s, which the image would have, and which cannot be taken off: %w: give another directory for --out", name, err)
		}
	}
	return nil
}

// fromHost reports whether an image would have the attribute: EROFS knows these.
func fromHost(name string) bool {
	if name == accessACL || name == defaultACL {
		return true
	}
	return slices.ContainsFunc([]string{"user.", "trusted.", "security."}, func(space string) bool { return strings.HasPrefix(name, space) })
}

// path is a name for a file in the directory, for calls that have no form with a
// descriptor: /proc has the directory itself, and the last name is the call's to follow or
// not.
func (p *parent) path(base string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", p.fd(), path.Clean(base))
}

// maxXattrs is the kernel's limit in bytes for a list of names, and for a value.
const maxXattrs = 64 << 10

// listXattrs returns the names of a file's extended attributes; none on a file system
// without them.
func listXattrs(file string) ([]string, error) {
	n, err := unix.Llistxattr(file, nil)
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil, nil
	}
	buf := make([]byte, maxXattrs)
	if err == nil {
		n, err = unix.Llistxattr(file, buf)
	}
	if err != nil {
		return nil, fmt.Errorf("list extended attributes of %s: %w", file, err)
	}
	if n == 0 { // an overlay says first how many it has with its own
		return nil, nil
	}
	return strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00"), nil
}
