package patch

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

// sample is two images of blocks and the patches from one to the other, in two groups.
func sample(t testing.TB) (old, fresh []byte, table *Table, file []byte) {
	t.Helper()
	random := rand.NewChaCha8([32]byte{3})
	old = make([]byte, 40*BlockSize)
	_, _ = random.Read(old)
	fresh = make([]byte, 50*BlockSize)
	_, _ = random.Read(fresh)
	table = &Table{From: Image{sha256.Sum256(old), 40}, To: Image{Blocks: 50}}
	for _, extents := range [][]Extent{{{New: 2, NewBlocks: 3, Old: 10, OldBlocks: 4}, {New: 7, NewBlocks: 20, Old: 0, OldBlocks: 20}}, {{New: 27, NewBlocks: 1, Old: 39, OldBlocks: 1}}} {
		var b Builder
		for _, e := range extents {
			is, was := fresh[e.New*BlockSize:][:e.NewBlocks*BlockSize], old[e.Old*BlockSize:][:e.OldBlocks*BlockSize]
			steps, added, created := change(is, was)
			b.Add(e, steps, added, created)
		}
		g, packed, err := b.Encode()
		if err != nil {
			t.Fatal(err)
		}
		g.Offset = table.Size()
		table.Groups, file = append(table.Groups, g), append(file, packed...)
	}
	table.To.Root = sha256.Sum256(fresh)
	return old, fresh, table, file
}

// change makes a new extent: half of it is the old one from byte 100 on, a little is new, and
// the rest is the old one from its start on. A byte here and there differs.
func change(is, was []byte) (steps []Copy, added, created []byte) {
	half, fresh := len(is)/2, len(is)/40
	rest := len(is) - half - fresh
	steps = []Copy{{Seek: 100}, {Add: half, New: fresh, Seek: -(100 + half)}, {Add: rest}}
	fill := func(to, from []byte) {
		copy(to, from)
		for i := 0; i < len(to); i += 997 {
			to[i]++
		}
		for i := range to {
			added = append(added, to[i]-from[i])
		}
	}
	fill(is[:half], was[100:])
	fill(is[half+fresh:], was)
	return steps, added, is[half:][:fresh]
}

// apply makes all that a table has patches for.
func apply(table *Table, file, old []byte) (map[int][]byte, error) {
	made := map[int][]byte{}
	var all error
	for _, g := range table.Groups {
		all = errors.Join(all, g.Apply(file[g.Offset:g.Offset+g.Size], bytes.NewReader(old), func(block int, content []byte) error {
			made[block] = bytes.Clone(content)
			return nil
		}))
	}
	return made, all
}

func TestApply(t *testing.T) {
	old, fresh, table, file := sample(t)
	text, err := table.Encode()
	if err != nil {
		t.Fatal(err)
	}
	read, err := ParseTable(text)
	if err != nil || !reflect.DeepEqual(read, table) {
		t.Fatalf("%+v, %v, want %+v", read, err, table)
	}
	made, err := apply(read, file, old)
	if err != nil || len(made) != 24 {
		t.Fatalf("%d blocks, %v", len(made), err)
	}
	for block, content := range made {
		if !bytes.Equal(content, fresh[block*BlockSize:][:BlockSize]) {
			t.Errorf("block %d is another", block)
		}
	}
	if int64(len(file)) != table.Size() || len(file) > 20000 {
		t.Errorf("%d bytes of patches, the table says %d", len(file), table.Size())
	}
	stop := errors.New("stop")
	if err := table.Groups[0].Apply(file[:table.Groups[0].Size], bytes.NewReader(old), func(int, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("an error of the taker's gives %v", err)
	}
}

// A file in which anything is changed is refused before it is unpacked.
func TestDamaged(t *testing.T) {
	old, _, table, file := sample(t)
	for _, change := range []func(b []byte) []byte{
		func(b []byte) []byte { b[0] ^= 1; return b },
		func(b []byte) []byte { b[len(b)/2] ^= 0x80; return b },
		func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		func(b []byte) []byte { return b[:len(b)-1] },
		func(b []byte) []byte { return append(b, 0) },
		func([]byte) []byte { return nil },
	} {
		g := table.Groups[0]
		err := g.Apply(change(bytes.Clone(file[:g.Size])), bytes.NewReader(old), func(int, []byte) error {
			t.Error("a block was made")
			return nil
		})
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("error %v", err)
		}
	}
}

// An old image that ends early is an error, and another one gives other blocks, which the
// caller's index refuses.
func TestOtherBase(t *testing.T) {
	old, fresh, table, file := sample(t)
	if _, err := apply(table, file, old[:12*BlockSize]); err == nil || !strings.Contains(err.Error(), "read the old image") {
		t.Errorf("error %v", err)
	}
	made, err := apply(table, file, make([]byte, len(old)))
	if err != nil {
		t.Fatal(err)
	}
	for block, content := range made {
		if bytes.Equal(content, fresh[block*BlockSize:][:BlockSize]) {
			t.Errorf("block %d is the same", block)
		}
	}
}

// Groups that were signed and are wrong all the same: nothing is read or made where it
// should not be.
func TestWrongSteps(t *testing.T) {
	old, _, _, _ := sample(t)
	e := Extent{New: 4, NewBlocks: 2, Old: 3, OldBlocks: 2}
	const size = 2 * BlockSize
	for name, c := range map[string]struct {
		steps []Copy
		added int
		fresh int
		want  string
	}{
		"too much":                  {[]Copy{{Add: size, New: 1}}, size, 1, "are left"},
		"behind the old extent":     {[]Copy{{Seek: 5}, {Add: size}}, size, 0, "a step of 8192 bytes from byte 5"},
		"before the old extent":     {[]Copy{{Add: 1, Seek: -2}, {Add: size - 1}}, size, 0, "a step to byte -1"},
		"far behind it":             {[]Copy{{Seek: size + 1}, {New: size}}, 0, size, "a step to byte"},
		"too few steps":             {[]Copy{{Add: 5}}, 5, 0, "ends early"},
		"too many steps":            {[]Copy{{Add: size}, {Add: 1}}, size + 1, 0, "follow"},
		"too few differences":       {[]Copy{{Add: size}}, size - 1, 0, "unpack"},
		"too few that are new":      {[]Copy{{New: size}}, 0, 10, "unpack"},
		"a step that is not a step": {[]Copy{{Add: size + BlockSize}}, size, 0, "ends early"},
	} {
		var b Builder
		b.Add(e, c.steps, make([]byte, c.added), make([]byte, c.fresh))
		g, packed, err := b.Encode()
		if err != nil {
			t.Fatal(err)
		}
		err = g.Apply(packed, bytes.NewReader(old), func(block int, _ []byte) error {
			if block != 4 && block != 5 {
				t.Errorf("%s: block %d", name, block)
			}
			return nil
		})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
	}
}

func TestTableRefused(t *testing.T) {
	_, _, table, _ := sample(t)
	good, err := table.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(good) {
		if _, err := ParseTable(good[:i]); err == nil {
			t.Errorf("%d bytes of it were taken", i)
		}
	}
	if _, err := ParseTable(append(bytes.Clone(good), 0)); err == nil {
		t.Error("a byte more was taken")
	}
	other := bytes.Clone(good)
	other[7]++
	if _, err := ParseTable(other); err == nil || !strings.Contains(err.Error(), "does not start") {
		t.Errorf("another version: %v", err)
	}
	huge := bytes.Clone(good)
	binary.LittleEndian.PutUint32(huge[tableHead-4:], 1<<31)
	if _, err := ParseTable(huge); err == nil {
		t.Error("a great many groups were taken")
	}
	for name, change := range map[string]func(t *Table){
		"no old image":         func(t *Table) { t.From.Blocks = 0 },
		"a smaller new image":  func(t *Table) { t.To.Blocks = 27 },
		"a smaller old image":  func(t *Table) { t.From.Blocks = 39 },
		"extents that overlap": func(t *Table) { t.Groups[1].Extents[0].New = 26 },
		"an empty extent":      func(t *Table) { t.Groups[0].Extents[0].NewBlocks = 0 },
		"a large extent":       func(t *Table) { t.To.Blocks, t.Groups[1].Extents[0].NewBlocks = maxBlocks, MaxExtent+1 },
		"a group of nothing":   func(t *Table) { t.Groups[1].Extents = nil },
		"a group of no bytes":  func(t *Table) { t.Groups[1].Size = 0 },
		"a large group":        func(t *Table) { t.Groups[1].Size = MaxGroup + 1 },
		"a group elsewhere":    func(t *Table) { t.Groups[1].Offset++ },
		"a group of many parts": func(t *Table) {
			t.To.Blocks, t.From.Blocks, t.Groups[1].Extents = maxBlocks, maxBlocks, []Extent{{30, MaxExtent, 0, 1}, {MaxExtent + 30, MaxExtent, 0, 1}, {3 * MaxExtent, 1, 0, 1}}
		},
	} {
		_, _, bad, _ := sample(t)
		change(bad)
		if _, err := bad.Encode(); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestNames(t *testing.T) {
	if a, b, c := TableName(8, 7), SignatureName(8, 7), FileName(8, 7); a != "8/8.from-7.patches" || b != a+".pgp" || c != "8/8.from-7.patch" {
		t.Errorf("%s, %s, %s", a, b, c)
	}
}

func FuzzTable(f *testing.F) {
	_, _, table, _ := sample(f)
	good, err := table.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := ParseTable(b)
		if err != nil {
			return
		}
		again, err := table.Encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x is read and written as %x, %v", b, again, err)
		}
	})
}

// Whatever was signed, no block is made that the table does not have.
func FuzzApply(f *testing.F) {
	old, _, table, file := sample(f)
	f.Add(file[:table.Groups[0].Size])
	f.Fuzz(func(t *testing.T, packed []byte) {
		g := Group{Extents: table.Groups[0].Extents, Size: int64(len(packed)), SHA256: sha256.Sum256(packed)}
		count := 0
		_ = g.Apply(packed, bytes.NewReader(old), func(block int, content []byte) error {
			if count++; len(content) != BlockSize || block < 2 || block > 26 || block == 5 || block == 6 {
				t.Errorf("block %d of %d bytes", block, len(content))
			}
			return nil
		})
		if count > 23 {
			t.Errorf("%d blocks", count)
		}
	})
}

// nothing is an old image of zeros.
type nothing struct{}

func (nothing) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}

// The group that takes the most memory takes less than 32 MiB, all that is allocated on the
// way included.
func TestMemory(t *testing.T) {
	random := rand.NewChaCha8([32]byte{4})
	var b Builder
	for i := range 2 {
		const each = 250_000
		steps := make([]Copy, each)
		for n := range steps {
			steps[n] = Copy{Add: 95, New: 7, Seek: -95}
		}
		size := each * 102
		left := -size & (BlockSize - 1)
		steps[each-1].New += left
		fresh := make([]byte, each*7+left)
		_, _ = random.Read(fresh)
		blocks := (size + left) / BlockSize
		b.Add(Extent{New: i * MaxExtent, NewBlocks: blocks, Old: 0, OldBlocks: 1}, steps, make([]byte, each*95), fresh)
	}
	g, packed, err := b.Encode()
	if err != nil || len(packed) < MaxGroup*3/4 {
		t.Fatalf("%d bytes, %v", len(packed), err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	blocks := 0
	if err := g.Apply(packed, nothing{}, func(int, []byte) error { blocks++; return nil }); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc + uint64(len(packed)); used > 32<<20 || blocks < 10_000 {
		t.Errorf("%d bytes for %d blocks", used, blocks)
	} else {
		t.Logf("%.1f MB for %d blocks of patches of %.1f MB", float64(used)/1e6, blocks, float64(len(packed))/1e6)
	}
	b.Add(Extent{NewBlocks: 1}, make([]Copy, maxSteps/3), nil, nil)
	if _, _, err := b.Encode(); !errors.Is(err, ErrLarge) {
		t.Errorf("more steps than a machine takes: %v", err)
	}
}
