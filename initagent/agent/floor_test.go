package agent

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/rootheader"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// changeToken changes what the root partition's header says of the TPM, as root of the
// running system can.
func (m *machine) changeToken(change func(c *luks2.Change, n int, token luks2.Token) error) {
	m.t.Helper()
	header, err := m.header()
	m.must(err)
	s, err := m.partition(layout.RootNumber)
	m.must(err)
	m.must(header.Change(m.random, s, func(c *luks2.Change) error {
		for n, token := range header.Tokens() {
			if token.Type == rootheader.TPMToken {
				return change(c, n, token)
			}
		}
		return errors.New("no token of a TPM")
	}))
	m.must(s.Sync())
}

// forgeIndex has the header name an index of root's own, with a record of their own,
// which allows whatever it likes.
func (m *machine) forgeIndex() {
	m.t.Helper()
	theirs, err := policy.NewSecret(m.random)
	m.must(err)
	boot, sealed := m.sealForAttacker(theirs)
	key, err := theirs.WriteKey()
	m.must(err)
	_, volumeKey, secret := m.unlocked()
	secret.Wipe()
	m.must(tpm.OpenTransport(m.emulator).WriteRecord(sealed.NVIndex, key, &policy.Record{
		Volume: policy.VolumeFingerprint(volumeKey), Branches: []policy.Branch{{Policy: boot.Branch(), Version: 1, Epoch: 5}},
	}))
	m.chipChanged = true
	luks2.Wipe(volumeKey)
	text, err := sealed.Encode()
	m.must(err)
	m.changeToken(func(c *luks2.Change, n int, token luks2.Token) error {
		token.Fields["sealed"] = text // and the owner signature stays
		return c.SetToken(n, token)
	})
}

// Root of the running system takes away, or puts back, all that says how high the floor
// was: with the recovery key and a "y" the machine still does not go below it. FAULTS 91
func TestRootLowersFloor(t *testing.T) {
	for name, lower := range map[string]func(m *machine, old []byte){
		"the note is deleted": func(m *machine, _ []byte) { delete(m.rootFiles(), rootpart.GuaranteesFile); m.undefine() },
		"an old note":         func(m *machine, old []byte) { m.rootFiles()[rootpart.GuaranteesFile] = old; m.undefine() },
		"another index": func(m *machine, _ []byte) {
			delete(m.rootFiles(), rootpart.GuaranteesFile)
			m.undefine()
			m.forgeIndex()
		},
		"no TPM in the header": func(m *machine, _ []byte) {
			delete(m.rootFiles(), rootpart.GuaranteesFile)
			m.undefine()
			m.changeToken(func(c *luks2.Change, n int, _ luks2.Token) error { return c.RemoveToken(n) })
		},
	} {
		change := pinned
		if name == "no TPM in the header" { // which a required one refuses
			change = with(func(c *contract.Contract) { c.TPM, c.SecureBoot = contract.Optional, contract.Optional })
		}
		t.Run(name, func(t *testing.T) {
			m := provisionedMachine(t, change)
			old := bytes.Clone(m.rootFiles()[rootpart.GuaranteesFile])
			m.fetch(newRelease(t, 2, 6, change))
			m.runs(2)
			m.bless()
			m.runs(2)
			m.holds(6, 2)
			lower(m, old)
			m.rename("test_1+0.efi", "test_1.efi")
			m.byHand = 1
			lowered := m.world(true, nil)
			for range 2 { // and it is not forgotten that there was no note
				m.typed = []string{m.recoveryKey(), "y", "y"}
				m.printed.Reset()
				m.ends("system")
				said := m.printed.String()
				if !strings.Contains(said, "Which old systems were replaced for good is not known any more") || !strings.Contains(said, "nothing was changed") {
					t.Errorf("it says %s", said)
				}
				if strings.Contains(said, "Accepted.") || strings.Contains(said, "Bound to this TPM.") {
					t.Fatalf("an old system was accepted: %s", said)
				}
			}
			// A new secret at the console is no way around it.
			m.powerOn(lowered)
			r, c := m.asked()
			m.types("y", "y")
			m.refuses(r.NewSecret(c, false), "nothing was changed")
			// Whoever has never had a newer one says so, and is bound.
			m.powerOn(lowered)
			m.rebinds()
			m.runs(1)
		})
	}
}

// A machine of an earlier release has no note. Whatever else happens while it is
// updated, it is asked nothing that a machine with one is not. FAULTS 91
func TestNoteOfEarlierRelease(t *testing.T) {
	m := newMachine(t, pinned)
	m.releases[1] = newReleaseOf(t, 1, 5, contract.Abilities{}, pinned)
	m.powerOn(m.installed(diskSize))
	m.unaccounted = true // it knew nothing of PCR 4
	m.ends("system")
	m.ends("system")
	m.fetch(newRelease(t, 2, 6, pinned))
	m.runs(2)
	m.unaccounted = false
	delete(m.rootFiles(), rootpart.GuaranteesFile)
	m.extra = "another firmware"
	m.accepts()
	m.holds(5, 1, 2) // the system before it is not shut out
	m.runs(2)
	if g := m.noted(); !g.Record || g.Floor != 5 {
		t.Errorf("it notes %+v", g)
	}
}

// Without room for the record a machine has a note that says so, and is not asked about
// a list that it never had; where the note is gone, nobody knows that.
func TestNoteWithoutRecord(t *testing.T) {
	m := newMachine(t, pinned)
	m.fillTPM()
	m.ends("system")
	m.runs(1)
	if g := m.noted(); g.Record || !g.SecureBoot {
		t.Errorf("it notes %+v", g)
	}
	m.extra = "another firmware"
	m.rebinds()
	m.runs(1)
	delete(m.rootFiles(), rootpart.GuaranteesFile) // as an earlier release leaves it
	m.runs(1)
	m.extra = "and another"
	m.rebinds()
	m.runs(1)
	delete(m.rootFiles(), rootpart.GuaranteesFile)
	m.extra = "and one more"
	m.typed = []string{m.recoveryKey(), "y", "y"}
	m.printed.Reset()
	m.ends("system")
	if !strings.Contains(m.printed.String(), "this machine's own note of it was deleted") {
		t.Errorf("it says %s", m.printed.String())
	}
}

// The note is there before anybody can be root: nothing is left on the disk of a note
// that says less.
func TestNoteOfNewMachine(t *testing.T) {
	m := newMachine(t, pinned)
	if end := m.boot(); end != "reboot" {
		t.Fatalf("ends in %s", end)
	}
	m.snapshot = func() {
		if m.openVolume == nil || m.rootFiles()[rootpart.GuaranteesFile] == nil {
			return
		}
		secret := m.agent.Secret
		if secret == nil && len(m.shown) > 0 {
			_, _, secret = m.unlocked()
		}
		if secret == nil {
			return
		}
		if g := rootpart.ReadGuarantees(store{m}, secret); !g.Record || g.Floor != 5 || !g.SecureBoot {
			t.Errorf("it notes %+v", g)
		}
	}
	m.ends("system")
	m.snapshot = nil
	if g := m.noted(); !g.Record || !g.Programs {
		t.Errorf("it notes %+v", g)
	}
}

// Root of the running system hides the TPM's record from a machine, by a header that
// leads nowhere, so that its owner has another made, and puts the old header back once
// the floor has risen. FAULTS 91
func TestOldIndexIsNotKept(t *testing.T) {
	m := provisionedMachine(t, pinned)
	before, note := m.headerArea(), bytes.Clone(m.rootFiles()[rootpart.GuaranteesFile])
	m.hideRecord()
	m.rebinds()
	m.fetch(newRelease(t, 2, 6, pinned))
	m.runs(2)
	m.bless()
	m.runs(2)
	m.holds(6, 2)
	part, err := m.partition(layout.RootNumber)
	m.must(err)
	_, err = part.WriteAt(before, 0)
	m.must(err)
	m.must(part.Sync())
	m.rootFiles()[rootpart.GuaranteesFile] = note
	m.rename("test_1+0.efi", "test_1.efi")
	m.byHand = 1
	if end := m.boot(); end == "system" {
		t.Fatal("an old system opens the root partition by itself")
	}
}

// Cut anywhere while it is bound again, the machine opens by itself by the new record
// alone, or asks its owner once more; no index of before is left beside the new one.
// FAULTS 42, 91
func TestCutRebind(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.hideRecord()
	m.typed = []string{m.recoveryKey(), "y", "weaker"}
	states, end := m.recordOnce(mrand.New(mrand.NewPCG(41, 42)))
	if end != "system" {
		t.Fatalf("ends in %s", end)
	}
	asked := 0
	for _, s := range states {
		m.powerOn(s.world)
		m.typed = []string{m.recoveryKey(), "y", "weaker"}
		m.ends("system")
		switch len(m.typed) {
		case 0:
			asked++
		case 3:
		default:
			t.Fatalf("%s: it does not ask for %q", s.how, m.typed)
		}
		indexes, err := tpm.OpenTransport(m.emulator).Indexes()
		if lock, _, _ := m.unlocked(); err != nil || len(indexes) != 1 || indexes[0].Handle != lock.Sealed.NVIndex {
			t.Fatalf("%s: indexes %v, %v", s.how, indexes, err)
		}
		if g := m.noted(); !g.Record || g.Floor != 5 {
			t.Fatalf("%s: it notes %+v", s.how, g)
		}
	}
	if asked == 0 || asked == len(states) {
		t.Errorf("the owner is asked after %d of %d cuts", asked, len(states))
	}
}

// The same with a TPM that has room for one index, and has lost it, or was cleared: what a
// cut has left there does not keep the record out, and nobody is asked to do without it.
func TestCutRebindRoomForOne(t *testing.T) {
	for name, lose := range map[string]func(*machine){
		"deleted": func(m *machine) {
			m.hideRecord() // or the new index would be where the header looks
			m.fillTPM()
			for _, index := range m.indexes() {
				m.must(tpm.OpenTransport(m.emulator).Undefine(index.Handle))
			}
			m.chipChanged = true
		},
		"cleared": (*machine).clearsToRoomForOne,
	} {
		t.Run(name, func(t *testing.T) {
			m := provisionedMachine(t, pinned)
			lose(m)
			m.cutRebind()
		})
	}
}

// clearsToRoomForOne takes the TPM's owner hierarchy away, and all room but for one index.
func (m *machine) clearsToRoomForOne() {
	m.t.Helper()
	m.chipState, m.chipChanged = nil, false
	m.must(os.Remove(filepath.Join(m.emulator.directory, stateFile)))
	m.must(m.emulator.powerOn(nil))
	chip := tpm.OpenTransport(m.emulator)
	_, err := chip.StorageKey() // which takes room, too
	m.must(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	m.must(err)
	index, err := chip.Define(&key.PublicKey)
	m.must(err)
	m.fillRest()
	m.must(chip.Undefine(index.Handle))
}

// cutRebind binds a machine whose TPM has room for one index again, with every cut.
func (m *machine) cutRebind() {
	t := m.t
	t.Helper()
	m.typed = []string{m.recoveryKey(), "y", "weaker"}
	states, end := m.recordOnce(mrand.New(mrand.NewPCG(43, 44)))
	if end != "system" {
		t.Fatalf("ends in %s", end)
	}
	left := 0
	for _, s := range states {
		m.powerOn(s.world)
		if len(m.indexes()) == 1 {
			left++
		}
		m.typed = []string{m.recoveryKey(), "y", "weaker"}
		m.ends("system")
		lock, _, _ := m.unlocked()
		if have := m.indexes(); lock.Sealed.Kind != policy.KindNV || len(have) != 1 || have[0].Handle != lock.Sealed.NVIndex {
			t.Fatalf("%s: bound by %s, indexes %v:\n%s", s.how, lock.Sealed.Kind, have, m.printed.String())
		}
		m.opensByItself()
	}
	if left == 0 || left == len(states) {
		t.Errorf("%d of %d cuts leave an index", left, len(states))
	}
}

// indexes are those of this system that the TPM of a machine that is off has.
func (m *machine) indexes() []tpm.IndexInfo {
	m.t.Helper()
	m.must(m.emulator.powerOn(m.world(true, nil).chip))
	m.chipChanged = true
	list, err := tpm.OpenTransport(m.emulator).Indexes()
	m.must(err)
	return list
}

// hideRecord has the header lead to no index, as root of the running system can.
func (m *machine) hideRecord() {
	m.t.Helper()
	m.changeToken(func(c *luks2.Change, n int, token luks2.Token) error {
		lock, _, _ := m.unlocked()
		lock.Sealed.NVIndex += 5
		var err error
		if token.Fields["sealed"], err = lock.Sealed.Encode(); err != nil {
			return err
		}
		return c.SetToken(n, token)
	})
}

// headerArea is a copy of the root partition's LUKS2 header and keyslots.
func (m *machine) headerArea() []byte {
	m.t.Helper()
	part, err := m.partition(layout.RootNumber)
	m.must(err)
	area := make([]byte, rootlock.HeaderArea)
	_, err = part.ReadAt(area, 0)
	m.must(err)
	return area
}

// A note of the time when the TPM had no room for the record, put back when it has one,
// with the record deleted and a token that knows of none, asks for the word all the same.
// FAULTS 91
func TestOldNoteWithoutRecord(t *testing.T) {
	m := newMachine(t, pinned)
	m.fillTPM()
	m.ends("system")
	m.runs(1)
	old := bytes.Clone(m.rootFiles()[rootpart.GuaranteesFile])
	m.emptyTPM()
	m.chipChanged = true
	m.extra = "another firmware"
	m.owner = true
	m.types("weaker")
	m.ends("system")
	m.owner = false
	m.runs(1)
	m.fetch(newRelease(t, 2, 6, pinned))
	m.runs(2)
	m.bless()
	m.runs(2)
	m.holds(6, 2)
	m.rootFiles()[rootpart.GuaranteesFile] = old
	m.undefine()
	theirs, err := policy.NewSecret(m.random)
	m.must(err)
	boot, first := m.sealForAttacker(theirs)
	m.must(tpm.OpenTransport(m.emulator).Undefine(first.NVIndex))
	sealed, err := tpm.OpenTransport(m.emulator).SealPCR(theirs, policy.WithoutPrograms(), boot)
	m.must(err)
	m.chipChanged = true
	text, err := sealed.Encode()
	m.must(err)
	m.changeToken(func(c *luks2.Change, n int, token luks2.Token) error {
		token.Fields["sealed"] = text
		return c.SetToken(n, token)
	})
	m.rename("test_1+0.efi", "test_1.efi")
	m.byHand = 1
	m.typed = []string{m.recoveryKey(), "y", "y"}
	m.printed.Reset()
	if m.boot(); strings.Contains(m.printed.String(), "Bound to this TPM.") || !strings.Contains(m.printed.String(), `Type the word "weaker"`) {
		t.Errorf("an old system is bound without the word: %s", m.printed.String())
	}
}
