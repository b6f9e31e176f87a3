package gpt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

const (
	mbrSize       = 512 // whatever the sector size
	mbrEntries    = 446 // offset of the four partition records
	mbrEntrySize  = 16
	mbrProtective = 0xee // OS type of a protective record
)

var errNoMBR = errors.New("missing")

// readMBR checks sector 0 (UEFI 2.10, section 5.2.3): nil for a protective
// MBR. partitioned is true when it has records of other types, which other
// systems would believe in place of the GPT.
func readMBR(r io.ReaderAt) (partitioned bool, err error) {
	var mbr [mbrSize]byte
	if err := readBytes(r, mbr[:], 0); err != nil {
		return false, fmt.Errorf("read: %w", err)
	}
	if mbr[510] != 0x55 || mbr[511] != 0xaa {
		return false, errNoMBR
	}
	protective, others := 0, 0
	for i := range 4 {
		switch mbr[mbrEntries+i*mbrEntrySize+4] {
		case 0:
		case mbrProtective:
			protective++
		default:
			others++
		}
	}
	switch {
	case others > 0 && protective > 0:
		return true, fmt.Errorf("hybrid MBR: %d partitions in it beside the GPT's, and no telling which table is current", others)
	case others > 0:
		return true, fmt.Errorf("sector 0 is an MBR with %d partitions and none that protects a GPT", others)
	case protective == 0:
		return false, errNoMBR
	}
	return false, nil
}

// protectiveMBR returns sector 0 for a disk (UEFI 2.10, table 5-4). A protective MBR that
// is there already stays as it is, with its boot code; but its record's length becomes that of
// a disk which has grown, and its flag and first sector are what UEFI wants: with the flag
// that parted sets for a start by BIOS (pmbr_boot), EDK II before July 2021 takes the disk
// for one without a GPT.
func (t *Table) protectiveMBR(old []byte, keepCode bool) []byte {
	sector := make([]byte, t.SectorSize)
	last := chs(t.Sectors - 1)
	if keepCode {
		copy(sector, old)
		for at := mbrEntries; at < mbrEntries+4*mbrEntrySize; at += mbrEntrySize {
			rec := sector[at:]
			if rec[4] != mbrProtective {
				continue
			}
			rec[0] = 0
			binary.LittleEndian.PutUint32(rec[8:], headerLBA)
			if uint64(binary.LittleEndian.Uint32(rec[12:])) < min(t.Sectors-1, math.MaxUint32) {
				copy(rec[5:8], last[:])
				binary.LittleEndian.PutUint32(rec[12:], uint32(min(t.Sectors-1, math.MaxUint32)))
			}
		}
		return sector
	}
	rec := sector[mbrEntries:]
	copy(rec[1:], []byte{0x00, 0x02, 0x00, mbrProtective, last[0], last[1], last[2]})
	binary.LittleEndian.PutUint32(rec[8:], headerLBA)
	binary.LittleEndian.PutUint32(rec[12:], uint32(min(t.Sectors-1, math.MaxUint32)))
	sector[510], sector[511] = 0x55, 0xaa
	return sector
}

// chs returns the address of a sector in the old geometry of 255 heads and 63
// sectors, or the largest where it cannot tell.
func chs(sector uint64) [3]byte {
	cylinder := sector / (255 * 63)
	if cylinder > 1023 {
		return [3]byte{0xff, 0xff, 0xff}
	}
	head, number := sector/63%255, sector%63+1
	return [3]byte{byte(head), byte(number | cylinder>>8<<6), byte(cylinder)}
}
