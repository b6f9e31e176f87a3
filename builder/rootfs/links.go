package rootfs

import (
	"fmt"
	"path"
	"path/filepath"
	"syscall"
)

const maxCopies = 1000 // of one file

// link gives a file one more name. The file systems that trees are made on bound
// how many a file can have; the name after the last is a copy's, which in a
// file system that nobody writes to is as good.
func (t *Tree) link(e Entry) error {
	target, err := cleanName(e.Target)
	if err != nil {
		return fmt.Errorf("hard link to %w", err)
	}
	if t.dirs[path.Dir(target)] == nil || t.dirs[target] != nil {
		return fmt.Errorf("hard link to %q, which is no file of the tree", target)
	}
	for from, hops := target, 0; ; hops++ {
		info, err := t.root.Lstat(from)
		if err != nil {
			return fmt.Errorf("hard link to %q: %w", target, err)
		}
		stat := info.Sys().(*syscall.Stat_t)
		if stat.Nlink < t.maxNames {
			if err := t.root.Link(from, e.Name); err != nil {
				return fmt.Errorf("hard link to %q: %w", target, err)
			}
			return nil
		}
		next, ok := t.copies[stat.Ino]
		if _, err := t.root.Lstat(next); !ok || err != nil || hops == maxCopies { // one may have been removed or replaced since
			t.copies[stat.Ino] = e.Name
			if err := t.duplicate(target, e.Name); err != nil {
				return fmt.Errorf("copy of %q, which has %d names: %w", target, t.maxNames, err)
			}
			return nil
		}
		from = next
	}
}

// duplicate makes a second file out of one, with all that it has.
func (t *Tree) duplicate(from, to string) error {
	info, err := t.root.Lstat(from)
	if err != nil {
		return err
	}
	e := entryOf(info)
	e.Name = to
	if e.Kind == Symlink {
		if e.Target, err = t.root.Readlink(from); err != nil {
			return err
		}
	}
	if e.Xattrs, err = readXattrs(filepath.Join(t.dir, from)); err != nil {
		return err
	}
	if acls := t.acls[from]; acls != nil {
		e.ACLs = acls
	}
	if e.Kind != Regular {
		return t.putFile(e, nil)
	}
	f, err := t.root.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	return t.putFile(e, f)
}
