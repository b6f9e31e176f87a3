package rootfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
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
		return fmt.Errorf("hard link to %q, which is not a file of the tree", target)
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
	return t.ReplaceAs(at, at, content)
}

// ReplaceAs gives a regular file another content and another name, which no file has.
// Both names are those without symbolic links.
func (t *Tree) ReplaceAs(at, name string, content []byte) error {
	if err := t.free(at, name); err != nil {
		return err
	}
	e, err := t.describe(at)
	if err != nil {
		return err
	}
	if e.Kind != Regular {
		return fmt.Errorf("/%s in the root file system is not a regular file", at)
	}
	e.Name, e.Size = name, int64(len(content))
	if err := t.Put(e, bytes.NewReader(content)); err != nil || name == at {
		return err
	}
	return t.Remove(at)
}

// RenameLink renames a symbolic link and what it leads to by the same rule.
func (t *Tree) RenameLink(at string, rule func(string) string) error {
	name := rule(at)
	if err := t.free(at, name); err != nil {
		return err
	}
	e, err := t.describe(at)
	if err != nil {
		return err
	}
	e.Name, e.Target = name, rule(e.Target)
	if err := t.Put(e, nil); err != nil || name == at {
		return err
	}
	return t.Remove(at)
}

// free refuses a new name that a file has.
func (t *Tree) free(at, name string) error {
	if _, err := t.root.Lstat(name); name != at && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(fmt.Errorf("/%s and /%s are both in the root file system: take one of them out", at, name), err)
	}
	return nil
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

// Adopt gives a directory the owner, the mode, the time and the attributes that it has in
// another tree. One that is not in both stays as it is.
func (t *Tree) Adopt(name string, from *Tree) error {
	name, err := cleanName(name)
	if err != nil {
		return err
	}
	theirs := from.dirs[name]
	if t.dirs[name] == nil || theirs == nil {
		return nil
	}
	e := *theirs
	e.Xattrs = maps.Clone(theirs.Xattrs)
	t.dirs[name] = &e
	delete(t.acls, name) // theirs are resolved
	return nil
}
