package rootfs

import (
	"bytes"
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
			if lists := t.acls[from]; lists != nil {
				t.acls[e.Name] = lists // it may be the only name that is left
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
	e, err := t.describe(from)
	if err != nil {
		return err
	}
	e.Name = to
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

// Replace gives a regular file another content, and leaves all else as it is.
func (t *Tree) Replace(name string, content []byte) error {
	at, err := t.Resolve(name)
	if err != nil {
		return err
	}
	e, err := t.describe(at)
	if err != nil {
		return err
	}
	if e.Kind != Regular {
		return fmt.Errorf("/%s in the root file system is not a regular file", at)
	}
	e.Size = int64(len(content))
	return t.Put(e, bytes.NewReader(content))
}

// describe returns what a file of the tree has.
func (t *Tree) describe(name string) (Entry, error) {
	info, err := t.root.Lstat(name)
	if err != nil {
		return Entry{}, err
	}
	e := entryOf(info)
	e.Name, e.ACLs = name, t.acls[name]
	if e.Kind == Symlink {
		if e.Target, err = t.root.Readlink(name); err != nil {
			return e, err
		}
	}
	e.Xattrs, err = readXattrs(filepath.Join(t.dir, name))
	return e, err
}
