package upkeep_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/staging"
	"halogenos.internal/initagent/tpm"
)

// Who accepts a changed machine keeps the system that it falls back to.
func TestAcceptKeepsFallback(t *testing.T) { // FAULTS 71
	m := machinetest.Updated(t)
	m.Extra = "another firmware"
	m.Accepts()
	m.Holds(5, 1, 2)
	m.Runs(2)
	m.ByHand = 1
	m.Runs(1)
}

// The same on trial, by a record that is there and by a TPM that is another: the
// fallback must not be shut out by a system that has not proven itself.
func TestAcceptOnTrial(t *testing.T) {
	for _, clear := range []bool{false, true} {
		m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
		m.Fetch(machinetest.NewRelease(t, 2, 6, machinetest.Pinned))
		m.Runs(2)
		if clear {
			m.ChipState, m.ChipChanged = nil, false
			m.Must(os.Remove(filepath.Join(m.Emulator.Directory, machinetest.StateFile)))
			m.Rebinds()
		} else {
			m.Extra = "another firmware"
			m.Accepts()
		}
		m.Holds(5, 1, 2)
		m.ByHand = 1
		m.Runs(1)
	}
}

// What somebody has put on the ESP is not taken along with what is accepted: not a
// system that was replaced, and not one that this machine never signed. FAULTS 46, 73
func TestAcceptTakesNobodyAlong(t *testing.T) {
	m := machinetest.Updated(t)
	m.Fetch(machinetest.NewRelease(t, 3, 5, machinetest.Pinned))
	replaced := m.ESP.Files["EFI/Linux/test_2.efi"]
	m.Runs(3)
	m.Bless()
	m.Runs(3)
	m.Holds(5, 2, 3)
	m.Extra = "another firmware"
	// A release of the attacker's over the content of the running slot, which anybody can read.
	own := machinetest.NewRelease(t, 9, 5, machinetest.With(func(c *contract.Contract) { c.RootHash = m.Releases[3].Contract.RootHash }))
	sets, err := machinetest.KeySets()
	m.Must(err)
	signed, err := enroll.DBSigner{Pair: sets[(m.KeysNo+1)%len(sets)].DB, Time: machinetest.BuildDate}.Sign(own.UKI)
	m.Must(err)
	for version, uki := range map[string][]byte{"8": replaced.Now.Data, "9": own.UKI, "10": signed} {
		m.ESP.Files["EFI/Linux/test_"+version+"+3.efi"] = &machinetest.ESPFile{Now: machinetest.Remains{Data: uki}, Disk: []machinetest.Remains{{Data: uki}}}
	}
	m.ByHand = 3
	m.Accepts("the TPM's record does not have it", "test_8+3.efi is not taken along: it is test 2 inside")
	m.Holds(5, 2, 3)
	// The TPM was cleared, and knows nothing of any version.
	m.ChipState, m.ChipChanged = nil, false
	m.Must(os.Remove(filepath.Join(m.Emulator.Directory, machinetest.StateFile)))
	for _, name := range []string{"test_9+3.efi", "test_9+2-1.efi"} {
		delete(m.ESP.Files, "EFI/Linux/"+name)
	}
	m.ESP.Files["EFI/Linux/test_9.efi"] = &machinetest.ESPFile{Now: machinetest.Remains{Data: own.UKI}, Disk: []machinetest.Remains{{Data: own.UKI}}}
	m.Rebinds("test_9.efi is not taken along: verify image: image is not signed")
	m.Holds(5, 2, 3)
}

// Where the TPM cannot hold the record the secret is sealed to both systems, in
// the header of the root partition. Each unlocks.
func TestStageWithoutRecord(t *testing.T) {
	m := machinetest.New(t, machinetest.Pinned)
	m.FillTPM()
	m.Ends("system", "WARNING: this TPM cannot hold the policy record")
	m.Runs(1)
	m.Fetch(machinetest.NewRelease(t, 2, 5, machinetest.Pinned))
	m.Runs(2)
	m.Bless()
	m.Runs(2)
	lock, volumeKey, secret := m.Unlocked()
	luks2.Wipe(volumeKey)
	secret.Wipe()
	if lock.Sealed.Kind != policy.KindPCR || len(lock.Sealed.Branches) != 2 {
		t.Errorf("sealed as %s to %d boots", lock.Sealed.Kind, len(lock.Sealed.Branches))
	}
	m.ByHand = 1
	m.Runs(1)
	m.ByHand = 0
	m.Runs(2)
	m.Fetch(machinetest.NewRelease(t, 3, 5, machinetest.Pinned))
	m.Runs(3)
	m.ByHand = 2
	m.Runs(2)
}

// Without a TPM a person unlocks each system, and it is staged all the same.
func TestStageWithoutTPM(t *testing.T) { // FAULTS 71
	change := machinetest.With(machinetest.NoTPMNeeded)
	m := machinetest.New(t, change)
	m.NoTPM = tpm.ErrAbsent
	boot := func(want string) {
		t.Helper()
		m.Typed = nil
		if len(m.Shown) > 0 {
			m.Typed = []string{m.RecoveryKey()}
		}
		if end := m.Boot(); end != want {
			t.Fatalf("ends in %s, want %s:\n%s", end, want, m.Said.String())
		}
	}
	boot("reboot")
	boot("system")
	m.Fetch(machinetest.NewRelease(t, 2, 5, change))
	boot("reboot")
	boot("system")
	if m.Agent.Contract.Version != 2 || m.OpenVolume == nil {
		t.Errorf("version %s runs", m.Agent.Contract.Version)
	}
	m.Must(m.UkisSigned())
}

// A machine without Secure Boot, and one whose releases are not signed, get theirs
// as they are. Nothing pretends to protect them.
func TestStageUnprotected(t *testing.T) {
	change := func(c *contract.Contract) { c.SecureBoot = contract.Optional }
	m := machinetest.New(t, change)
	m.NoSecureBoot = true
	m.Ends("system", "WARNING: this system has no release key")
	m.Runs(1)
	r := machinetest.NewRelease(t, 2, 6, change)
	m.Releases[2] = r
	p := m.Parcel(r)
	p.Signer = nil
	m.Deliver(p)
	m.Runs(2)
	if f := m.ESP.Files["EFI/Linux/test_2+2-1.efi"]; !slices.Equal(f.Now.Data, r.UKI) {
		t.Error("the UKI is not the release's")
	}
	m.Bless()
	m.Runs(2)
	m.Holds(6, 2)
	// Somebody else's UKI on the ESP is taken along by no acceptance: nothing tells
	// it from ours.
	other := machinetest.NewRelease(t, 9, 6, func(c *contract.Contract) { change(c); c.RootHash = r.Contract.RootHash })
	m.ESP.Files["EFI/Linux/test_9+0.efi"] = &machinetest.ESPFile{Now: machinetest.Remains{Data: other.UKI}, Disk: []machinetest.Remains{{Data: other.UKI}}}
	m.Rename("test_9+0.efi", "test_9.efi")
	m.ByHand = 2
	m.Extra = "another firmware"
	m.Accepts("test_9.efi is not taken along")
	m.Holds(6, 2)
}

// An index that cannot be written leaves everything as it is, and the boot goes on.
func TestRecordNotWritten(t *testing.T) { // FAULTS 71
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.Fetch(machinetest.NewRelease(t, 2, 6, machinetest.Pinned))
	m.Runs(2)
	m.Bless()
	m.RefuseRecord = true
	m.Runs(2, "update-policy FAILED")
	m.Wants("test_1.efi", "test_2.efi")
	m.RefuseRecord = false
	m.Runs(2, "the set of systems that may unlock the root partition has changed")
	m.Wants("test_1+0.efi", "test_2.efi")
	m.Holds(6, 2)
}

// A trial writes nothing to the TPM, and gives nothing up.
func TestTrialGivesNothingUp(t *testing.T) { // FAULTS 74
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.Fetch(machinetest.NewRelease(t, 2, 6, machinetest.Pinned))
	m.Runs(2)
	m.Ops = nil
	m.RootFiles()[staging.NoteFile] = []byte(`{"format":1,"version":"3","slot":"a"}`)
	m.Runs(2)
	if got := m.Written("tpm"); len(got) > 0 {
		t.Errorf("the TPM got %q", got)
	}
	m.Holds(5, 1, 2)
	if strings.Contains(m.Said.String(), "stage") {
		t.Errorf("it stages:\n%s", m.Said.String())
	}
}

// The console's reseal takes the same along.
func TestConsoleResealKeepsFallback(t *testing.T) {
	m := machinetest.Updated(t)
	m.Extra = "another firmware"
	m.Ends("recovery")
	r, c := m.Console()
	m.Types(m.RecoveryKey(), "y")
	m.Works(r.Unlock(c))
	m.Works(r.Reseal(c), "Accepted.")
	m.Works(r.Lock())
	m.Holds(5, 1, 2)
	m.Runs(2)
	m.ByHand = 1
	m.Runs(1)
}
