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
	"io"
	"os"
	"path/filepath"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/bootdisk"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/vault"
)

// A Machine is what the commands work on. Of hw.Machine they use Disks,
// Firmware, Kernel, Mapper, Mounts, ESP, Store, TPM, Now, Sleep and Memory.
type Machine struct {
	hw.Machine
	Variables enroll.Variables
	Random    io.Reader
	// NewKeys makes Secure Boot keys: secureboot.Generate.
	NewKeys func(random io.Reader, date time.Time) (*secureboot.KeySet, error)
	// Root is where the initramfs is; "/" but in tests.
	Root string
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
var errRefused = errors.New("nothing was changed")

// A place is what the commands find.
type place struct {
	contract *contract.Contract
	disk     hw.Disk
	table    *gpt.Table
}

func (m *Machine) path(elements ...string) string {
	return filepath.Join(append([]string{m.Root}, elements...)...)
}

// find reads the running system's boot contract, and finds the disk.
func (m *Machine) find() (*place, error) {
	text, err := os.ReadFile(m.path(contract.Path))
	if err != nil {
		return nil, fmt.Errorf("this is not the recovery console: %w", err)
	}
	p := new(place)
	if p.contract, err = contract.Parse(text); err != nil {
		return nil, err
	}
	if p.disk, err = bootdisk.Disk(m.Disks, m.Firmware); err != nil {
		return nil, err
	}
	if p.table, _, err = bootdisk.Table(m.Disks, p.disk); err != nil {
		return nil, fmt.Errorf("partition table of %s: %w", p.disk.Name, err)
	}
	return p, nil
}

// locked is the root partition's lock, or why there is none.
func (m *Machine) locked(p *place) (*vault.Lock, error) {
	root, lock, err := rootpart.Look(m.Disks, p.disk, p.table)
	switch {
	case err != nil:
		return nil, err
	case root == slot.RootAbsent:
		return nil, errors.New("this disk has no root partition")
	case root != slot.RootLocked:
		return nil, errors.New("the root partition was not made yet")
	}
	return lock, nil
}

// lockOf is locked for the volume that was opened, so that what lies on it can be asked for
// its owner's signature.
func (m *Machine) lockOf(p *place, open *Opened) (*vault.Lock, error) {
	lock, err := m.locked(p)
	if err == nil {
		lock.OpenedBy(open.VolumeKey)
	}
	return lock, err
}

// root opens the root partition's device for its header.
func (m *Machine) root(p *place) (hw.File, error) {
	return m.Disks.OpenPartition(p.disk, layout.RootNumber, true)
}

// confirm asks a question, and refuses where the answer is no.
func confirm(c hw.Console, question string) error {
	yes, err := hw.AskYes(c, question, 0)
	if err == nil && !yes {
		err = errRefused
	}
	return err
}
