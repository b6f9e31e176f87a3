package upper

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"halogenos.internal/boot/etcmerge"
)

// What an overlay wrote whose kernel redirects renamed directories, and leaves the content
// of a file in the image whose mode alone changed (redirect and metacopy), means something
// over that image alone. So it is resolved against the image before: what comes out stands
// for itself. Without that image there is nothing to resolve it against, and it is left
// out. initagent mounts overlays that do neither; earlier releases left it to the kernel.

// overlaid interprets what the overlay has written into its upper directory.
func (t *tree) overlaid(path string, e *etcmerge.Entry, xattrs map[string]string) error {
	_, hides := xattrs[whiteout]
	_, split := xattrs[metacopy]
	switch {
	case e.Type == etcmerge.CharDevice && e.Rdev == 0, e.Type == etcmerge.Regular && e.Size == 0 && hides:
		if _, moved, err := t.shows(dir(path)); err != nil || moved {
			return missing(path, err) // a directory that comes whole has no whiteouts
		}
		*e = etcmerge.Entry{Type: etcmerge.Whiteout}
	case e.Type == etcmerge.Regular && split:
		content, err := t.content(path, xattrs)
		if err != nil {
			return err
		}
		e.Size = content.Size
	case e.Type == etcmerge.Directory:
		e.Opaque = xattrs[opaque] == "y"
		if _, there := xattrs[redirect]; !there {
			return nil
		}
		_, moved, err := t.shows(path)
		e.Opaque = e.Opaque || moved
		return err
	}
	return nil
}

// shows is the directory of the image before that shows through one of the upper
// directory. moved: it has another name there, or lies in one that has.
func (t *tree) shows(directory string) (below string, moved bool, err error) {
	if directory == "." {
		return ".", false, nil
	}
	if s, known := t.shown[directory]; known {
		return s.below, s.moved, nil
	}
	parent, moved, err := t.shows(dir(directory))
	if err != nil {
		return "", false, err
	}
	_, xattrs, err := t.raw(directory)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", false, err
	}
	below = path.Join(parent, path.Base(directory))
	target, redirected := xattrs[redirect]
	switch {
	case xattrs[opaque] == "y":
		moved = false
	case redirected:
		below, moved = t.moved(directory, parent, target)
	}
	if t.shown == nil {
		t.shown = map[string]showing{}
	}
	t.shown[directory] = showing{below, moved}
	return below, moved, nil
}

// showing is what shows remembers of a directory.
type showing struct {
	below string
	moved bool
}

// moved is the directory that a redirected one has in the image before. Where that is
// not known, the directory holds what the upper directory has.
func (t *tree) moved(directory, parent, target string) (string, bool) {
	below, err := follow(parent, target)
	if err == nil {
		err = t.below(below, etcmerge.Directory)
	}
	if err != nil {
		t.leave(directory, fmt.Sprintf("it is a directory of the image before under another name, whose content is left out: %v", err))
		return path.Join(parent, path.Base(directory)), false
	}
	return below, true
}

// follow is the path that a redirect leads to: from the top, or beside its own.
func follow(parent, target string) (string, error) {
	below, fromTop := strings.CutPrefix(target, "/")
	if !fromTop {
		if below = path.Join(parent, target); strings.Contains(target, "/") {
			return "", fmt.Errorf("it leads to %q", target)
		}
	}
	if !fs.ValidPath(below) || below == "." || len(below) > maxPath {
		return "", fmt.Errorf("it leads to %.100q", target)
	}
	return below, nil
}

var errNoImage = errors.New("that image cannot be had")

// below checks what the image before has at a path.
func (t *tree) below(name string, want etcmerge.Type) error {
	if t.lower == nil {
		return errNoImage
	}
	e, err := t.lower.Entry(name)
	if err == nil && e.Type != want {
		err = errors.New("that image has something else there")
	}
	return err
}

// contentOf is the path in the image before of a file that has its content there.
func (t *tree) contentOf(name string, xattrs map[string]string) (string, error) {
	parent, _, err := t.shows(dir(name))
	if err != nil {
		return "", err
	}
	target, there := xattrs[redirect]
	if !there {
		return path.Join(parent, path.Base(name)), nil
	}
	return follow(parent, target)
}

// content is that file; one that is not there is left out.
func (t *tree) content(name string, xattrs map[string]string) (etcmerge.Entry, error) {
	below, err := t.contentOf(name, xattrs)
	if err == nil {
		err = t.below(below, etcmerge.Regular)
	}
	if err != nil {
		t.leave(name, fmt.Sprintf("left out: its content is in the image before: %v", err))
		return etcmerge.Entry{}, missing(name, nil)
	}
	e, err := t.lower.Entry(below)
	return e, ofBaseErr(err)
}

// entryBelow is what a directory that was moved has of the image before.
func (t *tree) entryBelow(name string) (etcmerge.Entry, error) {
	below, moved, err := t.shows(dir(name))
	if err != nil || !moved {
		return etcmerge.Entry{}, missing(name, err)
	}
	e, err := t.lower.Entry(path.Join(below, path.Base(name)))
	return e, ofBaseErr(err)
}

// namesBelow are the names that it has of the image before.
func (t *tree) namesBelow(directory string) (names []string, moved bool, err error) {
	below, moved, err := t.shows(directory)
	if err != nil || !moved || t.below(below, etcmerge.Directory) != nil {
		return nil, false, err
	}
	names, err = t.lower.Names(below)
	return names, true, ofBaseErr(err)
}

// openBelow reads the content that a file of the upper directory has in the image before.
func (t *tree) openBelow(name string) (io.ReadCloser, error) {
	_, xattrs, err := t.raw(name)
	below := ""
	switch _, split := xattrs[metacopy]; {
	case err == nil && split:
		below, err = t.contentOf(name, xattrs)
	case err == nil:
		return nil, nil
	case errors.Is(err, fs.ErrNotExist):
		var moved bool
		if below, moved, err = t.shows(dir(name)); err == nil && !moved {
			err = missing(name, nil)
		}
		below = path.Join(below, path.Base(name))
	}
	if err != nil {
		return nil, err
	}
	if t.lower == nil {
		return nil, missing(name, nil)
	}
	f, err := t.lower.Open(below)
	if err != nil {
		return nil, ofBaseErr(err)
	}
	return ofBase{f}, nil
}

func missing(name string, err error) error {
	if err != nil {
		return err
	}
	return &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// ofBaseErr marks an error of reading the image before.
func ofBaseErr(err error) error {
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return fmt.Errorf("%w: %w", etcmerge.ErrBase, err)
}

func dir(name string) string { return path.Dir(name) }
