package fat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/bits"
	"strings"
	"sync"
)

const (
	maxDepth       = 128     // directories within directories
	maxWalk        = 1 << 20 // entries that one Walk looks at
	maxClusterSize = 64 << 10
)

// FS reads a FAT32 volume, which may be damaged: what is whole can be read,
// and the rest gives an error that says what is wrong with it. It is safe for
// concurrent use. It implements [fs.FS], [fs.ReadDirFS], [fs.ReadFileFS] and
// [fs.StatFS]; names are found as FAT finds them, whatever their case, and by
// their short form too.
//
// On a volume of unknown origin use [FS.Walk], not [fs.WalkDir]: directories can
// be made to contain each other.
type FS struct {
	strict bool // entries behind a directory's end are an error
	r      io.ReaderAt
	g      geometry
	root   uint32
	active int64 // the FAT that counts
	info   Info

	mu     sync.Mutex
	page   [4096]byte // of the FAT
	pageAt int64      // its first byte; -1: none
}

// Info says what a volume claims to be.
type Info struct {
	SectorSize  int    // bytes
	ClusterSize int    // bytes
	Clusters    uint32 // that can hold files
	Size        int64  // bytes
	VolumeID    uint32
	Label       string
	// Dirty: the volume was not cleanly unmounted, or a driver met errors.
	Dirty bool
}

// Open reads the boot sector of a volume. It checks everything in it that
// places are computed from, and refuses what is not FAT32.
func Open(r io.ReaderAt) (*FS, error) {
	f := &FS{r: r, pageAt: -1}
	if err := f.readBoot(); err != nil {
		return nil, fmt.Errorf("open FAT32: %w", err)
	}
	return f, nil
}

// Info returns what the volume claims to be.
func (f *FS) Info() Info { return f.info }

func (f *FS) readBoot() error {
	var sector [512]byte
	if err := readFull(f.r, sector[:], 0); err != nil {
		return fmt.Errorf("read boot sector: %w", err)
	}
	var b bootSector
	if _, err := binary.Decode(sector[:], binary.LittleEndian, &b); err != nil {
		return fmt.Errorf("boot sector: %w", err)
	}
	if sector[510] != 0x55 || sector[511] != 0xaa {
		return errors.New("boot sector: no signature")
	}
	if err := f.setGeometry(&b); err != nil {
		return fmt.Errorf("boot sector: %w", err)
	}
	f.info = Info{
		SectorSize: int(f.g.sectorSize), ClusterSize: int(f.g.clusterSize()), Clusters: f.g.clusters,
		Size: f.g.sectors * f.g.sectorSize, VolumeID: b.VolumeID,
		Label: strings.TrimRight(clean(string(b.Label[:])), " "),
	}
	flags, err := f.entry(1)
	if err != nil {
		return err
	}
	const cleanShut, noErrors = 1 << 27, 1 << 26
	f.info.Dirty = b.State&1 != 0 || flags&cleanShut == 0 || flags&noErrors == 0
	return nil
}

// setGeometry takes the places of things from b, after it made sure that they
// are possible.
func (f *FS) setGeometry(b *bootSector) error {
	g := &f.g
	*g = geometry{
		sectorSize: int64(b.SectorSize), clusterSectors: int64(b.ClusterSectors), sectors: int64(b.Sectors),
		reserved: int64(b.ReservedSectors), fatSectors: int64(b.FATSectors), fats: int64(b.FATs),
	}
	switch {
	case b.SectorSize < 512 || b.SectorSize > 4096 || bits.OnesCount16(b.SectorSize) != 1:
		return fmt.Errorf("sectors of %d bytes", b.SectorSize)
	case bits.OnesCount8(b.ClusterSectors) != 1 || g.clusterSize() > maxClusterSize:
		return fmt.Errorf("clusters of %d sectors", b.ClusterSectors)
	case b.FATSectors16 != 0 || b.RootEntries != 0 || b.Sectors16 != 0 || b.FATSectors == 0:
		return errors.New("not FAT32, perhaps FAT12 or FAT16")
	case b.Version != 0:
		return fmt.Errorf("version %d.%d is unknown", b.Version>>8, b.Version&0xff)
	case b.FATs < 1 || b.FATs > 2 || b.ReservedSectors < 1:
		return fmt.Errorf("%d FATs after %d reserved sectors", b.FATs, b.ReservedSectors)
	}
	system := g.reserved + g.fats*g.fatSectors
	clusters := (g.sectors - system) / g.clusterSectors
	if clusters < 1 || clusters > maxClusters || (clusters+firstCluster)*4 > g.fatSectors*g.sectorSize {
		return fmt.Errorf("%d sectors, of which %d are not clusters, do not fit FATs of %d sectors", g.sectors, system, g.fatSectors)
	}
	g.clusters = uint32(clusters)
	if f.root = b.RootCluster; !g.has(f.root) {
		return fmt.Errorf("root at cluster %d of %d", f.root, clusters)
	}
	if b.ExtFlags&0x80 != 0 { // only one FAT is kept up to date
		f.active = int64(b.ExtFlags & 0x0f)
		if f.active >= g.fats {
			return fmt.Errorf("FAT %d of %d is the active one", f.active+1, g.fats)
		}
	}
	return nil
}

// entry returns FAT entry c.
func (f *FS) entry(c uint32) (uint32, error) {
	at := f.g.fat(f.active) + int64(c)*4
	page := at &^ int64(len(f.page)-1)
	f.mu.Lock()
	defer f.mu.Unlock()
	if page != f.pageAt {
		f.pageAt = -1
		// The volume may end within the page; what is wanted lies before that.
		n, err := f.r.ReadAt(f.page[:], page)
		if int64(n) < at-page+4 {
			return 0, fmt.Errorf("read FAT entry %d: %w", c, noEOF(err))
		}
		if n == len(f.page) {
			f.pageAt = page
		}
	}
	return binary.LittleEndian.Uint32(f.page[at-page:]) & entryMask, nil
}

// readFull fills p; reaching the end with it is not an error.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil {
		err = io.EOF
	}
	return noEOF(err)
}

// chain is a place in a chain of clusters.
type chain struct {
	f       *FS
	cluster uint32
	seen    clusterSet
}

func (f *FS) chain(first uint32) (*chain, error) {
	if !f.g.has(first) {
		return nil, fmt.Errorf("begins at cluster %d: there are 2 to %d", first, f.g.clusters+firstCluster-1)
	}
	c := &chain{f: f, cluster: first, seen: clusterSet{}}
	c.seen.add(first)
	return c, nil
}

// advance goes to the next cluster, or returns io.EOF at the chain's end.
func (c *chain) advance() error {
	e, err := c.f.entry(c.cluster)
	if err != nil {
		return err
	}
	switch {
	case e >= minEnd:
		return io.EOF
	case !c.f.g.has(e):
		return fmt.Errorf("cluster %d leads to cluster %d: there are 2 to %d", c.cluster, e, c.f.g.clusters+firstCluster-1)
	case !c.seen.add(e):
		return fmt.Errorf("cluster %d leads back to cluster %d", c.cluster, e)
	}
	c.cluster = e
	return nil
}

// clusterSet remembers clusters, a bit each, in pieces of 4096 that are made
// when needed: 512 bytes for an ordinary file, 32 MiB for the worst chain on
// the largest volume.
type clusterSet map[uint32]*[64]uint64

// add reports whether c is new.
func (s clusterSet) add(c uint32) bool {
	piece := s[c/4096]
	if piece == nil {
		piece = new([64]uint64)
		s[c/4096] = piece
	}
	word, bit := &piece[c%4096/64], uint64(1)<<(c%64)
	fresh := *word&bit == 0
	*word |= bit
	return fresh
}

var (
	_ fs.ReadDirFS  = (*FS)(nil)
	_ fs.ReadFileFS = (*FS)(nil)
	_ fs.StatFS     = (*FS)(nil)
)
