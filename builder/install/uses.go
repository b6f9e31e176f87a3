package install

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/words"
)

// parts are a disk and its partitions: their names by their device numbers.
func (l Linux) parts(disk string) (map[string]string, error) {
	parts := map[string]string{}
	if number := l.text(filepath.Join("block", disk, "dev")); number != "" {
		parts[number] = disk
	}
	entries, err := os.ReadDir(filepath.Join(l.Sys, "block", disk))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if number := l.text(filepath.Join("block", disk, e.Name(), "dev")); number != "" && strings.HasPrefix(e.Name(), disk) {
			parts[number] = e.Name()
		}
	}
	return parts, nil
}

// Holds reports whether a file lies on a disk, or is one of its partitions, as far as
// the kernel tells: by its device, what that is built upon, or what was mounted.
func (l Linux) Holds(disk, file string) bool {
	var s unix.Stat_t
	real, err := filepath.EvalSymlinks(disk)
	if err != nil || unix.Stat(file, &s) != nil {
		return false
	}
	parts, err := l.parts(filepath.Base(real))
	if err != nil {
		return false
	}
	device := s.Dev
	if s.Mode&unix.S_IFMT == unix.S_IFBLK {
		device = s.Rdev
	}
	number := fmt.Sprintf("%d:%d", unix.Major(device), unix.Minor(device))
	if l.builtOn(filepath.Join("dev/block", number), parts, 8) || parts[number] != "" {
		return true
	}
	mounts, err := l.mounts()
	return err == nil && slices.ContainsFunc(mounts, func(m mount) bool {
		return m.number == number && l.builtOn(filepath.Join("class/block", filepath.Base(m.source)), parts, 8)
	})
}

// builtOn reports whether a device is one of the parts, or is built upon one.
func (l Linux) builtOn(device string, parts map[string]string, depth int) bool {
	if parts[l.text(filepath.Join(device, "dev"))] != "" {
		return true
	}
	slaves, err := os.ReadDir(filepath.Join(l.Sys, device, "slaves"))
	return err == nil && depth > 0 && slices.ContainsFunc(slaves, func(e os.DirEntry) bool {
		return l.builtOn(filepath.Join("class/block", e.Name()), parts, depth-1)
	})
}

// A mount is a line of proc_pid_mountinfo(5).
type mount struct{ number, place, source string }

func (l Linux) mounts() (mounts []mount, err error) {
	text, err := os.ReadFile(filepath.Join(l.Proc, "self/mountinfo"))
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		// Any number of optional fields ends with a dash, before type and source.
		if dash := slices.Index(f, "-"); dash > 4 && dash+2 < len(f) {
			mounts = append(mounts, mount{f[2], f[4], f[dash+2]})
		}
	}
	return mounts, nil
}

// uses lists what is mounted, swapped to, or built upon the disk or one of its
// partitions.
func (l Linux) uses(disk string) (words.List, error) {
	devices, err := l.parts(disk)
	if err != nil {
		return nil, err
	}
	names := slices.Sorted(maps.Values(devices))
	var directories []string
	for _, name := range names {
		directory := filepath.Join(l.Sys, "block", disk)
		if name != disk {
			directory = filepath.Join(directory, name)
		}
		directories = append(directories, directory)
	}
	var uses words.List
	for _, directory := range directories {
		holders, err := os.ReadDir(filepath.Join(directory, "holders"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, h := range holders {
			uses = append(uses, words.Linef(words.InHoldsOpen, h.Name(), filepath.Base(directory)))
		}
	}
	mounts, err := l.mounts()
	if err != nil {
		return nil, err
	}
	for _, m := range mounts {
		// A file system of several devices has a number of its own.
		name := devices[m.number]
		if base := filepath.Base(m.source); name == "" && slices.Contains(names, base) && m.source == filepath.Join(l.Dev, base) {
			name = base
		}
		if name != "" {
			uses = append(uses, words.Linef(words.InMounted, name, m.place))
		}
	}
	swaps, _ := os.ReadFile(filepath.Join(l.Proc, "swaps")) // a kernel without swap has no such file
	for line := range strings.Lines(string(swaps)) {
		f := strings.Fields(line)
		for _, name := range names {
			if len(f) > 0 && f[0] == filepath.Join(l.Dev, name) {
				uses = append(uses, words.Linef(words.InSwapped, name))
			}
		}
	}
	return uses, nil
}
