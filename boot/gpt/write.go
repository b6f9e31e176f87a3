package gpt

import (
	"fmt"

	"halogenos.internal/boot/block"
)

// sectorWrite is something Write puts on the disk.
type sectorWrite struct {
	what string
	lba  uint64
	data []byte
}

// Write puts the protective MBR and both copies of the table on d, 128 entries
// in their usual places, and returns when they survive a power cut. The same
// table gives the same bytes. Nothing is written when t is not valid, or when
// sector 0 has partition records that are not the protective one's: who wants
// to give up what they describe clears sector 0 first.
//
// All of it is written even where the disk reads the same already: after a
// Sync that failed, what is read may never have reached the medium.
//
// The order keeps one good copy at every instant. With a good primary:
//
//   - alternate (entries and header), then Sync. A cut before or during it
//     leaves the old primary, which counts whatever the alternate is; a cut
//     after it the same, with an alternate that Read reports as different.
//   - primary and MBR, then Sync. A cut during it leaves either a primary that
//     is old or new as a whole, or one whose checksums fail; then the new
//     alternate counts, which the first Sync made durable.
//
// When the primary on the disk is damaged, the alternate may be the only good
// copy, and is not touched until the primary has been written and synced.
func (t *Table) Write(d block.Device) error {
	if err := t.Replaceable(); err != nil {
		return fmt.Errorf("write partition table: %w", err)
	}
	mbr, err := t.planMBR(d)
	if err != nil {
		return fmt.Errorf("write partition table: %w", err)
	}
	primary, alternate, err := t.plan()
	if err != nil {
		return fmt.Errorf("write partition table: %w", err)
	}
	primary = append(primary, mbr)
	order := [][]sectorWrite{alternate, primary}
	if _, err := readCopy(d, headerLBA, t.Sectors, t.SectorSize); err != nil {
		order = [][]sectorWrite{primary, alternate}
	}
	for _, writes := range order {
		for _, w := range writes {
			if _, err := d.WriteAt(w.data, int64(w.lba)*int64(t.SectorSize)); err != nil {
				return fmt.Errorf("write partition table: %s at sector %d: %w", w.what, w.lba, err)
			}
		}
		if err := d.Sync(); err != nil {
			return fmt.Errorf("write partition table: sync: %w", err)
		}
	}
	return nil
}

// Replaceable reports why Write would refuse the table, as far as the table itself says.
func (t *Table) Replaceable() error {
	if err := t.Validate(); err != nil {
		return err
	}
	if t.foreign != "" {
		return fmt.Errorf("not over the one that was read: %s", t.foreign)
	}
	return nil
}

// planMBR returns the write of sector 0, or refuses to replace partitions.
func (t *Table) planMBR(d block.Device) (sectorWrite, error) {
	partitioned, err := readMBR(d)
	if partitioned {
		return sectorWrite{}, err
	}
	keepCode := err == nil
	old := make([]byte, t.SectorSize)
	if keepCode {
		if err := readSectors(d, old, 0); err != nil {
			return sectorWrite{}, fmt.Errorf("read sector 0: %w", err)
		}
	}
	return sectorWrite{"protective MBR", 0, t.protectiveMBR(old, keepCode)}, nil
}

// plan returns the writes of each copy.
func (t *Table) plan() (primary, alternate []sectorWrite, err error) {
	array, err := t.encodeEntries()
	if err != nil {
		return nil, nil, err
	}
	end := t.Sectors - 1
	endEntries := end - entrySectors(t.SectorSize)
	first, err := t.encodeHeader(headerLBA, end, entriesLBA, array)
	if err != nil {
		return nil, nil, err
	}
	last, err := t.encodeHeader(end, headerLBA, endEntries, array)
	if err != nil {
		return nil, nil, err
	}
	primary = []sectorWrite{{"primary entries", entriesLBA, array}, {"primary header", headerLBA, first}}
	alternate = []sectorWrite{{"alternate entries", endEntries, array}, {"alternate header", end, last}}
	return primary, alternate, nil
}
