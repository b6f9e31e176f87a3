package repair

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"halogenos.internal/boot/block"
	"halogenos.internal/boot/blocktest"
	"halogenos.internal/boot/verity"
)

// blocks is enough for three levels of the tree.
const blocks = 128*128 + 300

type fixture struct {
	t          *testing.T
	params     verity.Params
	root       verity.Root
	data, tree *blocktest.Disk
	other      *blocktest.Disk // the same blocks, but some, and moved by some
	otherTree  *blocktest.Disk // of the same release
}

// unlike are the data blocks that the other slot does not hold.
func unlike(n uint64) bool { return n%1000 == 7 }

func content(n uint64) []byte {
	b := make([]byte, blockSize)
	if n%50 == 0 {
		return b // zeros are everywhere
	}
	random := rand.New(rand.NewPCG(n, 1))
	for i := range 8 {
		b[i*512] = byte(random.Uint32())
		b[i*512+1] = byte(random.Uint32())
		b[i*512+2] = byte(n)
		b[i*512+3] = byte(n >> 8)
	}
	return b
}

// newFixture makes the fixture once: nobody writes to it but through damaged.
func newFixture(t *testing.T) *fixture {
	t.Helper()
	once.Do(func() { made = makeFixture(t) })
	f := *made
	f.t = t
	return &f
}

var (
	once sync.Once
	made *fixture
)

func makeFixture(t *testing.T) *fixture {
	t.Helper()
	size, err := verity.TreeSize(blocks)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, params: verity.Params{DataBlocks: blocks, Salt: []byte("salt")}}
	f.data, f.tree = blocktest.New(blocks*blockSize, blocktest.Zero), blocktest.New(size, blocktest.Zero)
	const moved = 3
	f.other, f.otherTree = blocktest.New((blocks+moved)*blockSize, blocktest.Zero), blocktest.New(size, blocktest.Zero)
	for n := range uint64(blocks) {
		b := content(n)
		f.write(f.data, b, int64(n)*blockSize)
		if unlike(n) {
			b[100] = 1
		}
		f.write(f.other, b, int64(n+moved)*blockSize)
	}
	if f.root, err = verity.Generate(context.Background(), f.data, f.params, f.tree, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := verity.Generate(context.Background(), f.data, f.params, f.otherTree, nil); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fixture) write(d *blocktest.Disk, b []byte, at int64) {
	f.t.Helper()
	if _, err := d.WriteAt(b, at); err != nil {
		f.t.Fatal(err)
	}
}

// damaged is the fixture with overlays that can be damaged.
func (f *fixture) damaged(damage func(f *fixture)) *fixture {
	g := *f
	g.data, g.tree = f.data.Overlay(), f.tree.Overlay()
	damage(&g)
	return &g
}

func (f *fixture) spoil(d *blocktest.Disk, n uint64, offset int64) {
	f.write(d, []byte{0xde, 0xad}, offset+int64(n)*blockSize+9)
}

func (f *fixture) slot(data, tree block.Device) *Slot {
	return &Slot{Params: f.params, Root: f.root, Data: data, Tree: tree}
}

func (f *fixture) verify() error {
	return verity.Verify(context.Background(), f.data, f.tree, f.params, f.root, nil)
}

// FAULTS 32
func TestRepair(t *testing.T) {
	f := newFixture(t)
	levels, err := verity.Levels(blocks)
	if err != nil || len(levels) != 3 {
		t.Fatalf("%d levels, %v", len(levels), err)
	}
	hash := func(f *fixture, level int, n uint64) { f.spoil(f.tree, n, levels[level].Offset) }
	data := func(f *fixture, n uint64) { f.spoil(f.data, n, 0) }
	for _, c := range []struct {
		name   string
		damage func(f *fixture)
		tree   bool // the other slot's tree is there
		want   Report
		err    error
	}{
		{"nothing", func(*fixture) {}, false, Report{}, nil},
		{"one data block", func(f *fixture) { data(f, 5) }, false, Report{Data: 1}, nil},
		{"the first and the last", func(f *fixture) { data(f, 0); data(f, blocks-1) }, false, Report{Data: 2}, nil},
		{"a block that is there many times", func(f *fixture) { data(f, 50); data(f, 4000) }, false, Report{Data: 2}, nil},
		{"a block that nothing holds", func(f *fixture) { data(f, 1007); data(f, 8) }, false, Report{Data: 1, Missing: []uint64{1007}}, nil},
		{"a leaf", func(f *fixture) { hash(f, 0, 3) }, false, Report{Hash: 1}, nil},
		{"the top", func(f *fixture) { hash(f, 2, 0) }, false, Report{Hash: 1}, nil},
		{"each level, on one path", func(f *fixture) { hash(f, 2, 0); hash(f, 0, 3) }, false, Report{Hash: 2}, nil},
		{"two levels, one above the other", func(f *fixture) { hash(f, 1, 0); hash(f, 0, 3) }, false, Report{}, ErrTree},
		{"the same, with another tree", func(f *fixture) { hash(f, 1, 0); hash(f, 0, 3) }, true, Report{Hash: 2}, nil},
		{"a leaf and its data", func(f *fixture) { hash(f, 0, 3); data(f, 3*128) }, false, Report{Unknown: 128}, nil},
		{"the same, with another tree", func(f *fixture) { hash(f, 0, 3); data(f, 3*128) }, true, Report{Hash: 1, Data: 1}, nil},
		{"the last leaf and its data", func(f *fixture) { hash(f, 0, 128+2); data(f, blocks-1) }, false, Report{Unknown: blocks % 128}, nil},
		{"all of the tree", func(f *fixture) { f.tree = blocktest.New(f.tree.Size(), blocktest.Hostile) }, true, Report{Hash: 128 + 3 + 2 + 1}, nil},
		{"much of the data", func(f *fixture) {
			for n := range uint64(500) {
				data(f, 33*n+1)
			}
		}, false, Report{Data: 499, Missing: []uint64{6007}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := f.damaged(c.damage)
			g.t = t
			s := g.slot(g.data, g.tree)
			s.Others = []Source{{g.other, g.other.Size()}}
			if c.tree {
				s.OtherTrees = []io.ReaderAt{g.otherTree}
			}
			got, err := s.Run(t.Context())
			if !errors.Is(err, c.err) {
				t.Fatalf("%v, want %v", err, c.err)
			}
			if c.err != nil {
				return
			}
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("%+v, want %+v", got, c.want)
			}
			corrupt, _ := errors.AsType[*verity.CorruptError](g.verify())
			if corrupt != nil && corrupt.Area == verity.AreaSuperblock { // the caller's
				corrupt = nil
			}
			if got.Whole() != (corrupt == nil) {
				t.Errorf("whole: %v, and %v", got.Whole(), corrupt)
			}
		})
	}
}

// unreadable fails for some blocks until they are written.
type unreadable struct {
	*blocktest.Disk
	bad []int64
}

func (u *unreadable) ReadAt(p []byte, off int64) (int, error) {
	for _, b := range u.bad {
		if off <= b && b < off+int64(len(p)) {
			return 0, errors.New("medium error")
		}
	}
	return u.Disk.ReadAt(p, off)
}

func (u *unreadable) WriteAt(p []byte, off int64) (int, error) {
	u.bad = slices.DeleteFunc(u.bad, func(b int64) bool { return off <= b && b < off+int64(len(p)) })
	return u.Disk.WriteAt(p, off)
}

func TestUnreadable(t *testing.T) {
	f := newFixture(t)
	data := &unreadable{f.data.Overlay(), []int64{9 * blockSize, 700 * blockSize}}
	tree := &unreadable{f.tree.Overlay(), []int64{3 * blockSize}}
	other := &unreadable{f.other, []int64{0}}
	s := f.slot(data, tree)
	s.Others = []Source{{other, f.other.Size()}}
	var last, total int64
	s.Progress = func(done, all int64) { last, total = done, all }
	got, err := s.Run(t.Context())
	if err != nil || got.Data != 2 || got.Hash != 1 || !got.Whole() {
		t.Fatalf("%+v, %v", got, err)
	}
	if last == 0 || last > total {
		t.Errorf("progress %d of %d", last, total)
	}
	if err := verity.Verify(t.Context(), data, tree, f.params, f.root, nil); err != nil {
		t.Error(err)
	}
}

// Cut anywhere, a repair goes on where it stopped.
func TestCut(t *testing.T) {
	f := newFixture(t).damaged(func(f *fixture) {
		for _, n := range []uint64{5, 6, 129, 4096} {
			f.spoil(f.data, n, 0)
		}
	})
	r := blocktest.Record(f.data)
	s := f.slot(r, f.tree)
	s.Others = []Source{{f.other, f.other.Size()}}
	if _, err := s.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := 0
	_, err := r.Cuts(blocktest.Options{}, func(c blocktest.Cut) error {
		if n++; n%9 != 0 { // each takes a moment
			return nil
		}
		s := f.slot(c.Disk, f.tree)
		s.Others = []Source{{f.other, f.other.Size()}}
		got, err := s.Run(t.Context())
		if err == nil && !got.Whole() {
			err = fmt.Errorf("%+v", got)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestOneBlock(t *testing.T) {
	data, tree := blocktest.New(blockSize, blocktest.Zero), blocktest.New(blockSize, blocktest.Zero)
	p := verity.Params{DataBlocks: 1}
	good := content(3)
	if _, err := data.WriteAt(good, 0); err != nil {
		t.Fatal(err)
	}
	root, err := verity.Generate(t.Context(), data, p, tree, nil)
	if err != nil {
		t.Fatal(err)
	}
	other := data.Clone()
	if _, err := data.WriteAt([]byte{1}, 7); err != nil {
		t.Fatal(err)
	}
	s := &Slot{Params: p, Root: root, Data: data, Tree: tree, Others: []Source{{other, blockSize}}}
	if got, err := s.Run(t.Context()); err != nil || got.Data != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := verity.Verify(t.Context(), data, tree, p, root, nil); err != nil {
		t.Error(err)
	}
}
