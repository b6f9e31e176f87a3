package upper

import (
	"errors"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/etcmerge"
)

// placing is an entry that gets its place in a tree.
type placing struct {
	name    string
	entry   etcmerge.Entry
	from    *tree // has the content of a file
	step    func(string) error
	leftOut func(path, why string)
}

// put makes an entry of a tree, which is complete when it has its name. It is made in a
// directory of its file system where nobody else can write.
func put(all *os.File, own *tree, p placing) error {
	fd, err := beneath(own.fd, path.Dir(p.name), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	parent := os.NewFile(uintptr(fd), path.Dir(p.name))
	defer parent.Close()
	err = putBy(all, temporary, parent, p)
	if errors.Is(err, unix.EXDEV) {
		err = putBy(parent, beside, parent, p)
	}
	return err
}

// putBy makes an entry under a name in a directory, and moves it.
func putBy(where *os.File, as string, parent *os.File, p placing) error {
	if err := remove(where, as, p.step); err != nil {
		return err
	}
	var content io.Reader
	if p.entry.Type == etcmerge.Regular {
		file, err := p.from.Open(p.name)
		if err != nil {
			return err
		}
		defer file.Close()
		content = file
	}
	fd := int(where.Fd())
	w := newWriter(fd, p.step, p.leftOut)
	w.path = p.name
	err := w.node(fd, as, p.entry, content)
	if err == nil {
		err = w.attributes(fd, as, p.entry)
	}
	if err == nil && p.entry.Type == etcmerge.Regular {
		// The rename may reach the disk before the content does.
		if err = p.step("flush " + as); err == nil {
			err = flush(fd, as)
		}
	}
	if err == nil {
		err = p.step("rename " + p.name)
	}
	if err == nil {
		err = unix.Renameat(fd, as, int(parent.Fd()), path.Base(p.name))
	}
	if err != nil {
		return errors.Join(err, remove(where, as, p.step))
	}
	return nil
}

func flush(parent int, name string) error {
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fsync(fd), unix.Close(fd))
}
