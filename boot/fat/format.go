package fat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"halogenos.internal/boot/block"
)

// Options says what kind of file system Format makes.
type Options struct {
	SectorSize int    // bytes: 512 or 4096
	VolumeID   uint32 // the volume's serial number
	Label      string // at most 11 characters of a short name, upper case; may be empty
	// Time is that of every file and directory, in UTC. FAT's years are 1980 to
	// 2107; what lies outside becomes the nearest time inside.
	Time time.Time
	// Zeroed: everything reads as zero already, as a fresh image file does, and
	// zeros need not be written. Not set on a disk that held something.
	Zeroed bool
}

// File is a file to be put into the file system.
type File struct {
	// Path has slashes between its names, and none at its start. With one at
	// its end it is a directory, which need not be given unless it stays empty.
	Path string
	Size int64 // bytes, at most 2^32-1
	// Open returns the content, exactly Size bytes. It may be nil when there
	// is none.
	Open func() (io.ReadCloser, error)
}

// Format writes a FAT32 file system of size bytes that holds the files, and
// the directories that their paths lead through. The same files give the same
// bytes, in whatever order they come. What cannot fit or be named is refused
// before anything is written. Clusters that no file uses are not written to.
//
// The boot sector comes last, so that a Format that failed leaves no volume
// that was not one before; but there is no Sync in it: the caller decides when
// it counts, and starts again after a power cut.
func Format(w io.WriterAt, size int64, o Options, files []File) error {
	g, err := planGeometry(size, o.SectorSize)
	if err != nil {
		return fmt.Errorf("format FAT32: %w", err)
	}
	if err := format(w, g, o, files); err != nil {
		return fmt.Errorf("format FAT32: %w", err)
	}
	return nil
}

func format(w io.WriterAt, g *geometry, o Options, files []File) error {
	label, err := parseLabel(o.Label)
	if err != nil {
		return err
	}
	root, err := newTree(files)
	if err != nil {
		return err
	}
	runs, free, err := root.allocate(g, o.Label)
	if err != nil {
		return err
	}
	f := &formatter{w: w, g: g, o: o, label: label}
	for i := range g.fats {
		if err := f.writeFAT(g.fat(i), runs); err != nil {
			return fmt.Errorf("write FAT %d: %w", i+1, err)
		}
	}
	for _, n := range runs {
		write := f.writeFile
		if n.isDir() {
			write = f.writeDir
		}
		if err := write(n); err != nil {
			return fmt.Errorf("write %q: %w", n.path(), err)
		}
	}
	for n := range root.files() {
		if n.clusters == 0 && n.file.Open != nil { // make sure that it is empty
			if err := f.writeFile(n); err != nil {
				return fmt.Errorf("write %q: %w", n.path(), err)
			}
		}
	}
	if err := f.writeReserved(free); err != nil {
		return fmt.Errorf("write boot sectors: %w", err)
	}
	return nil
}

// parseLabel checks and pads a label.
func parseLabel(label string) (shortName, error) {
	padded := blankName
	if len(label) > len(padded) || strings.Trim(label, " ") != label {
		return padded, fmt.Errorf("label %q: at most 11 characters, without spaces at its ends", label)
	}
	for _, c := range label {
		if !validShort(c) && c != ' ' {
			return padded, fmt.Errorf("label %q: upper case letters, digits and some signs are possible, not %q", label, c)
		}
	}
	copy(padded[:], label)
	return padded, nil
}

type formatter struct {
	w     io.WriterAt
	g     *geometry
	o     Options
	label shortName
}

// put writes p, unless it is what is there already.
func (f *formatter) put(p []byte, off int64) error {
	if f.o.Zeroed && block.IsZero(p) {
		return nil
	}
	_, err := f.w.WriteAt(p, off)
	return err
}

// zero fills from..to with zeros.
func (f *formatter) zero(from, to int64) error {
	if f.o.Zeroed {
		return nil
	}
	return block.Zero(f.w, from, to-from)
}

// writeFAT writes one FAT, in pieces. The runs are the chains, each contiguous
// and right behind the one before.
func (f *formatter) writeFAT(start int64, runs []*node) error {
	const piece = 64 << 10
	buf := make([]byte, 0, piece)
	at := start
	add := func(entry uint32) error {
		buf = binary.LittleEndian.AppendUint32(buf, entry)
		if len(buf) < piece {
			return nil
		}
		err := f.put(buf, at)
		at, buf = at+piece, buf[:0]
		return err
	}
	// The first two entries are not clusters': media type, and the flags of a
	// volume that was cleanly unmounted without errors, which are ones.
	err := errors.Join(add(entryMask&^0xff|mediaFixed), add(endOfChain))
	for _, n := range runs {
		for c := n.first; err == nil && c < n.first+n.clusters; c++ {
			entry := c + 1
			if entry == n.first+n.clusters {
				entry = endOfChain
			}
			err = add(entry)
		}
	}
	if err != nil {
		return err
	}
	for len(buf)%int(f.g.sectorSize) != 0 {
		buf = append(buf, 0)
	}
	if err := f.put(buf, at); err != nil {
		return err
	}
	return f.zero(at+int64(len(buf)), start+f.g.fatSectors*f.g.sectorSize)
}

// writeDir writes a directory.
func (f *formatter) writeDir(n *node) error {
	buf := make([]byte, int64(n.clusters)*f.g.clusterSize())
	rest := buf
	add := func(e any) error {
		if err := encode(rest, e); err != nil {
			return err
		}
		rest = rest[dirEntrySize:]
		return nil
	}
	var err error
	if n.parent != nil {
		up := uint32(0) // the root is called cluster 0 here, wherever it is
		if n.parent.parent != nil {
			up = n.parent.first
		}
		err = errors.Join(add(f.entry(shortName([]byte(".          ")), attrDir, n.first, 0)),
			add(f.entry(shortName([]byte("..         ")), attrDir, up, 0)))
	} else if f.o.Label != "" {
		err = add(f.entry(f.label, attrVolumeID, 0, 0))
	}
	for _, c := range n.children {
		if needsLong(c.name, c.short) {
			for _, e := range longEntries(c.name, c.short) {
				err = errors.Join(err, add(&e))
			}
		}
		attr, size := uint8(attrDir), int64(0)
		if !c.isDir() {
			attr, size = attrArchive, c.file.Size
		}
		err = errors.Join(err, add(f.entry(c.short, attr, c.first, size)))
	}
	if err != nil {
		return err
	}
	return f.put(buf, f.g.cluster(n.first))
}

// entry returns a directory entry with the time that all have.
func (f *formatter) entry(name shortName, attr uint8, cluster uint32, size int64) *dirEntry {
	date, clock, hundredths := dosTime(f.o.Time)
	return &dirEntry{
		Name: name, Attr: attr,
		CreateTenths: hundredths, CreateTime: clock, CreateDate: date, AccessDate: date,
		WriteTime: clock, WriteDate: date,
		ClusterHigh: uint16(cluster >> 16), ClusterLow: uint16(cluster), Size: uint32(size),
	}
}

// writeFile copies a file's content and fills its last cluster with zeros.
func (f *formatter) writeFile(n *node) (err error) {
	r, err := n.file.Open()
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	buf := make([]byte, max(256<<10, f.g.clusterSize()))
	at := f.g.cluster(n.first)
	for left := n.file.Size; left > 0; {
		chunk := min(left, int64(len(buf)))
		if got, err := io.ReadFull(r, buf[:chunk]); err != nil {
			return fmt.Errorf("read at byte %d of %d: %w", n.file.Size-left+int64(got), n.file.Size, noEOF(err))
		}
		whole := (chunk + f.g.clusterSize() - 1) / f.g.clusterSize() * f.g.clusterSize()
		clear(buf[chunk:whole])
		if err := f.put(buf[:whole], at); err != nil {
			return err
		}
		at, left = at+whole, left-chunk
	}
	if got, err := io.ReadFull(r, buf[:1]); got != 0 {
		return fmt.Errorf("more than %d bytes", n.file.Size)
	} else if err != io.EOF {
		return fmt.Errorf("read behind byte %d: %w", n.file.Size, err)
	}
	return nil
}

// noEOF turns the end of a file that should go on into an error that says so.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// writeReserved writes FSInfo, the copies, and last the boot sector. free is
// the first free cluster, behind which all others are free as well.
func (f *formatter) writeReserved(free uint32) error {
	size := f.g.sectorSize
	boot, err := f.bootSector()
	if err != nil {
		return err
	}
	info := f.fsInfo(free)
	if err := f.zero(2*size, f.g.fat(0)); err != nil {
		return err
	}
	for _, w := range []struct {
		data   []byte
		sector int64
	}{{info, backupSector + fsInfoSector}, {boot, backupSector}, {info, fsInfoSector}, {boot, 0}} {
		if err := f.put(w.data, w.sector*size); err != nil {
			return err
		}
	}
	return nil
}

// bootSector returns the boot sector. Its code tells a BIOS to try the next
// disk, and stops where that returns.
func (f *formatter) bootSector() ([]byte, error) {
	label := f.label
	if f.o.Label == "" {
		label = shortName([]byte("NO NAME    "))
	}
	sector := make([]byte, f.g.sectorSize)
	err := encode(sector, &bootSector{
		Jump: [3]byte{0xeb, 0x58, 0x90}, OEM: [8]byte([]byte("MSWIN4.1")),
		SectorSize: uint16(f.g.sectorSize), ClusterSectors: uint8(f.g.clusterSectors),
		ReservedSectors: uint16(f.g.reserved), FATs: uint8(f.g.fats), Media: mediaFixed,
		TrackSectors: 63, Heads: 255,
		Sectors: uint32(f.g.sectors), FATSectors: uint32(f.g.fatSectors),
		RootCluster: firstCluster, FSInfo: fsInfoSector, BackupBoot: backupSector,
		Drive: 0x80, ExtSignature: 0x29, VolumeID: f.o.VolumeID, Label: label,
		Type: [8]byte([]byte("FAT32   ")),
	})
	copy(sector[0x5a:], []byte{0xcd, 0x18, 0xeb, 0xfe}) // int 0x18; jmp $
	sector[510], sector[511] = 0x55, 0xaa
	return sector, err
}

// fsInfo returns the FSInfo sector (section "FAT32 FSInfo Sector Structure").
func (f *formatter) fsInfo(free uint32) []byte {
	sector := make([]byte, f.g.sectorSize)
	left := f.g.clusters - (free - firstCluster)
	if left == 0 {
		free = 0xffffffff // no hint
	}
	for off, v := range map[int]uint32{0: 0x41615252, 484: 0x61417272, 488: left, 492: free, 508: 0xaa550000} {
		binary.LittleEndian.PutUint32(sector[off:], v)
	}
	return sector
}
