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

// Make makes the patches from one image to another, on all cores, and what the file of
// patches has. The same images give the same bytes. A table without groups says that there
// is nothing that a patch would spare.
func Make(ctx context.Context, old, fresh Image) (*patch.Table, []byte, error) {
	all, err := extents(old.Content, fresh.Content)
	if err != nil {
		return nil, nil, err
	}
	sets := split(all)
	groups, packed := make([]patch.Group, len(sets)), make([][]byte, len(sets))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, set := range sets {
		g.Go(func() error {
			var err error
			groups[i], packed[i], err = makeGroup(ctx, old.Content, fresh.Content, set)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	t := &patch.Table{From: old.Image, To: fresh.Image}
	var file []byte
	for i, group := range groups {
		if len(group.Extents) == 0 {
			continue
		}
		group.Offset = t.Size()
		t.Groups, file = append(t.Groups, group), append(file, packed[i]...)
	}
	return t, file, nil
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

// makeGroup compares some extents.
func makeGroup(ctx context.Context, old, fresh io.ReaderAt, set []patch.Extent) (patch.Group, []byte, error) {
	var b patch.Builder
	for _, e := range set {
		if err := ctx.Err(); err != nil {
			return patch.Group{}, nil, err
		}
		was, err := read(old, e.Old, e.OldBlocks)
		if err != nil {
			return patch.Group{}, nil, fmt.Errorf("old image: %w", err)
		}
		is, err := read(fresh, e.New, e.NewBlocks)
		if err != nil {
			return patch.Group{}, nil, fmt.Errorf("new image: %w", err)
		}
		if bytes.Equal(was, is) {
			continue // its blocks are copied
		}
		steps, added, created, err := Diff(was, is)
		if err != nil {
			return patch.Group{}, nil, err
		}
		if spares(added, created) {
			b.Add(e, steps, added, created)
		}
	}
	if b.Blocks() == 0 {
		return patch.Group{}, nil, nil
	}
	g, packed, err := b.Encode()
	if errors.Is(err, patch.ErrLarge) { // it would spare little: its blocks are fetched
		return patch.Group{}, nil, nil
	}
	return g, packed, err
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
