package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"time"

	"halogenos.internal/boot/blockindex"
	"halogenos.internal/boot/patch"
	"halogenos.internal/boot/pgp"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/verity"
	"halogenos.internal/uroot-cmds/ota/server"
)

const (
	// longestTable is how long the table of patches may take, which drips from a server
	// that does not want this machine to get on.
	longestTable = time.Minute
	// maxDamaged is how many groups may be others than were signed: the file is of another
	// table then.
	maxDamaged = 2
)

// readPatches asks for the table of patches from the running release, once, and when the
// image turns out to lack blocks: the table's name tells the server which release runs here.
// It is opened where it is signed and of the two images at hand. One that is not is said,
// and done without; so is one that does not come.
func (j *Job) readPatches(ctx context.Context) {
	if j.offered.asked || !j.Found.Ranges || len(j.Found.Manifest) == 0 || j.Source == nil || j.Source.System == nil {
		return
	}
	j.offered.asked = true
	within, cancel := context.WithTimeoutCause(ctx, longestTable, fmt.Errorf("the table of patches has not come within %s", longestTable))
	defer cancel()
	t, err := j.patches(within)
	if err != nil && ctx.Err() == nil && !errors.Is(err, server.ErrNotFound) {
		j.note("the patches for this update are not used: %v", err)
	}
	j.offered.table = t
}

func (j *Job) patches(ctx context.Context) (*patch.Table, error) {
	is, was := j.head.Release.Version, j.Self.Running.Version
	table, err := j.beside(ctx, patch.TableName(is, was), patch.MaxTable)
	if err != nil {
		return nil, err
	}
	signature, err := j.beside(ctx, patch.SignatureName(is, was), pgp.MaxSignature)
	if err != nil && !errors.Is(err, server.ErrNotFound) {
		return nil, err
	}
	if err := j.Self.Authenticate(table, signature); err != nil {
		return nil, err
	}
	t, err := patch.ParseTable(table)
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

// beside reads a small file beside the archive's directory, one that can be done without.
func (j *Job) beside(ctx context.Context, name string, limit int64) ([]byte, error) {
	b, err := server.Optional(j.Server).Get(ctx, j.besides(name), limit)
	j.meter.fetched.Add(int64(len(b)))
	j.offered.bytes += int64(len(b))
	return b, err
}

func (j *Job) besides(name string) string { return path.Join(path.Dir(path.Dir(j.Archive)), name) }

// choosePatches finds the groups that spare more bytes than they have, and notes in the plan
// which blocks they make.
func (j *Job) choosePatches(ctx context.Context, name string, plan *blockindex.Plan) patch.Choice {
	if name != release.ImageFile || plan.Cost(maxGap, maxRange).Wanted == 0 {
		return patch.Choice{}
	}
	if j.readPatches(ctx); j.offered.table == nil {
		return patch.Choice{}
	}
	return j.offered.table.Choose(plan, maxGap, maxRange)
}

// patch makes blocks of what the running system has, by the patches that are worth it. What
// goes wrong with one is said, and its blocks come from the archive. Where the server does
// not give one, or a second one that is not what was signed, no other is asked for: each would take as long
// to fail, and as many bytes.
//
// Cut at any point, blocks that were written are in place the next time, by their digests,
// and of the others only the groups that make them are fetched again.
func (j *Job) patch(ctx context.Context, part *blockindex.Part, plan *blockindex.Plan, to io.WriterAt) error {
	c := j.choosePatches(ctx, part.File.Name, plan)
	if len(c.Groups) == 0 {
		return nil
	}
	s := j.step(Patching, part.String(), int64(c.Blocks)*blockindex.BlockSize)
	p := &patching{job: j, part: part, plan: plan, to: to, step: s, server: server.Optional(j.Server), hasher: blockindex.NewHasher(j.head.Release.Salt)}
	for i, g := range c.Groups {
		if slices.Contains(j.offered.damaged, g.Offset) { // as another part has seen
			g.Mark(plan, false)
			continue
		}
		err := p.group(ctx, g, j.Source.System)
		if left := g.Mark(plan, false); left > 0 && err == nil {
			err = fmt.Errorf("%d blocks are not what was signed", left)
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errWriting):
			return err
		case errors.Is(err, patch.ErrDamaged):
			j.offered.damaged = append(j.offered.damaged, g.Offset)
		}
		if errors.Is(err, errNotGiven) || len(j.offered.damaged) == maxDamaged {
			for _, g := range c.Groups[i:] {
				g.Mark(plan, false)
			}
			j.offered.table = nil
			j.note("no more patches are used for this update: %v", err)
			return nil
		}
		if err != nil {
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
	server server.Transport
	hasher *blockindex.Hasher
}

var (
	// errWriting is wrapped where the slot cannot be written to: the archive would not help.
	errWriting = errors.New("write")
	// errNotGiven is wrapped where the server does not give what the table lists.
	errNotGiven = errors.New("the server does not give the file of patches")
)

// group fetches a group and applies it.
func (p *patching) group(ctx context.Context, g *patch.Group, old io.ReaderAt) error {
	j := p.job
	var packed bytes.Buffer
	packed.Grow(int(g.Size))
	name := j.besides(patch.FileName(j.head.Release.Version, j.Self.Running.Version))
	got, _, err := p.server.Range(ctx, name, &metered{&packed, j}, g.Offset, g.Size)
	if err != nil {
		return fmt.Errorf("%w: %s, %d bytes at %d, of which %d arrived: %w", errNotGiven, name, g.Size, g.Offset, got, err)
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
