package agent

import (
	"bytes"
	"path"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/keynote"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/initagent/firstboot"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/lastgood"
	"halogenos.internal/initagent/recovery"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// keeper implements recovery.Keeper in the test's memory.
type keeper struct{ open *recovery.Opened }

func (k *keeper) Keep(o *recovery.Opened) error {
	copied := *o.Secret
	k.open = &recovery.Opened{Secret: &copied, VolumeKey: slices.Clone(o.VolumeKey)}
	return nil
}

func (k *keeper) Kept() (*recovery.Opened, error) {
	if k.open == nil {
		return nil, recovery.ErrLocked
	}
	copied := *k.open.Secret
	return &recovery.Opened{Secret: &copied, VolumeKey: slices.Clone(k.open.VolumeKey)}, nil
}

func (k *keeper) Forget() error {
	k.open.Wipe()
	k.open = nil
	return nil
}

// console is the machine at whose recovery console somebody sits.
func (m *machine) console() (*recovery.Machine, hw.Console) {
	m.printed.Reset()
	return &recovery.Machine{
		Host:   host.Host{Machine: m.agent.Machine, Variables: m.agent.Variables, Random: m.random, NewKeys: m.newKeys, Root: m.root},
		Keeper: &keeper{},
		Discard: func(f hw.File, off, length int64) error {
			_, err := f.WriteAt(bytes.Repeat([]byte{0xaa}, 1<<20), off)
			return err
		},
	}, person{m}
}

// inConsole makes a machine in use and starts it into the recovery console.
func inConsole(t *testing.T, change func(m *machine)) *machine {
	t.Helper()
	m := newMachine(t, nil)
	for range 2 { // the second one is opened by the TPM
		if end := m.run(); end != "system" {
			t.Fatalf("ends in %s:\n%s", end, m.said.String())
		}
	}
	change(m)
	m.typed = []string{""}
	if end := m.boot(); end != "recovery" {
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	m.typed = nil
	return m
}

func newFirmware(m *machine) { m.extra = "new firmware" }

func (m *machine) types(answers ...string) { m.typed = append(m.typed, answers...) }

func (m *machine) works(err error, says ...string) {
	m.t.Helper()
	if err != nil {
		m.t.Fatalf("%v\n%s", err, m.printed.String())
	}
	for _, s := range says {
		if !strings.Contains(m.printed.String(), s) {
			m.t.Errorf("lacks %q:\n%s", s, m.printed.String())
		}
	}
}

func (m *machine) refuses(err error, says string) {
	m.t.Helper()
	if err == nil || !strings.Contains(err.Error(), says) {
		m.t.Errorf("%v, want %q\n%s", err, says, m.printed.String())
	}
}

// opensByItself starts the machine and expects that it asks nothing.
func (m *machine) opensByItself() {
	m.t.Helper()
	m.typed = nil
	m.printed.Reset()
	m.said.Reset()
	if end := m.run(); end != "system" || m.printed.Len() > 0 {
		m.t.Fatalf("ends in %s, asks %q:\n%s", end, m.printed.String(), m.said.String())
	}
	if m.openVolume == nil {
		m.t.Error("runs without its root partition")
	}
}

// FAULTS 79
func TestConsoleUnlockAndReseal(t *testing.T) {
	m := inConsole(t, newFirmware)
	r, c := m.console()
	m.refuses(r.Reseal(c), "`unlock` first")
	m.refuses(r.RecoveryKey(c), "`unlock` first")
	m.refuses(r.Enroll(c), "`unlock` first")
	m.types("")
	m.refuses(r.Unlock(c), "no recovery key was given")
	m.types("nonsense", m.shown[0])
	m.works(r.Unlock(c), "Nothing is lost: try again")
	if m.openVolume == nil || !slices.Contains(m.mounted, m.agent.Path(rootpart.Directory)) {
		t.Errorf("volume %v, mounted %q", m.openVolume, m.mounted)
	}
	m.nothingUnseals("the console")
	m.refuses(r.Unlock(c), "open already")
	m.types("n")
	m.refuses(r.Reseal(c), "nothing was changed")
	m.types("y")
	m.works(r.Reseal(c), "PCR 7", "Accepted.")
	m.nothingUnseals("the console")
	for range 2 {
		m.works(r.Lock())
	}
	if m.openVolume != nil || slices.Contains(m.mounted, m.agent.Path(rootpart.Directory)) {
		t.Errorf("volume %v, mounted %q", m.openVolume, m.mounted)
	}
	m.refuses(r.Reseal(c), "`unlock` first")
	m.opensByItself()
}

// A TPM that was cleared has no index: the secret is sealed again.
func TestConsoleReseal(t *testing.T) {
	m := inConsole(t, func(m *machine) { m.chipState = nil; m.chipChanged = false })
	r, c := m.console()
	m.types(m.shown[0], "y", "y")
	m.works(r.Unlock(c))
	m.refuses(r.Reseal(c), "nothing was changed")
	m.types("y", "weaker")
	m.works(r.Reseal(c), "Bound to this TPM.")
	m.nothingUnseals("the console")
	m.opensByItself()
}

func TestConsoleResealRefuses(t *testing.T) {
	m := inConsole(t, newFirmware)
	r, c := m.console()
	m.types(m.shown[0])
	m.works(r.Unlock(c))
	// Something was measured that the log knows nothing of.
	if err := m.emulator.extend(7, [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	m.types("y")
	m.refuses(r.Reseal(c), "the event log does not account for PCR [7]")

	m = inConsole(t, newFirmware)
	r, c = m.console()
	m.types(m.shown[0])
	m.works(r.Unlock(c))
	other := newRelease(t, 1, 6, nil)
	name := path.Join("EFI/Linux", "test_1.efi")
	m.esp.files[name] = &espFile{remains{data: other.uki}, []remains{{data: other.uki}}}
	m.types("y")
	m.refuses(r.Reseal(c), "the running UKI is not the file on the ESP")
	setFlag(m.vars, "SetupMode", 1)
	m.refuses(r.Reseal(c), "`enroll` at the recovery console")
}

// A volume of somebody else's is not opened with the key that they know.
func TestConsoleForeignVolume(t *testing.T) {
	m := inConsole(t, newFirmware)
	r, c := m.console()
	theirs := m.rogue(false)
	m.types(theirs)
	m.refuses(r.Unlock(c), "this volume was not made by this machine")
	if m.openVolume != nil {
		t.Error("it is open")
	}
}

// The firmware was reset, and has lost its keys.
func TestConsoleEnroll(t *testing.T) {
	m := inConsole(t, func(m *machine) {
		m.vars = newVariables()
	})
	r, c := m.console()
	m.types(m.shown[0])
	m.works(r.Unlock(c))
	m.types("n")
	m.refuses(r.Enroll(c), "nothing was changed")
	m.types("y")
	m.works(r.Enroll(c), "ends Setup Mode", "enforced from the next start on")
	m.works(r.Enroll(c), "holds this machine's keys already")
	m.works(r.Lock())
	m.opensByItself()
}

func TestConsoleRecoveryKey(t *testing.T) {
	m := inConsole(t, newFirmware)
	m.notes(keynote.Note{Unconfirmed: true, Shown: 1})
	r, c := m.console()
	m.types(m.shown[0])
	m.works(r.Unlock(c))
	m.types(m.shown[0], "typing error", "")
	m.refuses(r.RecoveryKey(c), "the old one stays")
	dropped := m.shown[len(m.shown)-1]
	if dropped == m.shown[0] {
		t.Fatal("no new key was shown")
	}
	if m.opens(dropped) || !m.opens(m.shown[0]) {
		t.Error("the key that was not typed back opens, or the old one does not")
	}
	if m.note().Unconfirmed {
		t.Error("the key that was typed counts as not confirmed")
	}
	m.notes(keynote.Note{Unconfirmed: true, Shown: 1, Keep: m.agent.Lock.Recoveries[0].ID()})
	m.echo = true
	m.works(r.RecoveryKey(c), "is the only one")
	fresh := m.shown[len(m.shown)-1]
	if !m.note().Nothing() {
		t.Errorf("a start to come offers another key, or removes this one: %+v", m.note())
	}
	if !m.opens(fresh) || m.opens(m.shown[0]) || m.opens(dropped) {
		t.Error("the new key does not open, or an old one does")
	}
	s, err := m.partition(layout.RootNumber)
	if err != nil {
		t.Fatal(err)
	}
	_, lock, err := rootlock.Look(s, s.Size())
	if err != nil || len(lock.Recoveries) != 1 || len(lock.Header.Keyslots()) != 2 || len(lock.Header.Tokens()) != 2 {
		t.Errorf("%d recoveries, %d keyslots, %d tokens, %v", len(lock.Recoveries), len(lock.Header.Keyslots()), len(lock.Header.Tokens()), err)
	}
	// The new key opens what the old one did.
	m.works(r.Lock())
	m.types(fresh, "y")
	m.works(r.Unlock(c))
	m.works(r.Reseal(c))
	m.works(r.Lock())
	m.opensByItself()
}

func (m *machine) opens(key string) bool {
	s, err := m.partition(layout.RootNumber)
	if err != nil {
		m.t.Fatal(err)
	}
	_, lock, err := rootlock.Look(s, s.Size())
	if err != nil {
		m.t.Fatal(err)
	}
	volumeKey, secret, err := lock.OpenRecovery(s, []byte(key), 1<<20)
	if err != nil {
		return false
	}
	luks2.Wipe(volumeKey)
	secret.Wipe()
	return true
}

// reset, and the machine makes itself new. Cut anywhere, it never opens half of
// itself, and the next reset does it all.
func TestConsoleReset(t *testing.T) {
	m := inConsole(t, newFirmware)
	old := m.shown[0]
	r, c := m.console()
	m.types("y")
	m.refuses(r.Reset(c), "nothing was changed")
	if !m.opens(old) {
		t.Fatal("a refused reset has changed something")
	}
	var cuts []*world
	m.snapshot = func() { cuts = append(cuts, m.world(false, nil), m.world(true, nil)) }
	m.types(old)
	m.works(r.Unlock(c))
	m.types("test")
	m.works(r.Reset(c), "The root partition is wiped", "Setup Mode")
	m.snapshot = nil
	cuts = append(cuts, m.world(false, nil))
	if indexes, err := tpm.OpenTransport(m.emulator).Indexes(); err != nil || len(indexes) > 0 {
		t.Errorf("NV indexes %v, %v", indexes, err)
	}
	t.Logf("%d cuts", len(cuts))
	for i, w := range cuts {
		last := i == len(cuts)-1
		if i%20 != 0 && !last {
			continue
		}
		m.powerOn(w)
		m.typed = []string{""}
		if end := m.boot(); end != "recovery" && !last {
			t.Fatalf("cut %d: ends in %s", i, end)
		}
		if !last {
			r, c = m.console()
			m.typed = []string{"test"}
			m.works(r.Reset(c), "The root partition is wiped")
		}
	}
	m.vars = newVariables() // by the owner, in the firmware's setup
	m.shown, m.extra = nil, ""
	m.opensAnew(old)
}

func (m *machine) opensAnew(old string) {
	m.t.Helper()
	m.typed = nil
	if end := m.run(); end != "system" || m.openVolume == nil {
		m.t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	if len(m.shown) != 1 || m.opens(old) || !m.opens(m.shown[0]) {
		m.t.Errorf("recovery keys %q, or the old one opens", m.shown)
	}
	if err := m.provisioned(); err != nil {
		m.t.Error(err)
	}
}

// Without its header nothing says which index was the machine's.
func TestConsoleResetDamaged(t *testing.T) {
	m := inConsole(t, func(m *machine) {
		s, err := m.partition(layout.RootNumber)
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
	r, c := m.console()
	if err := r.Unlock(c); err == nil {
		t.Error("a damaged header opens")
	}
	m.types("test")
	m.works(r.Reset(c), "The root partition is wiped")
	for name, f := range m.esp.files {
		if path.Dir(name) == firstboot.Directory && lastgood.Is(path.Base(name)) && !f.now.absent {
			t.Errorf("%s is still there", name)
		}
	}
	s, err := m.partition(layout.RootNumber)
	if err != nil {
		t.Fatal(err)
	}
	if condition, _, err := rootlock.Look(s, s.Size()); condition != bootflow.RootBlank || err != nil {
		t.Errorf("condition %v, %v", condition, err)
	}
	m.vars = newVariables()
	old := m.shown[0]
	m.shown = nil
	m.typed = nil
	if end := m.run(); end != "system" || len(m.shown) != 1 || m.shown[0] == old {
		t.Errorf("ends in %s:\n%s", end, m.said.String())
	}
}

// A machine whose firmware starts anything is opened by its key, and not
// accepted: its PCRs are whatever anybody wants them to be.
// FAULTS 61
func TestAcceptUnenforced(t *testing.T) {
	m := newMachine(t, nil)
	for range 2 {
		if end := m.run(); end != "system" {
			t.Fatalf("ends in %s:\n%s", end, m.said.String())
		}
	}
	m.vars = newVariables()
	m.printed.Reset()
	m.ops = nil
	m.typed = []string{m.shown[0], "n"}
	if end := m.boot(); end != "system" || m.openVolume == nil {
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	if text := m.printed.String(); !strings.Contains(text, "the TPM was left as it is: the firmware does not enforce Secure Boot") || strings.Contains(text, "Accept this machine") {
		t.Error(text)
	}
	if written := m.written("variable"); len(written) > 0 {
		t.Errorf("the firmware was written to: %q", written)
	}
}
