package agent

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
)

// openVerity opens and mounts the system image.
func (a *Agent) openVerity(ctx context.Context) error {
	s := a.State.Booted
	data, err := a.Disks.PartitionPath(a.Disk, s.SystemNumber())
	if err != nil {
		return err
	}
	hash, err := a.Disks.PartitionPath(a.Disk, s.VerityNumber())
	if err != nil {
		return err
	}
	if err := a.Kernel.Load("dm_verity", "erofs"); err != nil {
		return err
	}
	device, err := a.Mapper.OpenVerity(hw.Verity{
		Name: "system", DataDevice: data, HashDevice: hash,
		Params: a.Contract.VerityParams(), Root: a.Contract.Root(),
		RestartOnCorruption: a.State.Trial,
	})
	if err != nil {
		return errors.Join(err, a.diagnose(ctx))
	}
	if err := a.Mounts.Mount(device, a.Path(host.SystemDirectory), "erofs", unix.MS_RDONLY|unix.MS_NODEV, ""); err != nil {
		return errors.Join(err, a.diagnose(ctx))
	}
	return nil
}

// diagnose reads the whole slot against its root hash, to say what is corrupt
// where. The boot has failed already, so there is time.
func (a *Agent) diagnose(ctx context.Context) error {
	s := a.State.Booted
	data, err := a.Disks.OpenPartition(a.Disk, s.SystemNumber(), false)
	if err != nil {
		return err
	}
	defer data.Close()
	tree, err := a.Disks.OpenPartition(a.Disk, s.VerityNumber(), false)
	if err != nil {
		return err
	}
	defer tree.Close()
	err = verity.Verify(ctx, data, tree, a.Contract.VerityParams(), a.Contract.Root(), a.Log.Progress("looking for what is corrupt", a.Contract.ImageSize))
	if err == nil {
		return errors.New("every block of the slot is as its root hash says: the kernel or the disk is at fault")
	}
	return fmt.Errorf("slot %s: %w", s, err)
}
