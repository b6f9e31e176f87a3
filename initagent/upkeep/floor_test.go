package upkeep_test

import (
	"bytes"
	mrand "math/rand/v2"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// forgeIndex has the header name an index of root's own, with a record of their own,
// which allows whatever it likes.
func forgeIndex(m *machinetest.Machine) {
	m.T.Helper()
	theirs, err := policy.NewSecret(m.Random)
	m.Must(err)
	boot, sealed := m.SealForAttacker(theirs)
	key, err := theirs.WriteKey()
	m.Must(err)
	_, volumeKey, secret := m.Unlocked()
	secret.Wipe()
	m.Must(tpm.OpenTransport(m.Emulator).WriteRecord(sealed.NVIndex, key, &policy.Record{
		Volume: policy.VolumeFingerprint(volumeKey), Branches: []policy.Branch{{Policy: boot.Branch(), Version: 1, Epoch: 5}},
	}))
	m.ChipChanged = true
	luks2.Wipe(volumeKey)
	text, err := sealed.Encode()
	m.Must(err)
	m.ChangeToken(func(c *luks2.Change, n int, token luks2.Token) error {
		token.Fields["sealed"] = text // and the owner signature stays
		return c.SetToken(n, token)
	})
}

// Root of the running system takes away, or puts back, all that says how high the floor
// was: with the recovery key and a "y" the machine still does not go below it. FAULTS 91
func TestRootLowersFloor(t *testing.T) {
	for name, lower := range map[string]func(m *machinetest.Machine, old []byte){
		"the note is deleted": func(m *machinetest.Machine, _ []byte) { delete(m.RootFiles(), rootpart.GuaranteesFile); m.Undefine() },
		"an old note":         func(m *machinetest.Machine, old []byte) { m.RootFiles()[rootpart.GuaranteesFile] = old; m.Undefine() },
		"another index": func(m *machinetest.Machine, _ []byte) {
			delete(m.RootFiles(), rootpart.GuaranteesFile)
			m.Undefine()
			forgeIndex(m)
		},
		"no TPM in the header": func(m *machinetest.Machine, _ []byte) {
			delete(m.RootFiles(), rootpart.GuaranteesFile)
			m.Undefine()
			m.ChangeToken(func(c *luks2.Change, n int, _ luks2.Token) error { return c.RemoveToken(n) })
		},
	} {
		change := machinetest.Pinned
		if name == "no TPM in the header" { // which a required one refuses
			change = machinetest.With(func(c *contract.Contract) { c.TPM, c.SecureBoot = contract.Optional, contract.Optional })
		}
		t.Run(name, func(t *testing.T) {
			m := machinetest.ProvisionedMachine(t, change)
			old := bytes.Clone(m.RootFiles()[rootpart.GuaranteesFile])
			m.Fetch(machinetest.NewRelease(t, 2, 6, change))
			m.Runs(2)
			m.Bless()
			m.Runs(2)
			m.Holds(6, 2)
			lower(m, old)
			m.Rename("test_1+0.efi", "test_1.efi")
			m.ByHand = 1
			lowered := m.World(true, nil)
			for range 2 { // and it is not forgotten that there was no note
				m.Typed = []string{m.RecoveryKey(), "y", "y"}
				m.Printed.Reset()
				m.Ends("system")
				said := m.Printed.String()
				if !strings.Contains(said, "Which old systems were replaced for good is not known any more") || !strings.Contains(said, "nothing was changed") {
					t.Errorf("it says %s", said)
				}
				if strings.Contains(said, "Accepted.") || strings.Contains(said, "Bound to this TPM.") {
					t.Fatalf("an old system was accepted: %s", said)
				}
			}
			// A new secret at the console is no way around it.
			m.PowerOn(lowered)
			r, c := m.Asked()
			m.Types("y", "y")
			m.Refuses(r.NewSecret(c, false), "nothing was changed")
			// Anyone who has never had a newer one says so, and is bound.
			m.PowerOn(lowered)
			m.Rebinds()
			m.Runs(1)
		})
	}
}

// A machine of an earlier release has no note. Whatever else happens while it is
// updated, it is asked nothing that a machine with one is not. FAULTS 91
func TestNoteOfEarlierRelease(t *testing.T) {
	m := machinetest.New(t, machinetest.Pinned)
	m.Releases[1] = machinetest.NewReleaseOf(t, 1, 5, contract.Abilities{}, machinetest.Pinned)
	m.PowerOn(m.Installed(machinetest.DiskSize))
	m.Unaccounted = true // it knew nothing of PCR 4
	m.Ends("system")
	m.Ends("system")
	m.Fetch(machinetest.NewRelease(t, 2, 6, machinetest.Pinned))
	m.Runs(2)
	m.Unaccounted = false
	delete(m.RootFiles(), rootpart.GuaranteesFile)
	m.Extra = "another firmware"
	m.Accepts()
	m.Holds(5, 1, 2) // the system before it is not shut out
	m.Runs(2)
	if g := m.Noted(); !g.Record || g.Floor != 5 {
		t.Errorf("it notes %+v", g)
	}
}

// Without room for the record a machine has a note that says so, and is not asked about
// a list that it never had; where the note is gone, nobody knows that.
func TestNoteWithoutRecord(t *testing.T) {
	m := machinetest.New(t, machinetest.Pinned)
	m.FillTPM()
	m.Ends("system")
	m.Runs(1)
	if g := m.Noted(); g.Record || !g.SecureBoot {
		t.Errorf("it notes %+v", g)
	}
	m.Extra = "another firmware"
	m.Rebinds()
	m.Runs(1)
	delete(m.RootFiles(), rootpart.GuaranteesFile) // as an earlier release leaves it
	m.Runs(1)
	m.Extra = "and another"
	m.Rebinds()
	m.Runs(1)
	delete(m.RootFiles(), rootpart.GuaranteesFile)
	m.Extra = "and one more"
	m.Typed = []string{m.RecoveryKey(), "y", "y"}
	m.Printed.Reset()
	m.Ends("system")
	if !strings.Contains(m.Printed.String(), "this machine's own note of it was deleted") {
		t.Errorf("it says %s", m.Printed.String())
	}
}

// The note is there before anybody can be root: nothing is left on the disk of a note
// that says less.
func TestNoteOfNewMachine(t *testing.T) {
	m := machinetest.New(t, machinetest.Pinned)
	if end := m.Boot(); end != "reboot" {
		t.Fatalf("ends in %s", end)
	}
	m.Snapshot = func() {
		if m.OpenVolume == nil || m.RootFiles()[rootpart.GuaranteesFile] == nil {
			return
		}
		secret := m.Agent.Secret
		if secret == nil && len(m.Shown) > 0 {
			_, _, secret = m.Unlocked()
		}
		if secret == nil {
			return
		}
		if g := rootpart.ReadGuarantees(machinetest.Store{M: m}, secret); !g.Record || g.Floor != 5 || !g.SecureBoot {
			t.Errorf("it notes %+v", g)
		}
	}
	m.Ends("system")
	m.Snapshot = nil
	if g := m.Noted(); !g.Record || !g.Programs {
		t.Errorf("it notes %+v", g)
	}
}

// Root of the running system hides the TPM's record from a machine, by a header that
// leads nowhere, so that its owner has another made, and puts the old header back once
// the floor has risen. FAULTS 91
func TestOldIndexIsNotKept(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	before, note := m.HeaderArea(), bytes.Clone(m.RootFiles()[rootpart.GuaranteesFile])
	hideRecord(m)
	m.Rebinds()
	m.Fetch(machinetest.NewRelease(t, 2, 6, machinetest.Pinned))
	m.Runs(2)
	m.Bless()
	m.Runs(2)
	m.Holds(6, 2)
	part, err := m.Partition(layout.Root)
	m.Must(err)
	_, err = part.WriteAt(before, 0)
	m.Must(err)
	m.Must(part.Sync())
	m.RootFiles()[rootpart.GuaranteesFile] = note
	m.Rename("test_1+0.efi", "test_1.efi")
	m.ByHand = 1
	if end := m.Boot(); end == "system" {
		t.Fatal("an old system opens the root partition by itself")
	}
}

// Cut anywhere while it is bound again, the machine opens by itself by the new record
// alone, or asks its owner once more; no index of before is left beside the new one.
// FAULTS 42, 91
func TestCutRebind(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	hideRecord(m)
	m.Typed = []string{m.RecoveryKey(), "y", "weaker"}
	states, end := m.RecordOnce(mrand.New(mrand.NewPCG(41, 42)))
	if end != "system" {
		t.Fatalf("ends in %s", end)
	}
	asked := 0
	for _, s := range states {
		m.PowerOn(s.World)
		m.Typed = []string{m.RecoveryKey(), "y", "weaker"}
		m.Ends("system")
		switch len(m.Typed) {
		case 0:
			asked++
		case 3:
		default:
			t.Fatalf("%s: it does not ask for %q", s.How, m.Typed)
		}
		indexes, err := tpm.OpenTransport(m.Emulator).Indexes()
		if lock, _, _ := m.Unlocked(); err != nil || len(indexes) != 1 || indexes[0].Handle != lock.Sealed.NVIndex {
			t.Fatalf("%s: indexes %v, %v", s.How, indexes, err)
		}
		if g := m.Noted(); !g.Record || g.Floor != 5 {
			t.Fatalf("%s: it notes %+v", s.How, g)
		}
	}
	if asked == 0 || asked == len(states) {
		t.Errorf("the owner is asked after %d of %d cuts", asked, len(states))
	}
}

// The same with a TPM that has room for one index, and has lost it, or was cleared: what a
// cut has left there does not keep the record out, and nobody is asked to do without it.
func TestCutRebindRoomForOne(t *testing.T) {
	for name, lose := range map[string]func(*machinetest.Machine){
		"deleted": func(m *machinetest.Machine) {
			hideRecord(m) // or the new index would be where the header looks
			m.FillTPM()
			for _, index := range indexes(m) {
				m.Must(tpm.OpenTransport(m.Emulator).Undefine(index.Handle))
			}
			m.ChipChanged = true
		},
		"cleared": (*machinetest.Machine).ClearsToRoomForOne,
	} {
		t.Run(name, func(t *testing.T) {
			m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
			lose(m)
			cutRebind(m)
		})
	}
}

// cutRebind binds a machine whose TPM has room for one index again, with every cut.
func cutRebind(m *machinetest.Machine) {
	t := m.T
	t.Helper()
	m.Typed = []string{m.RecoveryKey(), "y", "weaker"}
	states, end := m.RecordOnce(mrand.New(mrand.NewPCG(43, 44)))
	if end != "system" {
		t.Fatalf("ends in %s", end)
	}
	left := 0
	for _, s := range states {
		m.PowerOn(s.World)
		if len(indexes(m)) == 1 {
			left++
		}
		m.Typed = []string{m.RecoveryKey(), "y", "weaker"}
		m.Ends("system")
		lock, _, _ := m.Unlocked()
		if have := indexes(m); lock.Sealed.Kind != policy.KindNV || len(have) != 1 || have[0].Handle != lock.Sealed.NVIndex {
			t.Fatalf("%s: bound by %s, indexes %v:\n%s", s.How, lock.Sealed.Kind, have, m.Printed.String())
		}
		m.OpensByItself()
	}
	if left == 0 || left == len(states) {
		t.Errorf("%d of %d cuts leave an index", left, len(states))
	}
}

// indexes are those of this system that the TPM of a machine that is off has.
func indexes(m *machinetest.Machine) []tpm.IndexInfo {
	m.T.Helper()
	m.Must(m.Emulator.PowerOn(m.World(true, nil).Chip))
	m.ChipChanged = true
	list, err := tpm.OpenTransport(m.Emulator).Indexes()
	m.Must(err)
	return list
}

// hideRecord has the header lead to no index, as root of the running system can.
func hideRecord(m *machinetest.Machine) {
	m.T.Helper()
	m.ChangeToken(func(c *luks2.Change, n int, token luks2.Token) error {
		lock, _, _ := m.Unlocked()
		lock.Sealed.NVIndex += 5
		var err error
		if token.Fields["sealed"], err = lock.Sealed.Encode(); err != nil {
			return err
		}
		return c.SetToken(n, token)
	})
}

// A note of the time when the TPM had no room for the record, put back when it has one,
// with the record deleted and a token that knows of none, asks for the word all the same.
// FAULTS 91
func TestOldNoteWithoutRecord(t *testing.T) {
	m := machinetest.New(t, machinetest.Pinned)
	m.FillTPM()
	m.Ends("system")
	m.Runs(1)
	old := bytes.Clone(m.RootFiles()[rootpart.GuaranteesFile])
	m.EmptyTPM()
	m.ChipChanged = true
	m.Extra = "another firmware"
	m.Owner = true
	m.Types("weaker")
	m.Ends("system")
	m.Owner = false
	m.Runs(1)
	m.Fetch(machinetest.NewRelease(t, 2, 6, machinetest.Pinned))
	m.Runs(2)
	m.Bless()
	m.Runs(2)
	m.Holds(6, 2)
	m.RootFiles()[rootpart.GuaranteesFile] = old
	m.Undefine()
	theirs, err := policy.NewSecret(m.Random)
	m.Must(err)
	boot, first := m.SealForAttacker(theirs)
	m.Must(tpm.OpenTransport(m.Emulator).Undefine(first.NVIndex))
	sealed, err := tpm.OpenTransport(m.Emulator).SealPCR(theirs, policy.WithoutPrograms(), boot)
	m.Must(err)
	m.ChipChanged = true
	text, err := sealed.Encode()
	m.Must(err)
	m.ChangeToken(func(c *luks2.Change, n int, token luks2.Token) error {
		token.Fields["sealed"] = text
		return c.SetToken(n, token)
	})
	m.Rename("test_1+0.efi", "test_1.efi")
	m.ByHand = 1
	m.Typed = []string{m.RecoveryKey(), "y", "y"}
	m.Printed.Reset()
	if m.Boot(); strings.Contains(m.Printed.String(), "Bound to this TPM.") || !strings.Contains(m.Printed.String(), `Type the word "weaker"`) {
		t.Errorf("an old system is bound without the word: %s", m.Printed.String())
	}
}
