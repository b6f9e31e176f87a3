package release

import (
	"bytes"
	"cmp"
	"context"
	"debug/pe"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"time"

	"halogenos.internal/boot/blockindex"
	"halogenos.internal/boot/patch"
	"halogenos.internal/boot/release"
	"halogenos.internal/builder/erofs"
	"halogenos.internal/builder/patches"
)

// A Cost says what machines with one build fetch of another, and of which files.
type Cost struct {
	Archive  int64 `json:"archive"`           // bytes of all of it
	Bytes    int64 `json:"bytes"`             // that are fetched
	Patches  int64 `json:"patches,omitempty"` // of these, bytes of patches
	Blocks   int   `json:"blocks"`            // of 4 KiB, in all files
	Changed  int   `json:"changed"`           // of these
	Requests int   `json:"requests"`          // HTTP ranges
	// Files and Directories have what is fetched of them, the most first: a directory's with
	// all that is below it.
	Files       []Share `json:"files"`
	Directories []Share `json:"directories"`
}

// A Share is what is fetched of a file or directory: part of an archive's file, with '!'
// before names in it.
type Share struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	Blocks int    `json:"blocks"` // that changed
}

// Compressed is what files of a system image are named together that do not lie in it as
// they are, with its directories and inodes.
const Compressed = "(compressed files, directories, inodes)"

// CostOf compares two builds' directories. With patched it makes the patches that
// --patch-from would, which takes a while.
func CostOf(ctx context.Context, old, fresh string, patched bool) (c *Cost, err error) {
	was, err := loadBuild(old)
	if err != nil {
		return nil, fmt.Errorf("build %s: %w", old, err)
	}
	is, err := loadBuild(fresh)
	if err != nil {
		return nil, fmt.Errorf("build %s: %w", fresh, err)
	}
	a, b := was.release, is.release
	if a.ImageID != b.ImageID || a.Arch != b.Arch || !bytes.Equal(a.Salt, b.Salt) {
		return nil, fmt.Errorf("%s has %s for %s, and %s has %s for %s: machines do not update from one to the other", old, a.ImageID, a.Arch, fresh, b.ImageID, b.Arch)
	}
	packed, err := os.CreateTemp("", unfinished)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, packed.Close(), os.Remove(packed.Name())) }()
	err = is.pack(ctx, packed, func([]byte) ([]byte, error) { return nil, nil })
	if err != nil {
		return nil, err
	}
	if _, err := packed.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	head, index, err := readIndex(packed, madeBy(nil, time.Unix(is.release.SourceDate, 0)))
	if err != nil {
		return nil, err
	}
	d := &costing{old: was, fresh: is, index: index, cost: &Cost{Archive: head.ArchiveSize(), Bytes: head.Size, Requests: 2}, shares: make(map[string]*Share)}
	for _, place := range head.Places() {
		f, ok := index.File(place.Name)
		if !ok { // the index itself
			d.cost.Bytes += place.Packed
			continue
		}
		if err := d.file(ctx, f, patched); err != nil {
			return nil, fmt.Errorf("%s: %w", place.Name, err)
		}
	}
	d.finish()
	return d.cost, nil
}

// costing is a comparison under way.
type costing struct {
	old, fresh *build
	index      *blockindex.Index
	cost       *Cost
	shares     map[string]*Share
}

// file adds up what is fetched of a file.
func (d *costing) file(ctx context.Context, f *blockindex.File, patched bool) error {
	was, err := os.Open(filepath.Join(d.old.dir, f.Name))
	if err != nil {
		return err
	}
	defer was.Close()
	info, err := was.Stat()
	if err != nil {
		return err
	}
	is, err := os.Open(filepath.Join(d.fresh.dir, f.Name))
	if err != nil {
		return err
	}
	defer is.Close()
	table := new(patch.Table)
	if patched && f.Name == release.ImageFile {
		if table, _, err = patches.Make(ctx, patches.Image{Image: imageOf(d.old.release), Content: was}, patches.Image{Image: imageOf(d.fresh.release), Content: is}); err != nil {
			return err
		}
	}
	places, err := placesOf(f.Name, is)
	if err != nil {
		return err
	}
	var part blockindex.Part
	for n := range f.Parts() {
		if err := part.Load(f, n); err != nil {
			return err
		}
		plan := blockindex.NewPlan(&part, d.fresh.release.Salt)
		if err := plan.HaveContent(ctx, was, info.Size(), d.fresh.release.Salt); err != nil {
			return err
		}
		if kernel, ok := d.index.File(release.UKIFile); ok && f.Name == release.ImageFile {
			if err := plan.HaveFile(kernel, 0); err != nil {
				return err
			}
		}
		d.part(&part, plan, table, places)
	}
	return nil
}

// part adds up what is fetched of a part of a file.
func (d *costing) part(part *blockindex.Part, plan *blockindex.Plan, table *patch.Table, places places) {
	choice := table.Choose(plan, blockindex.UsualGap, blockindex.UsualLimit)
	for _, g := range choice.Groups {
		// What a group has of each file is not told apart: it counts by its blocks.
		made := make(map[string]int)
		all := 0
		for _, e := range g.Extents {
			for i := e.New; i < e.New+e.NewBlocks; i++ {
				if plan.Patched(i) {
					made[places.name(i)]++
					all++
				}
			}
		}
		for name, n := range made {
			d.add(name, g.Size*int64(n)/int64(all), n)
		}
	}
	for r := range plan.Ranges(blockindex.UsualGap, blockindex.UsualLimit) {
		for m := r.First; m < r.First+r.Members; m++ {
			_, size := part.Member(m)
			name, wanted := "", 0
			for i := part.File.First(m); i < part.File.First(m+1); i++ {
				if plan.Wanted(i) {
					name, wanted = cmp.Or(name, places.name(i)), wanted+1
				}
			}
			d.add(cmp.Or(name, places.name(part.File.First(m))), int64(size), wanted)
		}
	}
	cost := plan.Cost(blockindex.UsualGap, blockindex.UsualLimit)
	c := d.cost
	c.Patches, c.Bytes = c.Patches+choice.Bytes, c.Bytes+choice.Bytes+cost.Fetched
	c.Blocks, c.Changed, c.Requests = c.Blocks+cost.Blocks, c.Changed+choice.Blocks+cost.Wanted, c.Requests+len(choice.Groups)+cost.Ranges
}

func (d *costing) add(name string, size int64, blocks int) {
	s := d.shares[name]
	if s == nil {
		s = &Share{Name: name}
		d.shares[name] = s
	}
	s.Bytes, s.Blocks = s.Bytes+size, s.Blocks+blocks
}

// finish sorts the files, and adds them up by their directories.
func (d *costing) finish() {
	directories := make(map[string]*Share)
	for _, s := range d.shares {
		for dir := path.Dir(s.Name); dir != "."; dir = path.Dir(dir) {
			if directories[dir] == nil {
				directories[dir] = &Share{Name: dir}
			}
			directories[dir].Bytes += s.Bytes
			directories[dir].Blocks += s.Blocks
		}
	}
	d.cost.Files, d.cost.Directories = sorted(d.shares), sorted(directories)
}

func sorted(all map[string]*Share) []Share {
	out := []Share{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, *all[name])
	}
	slices.SortStableFunc(out, func(a, b Share) int { return cmp.Compare(b.Bytes, a.Bytes) })
	return out
}

// places are names of what a file is made of, by the first block, in order.
type places []region

type region struct {
	first int
	name  string
}

// name is what a block belongs to.
func (p places) name(block int) string {
	i := sort.Search(len(p), func(i int) bool { return p[i].first > block })
	return p[max(i-1, 0)].name
}

// placesOf finds the sections of an EFI file, and the files of a system image that lie in
// runs of blocks.
func placesOf(name string, content io.ReaderAt) (places, error) {
	all := places{{0, name}}
	switch name {
	case release.UKIFile:
		f, err := pe.NewFile(content)
		if err != nil {
			return nil, err
		}
		for _, s := range f.Sections {
			all = append(all, region{int(s.Offset / erofs.BlockSize), name + "!/" + s.Name})
		}
	case release.ImageFile:
		rest := name + "!/" + Compressed
		all[0].name = rest
		seen := make(map[uint32]bool)
		err := erofs.Walk(content, func(f erofs.File) error {
			if f.Plain && !seen[f.First] { // or another name of the same
				seen[f.First] = true
				all = append(all, region{int(f.First), name + "!/" + f.Name}, region{int(f.First) + f.Blocks(), rest})
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	// Where one ends and another begins, the one that begins counts.
	rest := all[0].name
	order := func(p region) int {
		if p.name == rest {
			return 2 * p.first
		}
		return 2*p.first + 1
	}
	slices.SortStableFunc(all, func(a, b region) int { return cmp.Compare(order(a), order(b)) })
	return all, nil
}
