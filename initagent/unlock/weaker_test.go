package unlock_test

import (
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// raised is a machine whose second release has raised the floor from 5 to 6.
func raised(t *testing.T) *machinetest.Machine {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.Fetch(machinetest.NewRelease(t, 2, 6, machinetest.Pinned))
	m.Runs(2)
	m.Bless()
	m.Runs(2)
	m.Holds(6, 2)
	return m
}

// Who deletes the TPM's index does not delete the floor: a system that was replaced
// for good is not accepted, whatever is typed. FAULTS 91
func TestFloorOutlivesIndex(t *testing.T) {
	m := raised(t)
	if g := m.Noted(); g.Floor != 6 || !g.Record || !g.Programs || !g.SecureBoot {
		t.Errorf("the root partition notes %+v", g)
	}
	m.Undefine()
	m.Rename("test_1+0.efi", "test_1.efi")
	m.ByHand = 1
	m.Typed = []string{m.RecoveryKey(), "y", "weaker", "y"}
	m.Said.Reset()
	if end := m.Boot(); end != "reboot" || !strings.Contains(m.Said.String(), "epoch is 5 and the floor is 6") {
		t.Errorf("it ends in %s:\n%s", end, m.Said.String())
	}
	if strings.Contains(m.Printed.String(), "Accept this machine") {
		t.Errorf("it asks: %s", m.Printed.String())
	}
	// The system that may run is accepted, and the floor is back in the TPM.
	m.ByHand = 2
	m.Rebinds()
	m.Holds(6, 2)
	m.Runs(2)
}

// Wherever the power is cut while the floor rises: a TPM that has the higher floor
// is not the only place that has it. FAULTS 91
func TestCutFloor(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.Fetch(machinetest.NewRelease(t, 2, 6, machinetest.Pinned))
	m.Runs(2)
	m.Bless()
	var worlds []*machinetest.World
	m.Snapshot = func() { m.Remaining(func(w *machinetest.World) { worlds = append(worlds, w) }) }
	m.Runs(2)
	m.Snapshot = nil
	worlds = append(worlds, m.World(true, nil))
	risen := 0
	for _, w := range worlds {
		m.PowerOn(w)
		m.Must(m.Emulator.PowerOn(w.Chip))
		if r := m.PolicyRecord(); r.Floor == 6 {
			risen++
			if g := m.Noted(); g.Floor != 6 {
				t.Fatalf("the TPM's floor is 6, and the root partition's %d", g.Floor)
			}
		}
	}
	if risen == 0 || risen == len(worlds) {
		t.Errorf("%d of %d states have the higher floor", risen, len(worlds))
	}
}

// What comes from outside the UKI is not accepted, nobody is asked for anything, and
// nothing is handed over; not even where an earlier release has accepted it. FAULTS 92
func TestForeign(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	good := m.World(true, nil)
	lock, volumeKey, secret := m.Unlocked()
	defer luks2.Wipe(volumeKey)
	key, err := secret.WriteKey()
	m.Must(err)
	for _, c := range []struct {
		name   string
		set    func()
		before bool // it was accepted by an earlier release
	}{
		{"a command line", func() { m.Extra12 = "systemd.debug_shell=1" }, false},
		{"a system extension", func() { m.Extra13 = "an extension" }, false},
		{"one that was accepted before", func() { m.Extra12 = "systemd.debug_shell=1" }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.T = t
			m.PowerOn(good)
			m.Extra12, m.Extra13 = "", ""
			c.set()
			if c.before {
				m.Must(m.Emulator.PowerOn(good.Chip))
				_, _, err := m.Start()
				m.Must(err)
				log, err := pcr.ParseLog(m.Log)
				m.Must(err)
				boot, err := rootpart.Logged(log)
				m.Must(err)
				m.Must(m.Emulator.PowerOn(good.Chip))
				m.Must(tpm.OpenTransport(m.Emulator).WriteRecord(lock.Sealed.NVIndex, key, &policy.Record{
					Floor: 5, Volume: policy.VolumeFingerprint(volumeKey), Branches: []policy.Branch{{Policy: boot.Branch(), Version: 1, Epoch: 5}},
				}))
				m.ChipChanged = true
			}
			m.Typed = []string{m.RecoveryKey(), "y", "weaker"}
			m.Printed.Reset()
			m.Ends("recovery", "from outside the UKI was added to this boot")
			if m.OpenVolume != nil || len(m.Typed) != 3 || m.Printed.Len() > 0 {
				t.Errorf("it asks %q, and the root partition is open: %v", m.Printed.String(), m.OpenVolume != nil)
			}
		})
	}
	m.T = t
}

// manager252 is a boot manager that measures the UKI's own command line.
var manager252 = ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("boot manager")},
	ukitest.Section{Name: ".sdmagic", Data: []byte("#### LoaderInfo: systemd-boot 252.39-1~deb12u2 ####\x00")})

var manager257 = ukitest.Image(ukitest.Section{Name: ".text", Data: []byte("a newer boot manager")},
	ukitest.Section{Name: ".sdmagic", Data: []byte("#### LoaderInfo: systemd-boot 257.13-1~deb13u1 ####\x00")})

// A boot manager that measures the UKI's own command line, as those of systemd 252 do,
// is told from a command line from outside: before Secure Boot is on, after, and when
// it is replaced by one that leaves the register alone. FAULTS 92, 112
func TestOwnCommandLine(t *testing.T) {
	m := machinetest.New(t, machinetest.Pinned)
	m.Manager = manager252
	m.PowerOn(m.Installed(machinetest.DiskSize))
	m.Ends("system")
	m.Runs(1)
	b, err := m.Agent.ToldBoot()
	m.Must(err)
	if b.PCR12 == (pcr.Digest{}) {
		t.Fatal("nothing is in PCR 12: this proves nothing")
	}
	m.NextManager = manager257
	m.FetchManager(machinetest.NewRelease(t, 2, 5, machinetest.Pinned), manager257)
	m.Runs(2)
	m.Bless()
	for range 4 {
		m.Runs(2)
	}
	m.ByHand = 1
	m.Runs(1)
	m.ByHand = 2
	m.Extra12 = "systemd.debug_shell=1"
	m.Typed = []string{m.RecoveryKey(), "y"}
	m.Ends("recovery", "from outside the UKI")
}

// fillNV takes all the room that is left.
func fillNV(m *machinetest.Machine) {
	m.T.Helper()
	state := m.World(true, nil).Chip
	m.Must(m.Emulator.PowerOn(state))
	m.FillRest()
}

// A machine that had the record is bound to less only where its owner types another
// word than the "y" of every day. FAULTS 99
func TestWeaker(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.Undefine()
	fillNV(m)
	full := m.World(true, nil)
	kind := func() policy.Kind {
		lock, volumeKey, secret := m.Unlocked()
		luks2.Wipe(volumeKey)
		secret.Wipe()
		return lock.Sealed.Kind
	}
	for _, answers := range [][]string{{"y", "weaker"}, {"y", "weaker", ""}, {"y", "weaker", "y"}, {"y", "weaker", "yes"}, {"y", "y"}} {
		m.PowerOn(full)
		m.Printed.Reset()
		m.Typed = append([]string{m.RecoveryKey()}, answers...)
		m.Ends("system")
		said, all := m.Printed.String(), answers[1] == "weaker"
		if !strings.Contains(said, "the TPM's list of systems is gone") || strings.Contains(said, "for ever, also after an update") != all || !strings.Contains(said, "nothing was changed") && len(answers) > 2 {
			t.Errorf("it does not say what would be lost: %s", m.Printed.String())
		}
		if got := kind(); got != policy.KindNV {
			t.Fatalf("bound by %s after %q", got, answers)
		}
		if g := m.Noted(); !g.Record || !g.Programs {
			t.Errorf("after %q it notes %+v", answers, g)
		}
	}
	m.PowerOn(full)
	m.Typed = []string{m.RecoveryKey(), "y", "weaker", "Weaker"}
	m.Ends("system", "WARNING: this TPM cannot hold the policy record")
	if got := kind(); got != policy.KindPCR {
		t.Fatalf("bound by %s", got)
	}
	if g := m.Noted(); g.Record || g.Programs || g.Floor != 5 {
		t.Errorf("it notes %+v", g)
	}
	m.Runs(1)
}

// The same for a register that was bound, and for Secure Boot. FAULTS 94, 99
func TestWeakerStart(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*contract.Contract)
		set    func(m *machinetest.Machine)
		says   string
	}{
		"PCR 4 is not accounted for": {machinetest.Pinned, func(m *machinetest.Machine) { m.Unaccounted = true }, "which boot manager starts this machine"},
		"no event log any more": {machinetest.With(func(c *contract.Contract) { c.TPM = contract.Optional }), func(m *machinetest.Machine) { m.NoLog, m.Detour, m.Extra = true, true, "another firmware" },
			"which boot manager starts this machine"},
	} {
		t.Run(name, func(t *testing.T) {
			m := machinetest.ProvisionedMachine(t, c.change)
			if !m.PolicyRecord().Programs {
				t.Fatal("PCR 4 is not bound to begin with")
			}
			c.set(m)
			m.Typed = []string{m.RecoveryKey(), "y", "y"}
			m.Ends("system")
			if !m.PolicyRecord().Programs || !strings.Contains(m.Printed.String(), c.says) {
				t.Fatalf("it is bound to less; printed: %s", m.Printed.String())
			}
			m.Typed = []string{m.RecoveryKey(), "y", "weaker"}
			m.Ends("system")
			if m.PolicyRecord().Programs {
				t.Error("PCR 4 is still bound")
			}
			m.Runs(1)
			m.Runs(1)
		})
	}
}

// An optional TPM without an event log, or with one that is not what was measured, is
// used all the same, and what is weaker is said; a required one explains itself.
// FAULTS 112 (M2)
func TestNoEventLog(t *testing.T) {
	optional := machinetest.With(func(c *contract.Contract) { c.TPM, c.SecureBoot = contract.Optional, contract.Optional })
	for _, wrong := range []bool{false, true} {
		m := machinetest.New(t, optional)
		m.NoLog, m.WrongLog, m.NoSecureBoot = !wrong, wrong, true
		m.Ends("system", "PCR 4, which boot manager started the machine, is left out: there is no event log")
		m.Runs(1)
		m.Fetch(machinetest.NewRelease(t, 2, 5, optional))
		m.Runs(2)
		m.Bless()
		m.Runs(2)
		m.Extra = "another firmware"
		m.Rebinds() // without Secure Boot the machine holds fewer promises
		m.Runs(2)
		required := machinetest.New(t, machinetest.Pinned)
		required.NoLog, required.WrongLog = !wrong, wrong
		required.Ends("recovery", "the firmware's event log ", "update the firmware", "TPM=optional")
	}
}

// guarantees of a machine of an earlier release, and a note that was altered.
func TestGuaranteesUnreadable(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	box := slices.Clone(m.RootFiles()[rootpart.GuaranteesFile])
	box[len(box)-1] ^= 1
	m.RootFiles()[rootpart.GuaranteesFile] = box
	m.Undefine()
	m.Typed = []string{m.RecoveryKey(), "y", "y"}
	m.Ends("system")
	if !strings.Contains(m.Printed.String(), "Which old systems were replaced for good is not known any more") {
		t.Errorf("printed %s", m.Printed.String())
	}
	m.Typed = []string{m.RecoveryKey(), "y", "weaker"}
	m.Ends("system")
	if g := m.Noted(); !g.Record || g.Floor != 5 {
		t.Errorf("it notes %+v", g)
	}
	m.Runs(1)
	delete(m.RootFiles(), rootpart.GuaranteesFile)
	m.Runs(1)
	if g := m.Noted(); !g.Record || !g.Programs || g.Floor != 5 {
		t.Errorf("a machine of an earlier release notes %+v", g)
	}
}

// The note can be neither read nor written: the machine starts all the same, by itself
// and by its owner's key, and notes it when it can.
func TestGuaranteesNotWorthABoot(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	delete(m.RootFiles(), rootpart.GuaranteesFile) // as an earlier release leaves it
	m.FullFile = rootpart.GuaranteesFile
	m.Runs(1, "what this machine has had was not noted: write "+rootpart.GuaranteesFile+": the root partition is full")
	m.FullFile = ""
	m.Runs(1)
	if g := m.Noted(); !g.Record || g.Floor != 5 {
		t.Errorf("it notes %+v", g)
	}
	m.UnreadableFile = rootpart.GuaranteesFile
	m.Runs(1)
	m.Extra = "another firmware"
	m.Typed = []string{m.RecoveryKey(), "n"}
	m.Ends("system")
}

// Root of the running system has deleted the note: the record that is there still says
// what the machine has had. FAULTS 94, 99
func TestWeakerWithoutNote(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	delete(m.RootFiles(), rootpart.GuaranteesFile)
	m.Unaccounted = true
	m.Typed = []string{m.RecoveryKey(), "y", "y"}
	m.Ends("system")
	if !m.PolicyRecord().Programs || !strings.Contains(m.Printed.String(), "which boot manager starts this machine") {
		t.Errorf("it is bound to less; printed: %s", m.Printed.String())
	}
}
