package changes

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/stateconf"
)

// ErrNoOverlay says that nothing lies over the image's directories.
var ErrNoOverlay = errors.New("this system's state.conf lays nothing over the image's directories, so nothing can differ from it (see state.conf(5))")

// Linux opens what state.conf lays over the running system's image. The caller closes it.
func Linux() (*Machine, error) { return at("/") }

// at is Linux for a system at root.
//
// The image's directories are under the overlays. A copy of the mount at the root alone
// (open_tree(2), Linux 5.2) has nothing mounted in it, so they are all there; a copy of an
// overlay's mount is without what may be mounted over single files of it.
func at(root string) (*Machine, error) {
	image, err := mountAt(root)
	if err != nil {
		return nil, err
	}
	defer image.Close()
	entries, err := state(image)
	if err != nil {
		return nil, err
	}
	m := New()
	for _, e := range entries {
		if e.Mode != stateconf.Overlay {
			continue
		}
		p, err := pairAt(root, image, e.Path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the image does not have it, so nothing lies over it
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("state directory %s: %w", e.Path, err), m.Close())
		}
		m.Pairs = append(m.Pairs, p)
	}
	if len(m.Pairs) == 0 {
		return nil, ErrNoOverlay
	}
	return m, nil
}

// mountAt is a copy of the mount that a path lies in, from that path on.
func mountAt(path string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return nil, fmt.Errorf("look under what is mounted at %s (open_tree): %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

func pairAt(root string, image *os.File, path string) (Pair, error) {
	lower, err := unix.Openat2(int(image.Fd()), strings.TrimPrefix(path, "/"), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return Pair{}, err
	}
	p := Pair{Path: path, Image: os.NewFile(uintptr(lower), path)}
	if p.Merged, err = mountAt(filepath.Join(root, path)); err != nil {
		p.Image.Close()
		return Pair{}, err
	}
	return p, nil
}

// state reads the image's state.conf.
func state(image *os.File) ([]stateconf.Entry, error) {
	n, err := open(image, stateconf.Path)
	if err != nil {
		return nil, err
	}
	defer n.close()
	if n == nil {
		return stateconf.Parse([]byte(stateconf.Default))
	}
	f, err := n.file()
	if err != nil {
		return nil, fmt.Errorf("/%s: %w", stateconf.Path, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, stateconf.MaxSize+1))
	if err != nil {
		return nil, err
	}
	return stateconf.Parse(text)
}
