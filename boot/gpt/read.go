package gpt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
)

// Health says what is wrong with a table that could be read all the same.
// Writing the table cures all of it.
type Health struct {
	Primary   error // nil: the copy at the start of the disk is good
	Alternate error // nil: the copy at the end is good, and says the same
	MBR       error // nil: the protective MBR is there
	// Moved: the alternate is not in the disk's last sector, because the disk
	// grew. Until the table is written again the new space has no use.
	Moved bool
}

// OK reports whether there is nothing to cure.
func (h Health) OK() bool {
	return h.Primary == nil && h.Alternate == nil && h.MBR == nil && !h.Moved
}

// String describes the health in one line.
func (h Health) String() string {
	if h.OK() {
		return "both copies are good"
	}
	var moved error
	if h.Moved {
		moved = errors.New("the disk grew: the alternate table is not at its end")
	}
	return join(h.Primary, h.Alternate, h.MBR, moved).Error()
}

// parsed is one copy of the table, as its header and array say.
type parsed struct {
	header     header
	partitions []Partition
	raw        map[int][entrySize]byte
}

// Read reads the partition table of a disk of that many sectors of sectorSize
// bytes. Where the copies differ the primary counts, as it does for firmware
// (UEFI 2.10, section 5.3.2); Health says so. The error is not nil when
// neither copy can be used, or when an MBR claims partitions of its own.
//
// Read checks that partitions are within bounds and do not overlap. UUIDs that
// occur twice are left to [Table.Validate]: they have to be readable to be
// changed.
func Read(r io.ReaderAt, sectors uint64, sectorSize int) (*Table, Health, error) {
	if err := checkDisk(sectors, sectorSize); err != nil {
		return nil, Health{}, fmt.Errorf("read partition table: %w", err)
	}
	var health Health
	primary, err := readCopy(r, headerLBA, sectors, sectorSize)
	health.Primary = wrap("primary table", err)
	at := sectors - 1
	alternate, err := readCopy(r, at, sectors, sectorSize)
	if primary != nil && primary.header.OtherLBA != sectors-1 {
		health.Moved = true
		if alternate == nil {
			at = primary.header.OtherLBA
			alternate, err = readCopy(r, at, sectors, sectorSize)
		}
	}
	health.Alternate = wrap("alternate table", err)

	use := primary
	switch {
	case primary == nil && alternate == nil:
		return nil, health, fmt.Errorf("read partition table: %w", join(health.Primary, health.Alternate, otherSectorSize(r, sectorSize)))
	case primary == nil:
		use = alternate
	case alternate != nil:
		health.Alternate = wrap("alternate table", primary.difference(alternate))
	}
	partitioned, err := readMBR(r)
	if partitioned {
		return nil, health, fmt.Errorf("read partition table: %w", err)
	}
	health.MBR = wrap("protective MBR", err)

	t := &Table{Disk: use.header.Disk.swapped(), SectorSize: sectorSize, Sectors: sectors, Partitions: use.partitions}
	t.raw = use.raw
	t.first = use.header.First
	if !health.Moved { // a disk that grew has new room, which its header does not know
		t.last = use.header.Last
	}
	switch at := entriesOf(r, primary, sectors, sectorSize); {
	case at != entriesLBA:
		t.foreign = fmt.Sprintf("its entries start at sector %d, so sectors from %d on may hold something else", at, entriesLBA)
	case use.header.EntrySize != entrySize:
		t.foreign = fmt.Sprintf("its entries have %d bytes, and these would have %d", use.header.EntrySize, entrySize)
	}
	return t, health, nil
}

// entriesOf is where the primary's entries start. A damaged primary's header is asked, too,
// where what it says could be: what lies in the usual place need not be a table's.
func entriesOf(r io.ReaderAt, primary *parsed, sectors uint64, sectorSize int) uint64 {
	if primary != nil {
		return primary.header.EntriesLBA
	}
	sector := make([]byte, sectorSize)
	var h header
	if readSectors(r, sector, headerLBA) != nil {
		return entriesLBA
	}
	if _, err := binary.Decode(sector, binary.LittleEndian, &h); err != nil || h.Signature != signature || h.MyLBA != headerLBA {
		return entriesLBA
	}
	if n, err := h.arraySectors(sectorSize); err != nil || h.checkPlaces(sectors, n) != nil {
		return entriesLBA
	}
	return h.EntriesLBA
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// readCopy reads and checks the copy whose header is at sector lba.
func readCopy(r io.ReaderAt, lba, sectors uint64, sectorSize int) (*parsed, error) {
	sector := make([]byte, sectorSize)
	if err := readSectors(r, sector, lba); err != nil {
		return nil, fmt.Errorf("read header at sector %d: %w", lba, err)
	}
	h, err := parseHeader(sector, lba)
	if err != nil {
		return nil, err
	}
	n, err := h.arraySectors(sectorSize)
	if err != nil {
		return nil, err
	}
	if err := h.checkPlaces(sectors, n); err != nil {
		return nil, err
	}
	array := make([]byte, n*uint64(sectorSize))
	if err := readBytes(r, array, int64(h.EntriesLBA)*int64(sectorSize)); err != nil {
		return nil, fmt.Errorf("read %d sectors of entries at sector %d: %w", n, h.EntriesLBA, err)
	}
	array = array[:h.Entries*h.EntrySize]
	if sum := crc32.ChecksumIEEE(array); sum != h.EntriesCRC {
		return nil, fmt.Errorf("entries at sector %d: checksum is %08x, want %08x", h.EntriesLBA, sum, h.EntriesCRC)
	}
	partitions, err := parseEntries(array, h.EntrySize)
	if err != nil {
		return nil, fmt.Errorf("entries at sector %d: %w", h.EntriesLBA, err)
	}
	if err := checkExtents(partitions, h.First, h.Last); err != nil {
		return nil, fmt.Errorf("entries at sector %d: %w", h.EntriesLBA, err)
	}
	return &parsed{h, partitions, unusual(array, h.EntrySize, partitions)}, nil
}

func readSectors(r io.ReaderAt, p []byte, lba uint64) error {
	return readBytes(r, p, int64(lba)*int64(len(p)))
}

// readBytes fills p, or fails: io.EOF with all bytes read is not a failure.
func readBytes(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// difference says in what a good alternate departs from a good primary.
func (p *parsed) difference(alternate *parsed) error {
	switch a, b := p.header, alternate.header; {
	case a.OtherLBA != b.MyLBA:
		return fmt.Errorf("at sector %d, the primary says %d", b.MyLBA, a.OtherLBA)
	case a.Disk != b.Disk:
		return fmt.Errorf("disk GUID is %v, the primary's %v", b.Disk.swapped(), a.Disk.swapped())
	case a.First != b.First || a.Last != b.Last:
		return fmt.Errorf("usable sectors %d to %d, the primary's %d to %d", b.First, b.Last, a.First, a.Last)
	case !slices.Equal(p.partitions, alternate.partitions):
		return errors.New("partitions differ from the primary's")
	}
	return nil
}

// otherSectorSize explains a table that is not found because the disk was
// partitioned with another sector size, as happens when an image is copied.
func otherSectorSize(r io.ReaderAt, sectorSize int) error {
	other := 512 + 4096 - sectorSize
	var found [8]byte
	if readBytes(r, found[:], int64(other)) == nil && found == signature {
		return fmt.Errorf("there is a table for sectors of %d bytes, but the disk's have %d", other, sectorSize)
	}
	return nil
}
