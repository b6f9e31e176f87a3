package agent

import (
	"bytes"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// signedByUs is an EFI program with this machine's signature, as it was made once.
func (m *machine) signedByUs(image []byte) []byte {
	m.t.Helper()
	_, volumeKey, secret := m.unlocked()
	luks2.Wipe(volumeKey)
	keys, err := firstboot.UnwrapKeys(secret, m.rootFiles()[rootpart.ListFile])
	m.must(err)
	signed, err := enroll.DBSigner{Pair: keys.DB, Time: buildDate}.Sign(image)
	m.must(err)
	return signed
}

func (m *machine) putManager(image []byte) {
	signed := m.signedByUs(image)
	for _, name := range []string{removable, managerCopy} {
		m.esp.files[name] = &espFile{remains{data: bytes.Clone(signed)}, []remains{{data: bytes.Clone(signed)}}}
	}
	m.manager = image
}

// A boot manager that this machine has signed once starts, and unlocks nothing: it
// may be an old one with a known hole. FAULTS 94
func TestOldBootManager(t *testing.T) {
	m := provisionedMachine(t, nil)
	old := ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("systemd-boot of three years ago")})
	m.putManager(old)
	m.ends("recovery", "PCR 4 differs", "boot manager and EFI programs")
	if m.openVolume != nil || !strings.Contains(m.printed.String(), "Recovery key") {
		t.Errorf("it opens by itself under the old boot manager: %s", m.printed.String())
	}
	// Its owner has put it there: the TPM does not know it, so that a "y" is not enough.
	m.acceptsBy([]string{"y", "weaker"})
	m.runs(1)
}

// A boot option that failed before, as an empty drive, asks nobody for anything.
func TestDetour(t *testing.T) {
	m := updated(t)
	for _, detour := range []bool{true, false, true} {
		m.detour = detour
		m.runs(2)
	}
	m.byHand = 1
	m.runs(1)
}

// asEarlier makes a machine what an initagent before PCR 4 has left: a record of
// version 1 with these systems, and no note on the root partition.
func (m *machine) asEarlier(versions ...contract.Version) {
	m.t.Helper()
	lock, volumeKey, secret := m.unlocked()
	defer luks2.Wipe(volumeKey)
	key, err := secret.WriteKey()
	m.must(err)
	log, err := pcr.ParseLog(m.log)
	m.must(err)
	boot, err := rootpart.Logged(log)
	m.must(err)
	r := &policy.Record{Floor: 5, Volume: policy.VolumeFingerprint(volumeKey)}
	for _, v := range versions {
		_, started, err := rootpart.Describe(m.releases[v].uki)
		m.must(err)
		b := policy.Boot{PCR7: boot.PCR7, PCR11: pcr.Phases(started, pcr.EnterInitrd)}
		r.Branches = append(r.Branches, policy.Branch{Policy: b.Branch(), Version: uint64(v), Epoch: m.releases[v].contract.Epoch})
	}
	m.must(tpm.OpenTransport(m.emulator).WriteRecord(lock.Sealed.NVIndex, key, r))
	m.chipChanged = true
	delete(m.rootFiles(), rootpart.GuaranteesFile)
}

// over4 wants the record to be over PCR 4, or not.
func (m *machine) over4(want bool) {
	m.t.Helper()
	if r := m.policyRecord(); r.Programs != want {
		m.t.Fatalf("the record is over PCR 4: %v, want %v", r.Programs, want)
	}
}

var earlier = contract.Abilities{PolicyRecord: 1}

// From a release that knows records of version 1 alone: the record stays one that
// the fallback reads, also after the bless and after a rollback in between, and is over
// PCR 4 once nothing of that time may be started any more. FAULTS 94
func TestRecordVersions(t *testing.T) {
	m := newMachine(t, pinned)
	m.releases[1] = newReleaseOf(t, 1, 5, earlier, pinned)
	m.powerOn(m.installed(diskSize))
	m.ends("system")
	m.ends("system")
	m.asEarlier(1)
	m.runs(1)
	m.over4(false) // it is of a time before that; a record that changes nothing is not written
	m.fetch(newRelease(t, 2, 5, pinned))
	// What an earlier initagent does with it, this one does in the same words: as the
	// running system is of that time, the record stays at version 1.
	m.runs(2)
	m.asEarlier(1, 2)
	m.runs(2)
	m.bless()
	m.runs(2)
	m.over4(false)
	m.holds(5, 1, 2)
	m.byHand = 1
	m.runs(1)
	m.over4(false)
	m.byHand = 0
	m.runs(2)
	// The second update: what is left of the first release goes.
	m.fetch(newRelease(t, 3, 5, pinned))
	m.runs(3)
	m.over4(true)
	m.holds(5, 2, 3)
	m.bless()
	m.runs(3)
	m.byHand = 2
	m.runs(2)
	m.byHand = 0
	m.runs(3)
	// A release whose initagent could not read the record is not taken.
	m.fetch(newReleaseOf(t, 4, 5, earlier, pinned))
	m.runs(3, "cannot read this machine's record")
	m.over4(true)
}

// The same where the fallback goes because the floor rises over it: with the running
// system alone the record is over PCR 4 at once.
func TestRecordVersionsFloor(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.fetch(newRelease(t, 2, 6, pinned))
	m.runs(2)
	m.asEarlier(1, 2)
	m.bless()
	m.runs(2)
	m.holds(6, 2)
	m.over4(true)
	m.runs(2)
}

// While a boot manager is replaced either unlocks, for both systems; once nothing of
// the old one is left, on the ESP and among the copies, the new one alone. A restored
// copy is never of one that unlocks nothing. The firmware takes no revocation here, so
// that it goes on starting the old one. FAULTS 94
func TestBootManagerUnlocks(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.refuse = syscall.EACCES
	old := m.manager
	oldSigned := bytes.Clone(m.esp.files[removable].now.data)
	m.nextManager = otherManager
	m.fetchManager(newRelease(t, 2, 5, pinned), otherManager)
	m.runs(2)
	m.bless()
	m.runs(2, "EFI/BOOT/BOOTX64.EFI is the one of version 2 now")
	if !m.policyRecord().Passing() {
		t.Fatal("the record does not say that a boot manager is being replaced")
	}
	replaced := m.world(true, nil)
	for _, v := range []contract.Version{1, 2} {
		for _, back := range []bool{false, true} {
			m.powerOn(replaced)
			if back {
				m.esp.files[removable] = &espFile{remains{data: oldSigned}, []remains{{data: oldSigned}}}
			}
			m.byHand = v
			m.runs(v)
		}
	}
	m.powerOn(replaced)
	m.byHand = 0
	for range 5 {
		m.runs(2)
	}
	r := m.policyRecord()
	if r.Passing() || !r.Programs {
		t.Fatalf("afterwards it is %+v", r)
	}
	m.holds(5, 1, 2)
	settled := m.world(true, nil)
	m.byHand = 1
	m.runs(1)
	m.byHand = 0
	// The old one, put back by hand.
	m.powerOn(settled)
	m.esp.files[removable] = &espFile{remains{data: oldSigned}, []remains{{data: oldSigned}}}
	m.ends("recovery", "PCR 4 differs")
	if !m.hasManager(removable, old) {
		t.Error("it was not the old one")
	}
	// One that is gone is restored from the copies, which are the new one's.
	m.powerOn(settled)
	delete(m.esp.files, managerCopy)
	m.runs(2)
	if !m.hasManager(managerCopy, otherManager) {
		t.Errorf("it was not restored:\n%s", m.said.String())
	}
	m.runs(2)
	// The next update starts from the new one.
	m.fetch(newRelease(t, 3, 5, pinned))
	m.runs(3)
	m.bless()
	m.runs(3)
}

// An old boot manager of this machine's own lies on the path that the firmware does not
// take, and waits for a record that has it: the next one does not, where the firmware
// takes no revocation. FAULTS 94
func TestPlantedBootManager(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.refuse = syscall.EACCES
	old := bytes.Clone(m.esp.files[removable].now.data)
	m.nextManager = otherManager
	m.fetchManager(newRelease(t, 2, 5, pinned), otherManager)
	m.runs(2)
	m.bless()
	for range 6 {
		m.runs(2)
	}
	if m.policyRecord().Passing() {
		t.Fatal("the new boot manager is not the only one yet")
	}
	plant := func(name string) {
		m.esp.files[name] = &espFile{remains{data: bytes.Clone(old)}, []remains{{data: bytes.Clone(old)}}}
	}
	plant(managerCopy)
	m.runs(2)
	m.fetchManager(newRelease(t, 3, 5, pinned), otherManager)
	m.runs(3)
	plant(removable)
	m.ends("recovery", "PCR 4 differs")
	if m.openVolume != nil {
		t.Error("the old boot manager opens the root partition")
	}
}
