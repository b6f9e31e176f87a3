package agent

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/policy"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// noted is what the root partition says that the machine has had.
func (m *machine) noted() (g rootpart.Guarantees) {
	m.t.Helper()
	_, volumeKey, secret := m.unlocked()
	defer luks2.Wipe(volumeKey)
	defer secret.Wipe()
	text, err := secret.Unbox("guarantees", m.rootFiles()[rootpart.GuaranteesFile])
	m.must(err)
	m.must(json.Unmarshal(text, &g))
	return g
}

// undefine deletes the TPM's index, as anybody with the machine in hand can.
func (m *machine) undefine() {
	m.t.Helper()
	lock, volumeKey, secret := m.unlocked()
	luks2.Wipe(volumeKey)
	secret.Wipe()
	m.must(tpm.OpenTransport(m.emulator).Undefine(lock.Sealed.NVIndex))
	m.chipChanged = true
}

// raised is a machine whose second release has raised the floor from 5 to 6.
func raised(t *testing.T) *machine {
	m := provisionedMachine(t, pinned)
	m.fetch(newRelease(t, 2, 6, pinned))
	m.runs(2)
	m.bless()
	m.runs(2)
	m.holds(6, 2)
	return m
}

// Who deletes the TPM's index does not delete the floor: a system that was replaced
// for good is not accepted, whatever is typed. FAULTS 91
func TestFloorOutlivesIndex(t *testing.T) {
	m := raised(t)
	if g := m.noted(); g.Floor != 6 || !g.Record || !g.Programs || !g.SecureBoot {
		t.Errorf("the root partition notes %+v", g)
	}
	m.undefine()
	m.rename("test_1+0.efi", "test_1.efi")
	m.byHand = 1
	m.typed = []string{m.recoveryKey(), "y", "weaker", "y"}
	m.said.Reset()
	if end := m.boot(); end != "reboot" || !strings.Contains(m.said.String(), "epoch is 5 and the floor is 6") {
		t.Errorf("it ends in %s:\n%s", end, m.said.String())
	}
	if strings.Contains(m.printed.String(), "Accept this machine") {
		t.Errorf("it asks: %s", m.printed.String())
	}
	// The system that may run is accepted, and the floor is back in the TPM.
	m.byHand = 2
	m.rebinds()
	m.holds(6, 2)
	m.runs(2)
}

// Wherever the power is cut while the floor rises: a TPM that has the higher floor
// is not the only place that has it. FAULTS 91
func TestCutFloor(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.fetch(newRelease(t, 2, 6, pinned))
	m.runs(2)
	m.bless()
	var worlds []*world
	m.snapshot = func() { m.remaining(func(w *world) { worlds = append(worlds, w) }) }
	m.runs(2)
	m.snapshot = nil
	worlds = append(worlds, m.world(true, nil))
	risen := 0
	for _, w := range worlds {
		m.powerOn(w)
		m.must(m.emulator.powerOn(w.chip))
		if r := m.policyRecord(); r.Floor == 6 {
			risen++
			if g := m.noted(); g.Floor != 6 {
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
	m := provisionedMachine(t, nil)
	good := m.world(true, nil)
	lock, volumeKey, secret := m.unlocked()
	defer luks2.Wipe(volumeKey)
	key, err := secret.WriteKey()
	m.must(err)
	for _, c := range []struct {
		name   string
		set    func()
		before bool // it was accepted by an earlier release
	}{
		{"a command line", func() { m.extra12 = "systemd.debug_shell=1" }, false},
		{"a system extension", func() { m.extra13 = "an extension" }, false},
		{"one that was accepted before", func() { m.extra12 = "systemd.debug_shell=1" }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.t = t
			m.powerOn(good)
			m.extra12, m.extra13 = "", ""
			c.set()
			if c.before {
				m.must(m.emulator.powerOn(good.chip))
				_, _, err := m.start()
				m.must(err)
				log, err := pcr.ParseLog(m.log)
				m.must(err)
				boot, err := rootpart.Logged(log)
				m.must(err)
				m.must(m.emulator.powerOn(good.chip))
				m.must(tpm.OpenTransport(m.emulator).WriteRecord(lock.Sealed.NVIndex, key, &policy.Record{
					Floor: 5, Volume: policy.VolumeFingerprint(volumeKey), Branches: []policy.Branch{{Policy: boot.Branch(), Version: 1, Epoch: 5}},
				}))
				m.chipChanged = true
			}
			m.typed = []string{m.recoveryKey(), "y", "weaker"}
			m.printed.Reset()
			m.ends("recovery", "from outside the UKI was added to this boot")
			if m.openVolume != nil || len(m.typed) != 3 || m.printed.Len() > 0 {
				t.Errorf("it asks %q, and the root partition is open: %v", m.printed.String(), m.openVolume != nil)
			}
		})
	}
	m.t = t
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
	m := newMachine(t, pinned)
	m.manager = manager252
	m.powerOn(m.installed(diskSize))
	m.ends("system")
	m.runs(1)
	b, err := m.agent.ToldBoot()
	m.must(err)
	if b.PCR12 == (pcr.Digest{}) {
		t.Fatal("nothing is in PCR 12: this proves nothing")
	}
	m.nextManager = manager257
	m.fetchManager(newRelease(t, 2, 5, pinned), manager257)
	m.runs(2)
	m.bless()
	for range 4 {
		m.runs(2)
	}
	m.byHand = 1
	m.runs(1)
	m.byHand = 2
	m.extra12 = "systemd.debug_shell=1"
	m.typed = []string{m.recoveryKey(), "y"}
	m.ends("recovery", "from outside the UKI")
}

// fillNV takes all the room that is left.
func (m *machine) fillNV() {
	m.t.Helper()
	state := m.world(true, nil).chip
	m.must(m.emulator.powerOn(state))
	m.fillRest()
}

// A machine that had the record is bound to less only where its owner types another
// word than the "y" of every day. FAULTS 99
func TestWeaker(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.undefine()
	m.fillNV()
	full := m.world(true, nil)
	kind := func() policy.Kind {
		lock, volumeKey, secret := m.unlocked()
		luks2.Wipe(volumeKey)
		secret.Wipe()
		return lock.Sealed.Kind
	}
	for _, answers := range [][]string{{"y", "weaker"}, {"y", "weaker", ""}, {"y", "weaker", "y"}, {"y", "weaker", "yes"}, {"y", "y"}} {
		m.powerOn(full)
		m.printed.Reset()
		m.typed = append([]string{m.recoveryKey()}, answers...)
		m.ends("system")
		said, all := m.printed.String(), answers[1] == "weaker"
		if !strings.Contains(said, "the TPM's list of systems is gone") || strings.Contains(said, "for ever, also after an update") != all || !strings.Contains(said, "nothing was changed") && len(answers) > 2 {
			t.Errorf("it does not say what would be lost: %s", m.printed.String())
		}
		if got := kind(); got != policy.KindNV {
			t.Fatalf("bound by %s after %q", got, answers)
		}
		if g := m.noted(); !g.Record || !g.Programs {
			t.Errorf("after %q it notes %+v", answers, g)
		}
	}
	m.powerOn(full)
	m.typed = []string{m.recoveryKey(), "y", "weaker", "Weaker"}
	m.ends("system", "WARNING: this TPM cannot hold the policy record")
	if got := kind(); got != policy.KindPCR {
		t.Fatalf("bound by %s", got)
	}
	if g := m.noted(); g.Record || g.Programs || g.Floor != 5 {
		t.Errorf("it notes %+v", g)
	}
	m.runs(1)
}

// The same for a register that was bound, and for Secure Boot. FAULTS 94, 99
func TestWeakerStart(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*contract.Contract)
		set    func(m *machine)
		says   string
	}{
		"PCR 4 is not accounted for": {pinned, func(m *machine) { m.unaccounted = true }, "which boot manager starts this machine"},
		"no event log any more": {with(func(c *contract.Contract) { c.TPM = contract.Optional }), func(m *machine) { m.noLog, m.detour, m.extra = true, true, "another firmware" },
			"which boot manager starts this machine"},
	} {
		t.Run(name, func(t *testing.T) {
			m := provisionedMachine(t, c.change)
			if !m.policyRecord().Programs {
				t.Fatal("PCR 4 is not bound to begin with")
			}
			c.set(m)
			m.typed = []string{m.recoveryKey(), "y", "y"}
			m.ends("system")
			if !m.policyRecord().Programs || !strings.Contains(m.printed.String(), c.says) {
				t.Fatalf("it is bound to less; printed: %s", m.printed.String())
			}
			m.typed = []string{m.recoveryKey(), "y", "weaker"}
			m.ends("system")
			if m.policyRecord().Programs {
				t.Error("PCR 4 is still bound")
			}
			m.runs(1)
			m.runs(1)
		})
	}
}

// An optional TPM without an event log, or with one that is not what was measured, is
// used all the same, and what is weaker is said; a required one explains itself.
// FAULTS 112 (M2)
func TestNoEventLog(t *testing.T) {
	optional := with(func(c *contract.Contract) { c.TPM, c.SecureBoot = contract.Optional, contract.Optional })
	for _, wrong := range []bool{false, true} {
		m := newMachine(t, optional)
		m.noLog, m.wrongLog, m.noSecureBoot = !wrong, wrong, true
		m.ends("system", "PCR 4, which boot manager started the machine, is left out: there is no event log")
		m.runs(1)
		m.fetch(newRelease(t, 2, 5, optional))
		m.runs(2)
		m.bless()
		m.runs(2)
		m.extra = "another firmware"
		m.rebinds() // without Secure Boot the machine holds fewer promises
		m.runs(2)
		required := newMachine(t, pinned)
		required.noLog, required.wrongLog = !wrong, wrong
		required.ends("recovery", "the firmware's event log ", "update the firmware", "TPM=optional")
	}
}

// guarantees of a machine of an earlier release, and a note that was altered.
func TestGuaranteesUnreadable(t *testing.T) {
	m := provisionedMachine(t, nil)
	box := slices.Clone(m.rootFiles()[rootpart.GuaranteesFile])
	box[len(box)-1] ^= 1
	m.rootFiles()[rootpart.GuaranteesFile] = box
	m.undefine()
	m.typed = []string{m.recoveryKey(), "y", "y"}
	m.ends("system")
	if !strings.Contains(m.printed.String(), "Which old systems were replaced for good is not known any more") {
		t.Errorf("printed %s", m.printed.String())
	}
	m.typed = []string{m.recoveryKey(), "y", "weaker"}
	m.ends("system")
	if g := m.noted(); !g.Record || g.Floor != 5 {
		t.Errorf("it notes %+v", g)
	}
	m.runs(1)
	delete(m.rootFiles(), rootpart.GuaranteesFile)
	m.runs(1)
	if g := m.noted(); !g.Record || !g.Programs || g.Floor != 5 {
		t.Errorf("a machine of an earlier release notes %+v", g)
	}
}

// The note can be neither read nor written: the machine starts all the same, by itself
// and by its owner's key, and notes it when it can.
func TestGuaranteesNotWorthABoot(t *testing.T) {
	m := provisionedMachine(t, pinned)
	delete(m.rootFiles(), rootpart.GuaranteesFile) // as an earlier release leaves it
	m.fullFile = rootpart.GuaranteesFile
	m.runs(1, "what this machine has had was not noted: write "+rootpart.GuaranteesFile+": the root partition is full")
	m.fullFile = ""
	m.runs(1)
	if g := m.noted(); !g.Record || g.Floor != 5 {
		t.Errorf("it notes %+v", g)
	}
	m.unreadableFile = rootpart.GuaranteesFile
	m.runs(1)
	m.extra = "another firmware"
	m.typed = []string{m.recoveryKey(), "n"}
	m.ends("system")
}

// Root of the running system has deleted the note: the record that is there still says
// what the machine has had. FAULTS 94, 99
func TestWeakerWithoutNote(t *testing.T) {
	m := provisionedMachine(t, pinned)
	delete(m.rootFiles(), rootpart.GuaranteesFile)
	m.unaccounted = true
	m.typed = []string{m.recoveryKey(), "y", "y"}
	m.ends("system")
	if !m.policyRecord().Programs || !strings.Contains(m.printed.String(), "which boot manager starts this machine") {
		t.Errorf("it is bound to less; printed: %s", m.printed.String())
	}
}
