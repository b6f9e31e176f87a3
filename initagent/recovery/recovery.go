// Package recovery is what the recovery console's commands do to a machine:
// unlock, lock, reseal, enroll, recovery-key, reset, esp-rebuild, rollback. Each
// calls what the boot calls, so that they behave alike.
//
// It refuses to work with a key that was not typed in at this console, to write
// before everything that can fail without writing has been tried, and to write
// what cannot be undone before a person has agreed to it.
package recovery

import (
	"errors"
	"fmt"
	"os"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/bootdisk"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
)

// A Machine is what the commands work on. Of hw.Machine they use Disks,
// Firmware, Kernel, Mapper, Mounts, ESP, Store, TPM, Now, Sleep and Memory.
type Machine struct {
	host.Host
	// Keeper keeps what was typed for the commands that follow.
	Keeper Keeper
	// Discard tells the medium that length bytes from off on are not wanted any
	// more. Not every medium can.
	Discard func(f hw.File, off, length int64) error
}

// An Opened is what a typed recovery key has opened.
type Opened struct {
	Secret    *policy.Secret
	VolumeKey []byte
}

// Wipe overwrites both.
func (o *Opened) Wipe() {
	if o == nil {
		return
	}
	o.Secret.Wipe()
	luks2.Wipe(o.VolumeKey)
}

// A Keeper keeps what was opened from one command to the next, in memory.
type Keeper interface {
	Keep(o *Opened) error
	// Kept returns a copy, which the caller wipes; ErrLocked where there is none.
	Kept() (*Opened, error)
	Forget() error
}

// ErrLocked says that the root partition was not opened at this console.
var ErrLocked = errors.New("the root partition is not open: type `unlock` first")

// errRefused is what a person answers who does not want it after all.
var errRefused = words.Errorf(words.ResetRefused)

// find reads the running system's boot contract, and finds the disk.
func (m *Machine) find() error {
	text, err := os.ReadFile(m.Path(contract.Path))
	if err != nil {
		return fmt.Errorf("this is not the recovery console: %w", err)
	}
	if m.Contract, err = contract.Parse(text); err != nil {
		return err
	}
	if m.Disk, err = bootdisk.Disk(m.Disks, m.Firmware); err != nil {
		return err
	}
	if m.Table, _, err = bootdisk.Table(m.Disks, m.Disk); err != nil {
		return fmt.Errorf("partition table of %s: %w", m.Disk.Name, err)
	}
	return nil
}

// locked is the root partition's lock, or why there is none.
func (m *Machine) locked() (*rootlock.Lock, error) {
	root, lock, err := rootpart.Look(m.Disks, m.Disk, m.Table)
	switch {
	case err != nil:
		return nil, err
	case root == bootflow.RootAbsent:
		return nil, errors.New("this disk has no root partition")
	case root != bootflow.RootLocked:
		return nil, errors.New("the root partition was not made yet")
	}
	return lock, nil
}

// lockOf is locked for the volume that was opened, so that what lies on it can be asked for
// its owner's signature.
func (m *Machine) lockOf(open *Opened) (*rootlock.Lock, error) {
	lock, err := m.locked()
	if err == nil {
		lock.OpenedBy(open.VolumeKey)
	}
	return lock, err
}

// root opens the root partition's device for its header.
func (m *Machine) root() (hw.File, error) {
	return m.Disks.OpenPartition(m.Disk, layout.Root, true)
}

// confirm asks a question, and refuses where the answer is no.
func confirm(c hw.Console, question string) error {
	yes, err := hw.AskYes(c, question, 0)
	if err == nil && !yes {
		err = errRefused
	}
	return err
}
