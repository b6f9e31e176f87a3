package host

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/hw"
)

// OpenVerity opens and mounts the system image.
func (h *Host) OpenVerity(ctx context.Context) error {
	s := h.State.Booted
	data, err := h.Disks.PartitionPath(h.Disk, s.SystemNumber())
	if err != nil {
		return err
	}
	hash, err := h.Disks.PartitionPath(h.Disk, s.VerityNumber())
	if err != nil {
		return err
	}
	if err := h.Kernel.Load("dm_verity", "erofs"); err != nil {
		return err
	}
	device, err := h.Mapper.OpenVerity(hw.Verity{
		Name: "system", DataDevice: data, HashDevice: hash,
		Params: h.Contract.VerityParams(), Root: h.Contract.Root(),
		RestartOnCorruption: h.State.Trial,
	})
	if err != nil {
		return errors.Join(err, h.diagnose(ctx))
	}
	if err := h.Mounts.Mount(device, h.Path(SystemDirectory), "erofs", unix.MS_RDONLY|unix.MS_NODEV, ""); err != nil {
		return errors.Join(err, h.diagnose(ctx))
	}
	return nil
}

// diagnose reads the whole slot against its root hash, to say what is corrupt
// where. The boot has failed already, so there is time.
func (h *Host) diagnose(ctx context.Context) error {
	s := h.State.Booted
	data, err := h.Disks.OpenPartition(h.Disk, s.SystemNumber(), false)
	if err != nil {
		return err
	}
	defer data.Close()
	tree, err := h.Disks.OpenPartition(h.Disk, s.VerityNumber(), false)
	if err != nil {
		return err
	}
	defer tree.Close()
	err = verity.Verify(ctx, data, tree, h.Contract.VerityParams(), h.Contract.Root(), h.Log.Progress("looking for what is corrupt", h.Contract.ImageSize))
	if err == nil {
		return errors.New("every block of the slot is as its root hash says: the kernel or the disk is at fault")
	}
	return fmt.Errorf("slot %s: %w", s, err)
}
