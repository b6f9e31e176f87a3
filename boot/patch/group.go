package patch

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// A Copy is a step in making an extent: so many bytes of the old extent with others added
// to them, then so many that are new, then a step to elsewhere in the old one.
//
// That is bsdiff's (C. Percival, "Naive differences of executable code", 2003): what a
// linker has moved differs from the old bytes by a few numbers that repeat, and their
// differences are mostly zero.
type Copy struct {
	Add, New int // bytes
	Seek     int // bytes from the end of what was added, which may be negative
}

// streams are the three parts of a group, each a zstd frame of its own (RFC 8878), with
// their sizes before them: the steps, the differences and what is new.
const streams = 3

// window is how far back the compression reaches, which the memory of a machine that
// applies a patch goes by: two of them, in bytes.
const window = 4 << 20

// maxSteps bounds the steps of a group in bytes, unpacked.
const maxSteps = 2 << 20

// A Builder makes a group.
type Builder struct {
	extents []Extent
	raw     [streams]bytes.Buffer
}

// Add adds an extent. added are the differences of its steps, one after the other, and fresh
// what is new.
func (b *Builder) Add(e Extent, steps []Copy, added, fresh []byte) {
	b.extents = append(b.extents, e)
	var out []byte
	for _, s := range steps {
		out = binary.AppendUvarint(out, uint64(s.Add))
		out = binary.AppendUvarint(out, uint64(s.New))
		out = binary.AppendVarint(out, int64(s.Seek))
	}
	b.raw[0].Write(out)
	b.raw[1].Write(added)
	b.raw[2].Write(fresh)
}

// Blocks is the number of blocks that the group makes so far.
func (b *Builder) Blocks() int {
	n := 0
	for _, e := range b.extents {
		n += e.NewBlocks
	}
	return n
}

// ErrLarge says that a group, or a table, is more than a machine takes.
var ErrLarge = errors.New("too large for the machines that take patches")

// Encode returns the group and what the file has of it. Its offset is for the caller to set.
func (b *Builder) Encode() (Group, []byte, error) {
	if b.raw[0].Len() > maxSteps {
		return Group{}, nil, fmt.Errorf("%w: %d bytes of steps, more than %d", ErrLarge, b.raw[0].Len(), maxSteps)
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(window), zstd.WithEncoderCRC(false))
	if err != nil {
		return Group{}, nil, err
	}
	var head, out []byte
	for i := range b.raw {
		at := len(out)
		out = enc.EncodeAll(b.raw[i].Bytes(), out)
		head = binary.LittleEndian.AppendUint32(head, uint32(len(out)-at))
	}
	if err := enc.Close(); err != nil {
		return Group{}, nil, err
	}
	out = append(head, out...)
	if len(out) > MaxGroup {
		return Group{}, nil, fmt.Errorf("%w: %d bytes, more than %d", ErrLarge, len(out), MaxGroup)
	}
	return Group{Extents: b.extents, Size: int64(len(out)), SHA256: sha256.Sum256(out)}, out, nil
}

// ErrDamaged says that a group is not the one that was signed.
var ErrDamaged = errors.New("patches have another SHA-256 than their signed table says")

// Apply makes the blocks of a group. packed is what the file has of it, and old the old
// image. take is given each block, with its number in the new image; the content is its to
// use until it returns. An error that take returns ends it.
func (g *Group) Apply(packed []byte, old io.ReaderAt, take func(block int, content []byte) error) error {
	if int64(len(packed)) != g.Size || sha256.Sum256(packed) != g.SHA256 {
		return ErrDamaged
	}
	a := &applying{old: old, take: take}
	if err := a.open(packed); err != nil {
		return fmt.Errorf("patches: %w", err)
	}
	defer a.close()
	for _, e := range g.Extents {
		if err := a.extent(e); err != nil {
			return fmt.Errorf("patch of blocks %d to %d: %w", e.New, e.New+e.NewBlocks-1, err)
		}
	}
	if len(a.steps.b) > 0 {
		return errors.New("patches: steps follow the last extent")
	}
	return nil
}

// applying is a group under way.
type applying struct {
	old          io.ReaderAt
	take         func(int, []byte) error
	steps        reader
	added, fresh *zstd.Decoder
	// block is the one that is being made, of which n bytes are there.
	block [BlockSize]byte
	n     int
	// ahead holds has bytes of the old image, from byte at on: steps are short, and most
	// go on where the one before ended.
	ahead [readAhead]byte
	at    int64
	has   int
}

const readAhead = 16 * BlockSize // bytes

// open opens the three streams.
func (a *applying) open(packed []byte) error {
	var parts [streams][]byte
	if len(packed) < 4*streams {
		return errEnds
	}
	rest := packed[4*streams:]
	for i := range parts {
		size := binary.LittleEndian.Uint32(packed[4*i:])
		if uint64(size) > uint64(len(rest)) {
			return errEnds
		}
		parts[i], rest = rest[:size], rest[size:]
	}
	if len(rest) > 0 {
		return fmt.Errorf("%d bytes follow", len(rest))
	}
	steps, err := decoder(parts[0])
	if err != nil {
		return err
	}
	defer steps.Close()
	if a.steps.b, err = io.ReadAll(io.LimitReader(steps, maxSteps)); err != nil {
		return err
	}
	if a.added, err = decoder(parts[1]); err != nil {
		return err
	}
	if a.fresh, err = decoder(parts[2]); err != nil {
		a.added.Close()
	}
	return err
}

func decoder(b []byte) (*zstd.Decoder, error) {
	return zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(window))
}

func (a *applying) close() {
	a.added.Close()
	a.fresh.Close()
}

// extent makes one extent.
func (a *applying) extent(e Extent) error {
	left := e.NewBlocks * BlockSize
	size := e.OldBlocks * BlockSize
	at := 0 // in the old extent
	block := e.New
	for left > 0 {
		add, fresh, seek := a.steps.number(left), a.steps.number(left), a.steps.signed(MaxExtent*BlockSize)
		switch {
		case a.steps.err != nil:
			return a.steps.err
		case add+fresh > left:
			return fmt.Errorf("a step of %d bytes, where %d are left", add+fresh, left)
		case add > size-at:
			return fmt.Errorf("a step of %d bytes from byte %d of the old extent's %d", add, at, size)
		}
		left -= add + fresh
		if err := a.step(&block, add, int64(e.Old)*BlockSize+int64(at)); err != nil {
			return err
		}
		if err := a.step(&block, fresh, -1); err != nil {
			return err
		}
		if at += add + seek; at < 0 || at > size {
			return fmt.Errorf("a step to byte %d of the old extent's %d", at, size)
		}
	}
	return nil
}

// step makes some bytes: of the old image from a byte on, or new ones where that is -1.
func (a *applying) step(block *int, size int, old int64) error {
	for size > 0 {
		b := a.block[a.n:min(BlockSize, a.n+size)]
		src := a.fresh
		if old >= 0 {
			src = a.added
		}
		if _, err := io.ReadFull(src, b); err != nil {
			return fmt.Errorf("unpack: %w", err)
		}
		if old >= 0 {
			from, err := a.was(old, len(b))
			if err != nil {
				return err
			}
			for i, v := range from {
				b[i] += v
			}
			old += int64(len(b))
		}
		size -= len(b)
		if a.n += len(b); a.n == BlockSize {
			a.n = 0
			if err := a.take(*block, a.block[:]); err != nil {
				return err
			}
			*block++
		}
	}
	return nil
}

// was returns n bytes of the old image, at most a block, to be read before the next call.
func (a *applying) was(at int64, n int) ([]byte, error) {
	if at < a.at || at+int64(n) > a.at+int64(a.has) {
		got, err := a.old.ReadAt(a.ahead[:], at)
		if got < n {
			return nil, fmt.Errorf("read the old image at byte %d: %w", at, err)
		}
		a.at, a.has = at, got
	}
	return a.ahead[at-a.at:][:n], nil
}
