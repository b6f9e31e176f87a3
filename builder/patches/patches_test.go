package patches

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/patch"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/erofs"
)

// random is bytes that no compression shortens.
func random(seed byte, size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// made is what the steps make.
func made(old []byte, steps []patch.Copy, added, created []byte) []byte {
	var out []byte
	at := 0
	for _, s := range steps {
		for i := range s.Add {
			out = append(out, old[at+i]+added[i])
		}
		added = added[s.Add:]
		out = append(out, created[:s.New]...)
		created = created[s.New:]
		at += s.Add + s.Seek
	}
	return out
}

// Each pair comes out as it should, and what changed little takes little.
func TestDiff(t *testing.T) {
	base := random(1, 100_000)
	sparse := bytes.Clone(base)
	for i := 0; i < len(sparse); i += 500 {
		sparse[i]++
	}
	for name, c := range map[string]struct {
		old, fresh []byte
		most       int // bytes that are new or differ
	}{
		"nothing":            {base, nil, 0},
		"of nothing":         {nil, base[:100], 100},
		"the same":           {base, base, 0},
		"a byte here, there": {base, sparse, 200},
		"moved":              {base, slices.Concat(base[50_000:], base[:50_000]), 10},
		"something put in":   {base, slices.Concat(base[:10_000], random(2, 300), base[10_000:]), 320},
		"something taken":    {base, slices.Concat(base[:10_000], base[12_000:]), 20},
		"all new":            {base, random(3, 20_000), 20_000},
		"zeros":              {make([]byte, 50_000), make([]byte, 60_000), 10_000},
		"from zeros":         {make([]byte, 9_000), base[:9_000], 9_000},
	} {
		steps, added, created, err := Diff(c.old, c.fresh)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(made(c.old, steps, added, created), c.fresh) {
			t.Errorf("%s: it comes out as another", name)
		}
		if n := len(created) + len(added) - bytes.Count(added, []byte{0}); n > c.most {
			t.Errorf("%s: %d bytes differ, want %d at most", name, n, c.most)
		}
	}
}

// The standard library writes its suffix array as it did: sorted, each number once.
func TestSuffixes(t *testing.T) {
	for _, data := range [][]byte{nil, []byte("a"), []byte("mississippi"), bytes.Repeat([]byte{0}, 40_000), random(4, 70_000)} {
		sorted, err := suffixes(data)
		if err != nil || len(sorted) != len(data) {
			t.Fatalf("%d of %d, %v", len(sorted), len(data), err)
		}
		for i := 1; i < len(sorted); i++ {
			if bytes.Compare(data[sorted[i-1]:], data[sorted[i]:]) >= 0 {
				t.Fatalf("number %d of %d bytes is not sorted", i, len(data))
			}
		}
	}
}

// image makes a system image of files.
func image(t *testing.T, files map[string][]byte) Image {
	t.Helper()
	testkit.Need(t, erofs.Tool)
	dir := t.TempDir()
	for name, content := range files {
		to := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "image")
	o := erofs.Options{UUID: gpt.MustGUID("01020304-0506-8708-890a-0b0c0d0e0f10"), Date: time.Unix(1_700_000_000, 0), Compression: "lz4hc", AllRoot: true, Plain: `\.ko$`}
	if err := erofs.Make(t.Context(), file, dir, o); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return Image{Content: bytes.NewReader(content), Image: patch.Image{Blocks: len(content) / erofs.BlockSize}}
}

// modulesOf are modules of a kernel: those of another kernel differ a little, one is new,
// one is as it was and one has all but nothing in common with its namesake.
func modulesOf(kernel string, change byte) map[string][]byte {
	files := map[string][]byte{"usr/bin/tool": bytes.Repeat([]byte("compressed "), 9999)}
	for i := range byte(20) {
		b := random(i, 30_000+int(i)*3333)
		for at := 17; at < len(b); at += 700 {
			b[at] += change
		}
		files[fmt.Sprintf("usr/lib/modules/%s/kernel/fs/m%d.ko", kernel, i)] = b
	}
	files["usr/lib/modules/"+kernel+"/kernel/same.ko"] = random(77, 9000)
	files["usr/lib/modules/"+kernel+"/kernel/other.ko"] = random(90+change, 50_000)
	if change > 0 {
		files["usr/lib/modules/"+kernel+"/kernel/new.ko"] = random(99, 9000)
	}
	return files
}

func TestMake(t *testing.T) {
	old, fresh := image(t, modulesOf("6.12.1", 0)), image(t, modulesOf("6.12.2", 3))
	table, file, err := Make(t.Context(), old, fresh)
	if err != nil {
		t.Fatal(err)
	}
	again, sameFile, err := Make(t.Context(), old, fresh)
	if err != nil || !bytes.Equal(sameFile, file) || fmt.Sprint(again) != fmt.Sprint(table) {
		t.Errorf("a second time there are other patches, %v", err)
	}
	text, err := table.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if table, err = patch.ParseTable(text); err != nil {
		t.Fatal(err)
	}
	blocks := 0
	for _, g := range table.Groups {
		err := g.Apply(file[g.Offset:g.Offset+g.Size], old.Content, func(block int, content []byte) error {
			want := make([]byte, patch.BlockSize)
			if _, err := fresh.Content.ReadAt(want, int64(block)*patch.BlockSize); err != nil || !bytes.Equal(want, content) {
				t.Errorf("block %d is another, %v", block, err)
			}
			blocks++
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	if blocks < 290 || blocks > 340 || len(file) > 40_000 {
		t.Errorf("%d blocks by patches of %d bytes", blocks, len(file))
	}
	none, file, err := Make(t.Context(), fresh, fresh)
	if err != nil || len(none.Groups) > 0 || len(file) > 0 {
		t.Errorf("from an image to itself: %d groups, %v", len(none.Groups), err)
	}
}

// Of groups whose table would be larger than machines take, those stay that spare the most,
// and the rest makes the same as before.
func TestFit(t *testing.T) {
	image := patch.Image{Blocks: 1 << 22}
	var all []group
	const each, many = 1000, 320
	for i := range many {
		g := group{packed: []byte{byte(i), byte(i >> 8)}}
		g.Size = 2
		for n := range each {
			// Far from the one before in the old image, so that its numbers are long.
			blocks := 1 + i%3
			g.Extents = append(g.Extents, patch.Extent{New: (i*each + n) * 4, NewBlocks: blocks, Old: 1<<20 + n%2<<21, OldBlocks: blocks + 200})
		}
		all = append(all, g)
	}
	table, file, err := fit(&patch.Table{From: image, To: image}, slices.Clone(all))
	if err != nil {
		t.Fatal(err)
	}
	text, err := table.Encode()
	if err != nil || len(text) > patch.MaxTable || len(text) < patch.MaxTable*9/10 {
		t.Errorf("%d bytes, %v", len(text), err)
	}
	least := 0
	for _, g := range table.Groups {
		n := int(file[g.Offset]) | int(file[g.Offset+1])<<8
		if g.Extents[0] != all[n].Extents[0] {
			t.Errorf("group %d has another's bytes", n)
		}
		if n%3 == 0 {
			least++
		}
	}
	if left := many - len(table.Groups); left == 0 || int64(len(file)) != table.Size() || least != (many+2)/3-left {
		t.Errorf("%d groups left out, %d that spare least stay", left, least)
	}
	few, _, err := fit(&patch.Table{From: image, To: image}, slices.Clone(all[:3]))
	if err != nil || len(few.Groups) != 3 {
		t.Errorf("of three: %v", err)
	}
}

// changing is an image that has other bytes at the second reading.
type changing struct {
	*bytes.Reader
	reads int
}

func (c *changing) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.Reader.ReadAt(p, off)
	if c.reads++; c.reads > 1 {
		p[100]++
	}
	return n, err
}

// A group that does not make the new image is left out.
func TestProves(t *testing.T) {
	old := random(1, 8*patch.BlockSize)
	fresh := bytes.Clone(old)
	fresh[5000]++
	set := []patch.Extent{{NewBlocks: 8, OldBlocks: 8}}
	for name, c := range map[string]struct {
		old  io.ReaderAt
		want int
	}{"good": {bytes.NewReader(old), 1}, "wrong": {&changing{Reader: bytes.NewReader(old)}, 0}} {
		made, err := (&maker{c.old, bytes.NewReader(fresh), (*patch.Builder).Encode}).groups(t.Context(), set)
		if err != nil || len(made) != c.want {
			t.Errorf("%s: %d groups, %v", name, len(made), err)
		}
	}
	if _, err := (&maker{bytes.NewReader(old), bytes.NewReader(fresh[:9000]), (*patch.Builder).Encode}).groups(t.Context(), set); err == nil {
		t.Error("an image that cannot be read is none to complain about")
	}
}

// What is more than a group may have becomes several, whose extents are all that was asked
// for; a block that is too large by itself is left out.
func TestLargeGroups(t *testing.T) {
	const blocks, each = 30, 10
	old := random(1, blocks*patch.BlockSize)
	fresh := bytes.Clone(old)
	for at := 0; at < len(fresh); at += 1000 {
		fresh[at]++
	}
	var set []patch.Extent
	for first := 0; first < blocks; first += each {
		set = append(set, patch.Extent{New: first, NewBlocks: each, Old: first, OldBlocks: each})
	}
	for most, want := range map[int]int{0: 0, 1: blocks, 3: 12, each: 3, blocks: 1} {
		made, err := (&maker{bytes.NewReader(old), bytes.NewReader(fresh), func(b *patch.Builder) (patch.Group, []byte, error) {
			if b.Blocks() > most {
				return patch.Group{}, nil, patch.ErrLarge
			}
			return b.Encode()
		}}).groups(t.Context(), set)
		next := 0
		for _, g := range made {
			for _, e := range g.Extents {
				if e.New != next || e.OldBlocks != each {
					t.Errorf("%d blocks at most: %+v where block %d is next", most, e, next)
				}
				next = e.New + e.NewBlocks
			}
		}
		if err != nil || len(made) != want || most > 0 && next != blocks {
			t.Errorf("%d blocks at most: %d groups, up to block %d, %v", most, len(made), next, err)
		}
	}
}

// A long file is cut, and no piece lies in two parts.
func TestPieces(t *testing.T) {
	for _, c := range []struct{ old, fresh erofs.File }{
		{erofs.File{First: 5, Size: 100 << 20}, erofs.File{First: 1<<18 - 100, Size: 110<<20 + 1}},
		{erofs.File{First: 5, Size: 110<<20 + 1}, erofs.File{First: 9, Size: 100 << 20}},
		{erofs.File{First: 5, Size: 1}, erofs.File{First: 9, Size: 70 << 20}},
		{erofs.File{First: 5, Size: 70 << 20}, erofs.File{First: 9, Size: 1}},
	} {
		next := int(c.fresh.First)
		for _, e := range pieces(c.old, c.fresh) {
			if e.New != next || e.NewBlocks < 1 || e.New>>18 != (e.New+e.NewBlocks-1)>>18 || e.Old < int(c.old.First) || e.OldBlocks < 1 ||
				e.Old+e.OldBlocks > int(c.old.First)+c.old.Blocks() || e.NewBlocks > patch.MaxExtent || e.OldBlocks > patch.MaxExtent {
				t.Errorf("%+v", e)
			}
			next += e.NewBlocks
		}
		if next != int(c.fresh.First)+c.fresh.Blocks() {
			t.Errorf("they end at block %d", next)
		}
	}
}

// Groups have a bounded size, and none lies in two parts.
func TestSplit(t *testing.T) {
	var all []patch.Extent
	for first := 0; first < 1<<19; first += 1000 {
		n := min(900, 1<<18-first%(1<<18))
		all = append(all, patch.Extent{New: first, NewBlocks: n, Old: first, OldBlocks: n})
	}
	count := 0
	for _, set := range split(all) {
		blocks := 0
		for _, e := range set {
			count, blocks = count+1, blocks+e.NewBlocks
			if e.New>>18 != set[0].New>>18 {
				t.Errorf("%+v and %+v are in one group", set[0], e)
			}
		}
		if blocks > groupBlocks {
			t.Errorf("%d blocks in a group", blocks)
		}
	}
	if count != len(all) {
		t.Errorf("%d extents of %d", count, len(all))
	}
}
