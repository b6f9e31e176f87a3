package machinetest

import (
	"bytes"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"halogenos.internal/boot/authenticode"
	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/boot/verity"
	"halogenos.internal/initagent/bootjournal"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// Provisioned reports what is wrong with a machine that was just handed over
// for the first time: each guarantee that a first boot without a cut gives.
func (m *Machine) Provisioned() error {
	for _, check := range []struct {
		name string
		run  func() error
	}{
		{"partitions", m.checkPartitions}, {"Secure Boot", m.CheckKeys},
		{"root partition", m.CheckRoot}, {"every day", m.CheckEveryDay},
	} {
		if err := check.run(); err != nil {
			return fmt.Errorf("%s: %w", check.name, err)
		}
	}
	return nil
}

func (m *Machine) checkPartitions() error {
	table, health, err := m.Table()
	if err != nil || !health.OK() {
		return fmt.Errorf("table %v, %v", health, err)
	}
	c := m.Releases[1].Contract
	if plan, err := layout.NewPlan(table, SlotSize, m.Random); err != nil || len(plan.Changes) > 0 {
		return fmt.Errorf("the table is not complete: %v", err)
	}
	s, named := layout.FindSlot(table, layout.SystemUUID(c.Root()), layout.VerityUUID(c.Root()))
	if s != layout.SlotA || !named {
		return fmt.Errorf("slot %s, its tree named %v", s, named)
	}
	data, err := m.Partition(s.System())
	if err != nil {
		return err
	}
	tree, err := m.Partition(s.Verity())
	if err != nil {
		return err
	}
	return verity.Verify(m.T.Context(), data, tree, c.VerityParams(), c.Root(), func(int64) {})
}

// CheckKeys says what is wrong with the Secure Boot keys of a machine in use.
func (m *Machine) CheckKeys() error {
	list, err := m.StoredList()
	if err != nil {
		return err
	}
	state, err := enroll.Observe(&Firmware{Vars: m.Vars})
	if err != nil {
		return err
	}
	if d := enroll.Enforced(state, list.Wanted); len(d) > 0 {
		return fmt.Errorf("the firmware enforces something else: %v", d)
	}
	_, certificates, err := CertificatesIn(m.Vars)
	if err != nil || len(certificates) != 1+m.Foreign {
		return fmt.Errorf("db has %d certificates, want %d (%w)", len(certificates), 1+m.Foreign, err)
	}
	signed := 0
	for name, f := range m.ESP.Files {
		switch {
		case f.Now.Absent:
		case f.Now.Unreadable:
			return fmt.Errorf("%s cannot be read", name)
		case strings.HasSuffix(name, ".signing") || strings.HasPrefix(name, firstboot.Name(0)[:len(firstboot.Directory)+5]):
			return fmt.Errorf("%s was left behind", name)
		case bytes.HasPrefix(f.Now.Data, []byte("MZ")):
			signed++
			if _, err := authenticode.Verify(f.Now.Data, certificates); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	if signed != 3 {
		return fmt.Errorf("%d signed files, want 3", signed)
	}
	return nil
}

// StoredList is the list on the root partition, opened by the recovery key.
func (m *Machine) StoredList() (*secureboot.List, error) {
	s, err := m.Partition(layout.Root)
	if err != nil {
		return nil, err
	}
	_, lock, err := rootlock.Look(s, s.Size())
	if err != nil {
		return nil, err
	}
	volumeKey, secret, err := lock.OpenRecovery(s, []byte(m.Shown[len(m.Shown)-1]), 1<<20)
	if err != nil {
		return nil, err
	}
	defer luks2.Wipe(volumeKey)
	defer secret.Wipe()
	return rootpart.StoredList(Store{m}, secret, lock)
}

// CheckRoot opens the root partition by the TPM, as a boot would, and by the
// recovery key that was shown last.
func (m *Machine) CheckRoot() error {
	s, err := m.Partition(layout.Root)
	if err != nil {
		return err
	}
	condition, lock, err := rootlock.Look(s, s.Size())
	if err != nil {
		return err
	}
	if condition != bootflow.RootLocked || !lock.Health.Good() {
		return fmt.Errorf("condition %v, copies of the header %v", condition, lock.Health)
	}
	if lock.Sealed == nil || lock.Sealed.Kind != policy.KindNV {
		return fmt.Errorf("sealed as %+v", lock.Sealed)
	}
	volumeKey, secret, err := lock.OpenRecovery(s, []byte(m.Shown[len(m.Shown)-1]), 1<<20)
	if err != nil {
		return fmt.Errorf("the recovery key shown last: %w", err)
	}
	defer luks2.Wipe(volumeKey)
	keys, err := firstboot.UnwrapKeys(secret, m.Volumes[*m.OpenVolume][rootpart.ListFile])
	if err != nil {
		return err
	}
	_, certificates, err := CertificatesIn(m.Vars)
	if err != nil || !keys.DB.Certificate.Equal(certificates[0]) {
		return errors.New("the db key that is kept is not the one enrolled")
	}
	if err := rootlock.CheckOwnerSignature(lock.OwnerSignature, volumeKey, certificates); err != nil {
		return err
	}
	chip := tpm.OpenTransport(m.Emulator)
	record, err := chip.ReadRecord(lock.Sealed)
	if err != nil {
		return err
	}
	if err := rootlock.CheckFingerprint(record, volumeKey); err != nil {
		return err
	}
	other := func(b policy.Branch) bool { return b.Version != 1 }
	if slices.ContainsFunc(record.Branches, other) || !record.Programs || record.Passing() || record.Floor != m.Releases[1].Contract.Epoch {
		return fmt.Errorf("record %+v", record)
	}
	indexes, err := chip.Indexes()
	if err != nil || len(indexes) != 1 {
		return fmt.Errorf("NV indexes %v, %w", indexes, err)
	}
	if _, _, err := chip.Unseal(lock.Sealed); err == nil {
		return errors.New("the running system can unseal")
	}
	return chip.Close()
}

// CheckEveryDay starts the machine twice more. It asks nothing, shows nothing,
// and the second time writes nothing.
func (m *Machine) CheckEveryDay() error {
	for day := range 2 {
		m.Said.Reset()
		m.Printed.Reset()
		shown := len(m.Shown)
		m.Ops = nil
		if end := m.Boot(); end != "system" {
			return fmt.Errorf("the next boot ends in %s:\n%s", end, m.Said.String())
		}
		if len(m.Shown) > shown || m.Printed.Len() > 0 {
			return fmt.Errorf("the next boot says: %s", m.Printed.String())
		}
		// Its line in the boot journal is all that an ordinary boot writes.
		if day == 1 && !slices.Equal(m.Ops, []string{"root keep " + bootjournal.File}) {
			return fmt.Errorf("an ordinary boot writes: %q", m.Ops)
		}
		if m.OpenVolume == nil {
			return errors.New("the next boot runs without its root partition")
		}
	}
	if f := m.ESP.Files[path.Join(firstboot.Directory, "keys-0.json")]; f != nil && !f.Now.Absent {
		return errors.New("what the first boot left is still there")
	}
	return nil
}

// ProvisionedMachine is one that has been through its first two boots and an
// ordinary one. The first boots of a release are made once in a test binary, and each
// machine starts from a copy of what they left.
func ProvisionedMachine(t testing.TB, change func(*contract.Contract)) *Machine {
	t.Helper()
	m := newMachine(t, change)
	m.takeOver(m.firstBoots())
	m.Ends("system")
	m.Ops = nil
	m.Said.Reset()
	m.Printed.Reset()
	return m
}

// A beginning is a machine after its first boots, without power.
type beginning struct {
	w       *World
	random  mrand.ChaCha8
	clock   time.Time
	waits   []time.Duration
	keysNo  int
	espUUID string
}

// beginnings are those that were made, by the UKI: the contract is in it.
var beginnings struct {
	sync.Mutex
	of map[string]*beginning
}

// firstBoots returns what the first boots of this machine's release leave.
func (m *Machine) firstBoots() *beginning {
	m.T.Helper()
	beginnings.Lock()
	defer beginnings.Unlock()
	release := string(m.Releases[1].UKI)
	if b := beginnings.of[release]; b != nil {
		return b
	}
	m.PowerOn(m.Installed(DiskSize))
	m.Ends("system")
	b := &beginning{m.World(true, nil), *m.Random.(*mrand.ChaCha8), m.Clock, m.Waits, m.KeysNo, m.EspUUID}
	if beginnings.of == nil {
		beginnings.of = map[string]*beginning{}
	}
	beginnings.of[release] = b
	return b
}

// takeOver has the machine go on from there. Tests change the bytes of files in place, so
// it gets its own.
func (m *Machine) takeOver(b *beginning) {
	w := *b.w
	w.ESP, w.Volumes = map[string]Remains{}, map[[32]byte]map[string][]byte{}
	for name, r := range b.w.ESP {
		r.Data = bytes.Clone(r.Data)
		w.ESP[name] = r
	}
	for id, files := range b.w.Volumes {
		w.Volumes[id] = map[string][]byte{}
		for name, text := range files {
			w.Volumes[id][name] = bytes.Clone(text)
		}
	}
	w.Chip, w.Record = bytes.Clone(b.w.Chip), bytes.Clone(b.w.Record)
	random := b.random
	m.Random, m.Clock, m.Waits, m.KeysNo, m.EspUUID = &random, b.clock, slices.Clone(b.waits), b.keysNo, b.espUUID
	m.PowerOn(&w)
}

// Ends runs the machine and wants it to end so, having said all of this.
func (m *Machine) Ends(want string, says ...string) {
	m.T.Helper()
	m.Said.Reset()
	if end := m.Run(); end != want {
		m.T.Fatalf("ends in %s, want %s:\n%s", end, want, m.Said.String())
	}
	for _, s := range says {
		if !strings.Contains(m.Said.String(), s) {
			m.T.Errorf("says nothing of %q:\n%s", s, m.Said.String())
		}
	}
}

// Written are the operations so far that contain a word.
func (m *Machine) Written(word string) (found []string) {
	for _, op := range m.Ops {
		if strings.Contains(op, word) {
			found = append(found, op)
		}
	}
	return found
}

// Unlocked opens the volume with the recovery key.
func (m *Machine) Unlocked() (*rootlock.Lock, []byte, *policy.Secret) {
	m.T.Helper()
	return m.UnlockedBy(m.RecoveryKey())
}

// UnlockedBy opens the root partition by a recovery key. The caller wipes what it gets.
func (m *Machine) UnlockedBy(recovery string) (*rootlock.Lock, []byte, *policy.Secret) {
	m.T.Helper()
	s, err := m.Partition(layout.Root)
	if err != nil {
		m.T.Fatal(err)
	}
	_, lock, err := rootlock.Look(s, s.Size())
	if err != nil {
		m.T.Fatal(err)
	}
	volumeKey, secret, err := lock.OpenRecovery(s, []byte(recovery), 1<<20)
	if err != nil {
		m.T.Fatal(err)
	}
	return lock, volumeKey, secret
}

// RecoveryKey is the one that was shown last.
func (m *Machine) RecoveryKey() string { return m.Shown[len(m.Shown)-1] }

// Must ends the test where there is an error.
func (m *Machine) Must(err error) {
	m.T.Helper()
	if err != nil {
		m.T.Fatal(err)
	}
}

// NoTPMNeeded is a change to a contract: a TPM is not required.
func NoTPMNeeded(c *contract.Contract) { c.TPM = contract.Optional }

// Stage puts a release into slot B, as staging would.
func (m *Machine) Stage(r *Edition, corrupt bool) {
	m.T.Helper()
	system, err := m.Partition(layout.SlotB.System())
	m.Must(err)
	_, err = system.WriteAt(r.Image, 0)
	m.Must(err)
	tree, err := m.Partition(layout.SlotB.Verity())
	m.Must(err)
	_, err = verity.Generate(m.T.Context(), system, r.Contract.VerityParams(), tree, func(int64) {})
	m.Must(err)
	if corrupt {
		_, err = system.WriteAt([]byte{0xff}, 12345)
		m.Must(err)
	}
	table, _, err := m.Table()
	m.Must(err)
	m.Must(layout.Rename(table, layout.SlotB, layout.SystemUUID(r.Contract.Root()), layout.VerityUUID(r.Contract.Root())).Write(m.Disk))
	_, volumeKey, secret := m.Unlocked()
	luks2.Wipe(volumeKey)
	keys, err := firstboot.UnwrapKeys(secret, m.Volumes[*m.OpenVolume][rootpart.ListFile])
	m.Must(err)
	signed, err := enroll.DBSigner{Pair: keys.DB, Time: BuildDate}.Sign(r.UKI)
	m.Must(err)
	name := bls.Name{ImageID: "test", Version: r.Contract.Version, Counted: true, Left: 3}
	m.ESP.Files[path.Join(bls.Directory, name.String())] = &ESPFile{Remains{Data: signed}, []Remains{{Data: signed}}}
	m.Ops = nil
}
