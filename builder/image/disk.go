package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/release"
	"halogenos.internal/builder/install"
)

const sectorSize = 512 // bytes; what QEMU's disks and most others show

// disk makes the disk image.
func (b *build) disk(context.Context) error {
	if !b.Disk {
		return nil
	}
	done := b.Progress.Step("making the disk")
	if b.DiskSize <= 0 || b.DiskSize%layout.Align != 0 {
		return fmt.Errorf("disk size of %d bytes is not a multiple of %d", b.DiskSize, int64(layout.Align))
	}
	ids := b.diskIDs()
	esp := install.ESP{Release: b.release, UKI: b.uki, BootManager: b.parts.bootManager, Size: b.Config.ESPSize}
	t, err := install.Table(esp, ids, uint64(b.DiskSize/sectorSize), sectorSize, nil)
	switch {
	case errors.Is(err, install.ErrNoRoom):
		return fmt.Errorf("a disk of %d MiB is too small, the EFI system partition and the system image need %d MiB: give a larger --disk-size, or none", b.DiskSize>>20, (2*layout.Align+b.Config.ESPSize+layout.AlignUp(b.release.ImageSize))>>20)
	case err != nil:
		return fmt.Errorf("plan disk: %w", err)
	}
	least, err := layout.LeastDisk(b.Config.ESPSize, b.release.SlotSize)
	if err != nil {
		return fmt.Errorf("plan disk: %w", err)
	}
	if b.DiskSize < least {
		b.Progress.Note("WARNING: %s has %d MiB, and no machine starts from a disk under %d MiB with this ESPSize and SlotSize: write it to a larger disk, or give a --disk-size of %dM at least",
			DiskFile, b.DiskSize>>20, least>>20, least>>20)
	}
	f, err := os.OpenFile(b.out.path(DiskFile), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	err = f.Truncate(b.DiskSize)
	if err == nil {
		err = t.Write(f)
	}
	if err == nil {
		err = esp.Format(io.NewOffsetWriter(f, int64(t.Partitions[0].First)*sectorSize), b.Config.ESPSize, ids.Volume, sectorSize, true)
	}
	if err == nil {
		err = copyImage(io.NewOffsetWriter(f, int64(t.Partitions[1].First)*sectorSize), b.out.path(release.ImageFile))
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	done("")
	return nil
}

// diskIDs are the same for every build of a release. A machine's first boot gives its
// disk others.
func (b *build) diskIDs() install.IDs {
	disk, esp := layout.DiskImageIDs(b.release.ImageID, b.release.Version.String())
	return install.IDs{Disk: disk, ESP: esp, Volume: binary.BigEndian.Uint32(esp[:4])}
}

func copyImage(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(w, f); err != nil {
		return fmt.Errorf("copy system image: %w", err)
	}
	return nil
}
