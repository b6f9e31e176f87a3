package upper

import (
	"errors"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"halogenos.internal/initagent/subvolume"
)

// Root of the running system can keep even root from changing something: by a flag (chattr +i
// and +a), which is EPERM, and by a read-only subvolume, which is EROFS. In the directories
// that systems share that is the owner's word, and stays ([maker.bind]). In what the boot alone
// writes, and in what is to go, it would undo each cure at each start, and gives way. So does a
// limit of btrfs (a quota), which is EDQUOT for root, too, for as good as any change.

// Unfrozen does something to names of the root partition, whether or not they are there yet.
// Where a flag, a read-only subvolume or a limit refuses it, these are taken away, and it is done
// once more: do must bear being done twice. Cut in between, nothing but these is gone, and the
// same call goes on.
func (s Store) Unfrozen(do func() error, names ...string) error {
	err := s.unlimited(do)
	if !refused(err) {
		return err
	}
	for _, name := range names {
		s.thaw(name)
	}
	return s.unlimited(do)
}

// unlimited is the function unlimited, for the file system of the root partition.
func (s Store) unlimited(do func() error) error {
	top, err := s.directory(".")
	if err != nil {
		return do()
	}
	defer top.Close()
	return unlimited(int(top.Fd()), do)
}

// unlimited calls do. Where a limit of btrfs refuses it, it ends the limits and calls do once more.
func unlimited(fd int, do func() error) error {
	err := do()
	if errors.Is(err, unix.EDQUOT) && subvolume.Unlimit(fd) == nil {
		err = do()
	}
	return err
}

// thaw does [thawIn] with a name, or with the last directory on the way to it that is there.
// An error is not returned: what is done afterwards fails then, and says why.
func (s Store) thaw(name string) {
	for {
		d, err := s.directory(path.Dir(name))
		if errors.Is(err, fs.ErrNotExist) && name != "." {
			name = path.Dir(name)
			continue
		}
		if err == nil {
			thawIn(d, path.Base(name), func(string) error { return nil })
			d.Close()
		}
		return
	}
}

// unfrozen is [Store.Unfrozen] for one name in an open directory.
func unfrozen(parent *os.File, name string, step func(string) error, do func() error) error {
	err := unlimited(int(parent.Fd()), do)
	if refused(err) && thawIn(parent, name, step) {
		err = unlimited(int(parent.Fd()), do)
	}
	return err
}

func refused(err error) bool { return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EROFS) }

// thaw takes away what keeps even root from changing or removing an open file or directory:
// flags, and that it is a read-only subvolume.
func thaw(f *os.File, step func(string) error) error {
	return release(int(f.Fd()), subvolume.Held(int(f.Fd())), f.Name(), step)
}

func release(fd int, held subvolume.Hold, name string, step func(string) error) error {
	if held == (subvolume.Hold{}) {
		return nil
	}
	if err := step("flags of " + name); err != nil {
		return err
	}
	return unlimited(fd, func() error { return held.Release(fd) })
}

// thawIn does that with the subvolume around a directory, with the directory, and with what has
// a name there, and reports whether it is worth another attempt. In a read-only subvolume no
// flag can be changed, so that it comes first.
func thawIn(parent *os.File, name string, step func(string) error) bool {
	around := thawAround(parent, step)
	own := thawName(parent, name, step)
	return thaw(parent, step) == nil && around == nil || own == nil
}

// thawAround makes the subvolume that a directory lies in writable. Only its top directory says
// that it is not.
func thawAround(d *os.File, step func(string) error) error {
	f, err := reopen(d)
	for range unix.PathMax { // no way up is longer
		if err != nil {
			return err
		}
		fd := int(f.Fd())
		btrfs, err := subvolume.Supported(fd)
		if err != nil || !btrfs {
			return errors.Join(err, f.Close())
		}
		if kind, err := subvolume.Look(fd, "."); err != nil || kind == subvolume.Subvolume {
			held := subvolume.Hold{ReadOnly: subvolume.Held(fd).ReadOnly}
			return errors.Join(err, release(fd, held, "the subvolume of "+d.Name(), step), f.Close())
		}
		up, err := unix.Openat(fd, "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		f.Close()
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(up), d.Name())
	}
	return f.Close()
}

// thawName does it with a file or directory that has a name.
func thawName(parent *os.File, name string, step func(string) error) error {
	fd, err := beneath(int(parent.Fd()), name, unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return unix.EPERM // it has none, and opening a device or a pipe does something
	}
	f, err := os.Open(handle(fd))
	if err != nil {
		return err
	}
	defer f.Close()
	return thaw(f, step)
}
