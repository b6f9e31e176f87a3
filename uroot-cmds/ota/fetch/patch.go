package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"

	"halogenos.internal/boot/blockindex"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/patch"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/verity"
	"halogenos.internal/uroot-cmds/ota/offer"
	"halogenos.internal/uroot-cmds/ota/server"
)

// readPatches reads what patches there are from the running release. An update does without
// them; a server that sends whole files alone has no use for them either.
func (f *Found) readPatches(ctx context.Context, t server.Transport, directory string, v contract.Version, self *offer.Self) error {
	if !f.Ranges {
		return nil
	}
	table, err := t.Get(ctx, path.Join(directory, patch.TableName(v, self.Running.Version)), patch.MaxTable)
	if err != nil {
		return context.Cause(ctx)
	}
	signature, err := t.Get(ctx, path.Join(directory, patch.SignatureName(v, self.Running.Version)), pgp.MaxSignature)
	if err != nil && !errors.Is(err, server.ErrNotFound) {
		return context.Cause(ctx)
	}
	f.Patches, f.PatchesSignature = table, signature
	return nil
}

// readPatches opens the table of patches, where it is signed and of the two images at hand.
// One that is not is said, and done without.
func (j *Job) readPatches() {
	j.table = nil
	if len(j.Found.Patches) == 0 || j.Source == nil || j.Source.System == nil {
		return
	}
	t, err := j.patches()
	if err != nil {
		j.note("the patches for this update are not used: %v", err)
		return
	}
	j.table = t
}

func (j *Job) patches() (*patch.Table, error) {
	if err := j.Self.Authenticate(j.Found.Patches, j.Found.PatchesSignature); err != nil {
		return nil, err
	}
	t, err := patch.ParseTable(j.Found.Patches)
	if err != nil {
		return nil, err
	}
	r := j.head.Release
	running := patch.Image{Root: verity.Root(j.Self.Running.RootHash), Blocks: int(j.Source.Blocks)}
	if err := t.Fits(running, patch.Image{Root: verity.Root(r.RootHash), Blocks: int(r.ImageSize / patch.BlockSize)}); err != nil {
		return nil, err
	}
	return t, nil
}

// choosePatches finds the groups that spare more bytes than they have, and notes in the plan
// which blocks they make.
func (j *Job) choosePatches(name string, plan *blockindex.Plan) patch.Choice {
	if j.table == nil || name != release.ImageFile {
		return patch.Choice{}
	}
	return j.table.Choose(plan, maxGap, maxRange)
}

// patch makes blocks of what the running system has, by the patches that are worth it. What
// goes wrong with one is said, and its blocks come from the archive.
//
// Cut at any point, blocks that were written are in place the next time, by their digests,
// and of the others only the groups that make them are fetched again.
func (j *Job) patch(ctx context.Context, part *blockindex.Part, plan *blockindex.Plan, to io.WriterAt) error {
	c := j.choosePatches(part.File.Name, plan)
	if len(c.Groups) == 0 {
		return nil
	}
	s := j.step(Patching, part.String(), int64(c.Blocks)*blockindex.BlockSize)
	p := &patching{job: j, part: part, plan: plan, to: to, step: s, hasher: blockindex.NewHasher(j.head.Release.Salt)}
	for _, g := range c.Groups {
		err := p.group(ctx, g, j.Source.System)
		if left := g.Mark(plan, false); left > 0 && err == nil {
			err = fmt.Errorf("%d blocks are not what was signed", left)
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errWriting):
			return err
		case err != nil:
			j.note("%s: a patch is of no use, and its blocks are fetched: %v", part, err)
		}
	}
	return nil
}

// patching is a part of the image that is being patched.
type patching struct {
	job    *Job
	part   *blockindex.Part
	plan   *blockindex.Plan
	to     io.WriterAt
	step   *step
	hasher *blockindex.Hasher
}

// errWriting is wrapped where the slot cannot be written to: the archive would not help.
var errWriting = errors.New("write")

// group fetches a group and applies it.
func (p *patching) group(ctx context.Context, g *patch.Group, old io.ReaderAt) error {
	j := p.job
	var packed bytes.Buffer
	packed.Grow(int(g.Size))
	name := path.Join(path.Dir(path.Dir(j.Archive)), patch.FileName(j.head.Release.Version, j.Self.Running.Version))
	got, _, err := j.Server.Range(ctx, name, &metered{&packed, j}, g.Offset, g.Size)
	if err != nil {
		return fmt.Errorf("%s, %d bytes at %d, of which %d arrived: %w", name, g.Size, g.Offset, got, err)
	}
	return g.Apply(packed.Bytes(), old, func(block int, content []byte) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return p.take(block, content)
	})
}

// take writes a block that is wanted, if it is what the index says.
func (p *patching) take(block int, content []byte) error {
	if !p.plan.Patched(block) || p.hasher.Sum(content) != p.part.Hash(block) {
		return nil
	}
	if err := writeBlock(p.part.File, block, content, p.to); err != nil {
		return fmt.Errorf("%w: %w", errWriting, err)
	}
	p.plan.Written(block)
	p.job.result.Patched += blockindex.BlockSize
	p.step.add(blockindex.BlockSize)
	return nil
}
