package agent

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/bls"
	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/staging"
	"halogenos.internal/initagent/tpm"
)

// accepts boots a machine that has changed, with somebody at it who says yes.
func (m *machine) accepts(says ...string) {
	m.t.Helper()
	m.acceptsBy([]string{"y"}, says...)
}

// rebinds is accepts on a machine whose TPM has lost the record.
func (m *machine) rebinds(says ...string) {
	m.t.Helper()
	m.acceptsBy([]string{"y", "weaker"}, says...)
}

func (m *machine) acceptsBy(answers []string, says ...string) {
	m.t.Helper()
	m.typed = append([]string{m.recoveryKey()}, answers...)
	m.ends("system", says...)
	if m.openVolume == nil || len(m.typed) > 0 {
		m.t.Fatalf("the root partition is closed, or nobody asks for %q:\n%s", m.typed, m.said.String())
	}
}

// updated is a machine on which the second release has proven itself.
func updated(t *testing.T) *machine {
	m := provisionedMachine(t, pinned)
	m.fetch(newRelease(t, 2, 5, pinned))
	m.runs(2)
	m.bless()
	m.runs(2)
	return m
}

// Who accepts a changed machine keeps the system that it falls back to.
func TestAcceptKeepsFallback(t *testing.T) { // FAULTS 71
	m := updated(t)
	m.extra = "another firmware"
	m.accepts()
	m.holds(5, 1, 2)
	m.runs(2)
	m.byHand = 1
	m.runs(1)
}

// The same on trial, by a record that is there and by a TPM that is another: the
// fallback must not be shut out by a system that has not proven itself.
func TestAcceptOnTrial(t *testing.T) {
	for _, clear := range []bool{false, true} {
		m := provisionedMachine(t, pinned)
		m.fetch(newRelease(t, 2, 6, pinned))
		m.runs(2)
		if clear {
			m.chipState, m.chipChanged = nil, false
			m.must(os.Remove(filepath.Join(m.emulator.directory, stateFile)))
			m.rebinds()
		} else {
			m.extra = "another firmware"
			m.accepts()
		}
		m.holds(5, 1, 2)
		m.byHand = 1
		m.runs(1)
	}
}

// What somebody has put on the ESP is not taken along with what is accepted: not a
// system that was replaced, and not one that this machine never signed. FAULTS 46, 73
func TestAcceptTakesNobodyAlong(t *testing.T) {
	m := updated(t)
	m.fetch(newRelease(t, 3, 5, pinned))
	replaced := m.esp.files["EFI/Linux/test_2.efi"]
	m.runs(3)
	m.bless()
	m.runs(3)
	m.holds(5, 2, 3)
	m.extra = "another firmware"
	// A release of the attacker's over the content of the running slot, which anybody can read.
	own := newRelease(t, 9, 5, with(func(c *contract.Contract) { c.RootHash = m.releases[3].contract.RootHash }))
	sets, err := keySets()
	m.must(err)
	signed, err := enroll.DBSigner{Pair: sets[(m.keysNo+1)%len(sets)].DB, Time: buildDate}.Sign(own.uki)
	m.must(err)
	for version, uki := range map[string][]byte{"8": replaced.now.data, "9": own.uki, "10": signed} {
		m.esp.files["EFI/Linux/test_"+version+"+3.efi"] = &espFile{remains{data: uki}, []remains{{data: uki}}}
	}
	m.byHand = 3
	m.accepts("the TPM's record does not have it", "test_8+3.efi is not taken along: it is test 2 inside")
	m.holds(5, 2, 3)
	// The TPM was cleared, and knows nothing of any version.
	m.chipState, m.chipChanged = nil, false
	m.must(os.Remove(filepath.Join(m.emulator.directory, stateFile)))
	for _, name := range []string{"test_9+3.efi", "test_9+2-1.efi"} {
		delete(m.esp.files, "EFI/Linux/"+name)
	}
	m.esp.files["EFI/Linux/test_9.efi"] = &espFile{remains{data: own.uki}, []remains{{data: own.uki}}}
	m.rebinds("test_9.efi is not taken along: verify image: image is not signed")
	m.holds(5, 2, 3)
}

// fillTPM takes all the room that the TPM has.
func (m *machine) fillTPM() {
	m.t.Helper()
	m.must(m.emulator.powerOn(m.world(true, nil).chip))
	m.fillRest()
}

// emptyTPM makes room again.
func (m *machine) emptyTPM() {
	m.t.Helper()
	m.must(m.emulator.powerOn(m.world(true, nil).chip))
	for i := range uint32(200) {
		index := tpm2.TPMHandle(0x01800000 + i)
		there, err := tpm2.NVReadPublic{NVIndex: index}.Execute(m.emulator)
		if err != nil {
			continue
		}
		_, err = tpm2.NVUndefineSpace{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, NVIndex: tpm2.NamedHandle{Handle: index, Name: there.NVName},
		}.Execute(m.emulator)
		m.must(err)
	}
	m.chipChanged = true
}

// fillRest takes the room that is left.
func (m *machine) fillRest() {
	m.t.Helper()
	size := uint16(2048)
	for i := uint32(0); size > 0; i++ {
		_, err := tpm2.NVDefineSpace{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{NVIndex: tpm2.TPMHandle(0x01800000 + i), NameAlg: tpm2.TPMAlgSHA256, DataSize: size,
				Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true}}),
		}.Execute(m.emulator)
		if err != nil {
			size /= 2
		}
	}
	m.chipChanged = true
}

// Where the TPM cannot hold the record the secret is sealed to both systems, in
// the header of the root partition. Each unlocks.
func TestStageWithoutRecord(t *testing.T) {
	m := newMachine(t, pinned)
	m.fillTPM()
	m.ends("system", "WARNING: this TPM cannot hold the policy record")
	m.runs(1)
	m.fetch(newRelease(t, 2, 5, pinned))
	m.runs(2)
	m.bless()
	m.runs(2)
	lock, volumeKey, secret := m.unlocked()
	luks2.Wipe(volumeKey)
	secret.Wipe()
	if lock.Sealed.Kind != policy.KindPCR || len(lock.Sealed.Branches) != 2 {
		t.Errorf("sealed as %s to %d boots", lock.Sealed.Kind, len(lock.Sealed.Branches))
	}
	m.byHand = 1
	m.runs(1)
	m.byHand = 0
	m.runs(2)
	m.fetch(newRelease(t, 3, 5, pinned))
	m.runs(3)
	m.byHand = 2
	m.runs(2)
}

// Without a TPM a person unlocks each system, and it is staged all the same.
func TestStageWithoutTPM(t *testing.T) { // FAULTS 71
	change := with(noTPMNeeded)
	m := newMachine(t, change)
	m.noTPM = tpm.ErrAbsent
	boot := func(want string) {
		t.Helper()
		m.typed = nil
		if len(m.shown) > 0 {
			m.typed = []string{m.recoveryKey()}
		}
		if end := m.boot(); end != want {
			t.Fatalf("ends in %s, want %s:\n%s", end, want, m.said.String())
		}
	}
	boot("reboot")
	boot("system")
	m.fetch(newRelease(t, 2, 5, change))
	boot("reboot")
	boot("system")
	if m.agent.Contract.Version != 2 || m.openVolume == nil {
		t.Errorf("version %s runs", m.agent.Contract.Version)
	}
	m.must(m.ukisSigned())
}

// ukisSigned checks that the firmware starts every UKI.
func (m *machine) ukisSigned() error {
	for _, name := range m.systems() {
		n, err := bls.Parse(name)
		if err != nil {
			return err
		}
		if err := m.startable("EFI/Linux/"+name, m.releases[n.Version].uki); err != nil {
			return err
		}
	}
	return nil
}

// A machine without Secure Boot, and one whose releases are not signed, get theirs
// as they are. Nothing pretends to protect them.
func TestStageUnprotected(t *testing.T) {
	change := func(c *contract.Contract) { c.SecureBoot = contract.Optional }
	m := newMachine(t, change)
	m.noSecureBoot = true
	m.ends("system", "WARNING: this system has no release key")
	m.runs(1)
	r := newRelease(t, 2, 6, change)
	m.releases[2] = r
	p := m.parcel(r)
	p.signer = nil
	m.deliver(p)
	m.runs(2)
	if f := m.esp.files["EFI/Linux/test_2+2-1.efi"]; !slices.Equal(f.now.data, r.uki) {
		t.Error("the UKI is not the release's")
	}
	m.bless()
	m.runs(2)
	m.holds(6, 2)
	// Somebody else's UKI on the ESP is taken along by no acceptance: nothing tells
	// it from ours.
	other := newRelease(t, 9, 6, func(c *contract.Contract) { change(c); c.RootHash = r.contract.RootHash })
	m.esp.files["EFI/Linux/test_9+0.efi"] = &espFile{remains{data: other.uki}, []remains{{data: other.uki}}}
	m.rename("test_9+0.efi", "test_9.efi")
	m.byHand = 2
	m.extra = "another firmware"
	m.accepts("test_9.efi is not taken along")
	m.holds(6, 2)
}

// An index that cannot be written leaves everything as it is, and the boot goes on.
func TestRecordNotWritten(t *testing.T) { // FAULTS 71
	m := provisionedMachine(t, pinned)
	m.fetch(newRelease(t, 2, 6, pinned))
	m.runs(2)
	m.bless()
	m.refuseRecord = true
	m.runs(2, "update-policy FAILED")
	m.wants("test_1.efi", "test_2.efi")
	m.refuseRecord = false
	m.runs(2, "the set of systems that may unlock the root partition has changed")
	m.wants("test_1+0.efi", "test_2.efi")
	m.holds(6, 2)
}

// A trial writes nothing to the TPM, and gives nothing up.
func TestTrialGivesNothingUp(t *testing.T) { // FAULTS 74
	m := provisionedMachine(t, pinned)
	m.fetch(newRelease(t, 2, 6, pinned))
	m.runs(2)
	m.ops = nil
	m.rootFiles()[staging.NoteFile] = []byte(`{"format":1,"version":"3","slot":"a"}`)
	m.runs(2)
	if got := m.written("tpm"); len(got) > 0 {
		t.Errorf("the TPM got %q", got)
	}
	m.holds(5, 1, 2)
	if strings.Contains(m.said.String(), "stage") {
		t.Errorf("it stages:\n%s", m.said.String())
	}
}

// The console's reseal takes the same along.
func TestConsoleResealKeepsFallback(t *testing.T) {
	m := updated(t)
	m.extra = "another firmware"
	m.ends("recovery")
	r, c := m.console()
	m.types(m.recoveryKey(), "y")
	m.works(r.Unlock(c))
	m.works(r.Reseal(c), "Accepted.")
	m.works(r.Lock())
	m.holds(5, 1, 2)
	m.runs(2)
	m.byHand = 1
	m.runs(1)
}
