package machinetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/rootheader"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/tpm"
)

// ChangeToken changes what the root partition's header says of the TPM, as root of the
// running system can.
func (m *Machine) ChangeToken(change func(c *luks2.Change, n int, token luks2.Token) error) {
	m.T.Helper()
	header, err := m.Header()
	m.Must(err)
	s, err := m.Partition(layout.Root)
	m.Must(err)
	m.Must(header.Change(m.Random, s, func(c *luks2.Change) error {
		for n, token := range header.Tokens() {
			if token.Type == rootheader.TPMToken {
				return change(c, n, token)
			}
		}
		return errors.New("no token of a TPM")
	}))
	m.Must(s.Sync())
}

// ClearsToRoomForOne takes the TPM's owner hierarchy away, and all room but for one index.
func (m *Machine) ClearsToRoomForOne() {
	m.T.Helper()
	m.ChipState, m.ChipChanged = nil, false
	m.Must(os.Remove(filepath.Join(m.Emulator.Directory, StateFile)))
	m.Must(m.Emulator.PowerOn(nil))
	chip := tpm.OpenTransport(m.Emulator)
	_, err := chip.StorageKey() // which takes room, too
	m.Must(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	m.Must(err)
	index, err := chip.Define(&key.PublicKey)
	m.Must(err)
	m.FillRest()
	m.Must(chip.Undefine(index.Handle))
}

// HeaderArea is a copy of the root partition's LUKS2 header and keyslots.
func (m *Machine) HeaderArea() []byte {
	m.T.Helper()
	part, err := m.Partition(layout.Root)
	m.Must(err)
	area := make([]byte, rootlock.HeaderArea)
	_, err = part.ReadAt(area, 0)
	m.Must(err)
	return area
}

// Renewed makes a new machine secret at the console, with new Secure Boot keys or without.
func (m *Machine) Renewed(keys bool) {
	m.T.Helper()
	r, c := m.Asked()
	m.Types("y", m.RecoveryKey())
	m.Works(r.NewSecret(c, keys))
	m.Works(r.Lock())
	m.OpensByItself()
	m.OpensByItself()
}

// Unsigned makes the header one of a release that made no owner signature.
func (m *Machine) Unsigned() {
	m.T.Helper()
	m.ChangeToken(func(c *luks2.Change, n int, token luks2.Token) error {
		if len(token.Fields["deed"]) == 0 {
			return errors.New("it has no owner signature: this proves nothing")
		}
		delete(token.Fields, "deed")
		return c.SetToken(n, token)
	})
}

// Marker is a file of the owner's.
const Marker = "home/photo"

// Reinstalled is what installing a release beside the machine's root partition leaves,
// with its firmware in Setup Mode again.
func (m *Machine) Reinstalled(v contract.Version) *World {
	m.T.Helper()
	w := m.World(true, nil)
	old, _, err := m.Table()
	m.Must(err)
	root, err := layout.Find(old, layout.Root)
	if err != nil {
		m.T.Fatal("there is no root partition")
	}
	fresh := m.Installed(DiskSize)
	esp, err := layout.Find(old, layout.ESP)
	m.Must(err)
	esp.UUID = gpt.MustGUID("77777777-2222-4333-8444-555555555555")
	system, err := layout.Find(old, layout.SystemA)
	m.Must(err)
	system.UUID = layout.SystemUUID(m.Releases[v].Contract.Root())
	table := &gpt.Table{Disk: old.Disk, SectorSize: old.SectorSize, Sectors: old.Sectors, Partitions: []gpt.Partition{esp, system, root}}
	for _, p := range old.Partitions {
		if p.Type == layout.TypeMore { // as the installer keeps them
			table.Partitions = append(table.Partitions, p)
		}
	}
	m.Must(table.Write(w.Disk))
	content, err := layout.Content(w.Disk, table, layout.SystemA)
	m.Must(err)
	_, err = content.WriteAt(m.Releases[v].Image, 0)
	m.Must(err)
	m.EspUUID = esp.UUID.String()
	w.ESP, w.Vars = fresh.ESP, fresh.Vars
	delete(w.ESP, path.Join(bls.Directory, "test_1.efi"))
	w.ESP[path.Join(bls.Directory, fmt.Sprintf("test_%s.efi", v))] = Remains{Data: m.Releases[v].UKI}
	return w
}

// Kept reports what has become of the root partition.
func (m *Machine) Kept() error {
	s, err := m.Partition(layout.Root)
	if err != nil {
		return err
	}
	if condition, _, err := rootlock.Look(s, s.Size()); condition != bootflow.RootLocked || err != nil {
		return fmt.Errorf("the root partition is in condition %v (%w)", condition, err)
	}
	if len(m.Shown) != 1 || len(m.Volumes) != 1 || string(m.RootFiles()[Marker]) != "the only copy" {
		return fmt.Errorf("%d recovery keys were shown, and %d volumes hold %q", len(m.Shown), len(m.Volumes), slices.Sorted(maps.Keys(m.RootFiles())))
	}
	return nil
}
