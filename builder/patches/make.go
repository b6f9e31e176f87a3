package patches

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"halogenos.internal/boot/blockindex"
	"halogenos.internal/boot/patch"
	"halogenos.internal/builder/erofs"
)

// An Image is a system image with its content.
type Image struct {
	patch.Image
	Content io.ReaderAt
}

const (
	// pieceBlocks is how much of a file is compared at once, with slackBlocks more of the old
	// one on either side, where its content may have moved to: the memory of it is some ten
	// times as much.
	pieceBlocks = 4 << 10
	slackBlocks = 256
	// groupBlocks is how much a group makes, about: what is compressed together, and
	// fetched at once.
	groupBlocks = 4 << 10
)

// maxWorkers bounds how many groups are made at once: each takes some 250 MB, and what more
// cores would spare is little beside the rest of a release.
const maxWorkers = 8

// Make makes the patches from one image to another, on several cores, and what the file of
// patches has. The same images give the same bytes. A table without groups says that there
// is nothing that a patch would spare.
func Make(ctx context.Context, old, fresh Image) (*patch.Table, []byte, error) {
	all, err := extents(old.Content, fresh.Content)
	if err != nil {
		return nil, nil, err
	}
	sets := split(all)
	made := make([][]group, len(sets))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(min(runtime.GOMAXPROCS(0), maxWorkers))
	m := &maker{old.Content, fresh.Content, (*patch.Builder).Encode}
	for i, set := range sets {
		g.Go(func() error {
			var err error
			made[i], err = m.groups(ctx, set)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	return fit(&patch.Table{From: old.Image, To: fresh.Image}, slices.Concat(made...))
}

// fit puts groups into a table, and returns the file of them. Where it would have more than
// it may, those are left out that spare the least.
func fit(t *patch.Table, groups []group) (*patch.Table, []byte, error) {
	for {
		var file []byte
		t.Groups = nil
		for _, g := range groups {
			g.Offset = t.Size()
			t.Groups, file = append(t.Groups, g.Group), append(file, g.packed...)
		}
		_, err := t.Encode()
		if !errors.Is(err, patch.ErrLarge) || len(groups) == 0 {
			return t, file, err
		}
		// A few at a time, so that little is left out in vain, and it ends soon.
		order := slices.Clone(groups)
		slices.SortStableFunc(order, func(a, b group) int { return cmp.Compare(a.spared(), b.spared()) })
		for _, g := range order[:(len(order)+63)/64] {
			groups = slices.DeleteFunc(groups, func(o group) bool { return o.Extents[0] == g.Extents[0] })
		}
	}
}

// group is a group with what the file has of it.
type group struct {
	patch.Group
	packed []byte
}

// spared is how many bytes of blocks it spares for each that its part of the table has, about.
func (g group) spared() float64 {
	blocks := 0
	for _, e := range g.Extents {
		blocks += e.NewBlocks
	}
	return float64(int64(blocks)*patch.BlockSize-g.Size) / float64(40+8*len(g.Extents))
}

// split divides extents into groups. None has extents of two of the parts that a machine deals
// with, one after the other: it would be fetched for each.
func split(all []patch.Extent) [][]patch.Extent {
	var sets [][]patch.Extent
	blocks, part := 0, -1
	for _, e := range all {
		of := e.New / blockindex.UsualPart
		if part != of || blocks+e.NewBlocks > groupBlocks {
			sets, blocks, part = append(sets, nil), 0, of
		}
		blocks += e.NewBlocks
		sets[len(sets)-1] = append(sets[len(sets)-1], e)
	}
	return sets
}

// maker makes groups from two images.
type maker struct {
	old, fresh io.ReaderAt
	encode     func(*patch.Builder) (patch.Group, []byte, error)
}

// groups makes one group of some extents, or several where that would be too large.
func (m *maker) groups(ctx context.Context, set []patch.Extent) ([]group, error) {
	g, err := m.group(ctx, set)
	if !errors.Is(err, patch.ErrLarge) {
		if err != nil || len(g.Extents) == 0 {
			return nil, err
		}
		return []group{g}, nil
	}
	first, second := halves(set)
	if second == nil { // a block that is more than a machine takes is fetched
		return nil, nil
	}
	all, err := m.groups(ctx, first)
	if err != nil {
		return nil, err
	}
	rest, err := m.groups(ctx, second)
	return append(all, rest...), err
}

// halves divides extents; a single one into two that are made of the same. The second is nil
// where nothing can be divided.
func halves(set []patch.Extent) (first, second []patch.Extent) {
	if len(set) > 1 {
		return set[:len(set)/2], set[len(set)/2:]
	}
	e, rest := set[0], set[0]
	if e.NewBlocks == 1 {
		return set, nil
	}
	e.NewBlocks /= 2
	rest.New, rest.NewBlocks = e.New+e.NewBlocks, rest.NewBlocks-e.NewBlocks
	return []patch.Extent{e}, []patch.Extent{rest}
}

// group compares some extents. It has none where nothing is spared, or where the patches do
// not make the new image, which a machine would find out after it has fetched them.
func (m *maker) group(ctx context.Context, set []patch.Extent) (group, error) {
	var b patch.Builder
	for _, e := range set {
		if err := ctx.Err(); err != nil {
			return group{}, err
		}
		was, err := read(m.old, e.Old, e.OldBlocks)
		if err != nil {
			return group{}, fmt.Errorf("old image: %w", err)
		}
		is, err := read(m.fresh, e.New, e.NewBlocks)
		if err != nil {
			return group{}, fmt.Errorf("new image: %w", err)
		}
		if bytes.Equal(was, is) {
			continue // its blocks are copied
		}
		steps, added, created, err := Diff(was, is)
		if err != nil {
			return group{}, err
		}
		if spares(added, created) {
			b.Add(e, steps, added, created)
		}
	}
	if b.Blocks() == 0 {
		return group{}, nil
	}
	g, packed, err := m.encode(&b)
	if err != nil {
		return group{}, err
	}
	switch err := m.proves(&g, packed); {
	case errors.Is(err, errImage):
		return group{}, err
	case err != nil:
		return group{}, nil
	}
	return group{g, packed}, nil
}

var (
	errImage = errors.New("new image")
	errWrong = errors.New("the patches make other blocks")
)

// proves applies a group. An error that is not errImage says that it does not make the new
// image's blocks.
func (m *maker) proves(g *patch.Group, packed []byte) error {
	next := 0
	want := make([]byte, patch.BlockSize)
	err := g.Apply(packed, m.old, func(block int, content []byte) error {
		if n, err := m.fresh.ReadAt(want, int64(block)*patch.BlockSize); n < len(want) {
			return fmt.Errorf("%w: read block %d: %w", errImage, block, err)
		}
		next++
		if !bytes.Equal(want, content) {
			return errWrong
		}
		return nil
	})
	if blocks := 0; err == nil {
		for _, e := range g.Extents {
			blocks += e.NewBlocks
		}
		if next != blocks {
			err = errWrong
		}
	}
	return err
}

// spares reports whether most bytes are the old one's. What is compressed, such as a
// kernel, has next to nothing of what was compressed before.
func spares(added, created []byte) bool {
	same := bytes.Count(added, []byte{0})
	return same > len(added)-same+len(created)
}

func read(r io.ReaderAt, first, blocks int) ([]byte, error) {
	b := make([]byte, blocks*patch.BlockSize)
	if n, err := r.ReadAt(b, int64(first)*patch.BlockSize); n < len(b) {
		return nil, fmt.Errorf("read blocks %d to %d: %w", first, first+blocks-1, err)
	}
	return b, nil
}

// ofKernel is the part of a file's name that another kernel has another of.
var ofKernel = regexp.MustCompile(`(^|/)lib/modules/[^/]+/`)

// nameOf is the name that a file of an older image has, too, whatever kernel that has.
func nameOf(name string) string { return ofKernel.ReplaceAllString(name, "${1}lib/modules/*/") }

// extents pairs the plain files of two images by their names, in the new one's order.
func extents(old, fresh io.ReaderAt) ([]patch.Extent, error) {
	was := make(map[string]erofs.File)
	err := erofs.Walk(old, func(f erofs.File) error {
		if f.Plain {
			was[nameOf(f.Name)] = f
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("old image: %w", err)
	}
	var all []patch.Extent
	err = erofs.Walk(fresh, func(f erofs.File) error {
		if has, ok := was[nameOf(f.Name)]; ok && f.Plain {
			all = append(all, pieces(has, f)...)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("new image: %w", err)
	}
	slices.SortFunc(all, func(a, b patch.Extent) int { return cmp.Or(cmp.Compare(a.New, b.New), cmp.Compare(a.Old, b.Old)) })
	next := 0
	return slices.DeleteFunc(all, func(e patch.Extent) bool { // of a file with several names
		again := e.New < next
		if !again {
			next = e.New + e.NewBlocks
		}
		return again
	}), nil
}

// pieces cuts a file into extents that are compared alone: none lies in two of the parts
// that a machine deals with, one after the other.
func pieces(old, fresh erofs.File) []patch.Extent {
	var all []patch.Extent
	for at := 0; at < fresh.Blocks(); {
		first := int(fresh.First) + at
		n := min(fresh.Blocks()-at, pieceBlocks, blockindex.UsualPart-first%blockindex.UsualPart)
		from := max(0, min(at, old.Blocks()-n)-slackBlocks)
		to := min(old.Blocks(), from+n+2*slackBlocks)
		all = append(all, patch.Extent{New: first, NewBlocks: n, Old: int(old.First) + from, OldBlocks: to - from})
		at += n
	}
	return all
}
