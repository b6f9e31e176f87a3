package image

import (
	"context"
	"fmt"

	"halogenos.internal/builder/scan"
)

// search looks for secrets in what the system image is made of.
func (b *build) search(ctx context.Context) error {
	done := b.Progress.Step("searching the image for secrets")
	b.scanner = scan.New(b.Config.Allow)
	if err := b.scanner.Tree(ctx, b.tree.Dir()); err != nil {
		return fmt.Errorf("search for secrets: %w", err)
	}
	files, bytes := b.scanner.Searched()
	done(fmt.Sprintf("%d files, %s unpacked", files, megabytes(bytes)))
	return nil
}

// judge searches the initramfs too, whose boot contract exists only now, and
// refuses the image for what was found.
func (b *build) judge(ctx context.Context) error {
	if err := b.scanner.Bytes(ctx, scan.Initramfs, b.initrd); err != nil {
		return fmt.Errorf("search the initramfs for secrets: %w", err)
	}
	if err := b.scanner.Finish(); err != nil {
		return err
	}
	_, allowed := b.scanner.Findings()
	for _, f := range allowed {
		b.Progress.Note("allowed: %s", f)
	}
	return nil
}
