package fat

import (
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"halogenos.internal/boot/block"
)

// Forget takes a file's name off a volume that nobody has mounted, and leaves its
// clusters alone. It is for a name whose clusters are another file's too, as a
// rename that was cut leaves it: anyone who removes such a file in the ordinary way
// frees the other one's content.
//
// The entry of the name is one sector's: cut before it is written, the name is
// there; cut after it, it is gone, and what is left of its long form is nobody's.
func Forget(d block.Device, name string) error {
	f, err := Open(d)
	if err != nil {
		return err
	}
	directory, err := f.lookup(path.Dir(name))
	if err == nil && !directory.dir {
		err = errNotDir
	}
	var places []int64
	if err == nil {
		places, err = f.places(directory.cluster, path.Base(name))
	}
	if err != nil {
		return &fs.PathError{Op: "forget", Path: name, Err: err}
	}
	// The short entry, which is the file, comes last, and goes first.
	for _, at := range slices.Backward(places) {
		if err := f.deleteEntry(d, at); err != nil {
			return fmt.Errorf("forget %s: %w", name, err)
		}
		if err := d.Sync(); err != nil {
			return fmt.Errorf("forget %s: flush: %w", name, err)
		}
	}
	return nil
}

// places returns where on the volume the entries of a file are, in bytes: those
// of its long name, and the short one.
func (f *FS) places(first uint32, name string) ([]int64, error) {
	c, err := f.chain(first)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, f.g.clusterSize())
	var long longName
	var run []int64
	for total := len(buf); total <= maxDirBytes; total += len(buf) {
		start := f.g.cluster(c.cluster)
		if err := readFull(f.r, buf, start); err != nil {
			return nil, fmt.Errorf("read cluster %d: %w", c.cluster, err)
		}
		for at := 0; at < len(buf); at += dirEntrySize {
			e := buf[at : at+dirEntrySize]
			if e[0] == 0 {
				return nil, fs.ErrNotExist
			}
			if e[0] != 0xe5 && e[11]&attrLongMask == attrLongName {
				if e[0]&lastLong != 0 {
					run = nil
				}
				run = append(run, start+int64(at))
				f.parseEntry(e, &long)
				continue
			}
			i := f.parseEntry(e, &long)
			if i != nil && !i.dir && strings.EqualFold(i.name, name) {
				return append(run, start+int64(at)), nil
			}
			run = nil
		}
		if err := c.advance(); err == io.EOF {
			return nil, fs.ErrNotExist
		} else if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("more than %d directory entries", maxDirBytes/dirEntrySize)
}

// deleteEntry marks one entry as deleted, and writes the sector it is in.
func (f *FS) deleteEntry(d block.Device, at int64) error {
	sector := make([]byte, f.g.sectorSize)
	start := at &^ (f.g.sectorSize - 1)
	if err := readFull(d, sector, start); err != nil {
		return fmt.Errorf("read sector at byte %d: %w", start, err)
	}
	sector[at-start] = 0xe5
	if _, err := d.WriteAt(sector, start); err != nil {
		return fmt.Errorf("write sector at byte %d: %w", start, err)
	}
	return nil
}
