package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/stateconf"
)

// plainDirectories are where the boot mounts from the initramfs, in which a
// link would lead elsewhere.
var plainDirectories = []string{"dev", "etc", "proc", "run", "sys", "usr", "var"}

// stateModes are the modes of state directories that a link leads to and that
// are not there yet; 0755 for others.
var stateModes = map[string]uint32{"/root": 0o700, "/tmp": 0o1777}

// checkPlain refuses a tree in which one of them is something else.
func (t *Tree) checkPlain() error {
	for _, name := range plainDirectories {
		info, err := t.root.Lstat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		case info.Mode().Type() == fs.ModeSymlink:
			target, err := t.root.Readlink(name)
			if err != nil {
				return err
			}
			return fmt.Errorf("/%s is a symbolic link to %q: the boot needs a directory there, so move what it leads to to /%[1]s, and make that one the link", name, target)
		case !info.IsDir():
			return fmt.Errorf("/%s is not a directory: the boot needs one there", name)
		}
	}
	return nil
}

// adoptEtc moves ostree's /usr/etc, of which each machine would make its /etc,
// to /etc. One beside an /etc that has something in it stays where it is.
func (t *Tree) adoptEtc(date time.Time) ([]string, error) {
	if t.dirs["usr/etc"] == nil {
		return nil, nil
	}
	if inside, err := t.List("usr/etc"); err != nil || len(inside) == 0 {
		return nil, err
	}
	at, _, err := t.reach("etc")
	if err != nil {
		return nil, err
	}
	if at == "etc" {
		have, err := t.List("etc")
		if err != nil || len(have) > 0 {
			return nil, err
		}
	} else if at != "usr/etc" {
		return nil, nil // checkPlain refuses it
	}
	if _, err := t.root.Lstat("etc"); err == nil {
		if err := t.Remove("etc"); err != nil {
			return nil, err
		}
	}
	if err := t.rename("usr/etc", "etc"); err != nil {
		return nil, fmt.Errorf("move /usr/etc to /etc: %w", err)
	}
	if err := t.AddSymlink("usr/etc", "../etc", date); err != nil {
		return nil, err
	}
	return []string{"moved /usr/etc to /etc, as ostree does on each machine"}, nil
}

// rename moves a directory to a name that nothing has.
func (t *Tree) rename(from, to string) error {
	if err := errors.Join(t.leave(), t.root.Rename(from, to)); err != nil {
		return err
	}
	moved := make(map[string]*Entry)
	for name, e := range t.dirs {
		if name == from || strings.HasPrefix(name, from+"/") {
			e.Name = to + strings.TrimPrefix(name, from)
			moved[e.Name] = e
			delete(t.dirs, name)
		}
	}
	maps.Copy(t.dirs, moved)
	return nil
}

// reach is Resolve, but goes on where nothing is: it returns where a file would
// come to lie, and whether there is one.
func (t *Tree) reach(name string) (string, bool, error) {
	rest := strings.Split(strings.Trim(path.Clean("/"+name), "/"), "/")
	at, exists := ".", true
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, part)
		info, err := t.root.Lstat(next)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			at, exists = next, false
			continue
		case errors.Is(err, unix.ENOTDIR):
			return "", false, fmt.Errorf("/%s is not a directory", at)
		case err != nil:
			return "", false, err
		case info.Mode().Type() != fs.ModeSymlink:
			at, exists = next, true
			continue
		}
		if links++; links > maxLinks {
			return "", false, fmt.Errorf("/%s leads through more than %d symbolic links", strings.Trim(name, "/"), maxLinks)
		}
		target, err := t.root.Readlink(next)
		if err != nil {
			return "", false, err
		}
		if strings.HasPrefix(target, "/") {
			at = "."
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return at, exists, nil
}

// completeState sees that there is a state.conf and that its directories exist.
// Where the tree has a link in place of one that every image keeps, what it
// leads to is kept: ostree and bootc have /home -> var/home. In a state.conf of
// the distributor's a link is a mistake.
func (t *Tree) completeState(date time.Time) ([]string, error) {
	text, err := t.ReadFile(stateconf.Path, stateconf.MaxSize)
	own := !errors.Is(err, fs.ErrNotExist)
	if own && err != nil {
		return nil, fmt.Errorf("state.conf: %w", err)
	}
	if !own {
		text = []byte(stateconf.Default)
	}
	entries, err := stateconf.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("/%s: %w", stateconf.Path, err)
	}
	lines := string(text)
	var notes []string
	for _, e := range entries {
		to, err := t.stateDirectory(e)
		if err != nil {
			return nil, fmt.Errorf("state directory %s: %w", e.Path, err)
		}
		if to == e.Path {
			continue
		}
		line := fmt.Sprintf("%s %s", e.Mode, e.Path)
		keeper := keeperOf(entries, e, to)
		switch {
		case own && keeper != "":
			return nil, fmt.Errorf("/%s has the line %q, but %s leads to %s, which lies in %s and is kept with it: remove the line", stateconf.Path, line, e.Path, to, keeper)
		case own:
			return nil, fmt.Errorf("/%s has the line %q, but %s is a link that leads to %s: name that", stateconf.Path, line, e.Path, to)
		case keeper != "":
			lines = strings.Replace(lines, line+"\n", fmt.Sprintf("# %s leads to %s, which is kept with %s\n", e.Path, to, keeper), 1)
			notes = append(notes, fmt.Sprintf("%s leads to %s, which is kept with %s", e.Path, to, keeper))
		default:
			lines = strings.Replace(lines, line+"\n", fmt.Sprintf("%s %s\n", e.Mode, to), 1)
			notes = append(notes, fmt.Sprintf("%s leads to %s, which is kept", e.Path, to))
		}
	}
	if own {
		return nil, nil
	}
	if _, err := stateconf.Parse([]byte(lines)); err != nil {
		return nil, fmt.Errorf("a directory that machines keep is a link to where nothing can be kept: %w", err)
	}
	return notes, t.AddFile(stateconf.Path, []byte(lines), 0o644, date)
}

// keeperOf returns the other entry's directory that a place lies in; empty for
// none.
func keeperOf(entries []stateconf.Entry, e stateconf.Entry, place string) string {
	for _, other := range entries {
		if other.Path != e.Path && (place == other.Path || strings.HasPrefix(place, other.Path+"/")) {
			return other.Path
		}
	}
	return ""
}

// stateDirectory returns where a state directory lies in the end, and makes it
// where it is missing.
func (t *Tree) stateDirectory(e stateconf.Entry) (string, error) {
	at, exists, err := t.reach(e.Path)
	if err != nil {
		return "", fmt.Errorf("%w: make it a directory", err)
	}
	if exists {
		if t.dirs[at] == nil {
			return "", fmt.Errorf("/%s is a file: make it a directory, or write a /%s that does not name it", at, stateconf.Path)
		}
		return "/" + strings.TrimPrefix(at, "."), nil
	}
	mode := uint32(0o755)
	if m, ok := stateModes[e.Path]; ok {
		mode = m
	}
	_, err = t.AddDirectory(at, mode)
	return "/" + at, err
}
