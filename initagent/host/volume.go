package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
)

// A Volume is the root partition as the kernel has it.
type Volume struct {
	Attached bool   // the kernel has the volume
	InMemory bool   // there is no root partition: its directories lie in memory
	held     []held // what lies on it, or in memory in its place, the oldest first
	// volumeKey is the open volume's, for who has to close and open it again in this boot,
	// which wipes it at its end. The kernel has it as long.
	volumeKey []byte
	device    string // node of what is in the volume
}

// held is a mount, by its target, or a device of the device mapper, by its name.
type held struct{ mount, device string }

// OpenRoot gives the volume to the kernel and mounts its file system, which it
// makes first where it is fresh.
func (h *Host) OpenRoot(lock *rootlock.Lock, volumeKey []byte, fresh bool) error {
	device, err := rootpart.Volume{Machine: h.Machine, Disk: h.Disk, Random: h.Random, Lock: lock, Key: volumeKey}.Attach()
	if err != nil {
		return err
	}
	h.Attached, h.device = true, device
	luks2.Wipe(h.volumeKey)
	h.volumeKey = bytes.Clone(volumeKey)
	if err := h.Kernel.Load(h.Contract.RootFileSystem); err != nil {
		return err
	}
	if fresh {
		if err := h.Store.MakeFileSystem(h.Contract.RootFileSystem, device, h.Path(SystemDirectory)); err != nil {
			return err
		}
	}
	return h.Mount(device, h.Path(rootpart.Directory), h.Contract.RootFileSystem, unix.MS_NODEV|unix.MS_NOATIME, rootpart.MountOptions(h.Contract.RootFileSystem))
}

// Mount mounts what must be gone before the root partition can be closed.
func (h *Host) Mount(source, target, fstype string, flags uintptr, data string) error {
	if err := h.Mounts.Mount(source, target, fstype, flags, data); err != nil {
		return err
	}
	h.held = append(h.held, held{mount: target})
	return nil
}

// Unmount takes a mount of Mount away again. What else lies on the root partition stays.
func (h *Host) Unmount(target string) error {
	if err := h.Mounts.Unmount(target); err != nil {
		return err
	}
	h.held = slices.DeleteFunc(h.held, func(l held) bool { return l.mount == target })
	return nil
}

// OpenImage opens a file of the root partition through dm-verity, and returns the device's
// node. It must be gone before the root partition can be closed.
func (h *Host) OpenImage(v hw.Verity) (string, error) {
	node, err := h.Mapper.OpenVerity(v)
	if err != nil {
		_ = h.Mapper.Close(v.Name) // it may be there already; or else there is nothing to close
		return "", err
	}
	h.held = append(h.held, held{device: v.Name})
	return node, nil
}

// CloseImage takes away what OpenImage has opened.
func (h *Host) CloseImage(name string) error {
	if err := h.Mapper.Close(name); err != nil {
		return err
	}
	h.held = slices.DeleteFunc(h.held, func(l held) bool { return l.device == name })
	return nil
}

// RootDevice is the device node of the root partition's file system, once it was opened.
func (h *Host) RootDevice() string { return h.device }

// VolumeKey is a copy of the open volume's key, which the caller wipes.
func (h *Host) VolumeKey() []byte { return bytes.Clone(h.volumeKey) }

// CloseRoot takes the root partition away again, and the volume key out of the
// kernel with it.
func (h *Host) CloseRoot() error {
	for len(h.held) > 0 {
		last := h.held[len(h.held)-1]
		take := func() error { return h.Mounts.Unmount(last.mount) }
		if last.device != "" {
			take = func() error { return h.Mapper.Close(last.device) }
		}
		if err := take(); err != nil {
			return fmt.Errorf("close the root partition: %w", err)
		}
		h.held = h.held[:len(h.held)-1]
	}
	if !h.Attached {
		return nil
	}
	if err := h.Mapper.Close(rootpart.Device); err != nil {
		return fmt.Errorf("close the root partition: %w", err)
	}
	h.Attached = false
	return nil
}

// StoreReady reports whether there is a place for files: the root partition, or
// what a machine without one has in memory.
func (h *Host) StoreReady() bool {
	return h.InMemory || h.Attached && h.State.Root == bootflow.RootOpen
}

// DiskFails adds what the kernel knows to an error of the file system of the open root
// partition that comes from its disk. No key helps then, so that none is asked for.
func (h *Host) DiskFails(step bootflow.Kind, err error) (fails bool, full error) {
	mounts := step == bootflow.MountState || step == bootflow.RestoreState || h.Attached && (step == bootflow.Unlock || step == bootflow.AskPIN || step == bootflow.AskKey)
	if !mounts || !errors.Is(err, syscall.EIO) || h.elsewhere(err) {
		return false, err
	}
	which := "the kernel's log names no sector"
	if messages, merr := h.Kernel.Messages(); merr == nil && hw.DiskErrors(messages, h.Disk.Name) != "" {
		which = hw.DiskErrors(messages, h.Disk.Name)
	}
	return true, fmt.Errorf("%w: "+bootflow.CannotRead+" (%s). Copy your files first: `unlock` at the recovery console opens what can be read, at /run/state; then replace the disk", err, which)
}

// elsewhere reports whether an error is of a file that does not lie on the root partition:
// the system image's, or the TPM's device.
func (h *Host) elsewhere(err error) bool {
	p, ok := errors.AsType[*fs.PathError](err)
	return ok && (strings.HasPrefix(p.Path, h.Path(SystemDirectory)+"/") || strings.HasPrefix(p.Path, "/dev/"))
}

// OpenVerity opens and mounts the system image.
func (h *Host) OpenVerity(ctx context.Context) error {
	open, err := hw.Verity{
		Name: "system", Params: h.Contract.VerityParams(), Root: h.Contract.Root(),
		RestartOnCorruption: h.State.Trial,
	}.InSlot(h.Disks, h.Disk, h.Table, h.State.Booted)
	if err != nil {
		return err
	}
	if err := h.Kernel.Load("dm_verity", "erofs"); err != nil {
		return err
	}
	device, err := h.Mapper.OpenVerity(open)
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
	data, err := h.Disks.OpenPartition(h.Disk, s.System(), false)
	if err != nil {
		return err
	}
	defer data.Close()
	tree, err := h.Disks.OpenPartition(h.Disk, s.Verity(), false)
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
