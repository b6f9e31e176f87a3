package unlock_test

import (
	"encoding/json"
	mrand "math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/nextboot"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// hasPIN says what the header has.
func hasPIN(m *machinetest.Machine) bool {
	m.T.Helper()
	s, err := m.Partition(layout.Root)
	m.Must(err)
	_, lock, err := rootlock.Look(s, s.Size())
	m.Must(err)
	return lock.HasPIN()
}

// keptPIN is the PIN that the header keeps.
func keptPIN(m *machinetest.Machine) []byte {
	m.T.Helper()
	s, err := m.Partition(layout.Root)
	m.Must(err)
	_, lock, err := rootlock.Look(s, s.Size())
	m.Must(err)
	return lock.KeptPIN
}

// A PIN is set by anyone who has the recovery key, asked for at each start, counted when it is
// wrong, replaced when it is forgotten, and removed again; the old header, put back, opens
// by nothing that it opened by before. FAULTS 108
func TestPINOfAMachine(t *testing.T) {
	m := machinetest.WithPIN(t, "1234")
	if !hasPIN(m) {
		t.Fatal("the header knows of no PIN")
	}
	m.StartsBy("1234")
	if len(m.Waits) != 1 || m.Waits[0] != 0 {
		t.Errorf("it waits %v for the PIN", m.Waits)
	}
	m.StartsBy("12", "1235", "1234")
	if text := m.Printed.String(); strings.Count(text, "This is not the PIN.") != 2 || !strings.Contains(text, "more wrong ones") {
		t.Errorf("it says of a wrong one:\n%s", text)
	}
	// Forgotten: the recovery key opens, nothing of the machine is to be accepted, and a new
	// one is set.
	m.StartsBy("", "k", m.RecoveryKey(), "y", "correct horse", "correct house", "correct horse", "correct horse", "correct horse")
	if text := m.Printed.String(); strings.Contains(text, "Accept this machine") || !strings.Contains(text, "two different ones") {
		t.Errorf("a forgotten PIN:\n%s", text)
	}
	m.StartsBy("1234", "correct horse")
	if !m.Agent.Had.PIN {
		t.Error("what the machine has had says nothing of its PIN")
	}
	m.AsksForPIN(nextboot.RemovePIN)
	m.Typed = []string{"correct horse", m.RecoveryKey()}
	if end := m.Boot(); end != "reboot" || !strings.Contains(m.Printed.String(), "The PIN is removed") {
		t.Fatalf("removing ends in %s:\n%s", end, m.Said.String())
	}
	m.OpensByItself()
	if hasPIN(m) || m.Agent.Had.PIN {
		t.Error("the PIN is still there")
	}
}

// Declined, a request for a PIN changes nothing; nor does it without two that agree.
func TestPINDeclined(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	for name, typed := range map[string][]string{
		"nobody": nil, "Enter": {""}, "no PIN": {m.RecoveryKey(), ""}, "nobody for the PIN": {m.RecoveryKey()},
		"never the same": {m.RecoveryKey(), "1234", "1235", "1234", "1236", "1234", "1237"},
	} {
		m.AsksForPIN(nextboot.SetPIN)
		m.Typed = typed
		m.Ends("system", "new-secret")
		if hasPIN(m) {
			t.Errorf("%s: there is a PIN", name)
		}
	}
	m.OpensByItself()
}

// A trial asks for the PIN as any start does, waits as long as it takes, and is none the
// worse for it; staging and blessing need nobody. FAULTS 108
func TestPINOnTrial(t *testing.T) {
	m := machinetest.WithPIN(t, "1234")
	m.StartsBy("1234")
	m.Fetch(machinetest.NewRelease(t, 2, 5, machinetest.Pinned))
	// The running system stages the release at its next start, which restarts into the trial.
	m.StartsBy("1234", "1234")
	if m.Agent.Contract.Version != 2 || !m.Agent.State.Trial {
		t.Fatalf("version %s runs", m.Agent.Contract.Version)
	}
	for _, w := range m.Waits {
		if w != 0 {
			t.Errorf("it waits %v", m.Waits)
		}
	}
	m.Bless()
	m.Clock = m.Clock.Add(time.Hour)
	m.StartsBy("1234")
	if m.Agent.Contract.Version != 2 || m.Agent.State.Trial {
		t.Errorf("version %s runs, trial %t", m.Agent.Contract.Version, m.Agent.State.Trial)
	}
}

// Anyone who takes out of the header what keeps the PIN for who has the recovery key gets no
// machine without a PIN: the keyslot and the TPM go by it as before, and the next start by
// it keeps it again. A machine that is accepted meanwhile loses nothing, and nobody is
// asked to give anything up.
func TestPINTakenOut(t *testing.T) {
	m := machinetest.WithPIN(t, "1234")
	m.StartsBy("1234")
	m.ChangeToken(func(c *luks2.Change, n int, token luks2.Token) error {
		delete(token.Fields, "pin")
		return c.SetToken(n, token)
	})
	out := m.World(true, nil)
	m.StartsBy("", "k", m.RecoveryKey(), "n")
	m.StartsBy("1234")
	if keptPIN(m) == nil {
		t.Error("the PIN is not kept again")
	}
	m.PowerOn(out)
	m.Extra = "new firmware"
	m.StartsBy(m.RecoveryKey(), "y")
	if text := m.Printed.String(); !strings.Contains(text, "Accepted.") || strings.Contains(text, "WARNING") {
		t.Errorf("accepted without the kept PIN:\n%s", text)
	}
	m.StartsBy("1234")
	m.StartsBy("", "k", m.RecoveryKey(), "y", "5678", "5678", "5678")
	m.StartsBy("1234", "5678")
	m.StartsBy("", "k", m.RecoveryKey(), "n") // and it is kept again
	m.StartsBy("5678")
}

// Root of the running system has the volume's key, and can take away all that says of a
// PIN: the note of what the machine had, and the header's token. The recovery key alone
// knows of it then, and a "y" gives nothing up. FAULTS 108
func TestPINIsNotGivenUp(t *testing.T) {
	m := machinetest.WithPIN(t, "1234")
	m.StartsBy("1234")
	delete(m.RootFiles(), rootpart.GuaranteesFile)
	m.ChangeToken(func(c *luks2.Change, n int, token luks2.Token) error {
		sealed, err := policy.ParseSealed(token.Fields["sealed"])
		m.Must(err)
		sealed.Version, sealed.PIN = 1, nil
		d, err := sealed.Policy()
		m.Must(err)
		public := tpm2.Marshal(policy.SealedTemplate(d))
		sealed.Public = append(append(public[:len(public)-2], 0, 32), make([]byte, 32)...)
		token.Fields["sealed"], err = sealed.Encode()
		m.Must(err)
		delete(token.Fields, "pin")
		return c.SetToken(n, token)
	})
	planted := m.World(true, nil)
	for _, answer := range []string{"", "y"} {
		m.PowerOn(planted)
		m.StartsBy(m.RecoveryKey(), "y", answer)
		if text := m.Printed.String(); !strings.Contains(text, "The TPM asked for a PIN") || !strings.Contains(text, "nothing was changed") || m.RootFiles()[rootpart.GuaranteesFile] != nil {
			t.Errorf("after %q:\n%s", answer, text)
		}
	}
}

// Cut anywhere while it is set, the machine starts without a PIN or by it, and by the
// recovery key; nothing in between. FAULTS 108
func TestPINCut(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.AsksForPIN(nextboot.SetPIN)
	m.Typed = []string{m.RecoveryKey(), "1234", "1234"}
	states, end := m.RecordOnce(mrand.New(mrand.NewPCG(43, 44)))
	if end != "reboot" {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	_, volumeKey, secret := m.Unlocked()
	luks2.Wipe(volumeKey)
	for _, s := range states { // what root finds in free space knows of the PIN as well
		for _, files := range s.World.Volumes {
			nextKnowsPIN(m, files[rootpart.NextFile], secret)
		}
	}
	with := 0
	for i := 0; i < len(states); i += 5 {
		m.PowerOn(states[i].World)
		m.Typed = nil
		if hasPIN(m) {
			with++
			m.Typed = []string{"1234"}
		}
		m.Ends("system")
		if m.OpenVolume == nil {
			t.Fatalf("%s: it does not open:\n%s", states[i].How, m.Said.String())
		}
	}
	if with == 0 || with >= (len(states)+4)/5 {
		t.Errorf("a PIN after %d of %d cuts", with, (len(states)+4)/5)
	}
}

// nextKnowsPIN opens what a new secret has left for itself, if it did.
func nextKnowsPIN(m *machinetest.Machine, box []byte, secret *policy.Secret) {
	m.T.Helper()
	text, err := secret.Unbox("next-secret", box)
	if err != nil {
		return
	}
	var next struct{ Guarantees []byte }
	m.Must(json.Unmarshal(text, &next))
	text, err = secret.Unbox("guarantees", next.Guarantees)
	m.Must(err)
	if !strings.Contains(string(text), `"pin":true`) {
		m.T.Errorf("the new secret says %s of what the machine has", text)
	}
}

// A header whose token of the TPM is damaged, or a later release's, opens by the recovery
// key. What a later release has bound is not bound otherwise. FAULTS 108
func TestTokenNotUnderstood(t *testing.T) {
	for name, c := range map[string]struct {
		sealed  string
		answers []string
		says    string
	}{
		"of a later release": {`{"version":9,"pin":{"by":"fingerprint"}}`, nil, "a later release has bound"},
		"damaged":            {`{"version":1,"kind":"mv"}`, []string{"y", "weaker"}, "Bound to this TPM"},
	} {
		t.Run(name, func(t *testing.T) {
			m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
			m.ChangeToken(func(change *luks2.Change, n int, token luks2.Token) error {
				token.Fields["sealed"] = json.RawMessage(c.sealed)
				return change.SetToken(n, token)
			})
			m.StartsBy(append([]string{m.RecoveryKey()}, c.answers...)...)
			if text := m.Printed.String(); !strings.Contains(text, c.says) {
				t.Errorf("it says:\n%s", text)
			}
			if c.answers != nil {
				m.OpensByItself()
			}
		})
	}
}

// countsPINs says whether the TPM goes on counting wrong PINs whatever others tell it, and how
// many it still takes.
func countsPINs(m *machinetest.Machine) (counted bool, left int) {
	m.T.Helper()
	c := tpm.OpenTransport(m.Emulator)
	counted, err := c.PINsCounted()
	m.Must(err)
	tries, err := c.PINTries()
	m.Must(err)
	m.Must(c.Close())
	return counted, tries.Left
}

// uncount is somebody who has the TPM count otherwise.
func uncount(m *machinetest.Machine) {
	m.T.Helper()
	_, volumeKey, secret := m.Unlocked()
	secret.Wipe()
	c := tpm.OpenTransport(m.Emulator)
	m.Must(c.UncountPINs(policy.LockoutAuth(volumeKey)))
	m.Must(c.Close())
	m.ChipChanged = true
}

// A machine with a PIN has the TPM count wrong ones, looks at each start that it does, has
// it forget them once the recovery key has opened, and says what was counted before.
// FAULTS 108
func TestPINCount(t *testing.T) {
	m := machinetest.WithPIN(t, "1234")
	if counted, _ := countsPINs(m); !counted {
		t.Fatal("anybody can set the count back")
	}
	uncount(m)
	m.Said.Reset()
	m.StartsBy("1235", "1234")
	if counted, _ := countsPINs(m); !counted || !strings.Contains(m.Said.String(), "somebody has changed how the TPM counts") {
		t.Errorf("counted again: %t:\n%s", counted, m.Said.String())
	}
	m.StartsBy("1234")
	if !strings.Contains(m.Printed.String(), "has counted 1 wrong PINs") {
		t.Errorf("of what was typed before it says:\n%s", m.Printed.String())
	}
	m.StartsBy("1235", "k", m.RecoveryKey(), "n")
	if _, left := countsPINs(m); left != 10 {
		t.Errorf("%d tries are left", left)
	}
	m.AsksForPIN(nextboot.RemovePIN)
	m.Typed = []string{"1234", m.RecoveryKey()}
	if end := m.Boot(); end != "reboot" {
		t.Fatalf("removing ends in %s", end)
	}
	if counted, _ := countsPINs(m); counted {
		t.Error("the lockout authorisation stays without a PIN")
	}
}

// Where the lockout authorisation is another's, a PIN is a long one.
func TestPINUncounted(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	c := tpm.OpenTransport(m.Emulator)
	m.Must(c.CountPINs([]byte("their own")))
	m.Must(c.Close())
	m.ChipChanged = true
	m.AsksForPIN(nextboot.SetPIN)
	m.Typed = []string{m.RecoveryKey(), "1234", "1234", "correct horse", "correct horse"}
	if end := m.Boot(); end != "reboot" || !hasPIN(m) {
		t.Fatalf("ends in %s:\n%s", end, m.Printed.String())
	}
	if text := m.Printed.String(); !strings.Contains(text, "a password that is not this machine's") || !strings.Contains(text, "That is too short: 12") {
		t.Errorf("it says:\n%s", text)
	}
	m.StartsBy("correct horse")
}

// A TPM without room for the record could not shut out a copy of the header from before
// the PIN: none is set, and that is said before anybody is asked for the recovery key.
func TestNoPINWithoutRecord(t *testing.T) {
	m := machinetest.New(t, machinetest.Pinned)
	m.FillTPM()
	m.Ends("system")
	m.Runs(1)
	m.AsksForPIN(nextboot.SetPIN)
	m.Typed = []string{m.RecoveryKey(), "1234", "1234"}
	m.Ends("system", "has no room for the list of systems")
	if hasPIN(m) || len(m.Typed) != 3 || !strings.Contains(m.Printed.String(), "A NEW PIN, which was asked for") {
		t.Errorf("it asks, or has a PIN: %t:\n%s", hasPIN(m), m.Printed.String())
	}
}

// Nor is one set where the TPM has no room for a second record, which the new secret needs
// until it is in force: that is said, and waits until it was read.
func TestNoPINWithoutRoom(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, machinetest.Pinned)
	m.FillTPM()
	m.AsksForPIN(nextboot.SetPIN)
	m.Typed = []string{m.RecoveryKey(), "1234", "1234"}
	m.Ends("system")
	if text := m.Printed.String(); hasPIN(m) || len(m.Typed) > 0 || !strings.Contains(text, "no room for the record of a new secret") || !strings.Contains(text, "Press Enter to go on") {
		t.Errorf("a PIN: %t:\n%s", hasPIN(m), text)
	}
	m.OpensByItself()
}

// A release of a source tree that knows of no PINs takes such a machine's root partition
// for damaged. It is not staged. FAULTS 108
func TestStageWithoutPINs(t *testing.T) {
	m := machinetest.WithPIN(t, "1234")
	able := contract.Own()
	able.NewSecret = rootpart.KnowsPIN - 1
	m.Fetch(machinetest.NewReleaseOf(t, 2, 5, able, machinetest.Pinned))
	m.StartsBy("1234")
	if !strings.Contains(m.Said.String(), "it knows nothing of PINs") || m.Agent.Contract.Version != 1 {
		t.Errorf("version %s runs:\n%s", m.Agent.Contract.Version, m.Said.String())
	}
}

// What types at the other end of a serial line uses up three of the TPM's tries, and the
// owner goes on.
func TestPINBesideNoise(t *testing.T) {
	m := machinetest.WithPIN(t, "1234")
	m.StartsBy("tty login:", "Password:", "Login incorrect", "tty login:", "Password:", "Login incorrect", "y", "1234")
	if _, left := countsPINs(m); left != 7 {
		t.Errorf("%d of 10 tries are left", left)
	}
	m.StartsBy("1235", "", " ", "1236", "1237", "", "?!", "k", m.RecoveryKey(), "n")
}
