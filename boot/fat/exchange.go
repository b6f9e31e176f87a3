package fat

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"halogenos.internal/boot/block"
)

// ErrApart is returned for two names that no single write can exchange.
var ErrApart = errors.New("their entries are in different sectors")

// Where a directory entry has the first cluster of its file and its length, in
// bytes (FAT specification, "Directory structure").
const (
	entryClusterHigh = 20 // 2
	entryClusterLow  = 26 // 2, and 4 of the length behind it
	entryEnd         = 32
)

// Exchange gives two files of one directory each other's content, on a volume that
// nobody has mounted: for a name that must have one whole content or the other at
// every instant. A rename in the place of a file does not do that on FAT.
//
// Only the first cluster and the length change places, in the two short entries,
// and those are written as one sector of sectorSize bytes, the least that the disk
// writes: cut before it, both files are as they were; cut after it, both have
// changed. Where the entries are in different sectors it is ErrApart, and nothing is
// written.
func Exchange(d block.Device, a, b string, sectorSize int64) error {
	err := exchange(d, a, b, sectorSize)
	if err != nil {
		return fmt.Errorf("exchange %s and %s: %w", a, b, err)
	}
	return nil
}

func exchange(d block.Device, a, b string, sectorSize int64) error {
	f, err := Open(d)
	if err != nil {
		return err
	}
	if path.Dir(a) != path.Dir(b) || a == b {
		return fs.ErrInvalid
	}
	if err := f.checkApart(a, b); err != nil {
		return err
	}
	directory, err := f.lookup(path.Dir(a))
	if err != nil {
		return err
	}
	var at [2]int64
	for i, name := range []string{a, b} {
		places, err := f.places(directory.cluster, path.Base(name))
		if err != nil {
			return err
		}
		at[i] = places[len(places)-1] // the short entry
	}
	if sectorSize < f.g.sectorSize || sectorSize&(sectorSize-1) != 0 || sectorSize > f.g.clusterSize() {
		return fmt.Errorf("sectors of %d bytes on a volume with %d", sectorSize, f.g.sectorSize)
	}
	start := at[0] &^ (sectorSize - 1)
	if at[1]&^(sectorSize-1) != start {
		return ErrApart
	}
	sector := make([]byte, sectorSize)
	if err := readFull(d, sector, start); err != nil {
		return fmt.Errorf("read sector at byte %d: %w", start, err)
	}
	swapContent(sector[at[0]-start:][:entryEnd], sector[at[1]-start:][:entryEnd])
	if _, err := d.WriteAt(sector, start); err != nil {
		return fmt.Errorf("write sector at byte %d: %w", start, err)
	}
	if err := d.Sync(); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	back := make([]byte, sectorSize)
	if err := readFull(d, back, start); err != nil || !bytes.Equal(back, sector) {
		return errors.Join(fmt.Errorf("the sector at byte %d reads back otherwise", start), err)
	}
	return nil
}

// checkApart makes sure that both files are whole and that neither has a cluster
// of the other's.
func (f *FS) checkApart(a, b string) error {
	first, err := f.Clusters(a)
	if err != nil {
		return err
	}
	second, err := f.Clusters(b)
	if err != nil {
		return err
	}
	if len(first) == 0 || len(second) == 0 {
		return errors.New("one of them is empty")
	}
	for _, c := range first {
		if slices.Contains(second, c) {
			return fmt.Errorf("both have cluster %d", c)
		}
	}
	return nil
}

func swapContent(a, b []byte) {
	for _, span := range [][2]int{{entryClusterHigh, entryClusterHigh + 2}, {entryClusterLow, entryEnd}} {
		for i := span[0]; i < span[1]; i++ {
			a[i], b[i] = b[i], a[i]
		}
	}
}
