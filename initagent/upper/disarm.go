package upper

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"halogenos.internal/initagent/subvolume"
)

// maxDepth is how many directories within one another are looked into: each is held open.
// What lies deeper nobody but root reaches afterwards.
const maxDepth = 500

// disarmBatch is how many names of each of them are in memory: any user can make directories of
// millions within one another. What it goes through changes no names, so that it can be few.
const disarmBatch = 64

// maxLeft is how many places Disarm names, and maxLeftName how much of a name, in bytes: a
// user can make any number of them.
const (
	maxLeft     = 100
	maxLeftName = 256
)

// Disarm has no program in a directory run with more rights than those who start it: setuid
// and setgid bits of files go, and capabilities. It returns what it could not look into or
// change, as much as a person would read. What is not a directory is refused with ENOTDIR.
// more, if there is one, is called now and then with the number of files that it has
// looked at. Cut anywhere, the same call once more does the rest.
func (s Store) Disarm(name string, more func(looked int), step func(string) error) (left []string, err error) {
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
	w := &disarming{step: step, more: more}
	if err := w.in(d); err != nil {
		return w.said(), err
	}
	// All of it is on the disk when this returns: an fsync of the directory alone would leave
	// what was changed below it to a power cut.
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return w.said(), fmt.Errorf("flush what was disarmed: %w", err)
	}
	return w.said(), nil
}

// RootsOwn gives a directory to root, with these permissions and no access control list. What
// is not a directory is refused with ENOTDIR.
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
	return errors.Join(unlimited(int(d.Fd()), func() error { return giveToRoot(d, mode) }), d.Sync())
}

func giveToRoot(d *os.File, mode fs.FileMode) error {
	for _, list := range []string{accessList, "system.posix_acl_default"} {
		if err := unix.Fremovexattr(int(d.Fd()), list); err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
			return &fs.PathError{Op: "access control list of", Path: d.Name(), Err: err}
		}
	}
	return errors.Join(d.Chown(0, 0), d.Chmod(mode.Perm()))
}

// disarming is one Disarm.
type disarming struct {
	step   func(string) error
	more   func(looked int)
	looked int
	above  []frame // the directories that it is in, outermost first
	left   []string
	others int // that are not in left
}

// A frame is a directory, and whether it is a subvolume that was read-only until now.
type frame struct {
	*os.File
	released bool
}

// enter goes into a directory; the function that it returns leaves it, and makes it read-only
// again if it was: it may be somebody's backup. A cut before that leaves it writable.
func (w *disarming) enter(d *os.File) (leave func()) {
	w.above = append(w.above, frame{File: d})
	return func() {
		last := w.above[len(w.above)-1]
		w.above = w.above[:len(w.above)-1]
		if !last.released {
			return
		}
		if err := (subvolume.Hold{ReadOnly: true}).Restore(int(d.Fd())); err != nil {
			w.leave(d.Name(), fmt.Errorf("make the subvolume read-only again: %w", err))
		}
	}
}

func (w *disarming) leave(name string, why error) {
	if len(w.left) == maxLeft {
		w.others++
		return
	}
	if len(name) > maxLeftName {
		name = name[:maxLeftName/2] + "..." + name[len(name)-maxLeftName/2:]
	}
	w.left = append(w.left, fmt.Sprintf("%s: %v", name, why))
}

func (w *disarming) said() []string {
	if w.others == 0 {
		return w.left
	}
	return append(w.left, fmt.Sprintf("and %d other places", w.others))
}

func (w *disarming) in(d *os.File) error {
	defer w.enter(d)()
	for {
		names, err := d.Readdirnames(disarmBatch)
		for _, n := range names {
			if w.looked++; w.more != nil && w.looked%batch == 0 {
				w.more(w.looked)
			}
			if err := w.entry(d, n); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			w.leave(d.Name(), err)
			return nil
		}
	}
}

func (w *disarming) entry(d *os.File, name string) error {
	at := path.Join(d.Name(), name)
	var st unix.Stat_t
	if err := unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		w.leave(at, err)
		return nil
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return w.file(d, name, st.Mode)
	case unix.S_IFDIR:
		fd, err := beneath(int(d.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			w.leave(at, err)
			return nil
		}
		f := os.NewFile(uintptr(fd), at)
		defer f.Close()
		if len(w.above) > maxDepth {
			return w.shut(f)
		}
		return w.in(f)
	}
	return nil
}

// shut gives a directory to root alone: nobody else starts what lies below.
func (w *disarming) shut(d *os.File) error {
	if err := w.step("owner of " + d.Name()); err != nil {
		return err
	}
	w.leave(d.Name(), errors.New("it lies too deep to be looked into, and is root's alone now"))
	defer w.enter(d)()
	if err := w.thawed(func() error { return giveToRoot(d, 0o700) }, func() bool { return thaw(d, w.step) == nil }); err != nil {
		w.leave(d.Name(), err)
	}
	return nil
}

// file takes setuid, setgid and capabilities from a regular file. Nothing else of the system runs,
// so that the name stays that file's meanwhile.
func (w *disarming) file(d *os.File, name string, mode uint32) error {
	here := fmt.Sprintf("%s/%s", handle(int(d.Fd())), name)
	_, err := unix.Lgetxattr(here, capability, nil)
	armed := !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP)
	if !armed && mode&(unix.S_ISUID|unix.S_ISGID) == 0 {
		return nil
	}
	if err := w.step("rights of " + name); err != nil {
		return err
	}
	err = w.thawed(func() error {
		if err := unix.Lremovexattr(here, capability); err != nil && armed && !errors.Is(err, unix.ENODATA) {
			return err
		}
		return unix.Fchmodat(int(d.Fd()), name, mode&0o1777, 0)
	}, func() bool { return thawIn(d, name, w.step) })
	if err != nil {
		w.leave(path.Join(d.Name(), name), err)
	}
	return nil
}

// thawed calls change. Where that is refused, it takes away what may refuse it, and calls it again:
// limits, a read-only subvolume, which only its top directory tells, and then by own the flags of
// the file itself.
func (w *disarming) thawed(change func() error, own func() bool) error {
	do := func() error { return unlimited(int(w.above[0].Fd()), change) }
	err := do()
	if err != nil && w.release() {
		err = do()
	}
	if err != nil && own() {
		err = do()
	}
	return err
}

// release makes the innermost read-only subvolume that it is in writable, until that is left.
func (w *disarming) release() bool {
	for i := len(w.above) - 1; i >= 0; i-- {
		fd := int(w.above[i].Fd())
		if !subvolume.Held(fd).ReadOnly {
			continue
		}
		if unlimited(fd, func() error { return subvolume.Hold{ReadOnly: true}.Release(fd) }) != nil {
			return false
		}
		w.above[i].released = true
		return true
	}
	return false
}
