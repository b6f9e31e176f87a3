package agent_test

import (
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/bootoption"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/enroll"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/tpm"
)

// A disk that does not fit is refused before anything is written to it.
func TestDiskRefused(t *testing.T) { // FAULTS 39, 41
	for _, c := range []struct {
		name string
		set  func(m *machinetest.Machine)
		says string
	}{
		{"too small", func(m *machinetest.Machine) { m.PowerOn(m.Installed(700 * machinetest.MiB)) }, "the largest free space"},
		{"a second partition of the same name", func(m *machinetest.Machine) {
			table, _, err := m.Table()
			m.Must(err)
			table.Partitions = append(table.Partitions, gpt.Partition{Number: 7, Type: layout.TypeRoot, UUID: gpt.MustGUID("99999999-2222-4333-8444-555555555555"),
				First: table.Sectors - 10000, Last: table.Sectors - 9000, Label: "system-a"})
			m.Must(table.Write(m.Disk))
		}, `2 and 7 could both be "system-a"`},
		{"two that look alike", func(m *machinetest.Machine) { m.Second = m.Disk.Now.Overlay() }, "detach the one"},
		{"two that look alike, of which the other was not started from", func(m *machinetest.Machine) {
			m.Second = m.Disk.Now.Overlay()
			m.StartsFrom = []bootoption.Function{{Device: 4}}
			m.PCI = [2][]bootoption.Function{{{Device: 3}}, {{Device: 3}}}
		}, "detach the one"},
		{"two that look alike, on two controllers of which none was started from", func(m *machinetest.Machine) {
			m.Second = m.Disk.Now.Overlay()
			m.StartsFrom = []bootoption.Function{{Device: 4}}
			m.PCI = [2][]bootoption.Function{{{Device: 3}}, {{Device: 5}}}
		}, "detach the one"},
		{"two that look alike on the controller that was started from", func(m *machinetest.Machine) {
			m.Second = m.Disk.Now.Overlay()
			m.StartsFrom = []bootoption.Function{{Device: 3}}
			m.PCI = [2][]bootoption.Function{m.StartsFrom, m.StartsFrom}
		}, "detach the one"},
		{"not in Setup Mode", func(m *machinetest.Machine) {
			sets, err := machinetest.KeySets()
			m.Must(err)
			for _, v := range []secureboot.Variable{secureboot.PK, secureboot.KEK, secureboot.DB} {
				content, err := sets[0].Wanted(secureboot.Vendor{}).Of(v).Marshal()
				m.Must(err)
				m.Vars[v.Name] = machinetest.EFIVariable{Attributes: secureboot.KeyAttributes, Data: content}
			}
			machinetest.SetFlag(m.Vars, "SetupMode", 0)
			signer := enroll.DBSigner{Pair: sets[0].DB, Time: machinetest.BuildDate}
			_, err = enroll.SignAll(machinetest.ESPDir{MemESP: m.ESP}, enroll.State{}, signer, func(string, []byte) error { return nil })
			m.Must(err)
		}, "choose to reset or clear the Secure Boot keys"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := machinetest.New(t, nil)
			c.set(m)
			m.Ops = nil
			m.Ends("recovery", c.says)
			if len(m.Ops) > 0 {
				t.Errorf("it was written to: %q", m.Ops)
			}
		})
	}
}

func TestWrongImage(t *testing.T) { // FAULTS 38
	m := machinetest.New(t, nil)
	table, _, err := m.Table()
	m.Must(err)
	system, _ := layout.Find(table, layout.SystemA)
	_, err = m.Disk.WriteAt([]byte("x"), int64(system.First)*machinetest.SectorSize+5000)
	m.Must(err)
	m.Ends("recovery", "does not hold the system image of test 1", "install the image again")
	table, _, err = m.Table()
	m.Must(err)
	c := m.Releases[1].Contract
	if _, named := layout.FindSlot(table, layout.SystemUUID(c.Root()), layout.VerityUUID(c.Root())); named {
		t.Error("the tree got its name")
	}
}

// What the firmware refuses is said, and tried again at the next start.
func TestFirmwareRefuses(t *testing.T) {
	m := machinetest.New(t, nil)
	m.Refuse = syscall.EACCES
	m.Ends("recovery", "were not enrolled", "security violation")
	if m.Vars["PK"].Data != nil {
		t.Error("PK was written")
	}
	m.Refuse = nil
	m.Ends("system")
	m.Must(m.Provisioned())
}

// A TPM without room for the record is used without one, and says so.
func TestNoRoomInTPM(t *testing.T) {
	m := machinetest.New(t, nil)
	m.FillTPM()
	m.Ends("system", "WARNING: this TPM cannot hold the policy record")
	m.Printed.Reset()
	m.Ends("system")
	if m.Printed.Len() > 0 || m.OpenVolume == nil {
		t.Errorf("the next boot says %s", m.Printed.String())
	}
	lock, volumeKey, secret := m.Unlocked()
	luks2.Wipe(volumeKey)
	secret.Wipe()
	if lock.Sealed.Kind != policy.KindPCR || !slices.Equal(lock.Sealed.PCRs, policy.WithoutPrograms()) {
		t.Errorf("sealed as %s to PCRs %v", lock.Sealed.Kind, lock.Sealed.PCRs)
	}
}

// Without a TPM the recovery key opens the root partition, which holds the
// Secure Boot keys from the beginning. Wherever this is cut the keys end up
// enrolled.
func TestNoTPM(t *testing.T) { // FAULTS 71
	m := machinetest.New(t, machinetest.NoTPMNeeded)
	m.NoTPM = tpm.ErrAbsent
	start := m.World(true, nil)
	finish := func(how string) {
		t.Helper()
		for range 8 {
			m.Typed = nil
			if len(m.Shown) > 0 {
				m.Typed = []string{m.RecoveryKey(), "y"} // keys are enrolled by their owner's word alone
			}
			switch end := m.Boot(); {
			case end == "system" && m.Vars["SecureBoot"].Data[0] == 1:
				if err := m.CheckKeys(); err != nil {
					t.Errorf("%s: %v", how, err)
				}
				return
			case end != "reboot":
				t.Errorf("%s: a boot ends in %s:\n%s", how, end, m.Said.String())
				return
			}
		}
		t.Errorf("%s: it never ends:\n%s", how, m.Said.String())
	}
	m.PowerOn(start)
	finish("without a cut")
	m.PowerOn(start)
	states, _ := m.RecordOnce(mrand.New(mrand.NewPCG(3, 4)))
	tried := 0
	for _, s := range states {
		if strings.Contains(s.How, "disk write of") { // formatting is cut elsewhere
			continue
		}
		m.PowerOn(s.World)
		m.Said.Reset()
		finish(s.How)
		tried++
	}
	t.Logf("%d states", tried)
}

// A TPM that did not answer when the boot began may answer what runs later: so
// nothing else runs.
func TestTPMThatCannotBeTold(t *testing.T) { // FAULTS 71, 79
	m := machinetest.ProvisionedMachine(t, machinetest.NoTPMNeeded)
	m.NoTPM = tpm.ErrBusy
	m.Typed = []string{m.RecoveryKey()}
	for _, says := range []string{"the machine restarts into the recovery console", "no console: the TPM could not be told"} {
		if end := m.Boot(); end != "reboot" || !strings.Contains(strings.ToLower(m.Said.String()), strings.ToLower(says)) {
			t.Errorf("ends in %s:\n%s", end, m.Said.String())
		}
	}
}

// The recovery console opens over a closed root partition, whatever was open.
func TestConsoleAfterUnlock(t *testing.T) { // FAULTS 77, 79
	m := machinetest.ProvisionedMachine(t, nil)
	etc := filepath.Join(m.Root, host.SystemDirectory, "etc")
	m.Must(os.Remove(etc))
	m.Must(os.WriteFile(etc, nil, 0o600))
	m.Ends("recovery", "it is not a directory in the image") // person.Shell looks at the rest
}

// Every trial of a slot with a corrupt image ends in the other one.
func TestCorruptTrial(t *testing.T) { // FAULTS 32
	m := machinetest.ProvisionedMachine(t, nil)
	m.Releases[2] = machinetest.NewRelease(t, 2, 5, nil)
	m.Stage(m.Releases[2], true)
	m.Ends("system", "slot b: verity:", "test_2+0-1.efi has no tries left")
	if m.Agent.Contract.Version != 1 || m.OpenVolume == nil {
		t.Errorf("version %s runs", m.Agent.Contract.Version)
	}
}

// A system that was replaced for good gets no key and no second chance.
func TestUnderTheFloor(t *testing.T) { // FAULTS 73
	m := machinetest.ProvisionedMachine(t, nil)
	lock, volumeKey, secret := m.Unlocked()
	key, err := secret.WriteKey()
	m.Must(err)
	m.Must(tpm.OpenTransport(m.Emulator).WriteRecord(lock.Sealed.NVIndex, key, &policy.Record{
		Floor: 9, Volume: policy.VolumeFingerprint(volumeKey), Branches: []policy.Branch{{Policy: policy.Digest{1}, Version: 9, Epoch: 9}},
	}))
	m.ChipChanged = true
	m.Ends("recovery", "this system's epoch is 5 and the TPM's floor is 9")
	if m.OpenVolume != nil || m.Printed.Len() > 0 {
		t.Errorf("it asks: %s", m.Printed.String())
	}
}

// The recovery key accepts a change by one write to the TPM, and nothing else.
func TestAcceptChange(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	m.Extra = "another firmware"
	m.Typed = []string{"not a key", m.RecoveryKey(), "y"}
	m.Ends("system", "PCR 7")
	if got := m.Written("tpm"); !slices.Equal(got, []string{"tpm write index"}) {
		t.Errorf("the TPM got %q", got)
	}
	if len(m.Written("disk")) > 0 || !strings.Contains(m.Printed.String(), "Accepted.") || strings.Contains(m.Said.String(), m.RecoveryKey()) {
		t.Errorf("it says %s and writes %q", m.Printed.String(), m.Ops)
	}
	if !slices.Contains(m.Kinds(), journal.Accepted) {
		t.Errorf("the journal has %v", m.Kinds())
	}
	m.Must(m.CheckEveryDay())
}

// The recovery key binds the root partition to a TPM that took the place of
// another, and refuses to without a yes.
func TestAnotherTPM(t *testing.T) { // FAULTS 71
	m := machinetest.ProvisionedMachine(t, nil)
	m.ChipState, m.ChipChanged = nil, false
	m.Must(os.Remove(filepath.Join(m.Emulator.Directory, machinetest.StateFile)))
	m.Typed = []string{m.RecoveryKey(), ""}
	m.Ends("system", "the TPM was cleared, is another one")
	if len(m.Written("tpm")) > 0 {
		t.Errorf("without a yes the TPM got %q", m.Ops)
	}
	m.Typed = []string{m.RecoveryKey(), "y", "y"}
	m.Ends("system")
	if strings.Contains(m.Printed.String(), "Bound to this TPM.") {
		t.Error("it is bound, although nobody knows which systems were replaced")
	}
	m.Rebinds()
	if !strings.Contains(m.Printed.String(), "Bound to this TPM.") {
		t.Errorf("it says %s", m.Printed.String())
	}
	m.Must(m.CheckRoot())
	m.Must(m.CheckEveryDay())
}

// An ESP that cannot be written does not keep a machine in use from starting.
func TestReadOnlyESP(t *testing.T) { // FAULTS 47
	m := machinetest.ProvisionedMachine(t, nil)
	m.ESP.Fails = syscall.EROFS
	r := machinetest.Remains{Unreadable: true}
	m.ESP.Files[firstboot.Name(0)] = &machinetest.ESPFile{Now: r, Disk: []machinetest.Remains{r}}
	m.Ends("system", "was not tidied up")
	if m.OpenVolume == nil {
		t.Error("it runs without its root partition")
	}
}
