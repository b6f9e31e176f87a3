// Package writelog reads the log of a disk's writes that vm.Options.WriteLog
// records, and rebuilds the disk as it was, or could have been, at any moment. The
// format is that of the kernel's dm-log-writes target
// (Documentation/admin-guide/device-mapper/log-writes.rst, drivers/md/dm-log-writes.c).
//
// It refuses a log that ends within an entry, and an entry whose size the log cannot
// hold; it never allocates by what an entry claims.
package writelog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	magic   = 0x6a736677736872
	version = 1
	// maxEntries bounds what is kept of a log: an entry takes a sector of it.
	maxEntries = 1 << 24
	// piece is how much of a write is in memory while it is replayed, in bytes.
	piece = 1 << 20
)

// Flags tell what an entry is.
type Flags uint64

// The flags of an entry. A write has none, or FUA.
const (
	Flush   Flags = 1 << iota // everything before it is on the disk
	FUA                       // this write is on the disk when it completes
	Discard                   // the content is undefined from here on; carries no data
	Mark                      // a remark
)

// Entry is one request that the disk completed.
type Entry struct {
	Offset int64 // on the disk, in bytes
	Length int64 // in bytes; 0 for a bare flush
	Flags  Flags

	data int64 // where the log has the content; Length bytes
}

// Log is a log that was read.
type Log struct {
	Entries []Entry // in the order of completion

	r io.ReaderAt
}

// Read reads the entries of a log of the given size in bytes.
func Read(r io.ReaderAt, size int64) (*Log, error) {
	var super [28]byte
	if _, err := r.ReadAt(super[:], 0); err != nil {
		return nil, fmt.Errorf("write log: superblock: %w", err)
	}
	if m, v := binary.LittleEndian.Uint64(super[0:]), binary.LittleEndian.Uint64(super[8:]); m != magic || v != version {
		return nil, fmt.Errorf("write log: magic %#x, version %d: want %#x and %d", m, v, uint64(magic), version)
	}
	count, sector := binary.LittleEndian.Uint64(super[16:]), int64(binary.LittleEndian.Uint32(super[24:]))
	if sector < 512 || sector > 4096 || sector&(sector-1) != 0 {
		return nil, fmt.Errorf("write log: sectors of %d bytes", sector)
	}
	if count > maxEntries || int64(count) > size/sector {
		return nil, fmt.Errorf("write log: %d entries in %d bytes", count, size)
	}
	l := &Log{r: r}
	at := sector
	for i := range count {
		e, end, err := readEntry(r, at, sector, size)
		if err != nil {
			return nil, fmt.Errorf("write log: entry %d of %d at %d: %w", i, count, at, err)
		}
		l.Entries = append(l.Entries, e)
		at = end
	}
	return l, nil
}

// readEntry reads the entry at a place of the log and returns where the next begins.
func readEntry(r io.ReaderAt, at, sector, size int64) (Entry, int64, error) {
	var head [32]byte
	if _, err := r.ReadAt(head[:], at); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Entry{}, 0, err
	}
	place, count := binary.LittleEndian.Uint64(head[0:]), binary.LittleEndian.Uint64(head[8:])
	flags, extra := Flags(binary.LittleEndian.Uint64(head[16:])), binary.LittleEndian.Uint64(head[24:])
	limit := uint64(1<<62) / uint64(sector)
	if place > limit || count > limit-place || flags&^(Flush|FUA|Discard|Mark) != 0 {
		return Entry{}, 0, fmt.Errorf("%d sectors at sector %d, flags %#x", count, place, uint64(flags))
	}
	e := Entry{Offset: int64(place) * sector, Length: int64(count) * sector, Flags: flags, data: at + sector}
	left := size - e.data
	stored := e.Length
	switch {
	case flags&Mark != 0:
		if extra > uint64(sector) {
			return Entry{}, 0, fmt.Errorf("a remark of %d bytes", extra)
		}
		return e, e.data, nil // it shares the sector of the head
	case flags&Discard != 0:
		stored = 0
	}
	if left < 0 || stored > left {
		return Entry{}, 0, fmt.Errorf("%d bytes, of which the log has %d", stored, max(0, left))
	}
	return e, e.data + stored, nil
}

// Data returns the content of a write; a discard and a bare flush have none.
func (l *Log) Data(e Entry) *io.SectionReader {
	if e.Flags&(Discard|Mark) != 0 {
		return io.NewSectionReader(l.r, e.data, 0)
	}
	return io.NewSectionReader(l.r, e.data, e.Length)
}

// Apply does to a disk what an entry did: a write writes, a discard fills with 0xaa,
// since nothing may rely on what it leaves.
func (l *Log) Apply(disk io.WriterAt, e Entry) error {
	if e.Flags&Mark != 0 {
		return nil
	}
	buf := make([]byte, min(piece, e.Length))
	data := l.Data(e)
	if e.Flags&Discard != 0 {
		for i := range buf {
			buf[i] = 0xaa
		}
	}
	for done := int64(0); done < e.Length; {
		part := buf[:min(int64(len(buf)), e.Length-done)]
		if e.Flags&Discard == 0 {
			if _, err := io.ReadFull(data, part); err != nil {
				return fmt.Errorf("write log: content for %d: %w", e.Offset, err)
			}
		}
		if _, err := disk.WriteAt(part, e.Offset+done); err != nil {
			return fmt.Errorf("replay at %d: %w", e.Offset+done, err)
		}
		done += int64(len(part))
	}
	return nil
}

// Flushes returns the numbers of entries after which the disk is known to hold
// everything before: for a disk rebuilt from the first n entries, n is one of them.
func (l *Log) Flushes() []int {
	var all []int
	for i, e := range l.Entries {
		if e.Flags&Flush != 0 {
			all = append(all, i+1)
		}
	}
	return all
}
