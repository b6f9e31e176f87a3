package main

import (
	"os"
	"path/filepath"
)

// within is a command of a Debian tree, run in it; without root's rights in a
// user namespace.
func within(root, tool string, args ...string) []string {
	argv := append([]string{"chroot", root, tool}, args...)
	if os.Geteuid() != 0 {
		argv = append([]string{"unshare", "--map-root-user"}, argv...)
	}
	return append([]string{"env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"}, argv...)
}

// A room is a directory for files of a tree's commands. The bench removes it at
// its end.
type room struct{ host, inside string }

func (b *bench) room(root string) (room, error) {
	host, err := os.MkdirTemp(filepath.Join(root, "tmp"), "bench-")
	if err != nil {
		return room{}, err
	}
	b.rooms = append(b.rooms, host)
	return room{host, "/tmp/" + filepath.Base(host)}, nil
}

// put writes a file and returns its path as the tree's commands see it.
func (r room) put(name string, content []byte) (string, error) {
	return filepath.Join(r.inside, name), os.WriteFile(filepath.Join(r.host, name), content, 0o644)
}
