package recovery_test

import (
	"path"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/answers"
	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/keynote"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/lastgood"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// FAULTS 79
func TestConsoleUnlockAndReseal(t *testing.T) {
	m := machinetest.InConsole(t, machinetest.NewFirmware)
	r, c := m.Console()
	m.Refuses(r.Reseal(c), "`unlock` first")
	m.Refuses(r.RecoveryKey(c), "`unlock` first")
	m.Refuses(r.Enroll(c), "`unlock` first")
	m.Types("")
	m.Refuses(r.Unlock(c), "no recovery key was given")
	m.Types("nonsense", m.Shown[0])
	m.Works(r.Unlock(c), "Nothing is lost: try again")
	if m.OpenVolume == nil || !slices.Contains(m.Mounted, m.Agent.Path(rootpart.Directory)) {
		t.Errorf("volume %v, mounted %q", m.OpenVolume, m.Mounted)
	}
	m.NothingUnseals("the console")
	m.Refuses(r.Unlock(c), "open already")
	m.Types("n")
	m.Refuses(r.Reseal(c), "nothing was changed")
	m.Types("y")
	m.Works(r.Reseal(c), "PCR 7", "Accepted.")
	m.NothingUnseals("the console")
	for range 2 {
		m.Works(r.Lock())
	}
	if m.OpenVolume != nil || slices.Contains(m.Mounted, m.Agent.Path(rootpart.Directory)) {
		t.Errorf("volume %v, mounted %q", m.OpenVolume, m.Mounted)
	}
	m.Refuses(r.Reseal(c), "`unlock` first")
	m.OpensByItself()
}

// To somebody who reads German the console's questions are in German, and take the same answers.
func TestConsoleInGerman(t *testing.T) {
	m := machinetest.InConsole(t, machinetest.NewFirmware)
	r, _ := m.Console()
	c, err := m.Agent.Person.Open("de")
	if err != nil {
		t.Fatal(err)
	}
	m.Types("nonsense", m.Shown[0])
	m.Works(r.Unlock(c), "Hier stehen keine Erkennungswörter", "(eine leere Zeile gibt auf)", "Verloren ist nichts")
	m.Types("j")
	m.Works(r.Reseal(c), "[j/N]", words.Language("de").Text(words.Accepted))
	m.NothingUnseals("the console")
}

// A TPM that was cleared has no index: the secret is sealed again.
func TestConsoleReseal(t *testing.T) {
	m := machinetest.InConsole(t, func(m *machinetest.Machine) { m.ChipState = nil; m.ChipChanged = false })
	r, c := m.Console()
	m.Types(m.Shown[0], "y", "y")
	m.Works(r.Unlock(c))
	m.Refuses(r.Reseal(c), "nothing was changed")
	m.Types("y", "weaker")
	m.Works(r.Reseal(c), "Bound to this TPM.")
	m.NothingUnseals("the console")
	m.OpensByItself()
}

func TestConsoleResealRefuses(t *testing.T) {
	m := machinetest.InConsole(t, machinetest.NewFirmware)
	r, c := m.Console()
	m.Types(m.Shown[0])
	m.Works(r.Unlock(c))
	// Something was measured that the log knows nothing of.
	if err := m.Emulator.Extend(7, [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	m.Types("y")
	m.Refuses(r.Reseal(c), "the event log does not account for PCR [7]")

	m = machinetest.InConsole(t, machinetest.NewFirmware)
	r, c = m.Console()
	m.Types(m.Shown[0])
	m.Works(r.Unlock(c))
	other := machinetest.NewRelease(t, 1, 6, nil)
	name := path.Join("EFI/Linux", "test_1.efi")
	m.ESP.Files[name] = &machinetest.ESPFile{Now: machinetest.Remains{Data: other.UKI}, Disk: []machinetest.Remains{{Data: other.UKI}}}
	m.Types("y")
	m.Refuses(r.Reseal(c), "the running UKI is not the file on the ESP")
	machinetest.SetFlag(m.Vars, "SetupMode", 1)
	m.Refuses(r.Reseal(c), "`enroll` at the recovery console")
}

// A volume of somebody else's is not opened with the key that they know.
func TestConsoleForeignVolume(t *testing.T) {
	m := machinetest.InConsole(t, machinetest.NewFirmware)
	r, c := m.Console()
	theirs := m.Rogue(false)
	m.Types(theirs)
	m.Refuses(r.Unlock(c), "this volume was not made by this machine")
	if m.OpenVolume != nil {
		t.Error("it is open")
	}
}

// The firmware was reset, and has lost its keys.
func TestConsoleEnroll(t *testing.T) {
	m := machinetest.InConsole(t, func(m *machinetest.Machine) {
		m.Vars = machinetest.NewVariables()
	})
	r, c := m.Console()
	m.Types(m.Shown[0])
	m.Works(r.Unlock(c))
	m.Types("n")
	m.Refuses(r.Enroll(c), "nothing was changed")
	m.Types("y")
	m.Works(r.Enroll(c), "ends Setup Mode", "enforced from the next start on")
	m.Works(r.Enroll(c), "holds this machine's keys already")
	m.Works(r.Lock())
	m.OpensByItself()
}

func TestConsoleRecoveryKey(t *testing.T) {
	m := machinetest.InConsole(t, machinetest.NewFirmware)
	m.Notes(keynote.Note{Unconfirmed: true, Shown: 1})
	r, c := m.Console()
	m.Types(m.Shown[0])
	m.Works(r.Unlock(c))
	m.Types(m.Shown[0], "typing error", "")
	m.Refuses(r.RecoveryKey(c), "the old one stays")
	dropped := m.Shown[len(m.Shown)-1]
	if dropped == m.Shown[0] {
		t.Fatal("no new key was shown")
	}
	if m.Opens(dropped) || !m.Opens(m.Shown[0]) {
		t.Error("the key that was not typed back opens, or the old one does not")
	}
	if m.Note().Unconfirmed {
		t.Error("the key that was typed counts as not confirmed")
	}
	m.Notes(keynote.Note{Unconfirmed: true, Shown: 1, Keep: m.Agent.Lock.Recoveries[0].ID()})
	m.Echo = true
	m.Works(r.RecoveryKey(c), "is the only one")
	fresh := m.Shown[len(m.Shown)-1]
	if !m.Note().Nothing() {
		t.Errorf("a start to come offers another key, or removes this one: %+v", m.Note())
	}
	if !m.Opens(fresh) || m.Opens(m.Shown[0]) || m.Opens(dropped) {
		t.Error("the new key does not open, or an old one does")
	}
	s, err := m.Partition(layout.Root)
	if err != nil {
		t.Fatal(err)
	}
	_, lock, err := rootlock.Look(s, s.Size())
	if err != nil || len(lock.Recoveries) != 1 || len(lock.Header.Keyslots()) != 2 || len(lock.Header.Tokens()) != 3 {
		t.Errorf("%d recoveries, %d keyslots, %d tokens, %v", len(lock.Recoveries), len(lock.Header.Keyslots()), len(lock.Header.Tokens()), err)
	}
	// The new key opens what the old one did.
	m.Works(r.Lock())
	m.Types(fresh, "y")
	m.Works(r.Unlock(c))
	m.Works(r.Reseal(c))
	m.Works(r.Lock())
	m.OpensByItself()
}

// reset, and the machine makes itself new. Cut anywhere, it never opens half of
// itself, and the next reset does it all.
func TestConsoleReset(t *testing.T) {
	m := machinetest.InConsole(t, machinetest.NewFirmware)
	old := m.Shown[0]
	r, c := m.Console()
	m.Types("y")
	m.Refuses(r.Reset(c), "nothing was changed")
	if !m.Opens(old) {
		t.Fatal("a refused reset has changed something")
	}
	var cuts []*machinetest.World
	m.Snapshot = func() { cuts = append(cuts, m.World(false, nil), m.World(true, nil)) }
	m.Types(old)
	m.Works(r.Unlock(c))
	m.SetFile("EFI/halogen/SETUP.JSON", []byte(`{"version":1,"account":{"name":"mallory"}}`))
	m.Types("test")
	m.Works(r.Reset(c), "The root partition is wiped", "Setup Mode")
	if f, err := m.ESP.Get(answers.OnESP); err == nil {
		t.Errorf("the next first start would take %q", f.Now.Data)
	}
	m.Snapshot = nil
	cuts = append(cuts, m.World(false, nil))
	if indexes, err := tpm.OpenTransport(m.Emulator).Indexes(); err != nil || len(indexes) > 0 {
		t.Errorf("NV indexes %v, %v", indexes, err)
	}
	t.Logf("%d cuts", len(cuts))
	for i, w := range cuts {
		last := i == len(cuts)-1
		if i%20 != 0 && !last {
			continue
		}
		m.PowerOn(w)
		m.Typed = []string{""}
		if end := m.Boot(); end != "recovery" && !last {
			t.Fatalf("cut %d: ends in %s", i, end)
		}
		if !last {
			r, c = m.Console()
			m.Typed = []string{"test"}
			m.Works(r.Reset(c), "The root partition is wiped")
		}
	}
	m.Vars = machinetest.NewVariables() // by the owner, in the firmware's setup
	m.Shown, m.Extra = nil, ""
	m.OpensAnew(old)
}

// Without its header nothing says which index was the machine's.
func TestConsoleResetDamaged(t *testing.T) {
	m := machinetest.InConsole(t, func(m *machinetest.Machine) {
		s, err := m.Partition(layout.Root)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []int64{0, 16 << 10} {
			if _, err := s.WriteAt([]byte("damage"), at); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
	})
	r, c := m.Console()
	if err := r.Unlock(c); err == nil {
		t.Error("a damaged header opens")
	}
	m.Types("test")
	m.Works(r.Reset(c), "The root partition is wiped")
	for name, f := range m.ESP.Files {
		if path.Dir(name) == firstboot.Directory && lastgood.Is(path.Base(name)) && !f.Now.Absent {
			t.Errorf("%s is still there", name)
		}
	}
	s, err := m.Partition(layout.Root)
	if err != nil {
		t.Fatal(err)
	}
	if condition, _, err := rootlock.Look(s, s.Size()); condition != bootflow.RootBlank || err != nil {
		t.Errorf("condition %v, %v", condition, err)
	}
	m.Vars = machinetest.NewVariables()
	old := m.Shown[0]
	m.Shown = nil
	m.Typed = nil
	if end := m.Run(); end != "system" || len(m.Shown) != 1 || m.Shown[0] == old {
		t.Errorf("ends in %s:\n%s", end, m.Said.String())
	}
}

// A machine whose firmware starts anything is opened by its key, and not
// accepted: its PCRs are whatever anybody wants them to be.
// FAULTS 61
func TestAcceptUnenforced(t *testing.T) {
	m := machinetest.New(t, nil)
	for range 2 {
		if end := m.Run(); end != "system" {
			t.Fatalf("ends in %s:\n%s", end, m.Said.String())
		}
	}
	m.Vars = machinetest.NewVariables()
	m.Printed.Reset()
	m.Ops = nil
	m.Typed = []string{m.Shown[0], "n"}
	if end := m.Boot(); end != "system" || m.OpenVolume == nil {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	if text := m.Printed.String(); !strings.Contains(text, "the TPM was left as it is: the firmware does not enforce Secure Boot") || strings.Contains(text, "Accept this machine") {
		t.Error(text)
	}
	if written := m.Written("variable"); len(written) > 0 {
		t.Errorf("the firmware was written to: %q", written)
	}
}
