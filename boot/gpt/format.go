package gpt

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"unicode/utf16"
)

var signature = [8]byte{'E', 'F', 'I', ' ', 'P', 'A', 'R', 'T'}

// header is the GPT header (UEFI 2.10, table 5-5), GUID in the disk's order.
type header struct {
	Signature  [8]byte
	Revision   uint32
	Size       uint32 // bytes of the header that its checksum covers
	CRC        uint32 // CRC-32 of the header, this field zero
	_          uint32
	MyLBA      uint64
	OtherLBA   uint64 // the other copy's header
	First      uint64 // usable
	Last       uint64 // usable
	Disk       GUID
	EntriesLBA uint64
	Entries    uint32 // entries in the array
	EntrySize  uint32 // bytes
	EntriesCRC uint32 // CRC-32 of the array
}

// entry is a partition entry (UEFI 2.10, table 5-7), GUIDs in the disk's order.
type entry struct {
	Type, UUID  GUID
	First, Last uint64
	Attributes  uint64
	Name        [nameUnits]uint16
}

const revision = 0x00010000

// parseHeader decodes the header at the start of sector and checks what can be
// checked without knowing the disk. The sector is at lba.
func parseHeader(sector []byte, lba uint64) (header, error) {
	var h header
	if _, err := binary.Decode(sector, binary.LittleEndian, &h); err != nil {
		return header{}, fmt.Errorf("header at sector %d: %w", lba, err)
	}
	if h.Signature != signature {
		return header{}, fmt.Errorf("header at sector %d: no GPT signature", lba)
	}
	if h.Size < headerSize || int64(h.Size) > int64(len(sector)) {
		return header{}, fmt.Errorf("header at sector %d: claims %d bytes, possible are %d to %d", lba, h.Size, headerSize, len(sector))
	}
	blank := slices.Clone(sector[:h.Size])
	clear(blank[16:20])
	if sum := crc32.ChecksumIEEE(blank); sum != h.CRC {
		return header{}, fmt.Errorf("header at sector %d: checksum is %08x, want %08x", lba, sum, h.CRC)
	}
	if h.Revision != revision {
		return header{}, fmt.Errorf("header at sector %d: revision %08x is unknown", lba, h.Revision)
	}
	if h.MyLBA != lba {
		return header{}, fmt.Errorf("header at sector %d: made for sector %d", lba, h.MyLBA)
	}
	return h, nil
}

// arraySectors returns the length of h's array, refusing sizes that nobody
// uses before anything is allocated for them.
func (h *header) arraySectors(sectorSize int) (uint64, error) {
	if h.EntrySize < entrySize || h.EntrySize > maxEntryLen || h.EntrySize&(h.EntrySize-1) != 0 {
		return 0, fmt.Errorf("header at sector %d: entries of %d bytes: want 128 times a power of two, at most %d", h.MyLBA, h.EntrySize, maxEntryLen)
	}
	if h.Entries < 1 || h.Entries > maxEntries {
		return 0, fmt.Errorf("header at sector %d: %d entries: want 1 to %d", h.MyLBA, h.Entries, maxEntries)
	}
	bytes := uint64(h.EntrySize) * uint64(h.Entries)
	return (bytes + uint64(sectorSize) - 1) / uint64(sectorSize), nil
}

// checkPlaces refuses a header whose parts do not fit each other or the disk.
func (h *header) checkPlaces(sectors, array uint64) error {
	if h.Last >= sectors-1 || h.OtherLBA >= sectors {
		return fmt.Errorf("header at sector %d: usable up to sector %d, other copy at %d: the disk has only %d sectors",
			h.MyLBA, h.Last, h.OtherLBA, sectors)
	}
	if h.First > h.Last {
		return fmt.Errorf("header at sector %d: usable sectors %d to %d", h.MyLBA, h.First, h.Last)
	}
	// The primary's array lies between its header and the usable sectors, the
	// alternate's between those and its header.
	low, high := h.MyLBA+1, h.First
	if h.MyLBA != headerLBA {
		low, high = h.Last+1, h.MyLBA
		if h.OtherLBA != headerLBA {
			return fmt.Errorf("header at sector %d: other copy at sector %d, want %d", h.MyLBA, h.OtherLBA, headerLBA)
		}
	} else if h.OtherLBA <= h.Last {
		return fmt.Errorf("header at sector %d: other copy at sector %d, among the usable ones up to %d", h.MyLBA, h.OtherLBA, h.Last)
	}
	if h.EntriesLBA < low || h.EntriesLBA > high || array > high-h.EntriesLBA {
		return fmt.Errorf("header at sector %d: %d sectors of entries at sector %d do not fit into %d to %d",
			h.MyLBA, array, h.EntriesLBA, low, high-1)
	}
	return nil
}

// parseEntries decodes the used entries of an array.
func parseEntries(array []byte, size uint32) ([]Partition, error) {
	var found []Partition
	for i := 0; len(array) >= int(size); i, array = i+1, array[size:] {
		if GUID(array[:len(GUID{})]).IsZero() { // unused, as most are: nothing is decoded
			continue
		}
		var e entry
		if _, err := binary.Decode(array, binary.LittleEndian, &e); err != nil {
			return nil, fmt.Errorf("entry %d: %w", i+1, err)
		}
		name := e.Name[:]
		if end := slices.Index(name, 0); end >= 0 {
			name = name[:end]
		}
		found = append(found, Partition{
			Number: i + 1, Type: e.Type.swapped(), UUID: e.UUID.swapped(),
			First: e.First, Last: e.Last, Attributes: e.Attributes,
			Label: string(utf16.Decode(name)),
		})
	}
	return found, nil
}

// unusual are the entries that encode would write otherwise: text behind a name's end, and
// code units that are not text.
func unusual(array []byte, size uint32, partitions []Partition) map[int][entrySize]byte {
	var raw map[int][entrySize]byte
	for _, p := range partitions {
		have := [entrySize]byte(array[(p.Number-1)*int(size):])
		if e, err := p.encode(); err == nil && e == have {
			continue
		}
		if raw == nil {
			raw = map[int][entrySize]byte{}
		}
		raw[p.Number] = have
	}
	return raw
}

// encode returns a partition's entry.
func (p Partition) encode() (out [entrySize]byte, err error) {
	e := entry{Type: p.Type.swapped(), UUID: p.UUID.swapped(), First: p.First, Last: p.Last, Attributes: p.Attributes}
	copy(e.Name[:], utf16.Encode([]rune(p.Label)))
	_, err = binary.Encode(out[:], binary.LittleEndian, &e)
	return out, err
}

// encodeEntries returns the array of 128 entries of a valid table. An entry that says what
// the one says that was read stays as it was, byte for byte.
func (t *Table) encodeEntries() ([]byte, error) {
	array := make([]byte, MaxPartitions*entrySize)
	for _, p := range t.Partitions {
		e, err := p.encode()
		if err != nil {
			return nil, fmt.Errorf("encode partition %d: %w", p.Number, err)
		}
		if raw, ok := t.raw[p.Number]; ok {
			same, err := parseEntries(raw[:], entrySize)
			if err == nil && len(same) == 1 {
				same[0].Number = p.Number
				if same[0] == p {
					e = raw
				}
			}
		}
		copy(array[(p.Number-1)*entrySize:], e[:])
	}
	return array, nil
}

// encodeHeader returns the sector of the header at mine.
func (t *Table) encodeHeader(mine, other, entries uint64, array []byte) ([]byte, error) {
	h := header{
		Signature: signature, Revision: revision, Size: headerSize,
		MyLBA: mine, OtherLBA: other, Disk: t.Disk.swapped(),
		EntriesLBA: entries, Entries: MaxPartitions, EntrySize: entrySize,
		EntriesCRC: crc32.ChecksumIEEE(array),
	}
	h.First, h.Last = t.Usable()
	sector := make([]byte, t.SectorSize)
	if _, err := binary.Encode(sector, binary.LittleEndian, &h); err != nil {
		return nil, fmt.Errorf("encode the header at sector %d: %w", mine, err)
	}
	binary.LittleEndian.PutUint32(sector[16:], crc32.ChecksumIEEE(sector[:headerSize]))
	return sector, nil
}
