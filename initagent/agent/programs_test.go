package agent_test

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
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// signedByUs is an EFI program with this machine's signature, as it was made once.
func signedByUs(m *machinetest.Machine, image []byte) []byte {
	m.T.Helper()
	_, volumeKey, secret := m.Unlocked()
	luks2.Wipe(volumeKey)
	keys, err := firstboot.UnwrapKeys(secret, m.RootFiles()[rootpart.ListFile])
	m.Must(err)
	signed, err := enroll.DBSigner{Pair: keys.DB, Time: machinetest.BuildDate}.Sign(image)
	m.Must(err)
	return signed
}

func putManager(m *machinetest.Machine, image []byte) {
	signed := signedByUs(m, image)
	for _, name := range []string{machinetest.Removable, machinetest.ManagerCopy} {
		m.ESP.Files[name] = &machinetest.ESPFile{Now: machinetest.Remains{Data: bytes.Clone(signed)}, Disk: []machinetest.Remains{{Data: bytes.Clone(signed)}}}
	}
	m.Manager = image
}

// A boot manager that this machine has signed once starts, and unlocks nothing: it
// may be an old one with a known hole. FAULTS 94
func TestOldBootManager(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	old := ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("systemd-boot of three years ago")})
	putManager(m, old)
	m.Ends("recovery", "PCR 4 differs", "boot manager and EFI programs")
	if m.OpenVolume != nil || !strings.Contains(m.Printed.String(), "Recovery key") {
		t.Errorf("it opens by itself under the old boot manager: %s", m.Printed.String())
	}
	// Its owner has put it there: the TPM does not know it, so that a "y" is not enough.
	m.AcceptsBy([]string{"y", "weaker"})
	m.Runs(1)
}

// A boot option that failed before, as an empty drive, asks nobody for anything.
func TestDetour(t *testing.T) {
	m := machinetest.Updated(t)
	for _, detour := range []bool{true, false, true} {
		m.Detour = detour
		m.Runs(2)
	}
	m.ByHand = 1
	m.Runs(1)
}

// asEarlier makes a machine what an initagent before PCR 4 has left: a record of
// version 1 with these systems, and no note on the root partition.
func asEarlier(m *machinetest.Machine, versions ...contract.Version) {
	m.T.Helper()
	lock, volumeKey, secret := m.Unlocked()
	defer luks2.Wipe(volumeKey)
	key, err := secret.WriteKey()
	m.Must(err)
	log, err := pcr.ParseLog(m.Log)
	m.Must(err)
	boot, err := rootpart.Logged(log)
	m.Must(err)
	r := &policy.Record{Floor: 5, Volume: policy.VolumeFingerprint(volumeKey)}
	for _, v := range versions {
		_, started, err := rootpart.Describe(m.Releases[v].UKI)
		m.Must(err)
		b := policy.Boot{PCR7: boot.PCR7, PCR11: pcr.Phases(started, pcr.EnterInitrd)}
		r.Branches = append(r.Branches, policy.Branch{Policy: b.Branch(), Version: uint64(v), Epoch: m.Releases[v].Contract.Epoch})
	}
	m.Must(tpm.OpenTransport(m.Emulator).WriteRecord(lock.Sealed.NVIndex, key, r))
	m.ChipChanged = true
	delete(m.RootFiles(), rootpart.GuaranteesFile)
}

// over4 wants the record to be over PCR 4, or not.
func over4(m *machinetest.Machine, want bool) {
	m.T.Helper()
	if r := m.PolicyRecord(); r.Programs != want {
		m.T.Fatalf("the record is over PCR 4: %v, want %v", r.Programs, want)
	}
}

var earlier = contract.Abilities{PolicyRecord: 1}

// From a release that knows records of version 1 alone: the record stays one that
// the fallback reads, also after the bless and after a rollback in between, and is over
// PCR 4 once nothing of that time may be started any more. FAULTS 94
func TestRecordVersions(t *testing.T) {
	m := machinetest.New(t, machinetest.Pinned)
	m.Releases[1] = machinetest.NewReleaseOf(t, 1, 5, earlier, machinetest.Pinned)
	m.PowerOn(m.Installed(machinetest.DiskSize))
	m.Ends("system")
	m.Ends("system")
	asEarlier(m, 1)
	m.Runs(1)
	over4(m, false) // it is of a time before that; a record that changes nothing is not written
	m.Fetch(machinetest.NewRelease(t, 2, 5, machinetest.Pinned))
	// What an earlier initagent does with it, this one does in the same words: as the
	// running system is of that time, the record stays at version 1.
	m.Runs(2)
	asEarlier(m, 1, 2)
	m.Runs(2)
	m.Bless()
	m.Runs(2)
	over4(m, false)
	m.Holds(5, 1, 2)
	m.ByHand = 1
	m.Runs(1)
	over4(m, false)
	m.ByHand = 0
	m.Runs(2)
	// The second update: what is left of the first release goes.
	m.Fetch(machinetest.NewRelease(t, 3, 5, machinetest.Pinned))
	m.Runs(3)
	over4(m, true)
	m.Holds(5, 2, 3)
	m.Bless()
	m.Runs(3)
	m.ByHand = 2
	m.Runs(2)
	m.ByHand = 0
	m.Runs(3)
	// A release whose initagent could not read the record is not taken.
	m.Fetch(machinetest.NewReleaseOf(t, 4, 5, earlier, machinetest.Pinned))
	m.Runs(3, "cannot read this machine's record")
	over4(m, true)
}

// The same where the fallback goes because the floor rises over it: with the running
// system alone the record is over PCR 4 at once.
func TestRecordVersionsFloor(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.Fetch(machinetest.NewRelease(t, 2, 6, machinetest.Pinned))
	m.Runs(2)
	asEarlier(m, 1, 2)
	m.Bless()
	m.Runs(2)
	m.Holds(6, 2)
	over4(m, true)
	m.Runs(2)
}

// While a boot manager is replaced either unlocks, for both systems; once nothing of
// the old one is left, on the ESP and among the copies, the new one alone. A restored
// copy is never of one that unlocks nothing. The firmware takes no revocation here, so
// that it goes on starting the old one. FAULTS 94
func TestBootManagerUnlocks(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.Refuse = syscall.EACCES
	old := m.Manager
	oldSigned := bytes.Clone(m.ESP.Files[machinetest.Removable].Now.Data)
	m.NextManager = machinetest.OtherManager
	m.FetchManager(machinetest.NewRelease(t, 2, 5, machinetest.Pinned), machinetest.OtherManager)
	m.Runs(2)
	m.Bless()
	m.Runs(2, "EFI/BOOT/BOOTX64.EFI is the one of version 2 now")
	if !m.PolicyRecord().Passing() {
		t.Fatal("the record does not say that a boot manager is being replaced")
	}
	replaced := m.World(true, nil)
	for _, v := range []contract.Version{1, 2} {
		for _, back := range []bool{false, true} {
			m.PowerOn(replaced)
			if back {
				m.ESP.Files[machinetest.Removable] = &machinetest.ESPFile{Now: machinetest.Remains{Data: oldSigned}, Disk: []machinetest.Remains{{Data: oldSigned}}}
			}
			m.ByHand = v
			m.Runs(v)
		}
	}
	m.PowerOn(replaced)
	m.ByHand = 0
	for range 5 {
		m.Runs(2)
	}
	r := m.PolicyRecord()
	if r.Passing() || !r.Programs {
		t.Fatalf("afterwards it is %+v", r)
	}
	m.Holds(5, 1, 2)
	settled := m.World(true, nil)
	m.ByHand = 1
	m.Runs(1)
	m.ByHand = 0
	// The old one, put back by hand.
	m.PowerOn(settled)
	m.ESP.Files[machinetest.Removable] = &machinetest.ESPFile{Now: machinetest.Remains{Data: oldSigned}, Disk: []machinetest.Remains{{Data: oldSigned}}}
	m.Ends("recovery", "PCR 4 differs")
	if !m.HasManager(machinetest.Removable, old) {
		t.Error("it was not the old one")
	}
	// One that is gone is restored from the copies, which are the new one's.
	m.PowerOn(settled)
	delete(m.ESP.Files, machinetest.ManagerCopy)
	m.Runs(2)
	if !m.HasManager(machinetest.ManagerCopy, machinetest.OtherManager) {
		t.Errorf("it was not restored:\n%s", m.Said.String())
	}
	m.Runs(2)
	// The next update starts from the new one.
	m.Fetch(machinetest.NewRelease(t, 3, 5, machinetest.Pinned))
	m.Runs(3)
	m.Bless()
	m.Runs(3)
}

// An old boot manager of this machine's own lies on the path that the firmware does not
// take, and waits for a record that has it: the next one does not, where the firmware
// takes no revocation. FAULTS 94
func TestPlantedBootManager(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.Refuse = syscall.EACCES
	old := bytes.Clone(m.ESP.Files[machinetest.Removable].Now.Data)
	m.NextManager = machinetest.OtherManager
	m.FetchManager(machinetest.NewRelease(t, 2, 5, machinetest.Pinned), machinetest.OtherManager)
	m.Runs(2)
	m.Bless()
	for range 6 {
		m.Runs(2)
	}
	if m.PolicyRecord().Passing() {
		t.Fatal("the new boot manager is not the only one yet")
	}
	plant := func(name string) {
		m.ESP.Files[name] = &machinetest.ESPFile{Now: machinetest.Remains{Data: bytes.Clone(old)}, Disk: []machinetest.Remains{{Data: bytes.Clone(old)}}}
	}
	plant(machinetest.ManagerCopy)
	m.Runs(2)
	m.FetchManager(machinetest.NewRelease(t, 3, 5, machinetest.Pinned), machinetest.OtherManager)
	m.Runs(3)
	plant(machinetest.Removable)
	m.Ends("recovery", "PCR 4 differs")
	if m.OpenVolume != nil {
		t.Error("the old boot manager opens the root partition")
	}
}
