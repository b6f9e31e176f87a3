package rootfs

import (
	"cmp"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// A Usage is how much a directory holds, with all below it.
type Usage struct {
	Name string
	Size int64 // bytes, holes left out
}

// Largest returns up to n directories that hold the most, the largest first.
// One that has nearly all of it from a single directory in it is left out for
// that.
func (t *Tree) Largest(n int) ([]Usage, error) {
	sizes := make(map[string]int64)
	err := t.eachFile(func(name string, size, stored int64) error {
		size = min(size, stored)
		for at := path.Dir(name); ; at = path.Dir(at) {
			sizes[at] += size
			if at == "." {
				return nil
			}
		}
	})
	if err != nil {
		return nil, err
	}
	if len(sizes) == 1 {
		return []Usage{{"", sizes["."]}}, nil
	}
	shown := map[string]bool{".": true} // by what lies in them
	for name, size := range sizes {
		if above := path.Dir(name); above != name && size > sizes[above]/10*9 {
			shown[above] = true
		}
	}
	var list []Usage
	for name, size := range sizes {
		if !shown[name] {
			list = append(list, Usage{name, size})
		}
	}
	slices.SortFunc(list, func(a, b Usage) int { return cmp.Or(cmp.Compare(b.Size, a.Size), cmp.Compare(a.Name, b.Name)) })
	return list[:min(n, len(list))], nil
}

// eachFile calls do for each regular file of the tree, once for all its names, with its size
// and how much of it is stored, in bytes.
func (t *Tree) eachFile(do func(name string, size, stored int64) error) error {
	seen := make(map[uint64]bool)
	return filepath.WalkDir(t.dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		stat := info.Sys().(*syscall.Stat_t)
		if seen[stat.Ino] {
			return nil
		}
		seen[stat.Ino] = stat.Nlink > 1
		return do(strings.TrimPrefix(file, t.dir+"/"), info.Size(), stat.Blocks*512)
	})
}

// maxName is the longest name of a file in bytes, of Linux and of EROFS.
const maxName = 255

// LongestName returns a file whose name is as long as a name can be; empty for
// none.
func (t *Tree) LongestName() (string, error) {
	found := ""
	err := filepath.WalkDir(t.dir, func(file string, d fs.DirEntry, err error) error {
		if err == nil && len(d.Name()) == maxName {
			found = strings.TrimPrefix(file, t.dir+"/")
			return fs.SkipAll
		}
		return err
	})
	return found, err
}
