package upper

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Names lists a directory of the root partition. One that is not there has none.
func (s Store) Names(name string) ([]string, error) {
	f, err := s.directory(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// Discard removes a directory with all that is in it. It is renamed before: cut before
// that, it is whole; cut after it, it is gone, and what is left of it has a name that
// nothing looks for, and goes when a system's directory is made or removed again. That
// goes, too, for what a damaged file system does not let go: it takes room, and what comes
// next does not depend on it. [Store.Carry] reports it each time.
func (s Store) Discard(name string, step func(string) error) error {
	if step == nil {
		step = func(string) error { return nil }
	}
	parent, err := s.directory(path.Dir(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	gone, err := aside(parent, path.Base(name), step)
	if errors.Is(err, fs.ErrNotExist) {
		return sweep(parent, step, func(string, error) {})
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	if err := parent.Sync(); err != nil {
		return fmt.Errorf("remove %s: %w", gone, err)
	}
	return sweep(parent, step, func(string, error) {})
}

// Erase removes what has a name, and all that is in it, from where it is: cut within, a part of
// it is left, and the same call removes that.
func (s Store) Erase(name string) error {
	parent, err := s.directory(path.Dir(name))
	if err != nil {
		return err
	}
	defer parent.Close()
	return remove(parent, path.Base(name), func(string) error { return nil })
}

// plainAsides is how many names [aside] tries in their order. Root of the running system can have
// taken any number of those, and nothing would lose its name any more: the next ones are random.
const plainAsides = 8

// aside gives an entry a name that is not looked for, beside what has such a name already.
func aside(parent *os.File, name string, step func(string) error) (string, error) {
	fd := int(parent.Fd())
	for n := 1; ; n++ {
		to := asideName(name, uint64(n))
		if n > plainAsides {
			to = asideName(name, rand.Uint64())
		}
		if err := step("rename " + name); err != nil {
			return "", err
		}
		err := unfrozen(parent, name, step, func() error { return unix.Renameat2(fd, name, fd, to, unix.RENAME_NOREPLACE) })
		if !errors.Is(err, unix.EEXIST) || n == 1000 {
			return to, err
		}
	}
}

// asideName is the n-th name for it, with as much of its own as a name takes.
func asideName(name string, n uint64) string {
	ending := unfinished
	if n > 1 {
		ending = fmt.Sprintf(".%d%s", n, unfinished)
	}
	name = strings.TrimSuffix(name, unfinished)
	return name[:min(len(name), unix.NAME_MAX-len(ending))] + ending
}

// sweep removes what was not finished in a directory, whosever it was. It reports what
// does not go, and fails where it cannot go on.
func sweep(parent *os.File, step func(string) error, stays func(name string, why error)) error {
	f, err := reopen(parent)
	if err != nil {
		return err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	for _, n := range names {
		if !strings.HasSuffix(n, unfinished) {
			continue
		}
		err := remove(parent, n, step)
		if errno := unix.Errno(0); err != nil && !errors.As(err, &errno) {
			return err // of a step
		}
		if err != nil {
			stays(n, err)
		}
	}
	return err
}

// reopen is a directory once more, to be read from its beginning.
func reopen(directory *os.File) (*os.File, error) {
	fd, err := beneath(int(directory.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY)
	return os.NewFile(uintptr(fd), directory.Name()), err
}

func (s Store) directory(name string) (*os.File, error) {
	root, err := unix.Open(s.Root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", s.Root, err)
	}
	defer unix.Close(root)
	fd, err := beneath(root, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// remove removes a name of a directory, and all below it, without following a link. No
// immutable or append-only flag (chattr), and no read-only subvolume, keeps anything here.
func remove(parent *os.File, name string, step func(string) error) error {
	r := &removal{parent: parent, step: step}
	return r.entry(parent, name, 0)
}

// maxOpen is how many directories within one another a removal holds open: what lies
// deeper is moved up before it goes.
const maxOpen = 32

// removal is one remove.
type removal struct {
	parent *os.File
	top    *os.File // the directory that goes
	moved  int
	gone   int // how many names are
	step   func(string) error
}

func (r *removal) entry(parent *os.File, name string, depth int) error {
	fd := int(parent.Fd())
	var st unix.Stat_t
	err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "remove", Path: name, Err: err}
	}
	flags := 0
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		flags = unix.AT_REMOVEDIR
		if depth >= maxOpen && r.moveUp(parent, name) == nil {
			r.gone++
			return nil
		}
		if err := r.below(parent, name, depth); err != nil {
			return err
		}
	}
	if err := r.step("remove " + name); err != nil {
		return err
	}
	err = unfrozen(parent, name, r.step, func() error { return unix.Unlinkat(fd, name, flags) })
	if err != nil {
		return &fs.PathError{Op: "remove", Path: name, Err: err}
	}
	r.gone++
	return nil
}

// moveUp moves a directory to the top of what goes, which is gone through until it is
// empty. Where that fails, as over the border of a subvolume, it goes where it is.
func (r *removal) moveUp(parent *os.File, name string) error {
	for {
		if err := r.step("move " + name); err != nil {
			return err
		}
		r.moved++
		to := fmt.Sprintf("%d%s", r.moved, unfinished)
		err := unfrozen(parent, name, r.step, func() error {
			return unix.Renameat2(int(parent.Fd()), name, int(r.top.Fd()), to, unix.RENAME_NOREPLACE)
		})
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
}

func (r *removal) below(parent *os.File, name string, depth int) error {
	fd, err := beneath(int(parent.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if depth == 0 {
		r.top = f
	}
	if err := thaw(f, r.step); err != nil {
		return &fs.PathError{Op: "remove", Path: name, Err: err}
	}
	for {
		gone := r.gone
		read, err := r.each(f, depth)
		if err != nil || r.gone == gone || read <= batch && (depth > 0 || r.moved == 0) {
			return err
		}
		// What was moved up while this was read, or what the file system has passed over,
		// since others went meanwhile.
		if depth == 0 {
			r.moved = 0
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
}

// batch is how many names of a directory are in memory: one may have millions.
const batch = 4096

// each removes what a directory names from where it is read on, and returns how many that were.
func (r *removal) each(f *os.File, depth int) (read int, err error) {
	for {
		names, err := f.Readdirnames(batch)
		read += len(names)
		for _, n := range names {
			if err := r.entry(f, n, depth+1); err != nil {
				return read, err
			}
		}
		if errors.Is(err, io.EOF) {
			return read, nil
		}
		if err != nil {
			return read, err
		}
	}
}
