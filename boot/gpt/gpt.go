// Package gpt reads and writes GUID partition tables as UEFI 2.10, section 5.3
// defines them.
//
// It refuses what it cannot be sure of: a copy of the table whose checksums,
// places or sizes are wrong, partitions that overlap or leave the disk, a
// table next to an MBR with partitions of its own (a hybrid), and every size
// that would have it allocate more than a few megabytes. It never guesses a
// sector size, and never changes a partition it was not told to change.
package gpt

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	// MaxPartitions is how many partitions a table that Write made can hold.
	MaxPartitions = 128

	entrySize   = 128 // bytes of an entry that Write makes
	nameUnits   = 36  // UTF-16 code units of a label
	headerSize  = 92  // bytes of a header, revision 1.0
	headerLBA   = 1   // the primary header's sector
	entriesLBA  = 2   // the first sector of the primary's entries
	maxEntries  = 1024
	maxEntryLen = 4096
)

// Partition is one used entry of a table (UEFI 2.10, table 5-7).
type Partition struct {
	Number     int // 1 is the first entry of the table
	Type       GUID
	UUID       GUID
	First      uint64 // sector
	Last       uint64 // sector, the partition's last
	Attributes uint64 // bits as in UEFI 2.10, table 5-8
	Label      string // at most 36 UTF-16 code units
}

// Sectors returns the partition's length in sectors.
func (p Partition) Sectors() uint64 { return p.Last - p.First + 1 }

// Extent is a run of sectors, both ends included.
type Extent struct{ First, Last uint64 }

// Sectors returns the extent's length in sectors.
func (e Extent) Sectors() uint64 { return e.Last - e.First + 1 }

// Table is the partition table of one disk.
type Table struct {
	Disk       GUID
	SectorSize int    // bytes: 512 or 4096
	Sectors    uint64 // of the whole disk
	Partitions []Partition

	// foreign says why Write must not replace the table that was read.
	foreign string
	// first and last are the usable sectors by the header that was read, which may leave
	// more room for something else than a table needs; zero for those of Usable.
	first, last uint64
	// raw has entries as they were read, by number, which would be written otherwise.
	raw map[int][entrySize]byte
}

// ByNumber returns the partition with that number.
func (t *Table) ByNumber(number int) (Partition, bool) {
	i := slices.IndexFunc(t.Partitions, func(p Partition) bool { return p.Number == number })
	if i < 0 {
		return Partition{}, false
	}
	return t.Partitions[i], true
}

// Bytes returns where p lies on the disk: its first byte and its length.
func (t *Table) Bytes(p Partition) (off, size int64) {
	return int64(p.First) * int64(t.SectorSize), int64(p.Sectors()) * int64(t.SectorSize)
}

// entrySectors returns the length in sectors of an array of 128 entries.
func entrySectors(sectorSize int) uint64 {
	return uint64(MaxPartitions * entrySize / sectorSize)
}

// checkDisk refuses sizes in which no table fits, or whose bytes an int64
// cannot count.
func checkDisk(sectors uint64, sectorSize int) error {
	if sectorSize != 512 && sectorSize != 4096 {
		return fmt.Errorf("sector size of %d bytes: only 512 and 4096 are supported", sectorSize)
	}
	if sectors > math.MaxInt64/uint64(sectorSize) {
		return fmt.Errorf("disk of %d sectors of %d bytes: more than 2^63 bytes", sectors, sectorSize)
	}
	// The protective MBR, two headers, two arrays, and a sector to be useful.
	if least := 4 + 2*entrySectors(sectorSize); sectors < least {
		return fmt.Errorf("disk of %d sectors of %d bytes: a GPT needs %d", sectors, sectorSize, least)
	}
	return nil
}

// Usable returns the first and the last sector that a partition may have: what the tables
// leave, and of that what the header allows that was read. Both are zero where the disk is
// too small for a table.
func (t *Table) Usable() (first, last uint64) {
	if checkDisk(t.Sectors, t.SectorSize) != nil {
		return 0, 0
	}
	n := entrySectors(t.SectorSize)
	first, last = entriesLBA+n, t.Sectors-2-n
	if t.last != 0 {
		last = min(last, t.last)
	}
	first = max(first, t.first)
	return first, last
}

// Free returns the usable sectors that no partition covers, in disk order.
func (t *Table) Free() []Extent {
	next, last := t.Usable()
	if last == 0 {
		return nil
	}
	var free []Extent
	for _, p := range inDiskOrder(t.Partitions) {
		if p.First > last {
			break
		}
		if p.First > next {
			free = append(free, Extent{next, p.First - 1})
		}
		if p.Last >= last {
			return free
		}
		next = max(next, p.Last+1)
	}
	if next <= last {
		free = append(free, Extent{next, last})
	}
	return free
}

func inDiskOrder(p []Partition) []Partition {
	return slices.SortedFunc(slices.Values(p), func(a, b Partition) int { return cmp.Compare(a.First, b.First) })
}

// Validate reports everything that keeps t from being written: sizes,
// partitions out of bounds or overlapping, numbers or UUIDs used twice.
func (t *Table) Validate() error {
	if err := checkDisk(t.Sectors, t.SectorSize); err != nil {
		return err
	}
	if t.Disk.IsZero() {
		return errors.New("the disk has no GUID")
	}
	var errs []error
	numbers := map[int]bool{}
	uuids := map[GUID]int{}
	for _, p := range t.Partitions {
		if err := p.check(); err != nil {
			errs = append(errs, err)
		}
		if numbers[p.Number] {
			errs = append(errs, fmt.Errorf("partition %d: number used twice", p.Number))
		}
		if other, ok := uuids[p.UUID]; ok {
			errs = append(errs, fmt.Errorf("partition %d: UUID %v is partition %d's", p.Number, p.UUID, other))
		}
		numbers[p.Number], uuids[p.UUID] = true, p.Number
	}
	first, last := t.Usable()
	errs = append(errs, checkExtents(t.Partitions, first, last))
	return join(errs...)
}

// check looks at what one partition claims by itself.
func (p Partition) check() error {
	if p.Number < 1 || p.Number > MaxPartitions {
		return fmt.Errorf("partition %d: numbers go from 1 to %d", p.Number, MaxPartitions)
	}
	if p.Type.IsZero() {
		return fmt.Errorf("partition %d: no type", p.Number)
	}
	if p.UUID.IsZero() {
		return fmt.Errorf("partition %d: no UUID", p.Number)
	}
	if !utf8.ValidString(p.Label) || strings.ContainsRune(p.Label, 0) {
		return fmt.Errorf("partition %d: label %q is not text", p.Number, p.Label)
	}
	if n := len(utf16.Encode([]rune(p.Label))); n > nameUnits {
		return fmt.Errorf("partition %d: label %q has %d UTF-16 code units, at most %d fit", p.Number, p.Label, n, nameUnits)
	}
	return nil
}

// checkExtents refuses partitions outside first..last, and overlapping ones.
func checkExtents(partitions []Partition, first, last uint64) error {
	var errs []error
	var before *Partition // the one that reaches furthest so far
	for _, p := range inDiskOrder(partitions) {
		switch {
		case p.First > p.Last:
			errs = append(errs, fmt.Errorf("partition %d: first sector %d is behind its last, %d", p.Number, p.First, p.Last))
			continue
		case p.First < first || p.Last > last:
			errs = append(errs, fmt.Errorf("partition %d: sectors %d to %d, usable are %d to %d", p.Number, p.First, p.Last, first, last))
		case before != nil && p.First <= before.Last:
			errs = append(errs, fmt.Errorf("partitions %d and %d overlap: sectors %d to %d, and %d to %d",
				before.Number, p.Number, before.First, before.Last, p.First, p.Last))
		}
		if before == nil || p.Last > before.Last {
			before = &p
		}
	}
	return join(errs...)
}

// list is several errors in one line, unlike what errors.Join makes of them.
type list []error

func (l list) Error() string {
	words := make([]string, len(l))
	for i, err := range l {
		words[i] = err.Error()
	}
	return strings.Join(words, "; ")
}

func (l list) Unwrap() []error { return l }

// join returns the errors among errs as one, or nil.
func join(errs ...error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(errs) == 0 {
		return nil
	}
	return list(errs)
}
