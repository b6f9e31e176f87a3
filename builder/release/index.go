package release

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/blockindex"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/manifest"
	"halogenos.internal/boot/patch"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/release"
)

// members are the gzip members of an archive behind its head, as they are.
type members struct {
	next int64 // offset of the next one
	all  []member
}

type member struct {
	offset        int64
	packed, plain int
}

func (m *members) add(packed, plain int) {
	m.all = append(m.all, member{m.next, packed, plain})
	m.next += int64(packed)
}

// indexed compares files with the index of their archive.
type indexed struct {
	salt     []byte
	contents [][]byte // of the files that come before the index
	index    *blockindex.Index
	files    []release.File
}

// read reads the index, and compares what came before.
func (x *indexed) read(head *archive.Head, content io.Reader) error {
	raw, err := io.ReadAll(content) // as long as the signed description says
	if err != nil {
		return err
	}
	if x.index, err = openIndex(head, raw); err != nil {
		return err
	}
	x.files = head.Release.Build().Files
	for i, content := range x.contents {
		if err := x.check(x.files[i].Name, bytes.NewReader(content)); err != nil {
			return err
		}
	}
	x.contents = nil
	return nil
}

// openIndex opens an index in memory.
func openIndex(head *archive.Head, raw []byte) (*blockindex.Index, error) {
	return head.Index(io.NewSectionReader(bytes.NewReader(raw), 0, int64(len(raw))), blockindex.UsualPart)
}

// check compares all blocks of a file with the index.
func (x *indexed) check(name string, content io.ReaderAt) error {
	f, ok := x.index.File(name)
	if !ok {
		return fmt.Errorf("%s does not have %s", release.IndexFile, name)
	}
	h := blockindex.NewHasher(x.salt)
	buffer := make([]byte, blockindex.MaxMemberBlocks*blockindex.BlockSize)
	return eachMember(f, func(p *blockindex.Part, i int) error {
		offset, size := f.Content(i)
		if _, err := io.ReadFull(io.NewSectionReader(content, offset, int64(size)), buffer[:size]); err != nil {
			return err
		}
		return p.Check(i, buffer[:size], h)
	})
}

// eachMember calls do for the members of a file.
func eachMember(f *blockindex.File, do func(p *blockindex.Part, i int) error) error {
	var p blockindex.Part
	for n := range f.Parts() {
		if err := p.Load(f, n); err != nil {
			return err
		}
		first, end := p.MemberSpan()
		for i := first; i < end; i++ {
			if err := do(&p, i); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkMembers compares where the index says that members lie with where they
// do.
func (x *indexed) checkMembers(m *members) error {
	all := m.all
	for _, described := range x.files {
		f, ok := x.index.File(described.Name)
		if !ok {
			return fmt.Errorf("%s does not have %s", release.IndexFile, described.Name)
		}
		err := eachMember(f, func(p *blockindex.Part, i int) error {
			offset, packed := p.Member(i)
			_, plain := f.Content(i)
			for len(all) > 0 && all[0].offset < offset {
				all = all[1:]
			}
			if want := (member{offset, packed, plain}); len(all) == 0 || all[0] != want {
				return fmt.Errorf("%s: no gzip member of %d bytes with %d of the file lies at byte %d of the archive, as %s says", f.Name, packed, plain, offset, release.IndexFile)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// A Delta is how much a machine with another version fetches.
type Delta struct {
	From     contract.Version
	Blocks   int   // of 4 KiB, in all files
	Changed  int   // of these
	Requests int   // HTTP ranges
	Bytes    int64 // that are fetched, head, index and patches included
	Patches  int64 // of these, bytes of patches
	Archive  int64 // bytes of the whole archive
}

// String implements fmt.Stringer.
func (d *Delta) String() string {
	patched := ""
	if d.Patches > 0 {
		patched = fmt.Sprintf(", %.1f MB of them patches", float64(d.Patches)/1e6)
	}
	return fmt.Sprintf("from version %s: %d of %d blocks changed, %.1f MB to fetch%s (%.1f %% of the archive) in %d requests",
		d.From, d.Changed, d.Blocks, float64(d.Bytes)/1e6, patched, 100*float64(d.Bytes)/float64(d.Archive), d.Requests)
}

// source is where releases lie, and by what their signatures are checked; a nil
// key stands for releases that are not signed.
type source struct {
	server Server
	key    *pgp.Key
	now    time.Time
}

// noteDelta says what machines with the version before fetch, where that is on
// the server too. It is a help for planning, and no reason to fail.
func noteDelta(ctx context.Context, p source, v contract.Version, note func(string, ...any)) *Delta {
	all, err := p.server.Versions(ctx)
	var before contract.Version
	for _, other := range all {
		if other < v {
			before = max(before, other)
		}
	}
	if err == nil && before == 0 {
		return nil
	}
	var d *Delta
	if err == nil {
		d, err = p.delta(ctx, before, v)
	}
	if err != nil {
		note("cannot tell how much machines with an older version fetch: %v", err)
		return nil
	}
	note("%s", d)
	return d
}

// delta plans as a machine would.
func (p source) delta(ctx context.Context, from, to contract.Version) (*Delta, error) {
	was, old, err := p.index(ctx, from)
	if err != nil {
		return nil, fmt.Errorf("release %s: %w", from, err)
	}
	head, index, err := p.index(ctx, to)
	if err != nil {
		return nil, fmt.Errorf("release %s: %w", to, err)
	}
	d := &Delta{From: from, Archive: head.ArchiveSize(), Bytes: head.Size, Requests: 2}
	for _, place := range head.Places() {
		f, ok := index.File(place.Name)
		if !ok { // the index itself
			d.Bytes += place.Packed
			continue
		}
		var sources []*blockindex.File
		if source, ok := old.File(place.Name); ok {
			sources = append(sources, source)
		}
		var table *patch.Table
		if place.Name == release.ImageFile {
			var size int
			if table, size, err = p.patchTable(ctx, was.Release, head.Release, p.made); err != nil {
				table = nil // machines do without, and --verify says why
			}
			d.Bytes, d.Patches = d.Bytes+int64(size), d.Patches+int64(size)
			if kernel, ok := index.File(release.UKIFile); ok { // it is there by then
				sources = append(sources, kernel)
			}
		}
		if err := d.add(f, sources, head.Release.Salt, table); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// add plans a file for which the machine has others to copy from.
func (d *Delta) add(f *blockindex.File, sources []*blockindex.File, salt []byte, table *patch.Table) error {
	var part blockindex.Part
	for n := range f.Parts() {
		if err := part.Load(f, n); err != nil {
			return err
		}
		plan := blockindex.NewPlan(&part, salt)
		for _, source := range sources {
			if err := plan.HaveFile(source, 0); err != nil {
				return err
			}
		}
		if table != nil {
			c := table.Choose(plan, blockindex.UsualGap, blockindex.UsualLimit)
			d.Patches, d.Bytes = d.Patches+c.Bytes, d.Bytes+c.Bytes
			d.Changed, d.Requests = d.Changed+c.Blocks, d.Requests+len(c.Groups)
		}
		cost := plan.Cost(blockindex.UsualGap, blockindex.UsualLimit)
		d.Blocks += cost.Blocks
		d.Changed += cost.Wanted
		d.Requests += cost.Ranges
		d.Bytes += cost.Fetched
	}
	return nil
}

// index reads head and index of a release.
func (p source) index(ctx context.Context, v contract.Version) (head *archive.Head, index *blockindex.Index, err error) {
	f, err := p.server.Open(ctx, manifest.ArchiveName(v))
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if head, index, err = readIndex(f, madeBy(p.key, p.now)); err != nil {
		return nil, nil, err
	}
	arch, imageID := p.server.Place()
	if err := belongs(head.Release, arch, imageID, v); err != nil {
		return nil, nil, err
	}
	return head, index, err
}

// readIndex reads head and index from the start of an archive.
func readIndex(r io.Reader, authenticate archive.Authenticate) (*archive.Head, *blockindex.Index, error) {
	head, err := archive.ReadHead(r, authenticate)
	if err != nil {
		return nil, nil, err
	}
	index, err := indexBehind(r, head)
	return head, index, err
}

// indexBehind reads the index of an archive whose head was read.
func indexBehind(r io.Reader, head *archive.Head) (*blockindex.Index, error) {
	at, _ := head.Place(release.IndexFile)
	if _, err := io.CopyN(io.Discard, r, at.Offset-head.Size); err != nil {
		return nil, err
	}
	content, err := head.Content(r, release.IndexFile)
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(content) // as long as the description says
	if err != nil {
		return nil, err
	}
	return openIndex(head, raw)
}
