package changes

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/etcmerge"
)

// upper is an upper directory that has the pair's differences and nothing else, as package
// etcmerge reads one: the overlay's own cannot be seen.
type upper struct{ pair Pair }

var types = map[uint32]etcmerge.Type{
	unix.S_IFREG: etcmerge.Regular, unix.S_IFDIR: etcmerge.Directory, unix.S_IFLNK: etcmerge.Link, unix.S_IFCHR: etcmerge.CharDevice,
	unix.S_IFBLK: etcmerge.BlockDevice, unix.S_IFIFO: etcmerge.Pipe, unix.S_IFSOCK: etcmerge.Socket,
}

// Entry implements etcmerge.Tree.
func (u upper) Entry(path string) (etcmerge.Entry, error) {
	merged, image, err := u.pair.lookup(path)
	if err != nil {
		return etcmerge.Entry{}, err
	}
	defer merged.close()
	defer image.close()
	if merged == nil {
		return etcmerge.Entry{Type: etcmerge.Whiteout}, nil
	}
	differs, err := u.differs(path, merged, image)
	if err == nil && !differs {
		err = fmt.Errorf("%s: %w", Shown(path), fs.ErrNotExist) // the image's shows
	}
	if err != nil {
		return etcmerge.Entry{}, err
	}
	return merged.entry()
}

// differs reports whether the upper directory has an entry: one that differs, or a
// directory that holds one. A file that has other numbers than the image's has been copied up.
func (u upper) differs(path string, merged, image *node) (bool, error) {
	if path == "." {
		return true, nil
	}
	change, err := compareNodes(path, merged, image, owners{})
	if err != nil || change != nil || !merged.isDirectory() {
		return change != nil, err
	}
	names, err := u.Names(path)
	return len(names) > 0, err
}

func (n *node) entry() (e etcmerge.Entry, err error) {
	e = etcmerge.Entry{
		Type: types[n.format()], Mode: n.stat.Mode & 0o7777, UID: n.stat.Uid, GID: n.stat.Gid, ModTime: time.Unix(n.stat.Mtim.Unix()),
	}
	switch {
	case n.isFile():
		e.Size = n.stat.Size
	case n.isLink():
		if e.Target, err = n.link(); err != nil {
			return e, err
		}
	case e.Type == etcmerge.CharDevice || e.Type == etcmerge.BlockDevice:
		e.Rdev = n.stat.Rdev
	}
	e.Xattrs, err = n.xattrs()
	return e, err
}

// Names implements etcmerge.Tree.
func (u upper) Names(dir string) ([]string, error) {
	merged, image, err := u.pair.lookup(dir)
	if err != nil {
		return nil, err
	}
	defer merged.close()
	defer image.close()
	w := &walk{pair: u.pair, entries: maxEntries}
	names, err := w.both(merged, image)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", Shown(u.pair.join(dir)), err)
	}
	var differ []string
	for _, name := range names {
		switch _, err := u.Entry(joinRel(dir, name)); {
		case err == nil:
			differ = append(differ, name)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	return differ, nil
}

// Open implements etcmerge.Tree.
func (u upper) Open(path string) (io.ReadCloser, error) {
	n, err := below(u.pair.Merged, path)
	if err == nil && n == nil {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", Shown(path), err)
	}
	defer n.close()
	if !n.isFile() {
		return nil, fmt.Errorf("%s: it is a %s", Shown(path), n.kind())
	}
	return n.file()
}
