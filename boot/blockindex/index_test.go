package blockindex

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

var salt = []byte("a salt")

// sample is the index of two files with contents, whose members have the
// sizes that random says.
func sample(t testing.TB, random *rand.Rand, memberBlocks int, contents ...[]byte) ([]byte, []Place) {
	t.Helper()
	b := NewBuilder(memberBlocks)
	h := NewHasher(salt)
	var places []Place
	offset := int64(1000)
	for i, content := range contents {
		p := Place{Name: string(rune('a' + i)), Size: int64(len(content)), Offset: offset}
		for len(content) > 0 {
			part := content[:min(len(content), memberBlocks*BlockSize)]
			content = content[len(part):]
			var hashes []Hash
			for len(part) > 0 {
				n := min(len(part), BlockSize)
				hashes, part = append(hashes, h.Sum(part[:n])), part[n:]
			}
			size := 1 + random.IntN(math.MaxUint16)
			if err := b.Add(size, hashes); err != nil {
				t.Fatal(err)
			}
			p.Packed += int64(size)
		}
		places = append(places, p)
		offset += p.Packed + 600
	}
	return b.Encode(), places
}

// parse opens an index whose SHA-256 is right.
func parse(raw []byte, places []Place, partBlocks int) (*Index, error) {
	sum := sha256.Sum256(raw)
	return Open(io.NewSectionReader(bytes.NewReader(raw), 0, int64(len(raw))), sum[:], places, partBlocks)
}

// parts loads all parts of a file.
func parts(t testing.TB, f *File) []*Part {
	t.Helper()
	var all []*Part
	for n := range f.Parts() {
		p := new(Part)
		if err := p.Load(f, n); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

func newRandom(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

// All gives what Sum gives, for any number of blocks and a part of one.
func TestHasherAll(t *testing.T) {
	content := make([]byte, 2*MaxMemberBlocks*BlockSize)
	for i := range content {
		content[i] = byte(i * i >> 5)
	}
	h := NewHasher([]byte("salt"))
	for _, size := range []int{0, 1, BlockSize - 1, BlockSize, 2*BlockSize + 7, 15 * BlockSize, 16*BlockSize + 1, len(content)} {
		next := 0
		for n, sum := range h.All(content[:size]) {
			if n != next || sum != NewHasher([]byte("salt")).Sum(content[n*BlockSize:min((n+1)*BlockSize, size)]) {
				t.Errorf("%d bytes: block %d, number %d, has the digest %x", size, next, n, sum)
			}
			next++
		}
		if next != Blocks(int64(size)) {
			t.Errorf("%d bytes: %d blocks", size, next)
		}
	}
	for range h.All(content) {
		break // a loop may end early
	}
}

func TestHasher(t *testing.T) {
	h := NewHasher(salt)
	block := make([]byte, BlockSize)
	copy(block, "content")
	want := sha256.Sum256(append(bytes.Clone(salt), block...))
	for _, b := range [][]byte{block, []byte("content"), block[:4095]} {
		if got := h.Sum(b); !bytes.Equal(got[:], want[:HashSize]) {
			t.Errorf("digest of %d bytes is %x, want %x", len(b), got, want[:HashSize])
		}
	}
}

func TestIndex(t *testing.T) {
	random := newRandom(1)
	first, second := make([]byte, 700*BlockSize+1), make([]byte, 5)
	for i := range first {
		first[i] = byte(random.Uint32())
	}
	for per := 1; per <= MaxMemberBlocks; per++ {
		raw, places := sample(t, random, per, first, second)
		if size, err := Size(per, places); err != nil || size != int64(len(raw)) {
			t.Errorf("Size = %d, %v, want %d", size, err, len(raw))
		}
		x, err := parse(raw, places, random.IntN(3*per+1))
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := x.File("c"); ok {
			t.Error("found a file that is not there")
		}
		h := NewHasher(salt)
		for i, content := range [][]byte{first, second} {
			f, ok := x.File(places[i].Name)
			if !ok || f.Place != places[i] || f.Blocks() != Blocks(int64(len(content))) {
				t.Fatalf("File = %+v, %v", f, ok)
			}
			at, next := f.Offset, int64(0)
			for _, p := range parts(t, f) {
				start, _ := p.ByteSpan()
				if first, _ := p.BlockSpan(); start != next || first != int(next/BlockSize) {
					t.Fatalf("part starts with block %d at %d, want %d", first, start, next)
				}
				first, end := p.MemberSpan()
				for m := first; m < end; m++ {
					offset, size := p.Member(m)
					start, n := f.Content(m)
					if offset != at || start != next || f.First(m) != int(start/BlockSize) {
						t.Fatalf("member %d at %d holds what starts at %d, want %d and %d", m, offset, start, at, next)
					}
					part := content[start : start+int64(n)]
					if err := p.Check(m, part, h); err != nil {
						t.Error(err)
					}
					wrong := bytes.Clone(part)
					wrong[random.IntN(n)] ^= 1
					if p.Check(m, wrong, h) == nil || p.Check(m, part[:n-1], h) == nil || p.Check(m, append(wrong, 0), h) == nil {
						t.Errorf("member %d: other content is good", m)
					}
					at, next = at+int64(size), next+int64(n)
				}
				if _, end := p.ByteSpan(); end != next {
					t.Fatalf("part ends at %d, want %d", end, next)
				}
			}
			if at != f.Offset+f.Packed || next != f.Size || f.First(f.Members()) != f.Blocks() {
				t.Errorf("members end at %d and hold %d bytes", at, next)
			}
		}
	}
}

// FAULTS 9, 30
func TestRefused(t *testing.T) {
	random := newRandom(2)
	content := make([]byte, 100*BlockSize)
	good, places := sample(t, random, 2, content, content)
	if _, err := parse(bytes.Clone(good), places, 0); err != nil {
		t.Fatal(err)
	}
	raw := func(change func(b []byte) []byte) ([]byte, []Place) { return change(bytes.Clone(good)), places }
	place := func(change func(p []Place)) ([]byte, []Place) {
		p := append([]Place(nil), places...)
		change(p)
		return bytes.Clone(good), p
	}
	le := binary.LittleEndian
	for _, c := range []struct {
		name, want string
		make       func() ([]byte, []Place)
	}{
		{"empty", "does not start", func() ([]byte, []Place) { return nil, places }},
		{"another file", "does not start", func() ([]byte, []Place) { return raw(func(b []byte) []byte { b[0]++; return b }) }},
		{"another version", "does not start", func() ([]byte, []Place) { return raw(func(b []byte) []byte { b[7]++; return b }) }},
		{"members of nothing", "members of 0 blocks", func() ([]byte, []Place) {
			return raw(func(b []byte) []byte { le.PutUint32(b[8:], 0); return b })
		}},
		{"large members", "members of 16 blocks", func() ([]byte, []Place) {
			return raw(func(b []byte) []byte { le.PutUint32(b[8:], 16); return b })
		}},
		{"reserved bytes", "members of 2 blocks", func() ([]byte, []Place) { return raw(func(b []byte) []byte { b[15] = 1; return b }) }},
		{"other members", "want", func() ([]byte, []Place) {
			return raw(func(b []byte) []byte { le.PutUint32(b[8:], 3); return b })
		}},
		{"a byte less", "bytes, want", func() ([]byte, []Place) { return raw(func(b []byte) []byte { return b[:len(b)-1] }) }},
		{"a byte more", "bytes, want", func() ([]byte, []Place) { return raw(func(b []byte) []byte { return append(b, 0) }) }},
		{"a member more", "bytes, want", func() ([]byte, []Place) { return raw(func(b []byte) []byte { return append(b, 1, 0) }) }},
		{"a member of nothing", "member 3 of 0 bytes", func() ([]byte, []Place) {
			return raw(func(b []byte) []byte { le.PutUint16(b[16+2*3:], 0); return b })
		}},
		{"a member that lies", "in all, want", func() ([]byte, []Place) { return raw(func(b []byte) []byte { b[16] ^= 1; return b }) }},
		{"a member that lies, in the last file", "index of b", func() ([]byte, []Place) {
			return raw(func(b []byte) []byte { b[16+2*99] ^= 1; return b })
		}},
		{"another image's", "bytes, want", func() ([]byte, []Place) { return place(func(p []Place) { p[0].Size += BlockSize }) }},
		{"another archive's", "in all, want", func() ([]byte, []Place) { return place(func(p []Place) { p[1].Packed-- }) }},
		{"one file", "bytes, want", func() ([]byte, []Place) { return good, places[:1] }},
		{"an empty file", "cannot be", func() ([]byte, []Place) { return place(func(p []Place) { p[0].Size = 0 }) }},
		{"a negative file", "cannot be", func() ([]byte, []Place) { return place(func(p []Place) { p[0].Size = -1 }) }},
		{"a huge file", "cannot be", func() ([]byte, []Place) { return place(func(p []Place) { p[0].Size = math.MaxInt64 }) }},
		{"packed into nothing", "cannot be", func() ([]byte, []Place) { return place(func(p []Place) { p[0].Packed = 0 }) }},
		{"behind the end of all numbers", "cannot be", func() ([]byte, []Place) { return place(func(p []Place) { p[1].Offset = math.MaxInt64 - 1 }) }},
		{"before the start", "cannot be", func() ([]byte, []Place) { return place(func(p []Place) { p[1].Offset = -1 }) }},
	} {
		b, p := c.make()
		if _, err := parse(b, p, 20); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	b := NewBuilder(1)
	for _, size := range []int{-1, 0, math.MaxUint16 + 1} {
		if err := b.Add(size, nil); err == nil {
			t.Errorf("a member of %d bytes was taken", size)
		}
	}
}

// What is read again is what was read first, or refused. FAULTS 9, 30
func TestChanged(t *testing.T) {
	good, places := sample(t, newRandom(9), 2, make([]byte, 100*BlockSize))
	sum := sha256.Sum256(good)
	lying := bytes.Clone(good)
	r := io.NewSectionReader(bytes.NewReader(lying), 0, int64(len(lying)))
	x, err := Open(r, sum[:], places, 30)
	if err != nil {
		t.Fatal(err)
	}
	f, _ := x.File("a")
	if f.Parts() != 4 {
		t.Fatalf("%d parts, want 4", f.Parts())
	}
	last := len(good) - 1
	for _, at := range []int{headerSize, headerSize + 2*50, last - 100*HashSize + 1, last} {
		lying[at] ^= 1
		bad := 0
		for n := range f.Parts() {
			switch err := new(Part).Load(f, n); {
			case errors.Is(err, ErrChanged):
				bad++
			case err != nil:
				t.Error(err)
			}
		}
		if bad != 1 {
			t.Errorf("byte %d changed: %d parts are refused, want 1", at, bad)
		}
		if _, err := Open(r, sum[:], places, 30); !errors.Is(err, ErrOther) {
			t.Errorf("byte %d changed, opened again: %v", at, err)
		}
		lying[at] ^= 1
	}
	lying[0]++ // which is not an index, but above all not the one
	if _, err := Open(r, sum[:], places, 30); !errors.Is(err, ErrOther) {
		t.Errorf("another file: %v", err)
	}
	broken := errors.New("broken")
	bad := io.NewSectionReader(readerAt(func([]byte, int64) (int, error) { return 0, broken }), 0, int64(len(good)))
	if _, err := Open(bad, sum[:], places, 30); !errors.Is(err, broken) {
		t.Errorf("an index that cannot be read: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	random := newRandom(3)
	for _, per := range []int{1, 2, 15} {
		raw, places := sample(f, random, per, make([]byte, 40*BlockSize+3), make([]byte, 2*BlockSize))
		f.Add(raw, places[0].Size, places[0].Offset, places[0].Packed, places[1].Size, places[1].Offset, places[1].Packed)
	}
	f.Fuzz(func(t *testing.T, raw []byte, size, offset, packed, size2, offset2, packed2 int64) {
		places := []Place{{"a", size, offset, packed}, {"b", size2, offset2, packed2}}
		x, err := parse(bytes.Clone(raw), places, 10)
		if err != nil {
			return
		}
		// What is parsed is what was written.
		b := NewBuilder(x.memberBlocks)
		for _, p := range places {
			file, _ := x.File(p.Name)
			// Whatever it says, a range lies in the file's place.
			end, blocks := p.Offset, 0
			for _, part := range parts(t, file) {
				start := end
				first, last := part.MemberSpan()
				for m := first; m < last; m++ {
					at, n := part.Member(m)
					start, content := file.Content(m)
					if at != end || n < 1 || content < 1 || start+int64(content) > p.Size || file.First(m) != blocks {
						t.Fatalf("member %d: %d bytes at %d hold %d at %d", m, n, at, content, start)
					}
					end, blocks = at+int64(n), file.First(m+1)
					var hashes []Hash
					for i := file.First(m); i < blocks; i++ {
						hashes = append(hashes, part.Hash(i))
					}
					if err := b.Add(n, hashes); err != nil {
						t.Fatal(err)
					}
				}
				checkPlan(t, part, start, end)
			}
			if end != p.Offset+p.Packed || blocks != file.Blocks() {
				t.Fatalf("members end at %d with block %d", end, blocks)
			}
		}
		if !bytes.Equal(b.Encode(), raw) {
			t.Fatal("is written in another way")
		}
	})
}

// checkPlan plans a part that lies between two places of the archive.
func checkPlan(t *testing.T, part *Part, start, end int64) {
	t.Helper()
	plan := NewPlan(part, salt)
	block, _ := part.BlockSpan()
	plan.Have(0, part.Hash(block))
	plan.Have(1, NewHasher(salt).Sum([]byte("other")))
	first, last := part.MemberSpan()
	for r := range plan.Ranges(100, 1000) {
		if r.Offset < start || r.Size < 1 || r.Offset+r.Size > end || r.Members < 1 || r.First < first || r.First+r.Members > last {
			t.Fatalf("range %+v of %+v", r, part.File.Place)
		}
	}
}
