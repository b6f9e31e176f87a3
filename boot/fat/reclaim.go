package fat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"halogenos.internal/boot/block"
)

// Dirty reports whether the volume was not cleanly unmounted, or a driver met
// errors.
func (f *FS) Dirty() bool { return f.info.Dirty }

// ErrDamaged is wrapped when a volume cannot be followed to its end.
var ErrDamaged = errors.New("the file system is damaged")

// Reclaim frees the clusters that no file or directory has, on a volume that nobody
// has mounted, and returns how many bytes that was. A write that was cut leaves
// such clusters, and in the end the volume is full of them. Where anything on the
// volume cannot be followed to its end, nothing is freed: ErrDamaged.
//
// It writes zeros over FAT entries that nothing leads to: cut anywhere, some of
// them are freed, and every file is as it was.
func Reclaim(d block.Device) (int64, error) {
	f, err := Open(d)
	if err != nil {
		return 0, err
	}
	used, err := f.used()
	if err != nil {
		return 0, fmt.Errorf("free clusters that no file has: %w: %w", ErrDamaged, err)
	}
	var freed int64
	for n := range f.g.fats {
		count, err := f.reclaimIn(d, n, used)
		if err != nil {
			return freed, fmt.Errorf("free clusters that no file has: FAT %d: %w", n+1, err)
		}
		if n == f.active {
			freed = count * f.g.clusterSize()
		}
	}
	if freed == 0 {
		return 0, nil
	}
	return freed, d.Sync()
}

// used returns the clusters that files and directories have.
func (f *FS) used() (clusterSet, error) {
	used := clusterSet{}
	// What another system may see behind a directory's end keeps its clusters.
	f.strict = true
	defer func() { f.strict = false }()
	err := f.Walk(func(path string, i fs.FileInfo, err error) error {
		if err != nil {
			return err
		}
		all, err := f.clusters(i.(*info))
		if err != nil {
			return &fs.PathError{Op: "clusters", Path: path, Err: err}
		}
		for _, c := range all {
			used.add(c)
		}
		return nil
	})
	return used, err
}

// has reports whether c was added.
func (s clusterSet) has(c uint32) bool {
	piece := s[c/4096]
	return piece != nil && piece[c%4096/64]&(1<<(c%64)) != 0
}

// reclaimIn frees clusters in one of the FATs, and returns how many.
func (f *FS) reclaimIn(d block.Device, fat int64, used clusterSet) (count int64, err error) {
	const perRead = 16 << 10
	base, length := f.g.fat(fat), (int64(f.g.clusters)+firstCluster)*4
	buf := make([]byte, perRead)
	for at := int64(0); at < length; at += perRead {
		page := buf[:min(perRead, length-at)]
		if err := readFull(d, page, base+at); err != nil {
			return count, fmt.Errorf("read at byte %d: %w", base+at, err)
		}
		first, last := -1, 0
		for i := 0; i < len(page); i += 4 {
			c := uint32((at + int64(i)) / 4)
			value := binary.LittleEndian.Uint32(page[i:])
			if c < firstCluster || value&entryMask == 0 || value&entryMask == badCluster || used.has(c) {
				continue
			}
			binary.LittleEndian.PutUint32(page[i:], value&^uint32(entryMask))
			count++
			if last = i + 4; first < 0 {
				first = i
			}
		}
		if first < 0 {
			continue
		}
		if _, err := d.WriteAt(page[first:last], base+at+int64(first)); err != nil {
			return count, fmt.Errorf("write at byte %d: %w", base+at, err)
		}
	}
	return count, nil
}
