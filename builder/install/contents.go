package install

import (
	"encoding/binary"
	"errors"
	"io"

	"halogenos.internal/boot/words"
)

// A mark is what one kind of content has at a fixed place.
type mark struct {
	at          int // bytes from the start of what was read
	magic, name string
}

// startMarks are what file systems and the like have at their start.
var startMarks = []mark{
	{0, "LUKS\xba\xbe", words.InMarkLUKS}, {1080, "\x53\xef", words.InMarkExt}, {0, "XFSB", words.InMarkXFS},
	{0x10040, "_BHRfS_M", words.InMarkBtrfs}, {536, "LVM2 001", words.InMarkLVM}, {0x8001, "CD001", words.InMarkCD},
	{1024, "\xe2\xe1\xf5\xe0", words.InMarkEROFS}, {0x1000, "\xfc\x4e\x2b\xa9", words.InMarkRAID}, {0, "\xfc\x4e\x2b\xa9", words.InMarkRAID},
	{0x1018, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", words.InMarkCache}, {1024, "\x10\x20\xf5\xf2", words.InMarkF2FS},
	{4086, "SWAPSPACE2", words.InMarkSwap}, {3, "NTFS    ", words.InMarkNTFS}, {3, "-FVE-FS-", words.InMarkBitLocker}, {82, "FAT32   ", words.InMarkFAT},
}

// raidMember says what RAID a disk is a member of.
func raidMember(tail []byte, size int64, sectorSize int) words.List {
	if what, ok := marked(tail, tailMarks(int64(len(tail)), size, sectorSize)); ok {
		return words.List{words.Fixed(what)}
	}
	return nil
}

// tailMarks are what RAID members have at the disk's end, where nothing else tells that it
// is used: those of md 0.90 and 1.0 (md(4)), of Intel's firmware (mdadm, super-intel.c) and
// of SNIA's Common RAID DDF (5.5: the anchor header is the last block).
func tailMarks(tail, size int64, sectorSize int) []mark {
	const sector, md = 512, "\xfc\x4e\x2b\xa9"
	begin := size - tail
	end := int(tail)
	all := []mark{
		{int((size/sector-16)&^7*sector - begin), md, words.InMarkRAID},
		{int((size &^ (64<<10 - 1)) - 64<<10 - begin), md, words.InMarkRAID},
		{end - 2*sectorSize, "Intel Raid ISM Cfg Sig. ", words.InMarkIntel},
	}
	for _, unit := range []int{sector, sectorSize} {
		all = append(all, mark{end - unit, "\xde\x11\xde\x11", words.InMarkDDF})
	}
	return all
}

// marked returns the first mark that bytes have.
func marked(b []byte, marks []mark) (string, bool) {
	for _, m := range marks {
		if end := m.at + len(m.magic); m.at >= 0 && end <= len(b) && string(b[m.at:end]) == m.magic {
			return m.name, true
		}
	}
	return "", false
}

// mbrPartitions says what partitions an MBR has (UEFI 2.10, section 5.2.1); none where it is
// the boot sector of a file system, whose code lies there.
func mbrPartitions(start []byte, sectors uint64, sectorSize int) (found words.List) {
	const records, size = 446, 16
	if len(start) < 512 || string(start[510:512]) != "\x55\xaa" {
		return nil
	}
	for i := range 4 {
		r := start[records+i*size:][:size]
		first, count := uint64(binary.LittleEndian.Uint32(r[8:])), uint64(binary.LittleEndian.Uint32(r[12:]))
		switch {
		case r[0]&0x7f != 0: // neither active nor not
			return nil
		case r[4] == 0:
			continue
		case first == 0 || count == 0 || first >= sectors:
			return nil
		}
		found = append(found, words.Linef(words.InMBRPartition, i+1, r[4], count*uint64(sectorSize)>>20))
	}
	return found
}

// window is how much is read at each end of a disk, in bytes.
const window = 1 << 20

// ends reads both ends of a disk, which may be shorter.
func ends(r io.ReaderAt, size int64) (start, tail []byte, err error) {
	start, tail = make([]byte, min(window, size)), make([]byte, min(window, size))
	if _, err := r.ReadAt(start, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	if _, err := r.ReadAt(tail, size-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	return start, tail, nil
}
