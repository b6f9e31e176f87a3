package recovery

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/recoverykey"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
)

// Unlock opens the root partition with the recovery key and mounts it where the
// boot does. The checks are those of a boot that is opened by a typed key: a
// volume that this machine did not make is not opened, or its system could ask
// for the keys of the real one.
func (m *Machine) Unlock(c hw.Console) error {
	if open, err := m.Keeper.Kept(); err == nil {
		open.Wipe()
		return fmt.Errorf("the root partition is open already, at %s: `lock` closes it", m.Path(rootpart.Directory))
	}
	if err := m.find(); err != nil {
		return err
	}
	lock, err := m.locked()
	if err != nil {
		return err
	}
	memory, err := m.Memory()
	if err != nil {
		return err
	}
	f, err := m.root()
	if err != nil {
		return err
	}
	defer f.Close()
	c.Print(c.Language().Text(words.UnlockNoPhrase))
	for {
		typed, err := c.AskKey(c.Language().Text(words.UnlockAsk), lock.Checks(), 0)
		if err != nil {
			return err
		}
		if len(typed) == 0 {
			return errors.New("no recovery key was given: `unlock` asks again")
		}
		var open Opened
		open.VolumeKey, open.Secret, err = lock.OpenRecovery(f, typed, rootpart.KeyLimit(memory))
		luks2.Wipe(typed)
		if err != nil {
			c.Print(c.Language().Say(words.TryAgain, err))
			continue
		}
		defer open.Wipe()
		if err := m.mayOpen(lock, open.VolumeKey); err != nil {
			return err
		}
		if err := m.open(&open, func() (string, error) {
			return rootpart.Volume{Machine: m.Machine, Disk: m.Disk, Random: m.Random, Lock: lock, Key: open.VolumeKey}.Attach()
		}); err != nil {
			return err
		}
		if m.Disk.ReadOnly {
			c.Print(c.Language().Text(words.UnlockReadOnly))
			return nil
		}
		if err := recoverykey.Used(m.Store, lock.Typed()); err != nil {
			c.Print(fmt.Sprintf("that the recovery key was typed was not noted: %v\n", err))
		}
		return m.finishSecret(lock, &open)
	}
}

// mayOpen refuses a volume whose owner signature is not this machine's. One that has none is opened
// where the image can do without a TPM: no system starts with it here, and it may be all
// that its owner has.
func (m *Machine) mayOpen(lock *rootlock.Lock, volumeKey []byte) error {
	if m.Contract.TPM != contract.Required && len(lock.OwnerSignature) == 0 {
		return nil
	}
	state, err := enroll.Observe(m.Variables)
	if err != nil {
		return err
	}
	return rootpart.MayOpenTyped(lock, volumeKey, state, m.Contract)
}

// open keeps what was opened and mounts it. What was kept is there before the
// device, so that whatever goes wrong in between Lock takes away.
func (m *Machine) open(open *Opened, attach func() (string, error)) error {
	if err := m.Keeper.Keep(open); err != nil {
		return fmt.Errorf("keep the root partition's keys for the commands that follow: %w", err)
	}
	device, err := attach()
	if err == nil {
		err = m.Kernel.Load(m.Contract.RootFileSystem)
	}
	if err == nil {
		err = m.mount(device)
	}
	if err != nil {
		return errors.Join(err, m.Lock())
	}
	return nil
}

// mount mounts the root partition. Many a worn-out disk takes no write and does not say
// so before: then what it holds can still be read.
func (m *Machine) mount(device string) error {
	try := func() error {
		flags, options := mounting(m.Disk, m.Contract.RootFileSystem)
		return m.Mounts.Mount(device, m.Path(rootpart.Directory), m.Contract.RootFileSystem, flags, options)
	}
	err := try()
	if m.Disk.ReadOnly || !errors.Is(err, unix.EIO) && !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EACCES) {
		return err
	}
	m.Disk.ReadOnly = true
	if try() != nil {
		return err
	}
	return nil
}

// mounting returns how the root partition is mounted. On a disk that cannot be
// written no file system can replay its log: ext4(5) and btrfs(5) both call that
// norecovery.
func mounting(d hw.Disk, fileSystem string) (flags uintptr, options string) {
	flags, options = unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOATIME, rootpart.MountOptions(fileSystem)
	if d.ReadOnly {
		return flags | unix.MS_RDONLY, strings.TrimPrefix(options+",norecovery", ",")
	}
	return flags, options
}

// Lock closes the root partition again, and forgets its keys. One that is not
// open is fine.
func (m *Machine) Lock() error {
	err := m.Keeper.Forget()
	if gone := m.Mounts.Unmount(m.Path(rootpart.Directory)); gone != nil && !notThere(gone) {
		return errors.Join(err, fmt.Errorf("close the root partition (is something open in it?): %w", gone))
	}
	if gone := m.Mapper.Close(rootpart.Device); gone != nil && !notThere(gone) {
		err = errors.Join(err, fmt.Errorf("close the root partition: %w", gone))
	}
	return err
}

// notThere: what is to be taken away is not there. The kernel says EINVAL of a
// directory on which nothing is mounted, and ENXIO of a device that it has not.
func notThere(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENXIO)
}

// kept returns what Unlock has opened.
func (m *Machine) kept() (*Opened, error) {
	open, err := m.Keeper.Kept()
	if err != nil {
		return nil, err
	}
	if err := m.find(); err != nil {
		open.Wipe()
		return nil, err
	}
	return open, nil
}
