package fetch

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"halogenos.internal/boot/archive"
	"halogenos.internal/boot/blockindex"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/verity"
)

// finish makes the verity tree and compares the root hash with the signed one.
// Where it differs, the blocks that are not right are named and fetched once
// more. The description goes into the directory last: where it is, all is.
func (j *Job) finish(ctx context.Context) error {
	root, err := j.tree(ctx)
	if err != nil {
		return err
	}
	want := verity.Root(j.head.Release.RootHash)
	if root != want {
		if err := j.again(ctx, root, want); err != nil {
			return err
		}
		if root, err = j.tree(ctx); err != nil {
			return err
		}
	}
	if root != want {
		return fmt.Errorf("system image has the root hash %s after it was fetched again, want %s: the disk does not keep what is written to it", root, want)
	}
	if len(j.head.Signature) > 0 {
		if err := j.keep(archive.SignatureFile, bytes.NewReader(j.head.Signature)); err != nil {
			return err
		}
	}
	return j.keep(release.FileName, bytes.NewReader(j.head.Description))
}

// tree generates the slot's verity tree from what the slot holds.
func (j *Job) tree(ctx context.Context) (verity.Root, error) {
	r := j.head.Release
	s := j.step(Verifying, release.ImageFile, r.ImageSize)
	dropCache(j.System)
	root, err := verity.Generate(ctx, j.System, verity.Params{
		DataBlocks: uint64(r.ImageSize) / verity.BlockSize,
		Salt:       r.Salt,
		UUID:       layout.VerityUUID(verity.Root(r.RootHash)),
	}, j.Tree, func(done int64) { s.add(done - s.done.Load()) })
	if err != nil {
		return root, err
	}
	if err := j.Tree.Sync(); err != nil {
		return root, fmt.Errorf("flush the verity tree: %w", err)
	}
	return root, nil
}

// again names the blocks that are not what the index says and fetches them.
func (j *Job) again(ctx context.Context, got, want verity.Root) error {
	file, ok := j.index.File(release.ImageFile)
	if !ok {
		return fmt.Errorf("block index has no file %s", release.ImageFile)
	}
	wrong, count, err := j.wrong(ctx, file)
	if err != nil {
		return err
	}
	if count == 0 {
		return fmt.Errorf("system image has the root hash %s, want %s, though each block is as %s says: the release contradicts itself, tell its distributor", got, want, release.IndexFile)
	}
	j.note("%d blocks of %d bytes are not what was written (block %s): fetching them once more", count, blockindex.BlockSize, strings.Join(wrong, ", "))
	if j.Found.Ranges {
		return j.fill(ctx, release.ImageFile, j.System, nil, true)
	}
	_, err = j.stream(ctx)
	return err
}

// maxNamed is how many blocks are named.
const maxNamed = 8

// wrong counts the blocks of the slot that are not what the index says, and names
// some of them.
func (j *Job) wrong(ctx context.Context, file *blockindex.File) (named []string, count int, err error) {
	dropCache(j.System)
	var part blockindex.Part
	for n := range file.Parts() {
		if err := part.Load(file, n); err != nil {
			return nil, 0, err
		}
		plan, err := j.plan(ctx, &part, j.System)
		if err != nil {
			return nil, 0, err
		}
		start, end := part.BlockSpan()
		for i := start; i < end; i++ {
			if plan.InItsPlace(i) {
				continue
			}
			if count++; count <= maxNamed {
				named = append(named, fmt.Sprint(i))
			}
		}
	}
	return named, count, nil
}
