package machinetest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/fat"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/initagent/bootmanager"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/tpm"
)

// Exchange implements hw.ESP. What it exchanges must be on the disk.
func (e *MemESP) Exchange(_ hw.Disk, a, b string) error {
	e.op("esp exchange " + a)
	if e.Fails != nil {
		return e.Fails
	}
	first, err := e.Get(a)
	if err != nil {
		return err
	}
	second, err := e.Get(b)
	if err != nil {
		return err
	}
	e.Exchanged = append(e.Exchanged, len(first.Disk) == 1 && len(second.Disk) == 1)
	if e.Apart {
		return fat.ErrApart
	}
	e.Files[a], e.Files[b] = second, first
	return nil
}

// OtherManager is another boot manager than the machine was installed with.
var OtherManager = ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("a newer boot manager")})

// FetchManager delivers a release that brings this boot manager.
func (m *Machine) FetchManager(r *Edition, manager []byte) {
	m.T.Helper()
	r.Manager = manager
	m.Fetch(r)
}

// HasManager reports whether a name has a boot manager as this machine signs it.
func (m *Machine) HasManager(name string, manager []byte) bool {
	return m.Startable(name, manager) == nil
}

// OnESP reports whether the ESP has a file.
func (m *Machine) OnESP(name string) bool {
	_, err := m.ESP.Get(name)
	return err == nil
}

// LosesSystem deletes all that the machine has of the second release, as root can.
func (m *Machine) LosesSystem() {
	for name := range m.ESP.Files {
		if strings.Contains(name, "test_2") {
			delete(m.ESP.Files, name)
		}
	}
	for name := range m.RootFiles() {
		if strings.Contains(name, "test_2") {
			delete(m.RootFiles(), name)
		}
	}
}

// ForgetManager makes the TPM's record one of an earlier release.
func (m *Machine) ForgetManager() {
	m.T.Helper()
	m.Must(m.Emulator.PowerOn(m.World(true, nil).Chip))
	record := m.PolicyRecord()
	record.Manager = 0
	lock, volumeKey, secret := m.Unlocked()
	defer luks2.Wipe(volumeKey)
	defer secret.Wipe()
	key, err := secret.WriteKey()
	m.Must(err)
	m.Must(tpm.OpenTransport(m.Emulator).WriteRecord(lock.Sealed.NVIndex, key, record))
	m.ChipChanged = true
}

// Exchanged is a machine on which the second release has proven itself, and waits to put
// its boot manager in place. It returns what the old one is, signed.
func Exchanged(t *testing.T, change func(*contract.Contract)) (m *Machine, old []byte) {
	t.Helper()
	m = ProvisionedMachine(t, change)
	old = bytes.Clone(m.ESP.Files[Removable].Now.Data)
	m.NextManager = OtherManager
	m.FetchManager(NewRelease(t, 2, 5, change), OtherManager)
	m.Runs(2)
	m.Bless()
	return m, old
}

// Plant lays a boot manager of this machine's own on a path.
func (m *Machine) Plant(name string, image []byte) {
	m.ESP.Files[name] = &ESPFile{Remains{Data: bytes.Clone(image)}, []Remains{{Data: bytes.Clone(image)}}}
}

// HashesIn reads the SHA-256 hashes of an EFI signature database, by the specification's
// offsets (UEFI 2.10, section 32.4.1) and by nothing of ours.
func HashesIn(t testing.TB, db []byte) (hashes [][]byte) {
	t.Helper()
	sha256GUID := []byte{0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28}
	for le := binary.LittleEndian; len(db) > 0; {
		size, head, each := le.Uint32(db[16:]), le.Uint32(db[20:]), le.Uint32(db[24:])
		for at := 28 + head; bytes.Equal(db[:16], sha256GUID) && at < size; at += each {
			hashes = append(hashes, db[at+16:at+each])
		}
		db = db[size:]
	}
	return hashes
}

// Revoked says how a machine has not come to its end: the old boot manager's hash once in
// dbx, the record with the one PCR 7 that the firmware measures, the list in step, and
// nothing left to do.
func (m *Machine) Revoked(old []byte) error {
	m.T.Helper()
	digest, err := authenticode.Digest(old)
	m.Must(err)
	list := m.ListOf(m.World(true, nil))
	hashes := HashesIn(m.T, m.Vars["dbx"].Data)
	switch r := m.PolicyRecord(); {
	case len(hashes) != 1 || !bytes.Equal(hashes[0], digest[:]):
		return fmt.Errorf("dbx has %x, want %x", hashes, digest)
	case r.Passing() || !r.Programs:
		return fmt.Errorf("the record has not settled: %+v", r)
	case !list.Revoked(digest) || list.Allows(digest) || len(list.ToRevoke()) > 0:
		return fmt.Errorf("the list is %+v", list)
	case m.RootFiles()[bootmanager.File(&m.Agent.Host)] != nil:
		return fmt.Errorf("the fetched boot manager is still there")
	case !m.HasManager(Removable, OtherManager) || !m.HasManager(ManagerCopy, OtherManager):
		return fmt.Errorf("the new boot manager is not in its place")
	case m.managerStarts(Removable) != nil || m.Startable(Removable, m.Manager) == nil:
		return fmt.Errorf("the firmware starts something else")
	}
	return nil
}

// Settles starts a machine until nothing changes any more. Each start must unlock by
// itself.
func (m *Machine) Settles(version contract.Version) {
	m.T.Helper()
	for range 8 {
		m.Runs(version)
	}
}

// Planted are the attributes of what somebody has stored in the firmware.
const Planted = secureboot.NonVolatile | secureboot.BootServiceAccess | secureboot.RuntimeAccess

// LoaderVariables are those of the boot loader interface that this program goes by.
var LoaderVariables = []string{"LoaderBootCountPath", "LoaderDevicePartUUID", "StubImageIdentifier"}

// StoreLoaderVariables puts something under the names that boot manager and stub use.
func (m *Machine) StoreLoaderVariables(attributes uint32, text string) {
	for _, name := range LoaderVariables {
		var data []byte
		for _, c := range []byte(text + "\x00") {
			data = append(data, c, 0)
		}
		m.Vars[name] = EFIVariable{attributes, data}
	}
}
