package main

import (
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/etcmerge"
)

// directory is a directory of files and directories, for a merge.
type directory struct{ root string }

func (d directory) Entry(path string) (etcmerge.Entry, error) {
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(d.root, path), &st); err != nil {
		return etcmerge.Entry{}, err
	}
	e := etcmerge.Entry{Type: etcmerge.Directory, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		e.Type, e.Size = etcmerge.Regular, st.Size
	}
	return e, nil
}

func (d directory) Names(dir string) ([]string, error) {
	all, err := os.ReadDir(filepath.Join(d.root, dir))
	var names []string
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names, err
}

func (d directory) Open(path string) (io.ReadCloser, error) {
	return os.Open(filepath.Join(d.root, path))
}
