package blockindex

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"halogenos.internal/boot/verity"
)

// blocksOf makes a file of blocks out of few different ones, 0 for zeros.
func blocksOf(random *rand.Rand, n, different int) []byte {
	var out []byte
	for range n {
		out = append(out, bytes.Repeat([]byte{byte(random.IntN(different))}, BlockSize)...)
	}
	return out
}

// block returns a block, with zeros behind the file's end.
func block(content []byte, i int) []byte {
	b := make([]byte, BlockSize)
	copy(b, content[i*BlockSize:])
	return b
}

// world is a file to be had, where it is to lie, and a source.
type world struct {
	file                         *File
	content, source, destination []byte
}

func newWorld(t *testing.T, random *rand.Rand) *world {
	n := 1 + random.IntN(40)
	w := &world{content: blocksOf(random, n, 12), source: blocksOf(random, 1+random.IntN(40), 9)}
	w.content = w.content[:len(w.content)-random.IntN(2)*random.IntN(BlockSize)]
	w.destination = blocksOf(random, n, 12)
	raw, places := sample(t, random, 1+random.IntN(MaxMemberBlocks), w.content)
	w.file = only(t, raw, places, random.IntN(30))
	return w
}

// only returns the first file of an index.
func only(t testing.TB, raw []byte, places []Place, partBlocks int) *File {
	t.Helper()
	x, err := parse(raw, places, partBlocks)
	if err != nil {
		t.Fatal(err)
	}
	f, _ := x.File("a")
	return f
}

// A plan against what looking at every block says.
func TestPlan(t *testing.T) {
	random := newRandom(4)
	for range 500 {
		w := newWorld(t, random)
		byTree := random.IntN(2) == 0
		gap, limit := int64(random.IntN(200_000)), int64(random.IntN(400_000))
		got := make([]byte, len(w.content)+BlockSize)
		for _, part := range parts(t, w.file) {
			plan := NewPlan(part, salt)
			if err := plan.InPlace(t.Context(), bytes.NewReader(w.destination), salt); err != nil {
				t.Fatal(err)
			}
			if err := w.offer(t, plan, byTree); err != nil {
				t.Fatal(err)
			}
			wanted := w.wanted(t, part, plan, got)
			copied := 0
			for c := range plan.Copies() {
				copy(got[c.To*BlockSize:(c.To+c.Blocks)*BlockSize], w.source[c.From*BlockSize:])
				copied += c.Blocks
			}
			for first, n := range plan.Zeros() {
				clear(got[first*BlockSize : (first+n)*BlockSize])
			}
			start, end := part.BlockSpan()
			if c := plan.Cost(0, math.MaxInt64); c.Wanted != len(wanted) || c.Copied != copied || c.Blocks != end-start {
				t.Errorf("Cost = %+v, want %d and %d", c, len(wanted), copied)
			}
			checkRanges(t, part, plan, wanted, gap, limit)
			checkRanges(t, part, plan, wanted, 0, math.MaxInt64)
		}
		if !bytes.Equal(got[:len(w.content)], w.content) {
			t.Fatal("what is in place, copied, zero and fetched is not the file")
		}
	}
}

// wanted says which blocks of a part the archive alone has, and puts these and
// those that are in place where they belong.
func (w *world) wanted(t *testing.T, part *Part, plan *Plan, got []byte) map[int]bool {
	wanted := map[int]bool{}
	start, end := part.BlockSpan()
	for i := start; i < end; i++ {
		b := block(w.content, i)
		size := min(BlockSize, len(w.content)-i*BlockSize)
		if bytes.Equal(block(w.destination, i)[:size], b[:size]) {
			copy(got[i*BlockSize:], b)
		} else if !zero(b) && !slices.ContainsFunc(slices.Collect(slices.Chunk(w.source, BlockSize)), func(s []byte) bool { return bytes.Equal(s, b) }) {
			wanted[i] = true
			copy(got[i*BlockSize:], b)
		}
		if got := plan.from[i-start] == fromArchive; got != wanted[i] {
			t.Fatalf("block %d of %d is wanted: %v", i, w.file.Blocks(), got)
		}
	}
	return wanted
}

// A destination of several pieces, some of them nothing but zeros, with holes in
// the file and without.
func TestInPlaceByPieces(t *testing.T) {
	random := newRandom(8)
	content := blocksOf(random, 5*pieceSize/BlockSize+3, 4)
	clear(content[pieceSize : 2*pieceSize])
	clear(content[5*pieceSize:])
	content = content[:len(content)-100]
	destination := bytes.Clone(content)
	clear(destination[2*pieceSize : 3*pieceSize])
	destination[pieceSize-1]++
	destination[5*pieceSize-1]++
	raw, places := sample(t, random, 3, content)
	for _, part := range parts(t, only(t, raw, places, 3*pieceSize/BlockSize)) {
		plan := NewPlan(part, salt)
		if err := plan.InPlace(t.Context(), bytes.NewReader(destination), salt); err != nil {
			t.Fatal(err)
		}
		start, end := part.BlockSpan()
		for i := start; i < end; i++ {
			if got, want := plan.from[i-start] == inPlace, bytes.Equal(block(destination, i), block(content, i)); got != want {
				t.Errorf("block %d is in place: %v, want %v", i, got, want)
			}
		}
	}
}

// offer shows a plan the source, or its tree.
func (w *world) offer(t *testing.T, plan *Plan, byTree bool) error {
	if !byTree {
		return plan.HaveContent(t.Context(), bytes.NewReader(w.source), int64(len(w.source)), salt)
	}
	if len(w.source) == BlockSize { // its tree has no leaves
		plan.Have(0, NewHasher(salt).Sum(w.source))
	}
	tree := new(disk)
	blocks := uint64(len(w.source) / BlockSize)
	if _, err := verity.Generate(t.Context(), bytes.NewReader(w.source), verity.Params{DataBlocks: blocks, Salt: salt}, tree, nil); err != nil {
		return err
	}
	return plan.HaveTree(t.Context(), bytes.NewReader(tree.b), blocks)
}

// disk grows as it is written.
type disk struct{ b []byte }

func (d *disk) WriteAt(b []byte, off int64) (int, error) {
	d.b = append(d.b, make([]byte, max(0, int(off)+len(b)-len(d.b)))...)
	return copy(d.b[off:], b), nil
}

// checkRanges compares ranges with those that merging all wanted members in
// turn makes.
func checkRanges(t *testing.T, part *Part, plan *Plan, wanted map[int]bool, gap, limit int64) {
	t.Helper()
	var want []Range
	f := part.File
	start, end := part.MemberSpan()
	for m := start; m < end; m++ {
		needed := false
		for i := f.First(m); i < f.First(m+1); i++ {
			needed = needed || wanted[i]
		}
		if !needed {
			continue
		}
		at, size := part.Member(m)
		if n := len(want); n > 0 {
			last := &want[n-1]
			if whole := at + int64(size) - last.Offset; at-last.Offset-last.Size <= gap && whole <= limit {
				last.Size, last.Members = whole, m+1-last.First
				continue
			}
		}
		want = append(want, Range{at, int64(size), m, 1})
	}
	got := slices.Collect(plan.Ranges(gap, limit))
	if !slices.Equal(got, want) {
		t.Fatalf("ranges with gaps of %d, up to %d:\n%v, want\n%v", gap, limit, got, want)
	}
	sum := int64(0)
	for _, r := range got {
		sum += r.Size
	}
	if c := plan.Cost(gap, limit); c.Ranges != len(got) || c.Fetched != sum {
		t.Errorf("Cost = %+v, want %d ranges of %d bytes", c, len(got), sum)
	}
}

// A source that says what is not so costs a fetch and no more.
func TestRefuse(t *testing.T) {
	random := newRandom(5)
	content := append(blocksOf(random, 4, 200), blocksOf(random, 1, 1)...)
	raw, places := sample(t, random, 1, content)
	f := parts(t, only(t, raw, places, 0))[0]
	plan := NewPlan(f, salt)
	for _, source := range []int{-1, MaxBlocks, math.MaxInt} {
		plan.Have(source, f.Hash(0))
	}
	plan.Have(MaxBlocks-1, f.Hash(1))
	plan.Have(7, f.Hash(1)) // the second
	if got, want := slices.Collect(plan.Copies()), []Copy{{To: 1, From: MaxBlocks - 1, Blocks: 1}}; !slices.Equal(got, want) {
		t.Errorf("Copies = %v, want %v", got, want)
	}
	plan.Refuse(1)
	if c := plan.Cost(0, 0); c.Wanted != 4 || c.Copied != 0 || c.Ranges != 4 {
		t.Errorf("Cost = %+v", c)
	}
	for range plan.Ranges(0, 0) {
		break // which must not panic
	}
	for range plan.Copies() {
		break
	}
	for range plan.Zeros() {
		break
	}
}

func TestSourcesRefused(t *testing.T) {
	random := newRandom(6)
	w := newWorld(t, random)
	plan := NewPlan(parts(t, w.file)[0], salt)
	broken := errors.New("broken")
	bad := readerAt(func([]byte, int64) (int, error) { return 0, broken })
	empty := bytes.NewReader(nil)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name      string
		err, want error
	}{
		{"tree cannot be read", plan.HaveTree(t.Context(), bad, 300), broken},
		{"tree is short", plan.HaveTree(t.Context(), empty, 300), io.ErrUnexpectedEOF},
		{"cancelled", plan.HaveTree(cancelled, bad, 300), context.Canceled},
		{"content cannot be read", plan.HaveContent(t.Context(), bad, 9000, salt), broken},
		{"destination is short", plan.InPlace(t.Context(), empty, salt), io.ErrUnexpectedEOF},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, c.err, c.want)
		}
	}
	for name, err := range map[string]error{
		"tree of nothing":  plan.HaveTree(t.Context(), empty, 0),
		"huge tree":        plan.HaveTree(t.Context(), empty, math.MaxUint64),
		"negative content": plan.HaveContent(t.Context(), empty, -1, salt),
		"huge content":     plan.HaveContent(t.Context(), empty, math.MaxInt64, salt),
	} {
		if err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

type readerAt func([]byte, int64) (int, error)

func (f readerAt) ReadAt(b []byte, off int64) (int, error) { return f(b, off) }

// BenchmarkPlan plans an image of 4 GiB, of which the source has nearly all.
func BenchmarkPlan(b *testing.B) {
	const n = 1 << 20
	random := newRandom(7)
	build := NewBuilder(1)
	hashes := make([]Hash, n)
	for i := range hashes {
		for j := range hashes[i] {
			hashes[i][j] = byte(random.Uint32())
		}
		if err := build.Add(3000, hashes[i:i+1]); err != nil {
			b.Fatal(err)
		}
	}
	f := parts(b, only(b, build.Encode(), []Place{{"a", n * BlockSize, 0, n * 3000}}, n))[0]
	for b.Loop() {
		plan := NewPlan(f, salt)
		for i := 1000; i < n; i++ {
			plan.Have(i-1000, hashes[i])
		}
		if c := plan.Cost(4096, 1<<20); c.Wanted != 1000 {
			b.Fatalf("Cost = %+v", c)
		}
	}
	b.ReportAllocs()
}

// A source with as many equal blocks as the file has costs no more than
// another: were each compared with each, this would not end.
func TestEqualBlocks(t *testing.T) {
	const n = 1 << 19
	h := NewHasher(salt).Sum([]byte("the same everywhere"))
	build := NewBuilder(MaxMemberBlocks)
	for i := 0; i < n; i += MaxMemberBlocks {
		if err := build.Add(1, slices.Repeat([]Hash{h}, min(MaxMemberBlocks, n-i))); err != nil {
			t.Fatal(err)
		}
	}
	size := int64((n + MaxMemberBlocks - 1) / MaxMemberBlocks)
	plan := NewPlan(parts(t, only(t, build.Encode(), []Place{{"a", n * BlockSize, 0, size}}, 2*n))[0], salt)
	for i := range n {
		plan.Have(i, h)
	}
	if c := plan.Cost(0, 0); c.Wanted != 0 || c.Copied != n {
		t.Errorf("Cost = %+v", c)
	}
}

// A file of 64 GiB takes the memory that one of 1 GiB takes, whether much of it
// is there or nothing.
func TestMemory(t *testing.T) {
	const blocks = 64 << 18
	const members = (blocks + MaxMemberBlocks - 1) / MaxMemberBlocks
	const most = 10 << 20 // 25 bytes a block, and 256 KiB
	index := io.NewSectionReader(readerAt(func(b []byte, off int64) (int, error) {
		for i := range b {
			switch at := off + int64(i); {
			case at < headerSize:
				b[i] = (magic + "\x0f\x00\x00\x00\x00\x00\x00\x00")[at]
			default:
				b[i] = byte(at>>12) | 1 // each member has 257 bytes and more, and digests are alike
			}
		}
		return len(b), nil
	}), 0, headerSize+2*members+blocks*HashSize)
	sum := sha256.New()
	packed := int64(0)
	buffer := make([]byte, 1<<16)
	for at := int64(0); at < index.Size(); at += int64(len(buffer)) {
		n, _ := index.ReadAt(buffer, at)
		sum.Write(buffer[:n])
		for i := range n / 2 {
			if place := at + int64(2*i); place >= headerSize && place < headerSize+2*members {
				packed += int64(binary.LittleEndian.Uint16(buffer[2*i:]))
			}
		}
	}
	before := allocated()
	x, err := Open(index, sum.Sum(nil), []Place{{"a", blocks * BlockSize, 0, packed}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if n := allocated() - before; n > 4<<20 { // nearly all of it buffers that are free again
		t.Errorf("Open allocated %d bytes", n)
	}
	f, _ := x.File("a")
	part := new(Part)
	for _, n := range []int{0, f.Parts() / 2, f.Parts() - 1} {
		before := allocated()
		if err := part.Load(f, n); err != nil {
			t.Fatal(err)
		}
		plan := NewPlan(part, salt)
		start, end := part.BlockSpan()
		for i := start; i < end; i += 7 {
			plan.Have(i, part.Hash(i))
		}
		if got := allocated() - before; got > most {
			t.Errorf("part %d of %d allocated %d bytes, want at most %d", n, f.Parts(), got, most)
		}
	}
}

// allocated is how many bytes have been allocated so far.
func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}
