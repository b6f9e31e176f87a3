package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"halogenos.internal/boot/bounded"
)

const maxLinks = 40 // symbolic links followed on the way to a file, as in Linux

// errLinks says that symbolic links lead in a ring, or as good as.
var errLinks = fmt.Errorf("more than %d symbolic links", maxLinks)

// Resolve returns the name of the file that a path leads to inside the tree.
// An absolute symbolic link starts at the tree's top, as it will when the tree
// is the root.
func (t *Tree) Resolve(name string) (string, error) { return t.follow(name, false) }

// follow is Resolve, which may take a name that does not exist for itself: there it
// will be made.
func (t *Tree) follow(name string, missing bool) (string, error) {
	rest := strings.Split(strings.Trim(path.Clean("/"+name), "/"), "/")
	at := "."
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at) // the parent of "." is "."
			continue
		}
		next := path.Join(at, part)
		info, err := t.root.Lstat(next)
		if missing && errors.Is(err, fs.ErrNotExist) {
			at = next
			continue
		}
		if err != nil {
			return "", &fs.PathError{Op: "find", Path: "/" + strings.Trim(name, "/"), Err: errors.Unwrap(err)}
		}
		if info.Mode().Type() != fs.ModeSymlink {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("find %s: %w", name, errLinks)
		}
		target, err := t.root.Readlink(next)
		if err != nil {
			return "", fmt.Errorf("find %s: %w", name, err)
		}
		if strings.HasPrefix(target, "/") {
			at = "."
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return at, nil
}

// Open opens a regular file of the tree.
func (t *Tree) Open(name string) (*os.File, error) {
	at, err := t.Resolve(name)
	if err != nil {
		return nil, err
	}
	info, err := t.root.Lstat(at)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("/%s in the root file system is not a regular file", at)
	}
	return t.root.Open(at)
}

// ReadFile reads a regular file that may not have more than limit bytes.
func (t *Tree) ReadFile(name string, limit int64) ([]byte, error) {
	f, err := t.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := bounded.Read(f, limit)
	if err != nil {
		return nil, fmt.Errorf("read /%s of the root file system: %w", name, err)
	}
	return content, nil
}

// List returns the names in a directory of the tree, sorted; none when the
// directory does not exist.
func (t *Tree) List(name string) ([]string, error) {
	at, err := t.Resolve(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if t.dirs[at] == nil {
		return nil, nil
	}
	dir, err := t.root.Open(at)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list /%s of the root file system: %w", at, err)
	}
	slices.Sort(names)
	return names, nil
}

// Lstat describes a file without following it when it is a symbolic link. The
// directories above it are resolved as Resolve does.
func (t *Tree) Lstat(name string) (fs.FileInfo, error) {
	at, err := t.locate(name)
	if err != nil {
		return nil, err
	}
	return t.root.Lstat(at)
}

// locate resolves the directory of a name, but not the name itself.
func (t *Tree) locate(name string) (string, error) {
	dir, err := t.Resolve(path.Dir(path.Clean("/" + name)))
	if err != nil {
		return "", err
	}
	return path.Join(dir, path.Base(name)), nil
}

// AddFile adds a regular file of root's. The directories above it are made
// where they are missing.
func (t *Tree) AddFile(name string, content []byte, mode uint32, date time.Time) error {
	at, err := t.under(name)
	if err != nil {
		return err
	}
	e := Entry{Name: at, Kind: Regular, Mode: mode, ModTime: date, Size: int64(len(content))}
	return t.Put(e, strings.NewReader(string(content)))
}

// AddSymlink adds a symbolic link of root's with the given text. The directories
// above it are made where they are missing.
func (t *Tree) AddSymlink(name, target string, date time.Time) error {
	at, err := t.under(name)
	if err != nil {
		return err
	}
	return t.Put(Entry{Name: at, Kind: Symlink, Mode: 0o777, ModTime: date, Target: target}, nil)
}

// AddDirectory adds a directory of root's where nothing has its name, and
// reports whether it did.
func (t *Tree) AddDirectory(name string, mode uint32) (bool, error) {
	at, err := t.under(name)
	if err != nil {
		return false, err
	}
	if _, err := t.root.Lstat(at); err == nil {
		return false, nil
	}
	e := implied(at)
	e.Mode = mode
	return true, t.Put(*e, nil)
}

// under resolves as much of a name's directory as exists, so that what is
// added through /usr/sbin -> bin lands where the system will find it.
func (t *Tree) under(name string) (string, error) {
	dir, base := path.Split(strings.Trim(path.Clean("/"+name), "/"))
	var missing []string
	for dir = path.Clean("/" + dir); ; dir = path.Dir(dir) {
		at, err := t.Resolve(dir)
		if err == nil {
			return path.Join(append([]string{at}, append(missing, base)...)...), nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		missing = append([]string{path.Base(dir)}, missing...)
	}
}
