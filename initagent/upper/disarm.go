package upper

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// maxDepth is how many directories within one another are looked into: each is held open.
// A path that programs can use has fewer (PATH_MAX).
const maxDepth = 500

// Disarm has no program in a directory run with more rights than those who start it: setuid
// and setgid bits of files go, and capabilities. It returns what it could not look into or
// change. Cut anywhere, the same call once more does the rest.
func (s Store) Disarm(name string, step func(string) error) (left []string, err error) {
	if step == nil {
		step = func(string) error { return nil }
	}
	d, err := s.directory(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	w := disarming{step: step, left: func(name string, why error) { left = append(left, fmt.Sprintf("%s: %v", name, why)) }}
	if err := w.in(d, 0); err != nil {
		return left, err
	}
	return left, d.Sync()
}

// RootsOwn gives a directory to root, with these permissions and no access control list.
func (s Store) RootsOwn(name string, mode fs.FileMode, step func(string) error) error {
	if step == nil {
		step = func(string) error { return nil }
	}
	d, err := s.directory(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	if err := thaw(d, step); err != nil {
		return err
	}
	if err := step("owner of " + name); err != nil {
		return err
	}
	for _, list := range []string{accessList, "system.posix_acl_default"} {
		if err := unix.Fremovexattr(int(d.Fd()), list); err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
			return &fs.PathError{Op: "access control list of", Path: name, Err: err}
		}
	}
	return errors.Join(d.Chown(0, 0), d.Chmod(mode.Perm()), d.Sync())
}

// disarming is one Disarm.
type disarming struct {
	step func(string) error
	left func(name string, why error)
}

func (w disarming) in(d *os.File, depth int) error {
	for {
		names, err := d.Readdirnames(batch)
		for _, n := range names {
			if err := w.entry(d, n, depth); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			w.left(d.Name(), err)
			return nil
		}
	}
}

func (w disarming) entry(d *os.File, name string, depth int) error {
	at := path.Join(d.Name(), name)
	var st unix.Stat_t
	if err := unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		w.left(at, err)
		return nil
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return w.file(d, name, st.Mode)
	case unix.S_IFDIR:
		if depth == maxDepth {
			w.left(at, errors.New("it lies too deep to be looked into"))
			return nil
		}
		fd, err := beneath(int(d.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			w.left(at, err)
			return nil
		}
		f := os.NewFile(uintptr(fd), at)
		defer f.Close()
		return w.in(f, depth+1)
	}
	return nil
}

// file takes them from a regular file. Nothing else of the system runs, so that the name
// is that file's until then.
func (w disarming) file(d *os.File, name string, mode uint32) error {
	here := fmt.Sprintf("%s/%s", handle(int(d.Fd())), name)
	_, err := unix.Lgetxattr(here, capability, nil)
	armed := !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP)
	if !armed && mode&(unix.S_ISUID|unix.S_ISGID) == 0 {
		return nil
	}
	if err := w.step("rights of " + name); err != nil {
		return err
	}
	disarm := func() error {
		if err := unix.Lremovexattr(here, capability); err != nil && armed && !errors.Is(err, unix.ENODATA) {
			return err
		}
		return unix.Fchmodat(int(d.Fd()), name, mode&0o1777, 0)
	}
	err = disarm()
	if err != nil && thawIn(d, name, w.step) {
		err = disarm()
	}
	if err != nil {
		w.left(path.Join(d.Name(), name), err)
	}
	return nil
}
