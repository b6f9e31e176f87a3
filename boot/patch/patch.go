// Package patch makes blocks of a new system image of blocks of an old one: the files
// N.from-M.patches and N.from-M.patch that lie beside a release's archive.
//
// The first is a table, which the release key signs: which extents of the new image are made
// of which extents of the old one, and of which group of patches. The second holds the
// groups, one after the other. A machine fetches those groups that spare it more than they
// take.
//
// It refuses a table that is of other images than it should, whose extents overlap or lie
// outside of the images, and a group with another SHA-256 than the table says: nothing that
// is not signed meets the decompressor. What it makes is not believed for that: anyone who
// writes a block compares it with the block index first, as with one that was fetched.
package patch

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"path"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/verity"
)

const (
	// BlockSize is what extents are counted in, in bytes.
	BlockSize = verity.BlockSize
	// MaxTable bounds the table in bytes.
	MaxTable = 2 << 20
	// MaxGroup bounds a group in bytes, as it lies in the file.
	MaxGroup = 4 << 20
	// MaxExtent bounds the blocks of an extent, in either image: 64 MiB.
	MaxExtent = 16 << 10
	// MaxGroupBlocks bounds the blocks that a group makes.
	MaxGroupBlocks = 2 * MaxExtent

	magic     = "HgPatch\x01"
	hashSize  = sha256.Size
	maxBlocks = 1 << 29 // of an image: 2 TiB
)

// TableName is the name of the table of patches from one version to another, beside the
// archive's directory as the manifest's names are.
func TableName(to, from contract.Version) string {
	return path.Join(to.String(), fmt.Sprintf("%s.from-%s.patches", to, from))
}

// SignatureName is the name of the table's signature.
func SignatureName(to, from contract.Version) string { return TableName(to, from) + ".pgp" }

// FileName is the name of the file with the groups.
func FileName(to, from contract.Version) string {
	return path.Join(to.String(), fmt.Sprintf("%s.from-%s.patch", to, from))
}

// An Extent is a run of blocks of the new image that is made of a run of the old one.
type Extent struct {
	New, NewBlocks int
	Old, OldBlocks int
}

// A Group is the patches of some extents, compressed together.
type Group struct {
	Extents []Extent
	Size    int64 // bytes in the file
	SHA256  [sha256.Size]byte
	// Offset is where in the file it lies: behind the group before.
	Offset int64
}

// An Image is what a table says of a system image.
type Image struct {
	Root   verity.Root
	Blocks int
}

// A Table says what patches there are from one image to another.
type Table struct {
	From, To Image
	Groups   []Group
}

// Fits refuses a table that is of other images.
func (t *Table) Fits(old, fresh Image) error {
	if t.To != fresh {
		return fmt.Errorf("they make another image, of %d blocks with the root hash %s, want %s", t.To.Blocks, t.To.Root, fresh.Root)
	}
	if t.From != old {
		return fmt.Errorf("they are for machines with another image, of %d blocks with the root hash %s, want %s", t.From.Blocks, t.From.Root, old.Root)
	}
	return nil
}

// Size is the size in bytes of the file with the groups.
func (t *Table) Size() int64 {
	if len(t.Groups) == 0 {
		return 0
	}
	last := t.Groups[len(t.Groups)-1]
	return last.Offset + last.Size
}

// validate reports the first thing that is wrong. Extents are in the new image's order.
func (t *Table) validate() error {
	if t.From.Blocks < 1 || t.From.Blocks > maxBlocks || t.To.Blocks < 1 || t.To.Blocks > maxBlocks {
		return fmt.Errorf("images of %d and %d blocks, want 1 to %d", t.From.Blocks, t.To.Blocks, maxBlocks)
	}
	next, offset := 0, int64(0)
	for n, g := range t.Groups {
		if g.Size < 1 || g.Size > MaxGroup || g.Offset != offset || len(g.Extents) == 0 {
			return fmt.Errorf("group %d of %d bytes at byte %d, with %d extents", n, g.Size, g.Offset, len(g.Extents))
		}
		offset += g.Size
		blocks := 0
		for _, e := range g.Extents {
			switch {
			case e.NewBlocks < 1 || e.NewBlocks > MaxExtent || e.OldBlocks < 1 || e.OldBlocks > MaxExtent:
				return fmt.Errorf("group %d: extents of %d and %d blocks, want 1 to %d", n, e.NewBlocks, e.OldBlocks, MaxExtent)
			case e.New < next || e.New > t.To.Blocks-e.NewBlocks:
				return fmt.Errorf("group %d: blocks %d to %d of the new image, of %d blocks, where %d comes next", n, e.New, e.New+e.NewBlocks-1, t.To.Blocks, next)
			case e.Old < 0 || e.Old > t.From.Blocks-e.OldBlocks:
				return fmt.Errorf("group %d: blocks %d to %d of the old image, of %d blocks", n, e.Old, e.Old+e.OldBlocks-1, t.From.Blocks)
			}
			next = e.New + e.NewBlocks
			blocks += e.NewBlocks
		}
		if blocks > MaxGroupBlocks {
			return fmt.Errorf("group %d makes %d blocks, more than %d", n, blocks, MaxGroupBlocks)
		}
	}
	return nil
}

// Encode returns the table. The error is ErrLarge where it would be more than a machine takes.
// Numbers are in little endian; those of extents are
// varints (of encoding/binary), each what it is more than where the one before ended.
func (t *Table) Encode() ([]byte, error) {
	if err := t.validate(); err != nil {
		return nil, fmt.Errorf("encode the table of patches: %w", err)
	}
	out := append([]byte(magic), t.From.Root[:]...)
	out = append(out, t.To.Root[:]...)
	for _, n := range []int{t.From.Blocks, t.To.Blocks, len(t.Groups)} {
		out = binary.LittleEndian.AppendUint32(out, uint32(n))
	}
	next, old := 0, 0
	for _, g := range t.Groups {
		out = append(binary.AppendUvarint(out, uint64(g.Size)), g.SHA256[:]...)
		out = binary.AppendUvarint(out, uint64(len(g.Extents)))
		for _, e := range g.Extents {
			out = binary.AppendUvarint(out, uint64(e.New-next))
			out = binary.AppendUvarint(out, uint64(e.NewBlocks))
			out = binary.AppendVarint(out, int64(e.Old-old))
			out = binary.AppendVarint(out, int64(e.OldBlocks-e.NewBlocks))
			next, old = e.New+e.NewBlocks, e.Old+e.OldBlocks
		}
	}
	if len(out) > MaxTable {
		return nil, fmt.Errorf("%w: the table has %d bytes, more than %d", ErrLarge, len(out), MaxTable)
	}
	return out, nil
}

const tableHead = len(magic) + 2*hashSize + 3*4

// ParseTable reads what Encode wrote. Whether it is signed, and of the images at hand, is
// for others to look at.
func ParseTable(b []byte) (*Table, error) {
	if len(b) < tableHead || len(b) > MaxTable || !bytes.HasPrefix(b, []byte(magic)) {
		return nil, fmt.Errorf("table of patches of %d bytes does not start as one", len(b))
	}
	t := new(Table)
	b = b[len(magic):]
	copy(t.From.Root[:], b)
	copy(t.To.Root[:], b[hashSize:])
	b = b[2*hashSize:]
	le := binary.LittleEndian
	t.From.Blocks, t.To.Blocks = int(le.Uint32(b)), int(le.Uint32(b[4:]))
	r := &reader{b: b[12:]}
	next, old := 0, 0
	for range le.Uint32(b[8:]) {
		g := Group{Size: int64(r.number(MaxGroup)), Offset: t.Size()}
		copy(g.SHA256[:], r.bytes(hashSize))
		for range r.number(MaxGroupBlocks) {
			e := Extent{New: next + r.number(maxBlocks), NewBlocks: r.number(MaxExtent), Old: old + r.signed(maxBlocks)}
			e.OldBlocks = e.NewBlocks + r.signed(MaxExtent)
			if r.err != nil {
				break
			}
			next, old = e.New+e.NewBlocks, e.Old+e.OldBlocks
			g.Extents = append(g.Extents, e)
		}
		if r.err != nil {
			return nil, fmt.Errorf("table of patches: %w", r.err)
		}
		t.Groups = append(t.Groups, g)
	}
	if len(r.b) > 0 {
		return nil, fmt.Errorf("table of patches: %d bytes follow", len(r.b))
	}
	if err := t.validate(); err != nil {
		return nil, fmt.Errorf("table of patches: %w", err)
	}
	return t, nil
}

// reader reads varints. After an error it returns nothing.
type reader struct {
	b   []byte
	err error
}

var errEnds = errors.New("ends early, or has a number that cannot be")

// number reads one of 0 to limit, in the shortest form.
func (r *reader) number(limit int) int {
	v, n := binary.Uvarint(r.b)
	if r.err != nil || n <= 0 || v > uint64(limit) || n > 1 && r.b[n-1] == 0 {
		r.err = errEnds
		return 0
	}
	r.b = r.b[n:]
	return int(v)
}

// signed reads one of -limit to limit.
func (r *reader) signed(limit int) int {
	v := r.number(2*limit + 1)
	if v&1 != 0 {
		return -(v >> 1) - 1
	}
	return v >> 1
}

func (r *reader) bytes(n int) []byte {
	if r.err != nil || len(r.b) < n {
		r.err = errEnds
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}
