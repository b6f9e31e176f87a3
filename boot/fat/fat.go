// Package fat writes a FAT32 file system as a whole, and reads one that may be
// damaged. Sections refer to Microsoft's "FAT: General Overview of On-Disk
// Format", version 1.03 (fatgen103).
//
// It refuses to change a file system: [Format] starts from nothing and knows
// all its files beforehand, so that the same files give the same bytes; and
// [Open] only reads. There is no FAT12 and no FAT16. Nothing that a volume
// claims about itself is allocated for or followed before it was checked
// against the volume's size, and chains that run in circles are found.
package fat

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"
)

const (
	dirEntrySize = 32
	// maxDirBytes is the largest directory (section "FAT Directory Structure").
	maxDirBytes = 65536 * dirEntrySize
	// maxFileSize is what the 32-bit size of an entry can say.
	maxFileSize = math.MaxUint32

	firstCluster = 2          // cluster numbers start here
	entryMask    = 0x0fffffff // the other four bits of a FAT entry are reserved
	endOfChain   = 0x0fffffff // what Format ends a chain with
	minEnd       = 0x0ffffff8 // from here on an entry means the end of a chain
	badCluster   = 0x0ffffff7

	// minClusters makes it FAT32; with fewer other systems take it for FAT16
	// (section "FAT Type Determination").
	minClusters = 65525
	maxClusters = badCluster - firstCluster

	reservedSectors = 32 // at least; more where that aligns the clusters
	fsInfoSector    = 1
	backupSector    = 6 // of the boot sector; FSInfo's copy follows it
	mediaFixed      = 0xf8
)

// Attributes of a directory entry.
const (
	attrReadOnly = 0x01
	attrVolumeID = 0x08
	attrDir      = 0x10
	attrArchive  = 0x20
	attrLongName = 0x0f
	attrLongMask = 0x3f
)

// bootSector is the start of sector 0 (section "Boot Sector and BPB").
type bootSector struct {
	Jump            [3]byte
	OEM             [8]byte
	SectorSize      uint16 // bytes
	ClusterSectors  uint8
	ReservedSectors uint16
	FATs            uint8
	RootEntries     uint16 // zero on FAT32
	Sectors16       uint16 // zero on FAT32
	Media           uint8
	FATSectors16    uint16 // zero on FAT32
	TrackSectors    uint16
	Heads           uint16
	HiddenSectors   uint32
	Sectors         uint32
	FATSectors      uint32
	ExtFlags        uint16
	Version         uint16
	RootCluster     uint32
	FSInfo          uint16
	BackupBoot      uint16
	_               [12]byte
	Drive           uint8
	State           uint8 // bit 0: mounted, and not unmounted since
	ExtSignature    uint8
	VolumeID        uint32
	Label           [11]byte
	Type            [8]byte
}

// dirEntry is a directory entry (section "FAT 32 Byte Directory Entry
// Structure").
type dirEntry struct {
	Name         [11]byte
	Attr         uint8
	Case         uint8 // bits 3 and 4: base and extension are lower case
	CreateTenths uint8
	CreateTime   uint16
	CreateDate   uint16
	AccessDate   uint16
	ClusterHigh  uint16
	WriteTime    uint16
	WriteDate    uint16
	ClusterLow   uint16
	Size         uint32
}

// longEntry is one of the entries that hold a long name (section "FAT Long
// Directory Entries").
type longEntry struct {
	Order    uint8
	Name1    [5]uint16
	Attr     uint8
	Type     uint8
	Checksum uint8
	Name2    [6]uint16
	Cluster  uint16
	Name3    [2]uint16
}

const (
	longUnits = 13   // UTF-16 code units in a longEntry
	lastLong  = 0x40 // in Order: the name's last part, which comes first
)

// geometry is where things are on a volume.
type geometry struct {
	sectorSize     int64 // bytes
	clusterSectors int64
	sectors        int64 // of the volume
	reserved       int64 // sectors before the first FAT
	fatSectors     int64 // of one of the FATs
	fats           int64
	clusters       uint32
}

func (g *geometry) clusterSize() int64 { return g.clusterSectors * g.sectorSize }

// fat returns the first byte of FAT number i.
func (g *geometry) fat(i int64) int64 { return (g.reserved + i*g.fatSectors) * g.sectorSize }

// cluster returns the first byte of cluster c.
func (g *geometry) cluster(c uint32) int64 {
	return g.fat(g.fats) + int64(c-firstCluster)*g.clusterSize()
}

// has reports whether c is the number of a cluster of the volume.
func (g *geometry) has(c uint32) bool { return c >= firstCluster && c-firstCluster < g.clusters }

// planGeometry chooses the cluster size for a volume as the specification's
// table for FAT32 does, and aligns the clusters to 4096 bytes and to their own
// size.
func planGeometry(size int64, sectorSize int) (*geometry, error) {
	if sectorSize != 512 && sectorSize != 4096 {
		return nil, fmt.Errorf("sector size of %d bytes: only 512 and 4096 are supported", sectorSize)
	}
	g := &geometry{sectorSize: int64(sectorSize), sectors: size / int64(sectorSize), fats: 2}
	if size < 0 || g.sectors > math.MaxUint32 {
		return nil, fmt.Errorf("volume of %d bytes: at most 2^32 sectors are possible", size)
	}
	clusterSize := int64(32 << 10)
	for _, row := range []struct{ upTo, cluster int64 }{{260 << 20, 512}, {8 << 30, 4 << 10}, {16 << 30, 8 << 10}, {32 << 30, 16 << 10}} {
		if size <= row.upTo {
			clusterSize = row.cluster
			break
		}
	}
	g.clusterSectors = max(1, clusterSize/g.sectorSize)
	align := max(4096, g.clusterSize()) / g.sectorSize

	// A FAT leaves room for fewer clusters than it is needed for without one:
	// the second guess is too small by little, if at all.
	fit := func(fatSectors int64) (needed int64) {
		system := (reservedSectors + 2*fatSectors + align - 1) / align * align
		g.fatSectors, g.reserved = fatSectors, system-2*fatSectors
		clusters := max(0, g.sectors-system) / g.clusterSectors
		g.clusters = uint32(min(clusters, maxClusters))
		return ((clusters+firstCluster)*4 + g.sectorSize - 1) / g.sectorSize
	}
	for n := fit(fit(0)); fit(n) > n; n++ {
	}
	if g.clusters < minClusters {
		return nil, fmt.Errorf("volume of %d bytes in sectors of %d: %d clusters, FAT32 has at least %d", size, sectorSize, g.clusters, minClusters)
	}
	return g, nil
}

// dosTime packs t as an entry has it (section "Date and Time Formats"): two
// seconds' resolution, hundredths for creation, years 1980 to 2107; what lies
// outside becomes the nearest time inside.
func dosTime(t time.Time) (date, clock uint16, hundredths uint8) {
	t = t.UTC()
	if first := time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC); t.Before(first) {
		t = first
	}
	if last := time.Date(2107, 12, 31, 23, 59, 59, 0, time.UTC); t.After(last) {
		t = last
	}
	date = uint16(t.Year()-1980)<<9 | uint16(t.Month())<<5 | uint16(t.Day())
	clock = uint16(t.Hour())<<11 | uint16(t.Minute())<<5 | uint16(t.Second()/2)
	return date, clock, uint8(t.Second()%2*100 + t.Nanosecond()/10_000_000)
}

// goTime is dosTime's inverse. A date that was never set is the zero time.
func goTime(date, clock uint16) time.Time {
	if date == 0 {
		return time.Time{}
	}
	return time.Date(1980+int(date>>9), time.Month(date>>5&15), int(date&31),
		int(clock>>11), int(clock>>5&63), int(clock&31)*2, 0, time.UTC)
}

// encode is for structures of fixed size, which always fit what they are
// encoded into.
func encode(to []byte, v any) error {
	if _, err := binary.Encode(to, binary.LittleEndian, v); err != nil {
		return fmt.Errorf("encode %T: %w", v, err)
	}
	return nil
}
