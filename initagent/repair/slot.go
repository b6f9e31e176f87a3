package repair

import (
	"context"
	"errors"
	"fmt"
	"io"

	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/inventory"
)

// System repairs the slot of a system from the other slot, whatever that one
// holds, and verifies all of it afterwards. Without an error the slot is whole.
func System(ctx context.Context, inv *inventory.Inventory, s inventory.System, progress func(done, total int64)) (Report, error) {
	if s.Contract == nil || !s.Slot.Valid() {
		return Report{}, fmt.Errorf("%s: %w", s.File, inventory.ErrNoContent)
	}
	report, err := restore(ctx, inv, s, progress)
	if err != nil {
		return report, err
	}
	if !report.Whole() {
		return report, fmt.Errorf("slot %s: %d blocks are lost: nothing on this disk holds them", s.Slot, len(report.Missing)+report.Unknown)
	}
	// Opened again, so that the medium is read, and not what was just written.
	err = inv.Verify(ctx, s, nil)
	if corrupt, ok := errors.AsType[*verity.CorruptError](err); ok && corrupt.Area == verity.AreaSuperblock {
		// Nothing vouches for it, and the boot does not read it; tools do.
		if err = generate(ctx, inv, s); err == nil {
			report.Hash++
			err = inv.Verify(ctx, s, nil)
		}
	}
	if err != nil {
		return report, fmt.Errorf("slot %s was repaired, and is damaged again: %w", s.Slot, err)
	}
	return report, nil
}

func restore(ctx context.Context, inv *inventory.Inventory, s inventory.System, progress func(done, total int64)) (report Report, err error) {
	data, tree, err := inv.Open(s.Slot, true)
	if err != nil {
		return Report{}, err
	}
	defer func() { err = errors.Join(err, data.Close(), tree.Close()) }()
	slot := Slot{Params: s.Contract.VerityParams(), Root: s.Contract.Root(), Data: data, Tree: tree, Progress: progress}
	// A slot that is missing or cannot be opened is not a source, and no reason to
	// give up.
	if otherData, otherTree, err := inv.Open(s.Slot.Other(), false); err == nil {
		defer func() { err = errors.Join(err, otherData.Close(), otherTree.Close()) }()
		slot.Others = []Source{{otherData, inv.SystemSize(s.Slot.Other())}}
		slot.OtherTrees = []io.ReaderAt{otherTree}
	}
	return slot.Run(ctx)
}

// generate writes the whole tree again, once it is known what it comes out at.
func generate(ctx context.Context, inv *inventory.Inventory, s inventory.System) (err error) {
	data, tree, err := inv.Open(s.Slot, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, data.Close(), tree.Close()) }()
	for _, to := range []io.WriterAt{nowhere{}, tree} {
		root, err := verity.Generate(ctx, data, s.Contract.VerityParams(), to, nil)
		if err != nil {
			return err
		}
		if root != s.Contract.Root() {
			return fmt.Errorf("the root hash of slot %s comes out at %s, want %s", s.Slot, root, s.Contract.Root())
		}
	}
	return tree.Sync()
}

type nowhere struct{}

func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
