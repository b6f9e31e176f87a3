package agent

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
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/recovery"
	"halogenos.internal/initagent/rootlock"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// asksForPIN is root of the running system.
func (m *machine) asksForPIN(what nextboot.PIN) {
	m.t.Helper()
	m.memory = 128 << 20
	r := &recovery.Machine{Host: host.Host{Machine: m.agent.Machine, Variables: m.agent.Variables, Root: m.t.TempDir()}}
	m.must(r.AskForPIN(what))
}

// withPIN is a provisioned machine with a PIN.
func withPIN(t *testing.T, pin string) *machine {
	t.Helper()
	m := provisionedMachine(t, pinned)
	m.asksForPIN(nextboot.SetPIN)
	m.orderly = true
	m.printed.Reset()
	m.typed = []string{m.recoveryKey(), pin, pin}
	if end := m.boot(); end != "reboot" {
		t.Fatalf("setting the PIN ends in %s:\n%s\n%s", end, m.said.String(), m.printed.String())
	}
	if !strings.Contains(m.printed.String(), "A NEW PIN: this was asked for from the running system") || !strings.Contains(m.printed.String(), "The PIN is set") {
		t.Errorf("it says:\n%s", m.printed.String())
	}
	return m
}

// hasPIN says what the header has.
func (m *machine) hasPIN() bool {
	m.t.Helper()
	s, err := m.partition(layout.RootNumber)
	m.must(err)
	_, lock, err := rootlock.Look(s, s.Size())
	m.must(err)
	return lock.HasPIN()
}

// keptPIN is the PIN that the header keeps.
func (m *machine) keptPIN() []byte {
	m.t.Helper()
	s, err := m.partition(layout.RootNumber)
	m.must(err)
	_, lock, err := rootlock.Look(s, s.Size())
	m.must(err)
	return lock.KeptPIN
}

// startsBy starts the machine with what is typed.
func (m *machine) startsBy(typed ...string) {
	m.t.Helper()
	m.printed.Reset()
	m.waits, m.typed = nil, typed
	m.ends("system")
	if m.openVolume == nil || len(m.typed) > 0 {
		m.t.Fatalf("it does not open, or %q was not asked for:\n%s\n%s", m.typed, m.printed.String(), m.said.String())
	}
}

// A PIN is set by whoever has the recovery key, asked for at each start, counted when it is
// wrong, replaced when it is forgotten, and removed again; the old header, put back, opens
// by nothing that it opened by before. FAULTS 108
func TestPINOfAMachine(t *testing.T) {
	m := withPIN(t, "1234")
	if !m.hasPIN() {
		t.Fatal("the header knows of no PIN")
	}
	m.startsBy("1234")
	if len(m.waits) != 1 || m.waits[0] != 0 {
		t.Errorf("it waits %v for the PIN", m.waits)
	}
	m.startsBy("12", "1235", "1234")
	if text := m.printed.String(); strings.Count(text, "This is not the PIN.") != 2 || !strings.Contains(text, "more wrong ones") {
		t.Errorf("it says of a wrong one:\n%s", text)
	}
	// Forgotten: the recovery key opens, nothing of the machine is to be accepted, and a new
	// one is set.
	m.startsBy("", m.recoveryKey(), "y", "correct horse", "correct house", "correct horse", "correct horse", "correct horse")
	if text := m.printed.String(); strings.Contains(text, "Accept this machine") || !strings.Contains(text, "two different ones") {
		t.Errorf("a forgotten PIN:\n%s", text)
	}
	m.startsBy("1234", "correct horse")
	if !m.agent.Had.PIN {
		t.Error("what the machine has had says nothing of its PIN")
	}
	m.asksForPIN(nextboot.RemovePIN)
	m.typed = []string{"correct horse", m.recoveryKey()}
	if end := m.boot(); end != "reboot" || !strings.Contains(m.printed.String(), "The PIN is removed") {
		t.Fatalf("removing ends in %s:\n%s", end, m.said.String())
	}
	m.opensByItself()
	if m.hasPIN() || m.agent.Had.PIN {
		t.Error("the PIN is still there")
	}
}

// Declined, a request for a PIN changes nothing; nor does it without two that agree.
func TestPINDeclined(t *testing.T) {
	m := provisionedMachine(t, pinned)
	for name, typed := range map[string][]string{
		"nobody": nil, "Enter": {""}, "no PIN": {m.recoveryKey(), ""}, "nobody for the PIN": {m.recoveryKey()},
		"never the same": {m.recoveryKey(), "1234", "1235", "1234", "1236", "1234", "1237"},
	} {
		m.asksForPIN(nextboot.SetPIN)
		m.typed = typed
		m.ends("system", "new-secret")
		if m.hasPIN() {
			t.Errorf("%s: there is a PIN", name)
		}
	}
	m.opensByItself()
}

// A trial asks for the PIN as any start does, waits as long as it takes, and is none the
// worse for it; staging and blessing need nobody. FAULTS 108
func TestPINOnTrial(t *testing.T) {
	m := withPIN(t, "1234")
	m.startsBy("1234")
	m.fetch(newRelease(t, 2, 5, pinned))
	// The running system stages the release at its next start, which restarts into the trial.
	m.startsBy("1234", "1234")
	if m.agent.Contract.Version != 2 || !m.agent.State.Trial {
		t.Fatalf("version %s runs", m.agent.Contract.Version)
	}
	for _, w := range m.waits {
		if w != 0 {
			t.Errorf("it waits %v", m.waits)
		}
	}
	m.bless()
	m.clock = m.clock.Add(time.Hour)
	m.startsBy("1234")
	if m.agent.Contract.Version != 2 || m.agent.State.Trial {
		t.Errorf("version %s runs, trial %t", m.agent.Contract.Version, m.agent.State.Trial)
	}
}

// Whoever takes out of the header what keeps the PIN for who has the recovery key gets no
// machine without a PIN: the keyslot and the TPM go by it as before, and the next start by
// it keeps it again. A machine that is accepted meanwhile loses nothing, and nobody is
// asked to give anything up.
func TestPINTakenOut(t *testing.T) {
	m := withPIN(t, "1234")
	m.startsBy("1234")
	m.changeToken(func(c *luks2.Change, n int, token luks2.Token) error {
		delete(token.Fields, "pin")
		return c.SetToken(n, token)
	})
	out := m.world(true, nil)
	m.startsBy("", m.recoveryKey(), "n")
	m.startsBy("1234")
	if m.keptPIN() == nil {
		t.Error("the PIN is not kept again")
	}
	m.powerOn(out)
	m.extra = "new firmware"
	m.startsBy(m.recoveryKey(), "y")
	if text := m.printed.String(); !strings.Contains(text, "Accepted.") || strings.Contains(text, "WARNING") {
		t.Errorf("accepted without the kept PIN:\n%s", text)
	}
	m.startsBy("1234")
	m.startsBy("", m.recoveryKey(), "y", "5678", "5678", "5678")
	m.startsBy("1234", "5678")
	m.startsBy("", m.recoveryKey(), "n") // and it is kept again
	m.startsBy("5678")
}

// Root of the running system has the volume's key, and can take away all that says of a
// PIN: the note of what the machine had, and the header's token. The recovery key alone
// knows of it then, and a "y" gives nothing up. FAULTS 108
func TestPINIsNotGivenUp(t *testing.T) {
	m := withPIN(t, "1234")
	m.startsBy("1234")
	delete(m.rootFiles(), rootpart.GuaranteesFile)
	m.changeToken(func(c *luks2.Change, n int, token luks2.Token) error {
		sealed, err := policy.ParseSealed(token.Fields["sealed"])
		m.must(err)
		sealed.Version, sealed.PIN = 1, nil
		d, err := sealed.Policy()
		m.must(err)
		public := tpm2.Marshal(policy.SealedTemplate(d))
		sealed.Public = append(append(public[:len(public)-2], 0, 32), make([]byte, 32)...)
		token.Fields["sealed"], err = sealed.Encode()
		m.must(err)
		delete(token.Fields, "pin")
		return c.SetToken(n, token)
	})
	planted := m.world(true, nil)
	for _, answer := range []string{"", "y"} {
		m.powerOn(planted)
		m.startsBy(m.recoveryKey(), "y", answer)
		if text := m.printed.String(); !strings.Contains(text, "The TPM asked for a PIN") || !strings.Contains(text, "nothing was changed") || m.rootFiles()[rootpart.GuaranteesFile] != nil {
			t.Errorf("after %q:\n%s", answer, text)
		}
	}
}

// Cut anywhere while it is set, the machine starts without a PIN or by it, and by the
// recovery key; nothing in between. FAULTS 108
func TestPINCut(t *testing.T) {
	m := provisionedMachine(t, pinned)
	m.asksForPIN(nextboot.SetPIN)
	m.typed = []string{m.recoveryKey(), "1234", "1234"}
	states, end := m.recordOnce(mrand.New(mrand.NewPCG(43, 44)))
	if end != "reboot" {
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	_, volumeKey, secret := m.unlocked()
	luks2.Wipe(volumeKey)
	for _, s := range states { // what root finds in free space knows of the PIN as well
		for _, files := range s.world.volumes {
			m.nextKnowsPIN(files[rootpart.NextFile], secret)
		}
	}
	with := 0
	for i := 0; i < len(states); i += 5 {
		m.powerOn(states[i].world)
		m.typed = nil
		if m.hasPIN() {
			with++
			m.typed = []string{"1234"}
		}
		m.ends("system")
		if m.openVolume == nil {
			t.Fatalf("%s: it does not open:\n%s", states[i].how, m.said.String())
		}
	}
	if with == 0 || with >= (len(states)+4)/5 {
		t.Errorf("a PIN after %d of %d cuts", with, (len(states)+4)/5)
	}
}

// nextKnowsPIN opens what a new secret has left for itself, if it did.
func (m *machine) nextKnowsPIN(box []byte, secret *policy.Secret) {
	m.t.Helper()
	text, err := secret.Unbox("next-secret", box)
	if err != nil {
		return
	}
	var next struct{ Guarantees []byte }
	m.must(json.Unmarshal(text, &next))
	text, err = secret.Unbox("guarantees", next.Guarantees)
	m.must(err)
	if !strings.Contains(string(text), `"pin":true`) {
		m.t.Errorf("the new secret says %s of what the machine has", text)
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
			m := provisionedMachine(t, pinned)
			m.changeToken(func(change *luks2.Change, n int, token luks2.Token) error {
				token.Fields["sealed"] = json.RawMessage(c.sealed)
				return change.SetToken(n, token)
			})
			m.startsBy(append([]string{m.recoveryKey()}, c.answers...)...)
			if text := m.printed.String(); !strings.Contains(text, c.says) {
				t.Errorf("it says:\n%s", text)
			}
			if c.answers != nil {
				m.opensByItself()
			}
		})
	}
}

// countsPINs says whether the TPM goes on counting wrong PINs whatever others tell it, and how
// many it still takes.
func (m *machine) countsPINs() (counted bool, left int) {
	m.t.Helper()
	c := tpm.OpenTransport(m.emulator)
	counted, err := c.PINsCounted()
	m.must(err)
	tries, err := c.PINTries()
	m.must(err)
	m.must(c.Close())
	return counted, tries.Left
}

// uncount is somebody who has the TPM count otherwise.
func (m *machine) uncount() {
	m.t.Helper()
	_, volumeKey, secret := m.unlocked()
	secret.Wipe()
	c := tpm.OpenTransport(m.emulator)
	m.must(c.UncountPINs(policy.LockoutAuth(volumeKey)))
	m.must(c.Close())
	m.chipChanged = true
}

// A machine with a PIN has the TPM count wrong ones, looks at each start that it does, has
// it forget them once the recovery key has opened, and says what was counted before.
// FAULTS 108
func TestPINCount(t *testing.T) {
	m := withPIN(t, "1234")
	if counted, _ := m.countsPINs(); !counted {
		t.Fatal("anybody can set the count back")
	}
	m.uncount()
	m.said.Reset()
	m.startsBy("1235", "1234")
	if counted, _ := m.countsPINs(); !counted || !strings.Contains(m.said.String(), "somebody has changed how the TPM counts") {
		t.Errorf("counted again: %t:\n%s", counted, m.said.String())
	}
	m.startsBy("1234")
	if !strings.Contains(m.printed.String(), "has counted 1 wrong PINs") {
		t.Errorf("of what was typed before it says:\n%s", m.printed.String())
	}
	m.startsBy("1235", "", m.recoveryKey(), "n")
	if _, left := m.countsPINs(); left != 10 {
		t.Errorf("%d tries are left", left)
	}
	m.asksForPIN(nextboot.RemovePIN)
	m.typed = []string{"1234", m.recoveryKey()}
	if end := m.boot(); end != "reboot" {
		t.Fatalf("removing ends in %s", end)
	}
	if counted, _ := m.countsPINs(); counted {
		t.Error("the lockout authorisation stays without a PIN")
	}
}

// Where the lockout authorisation is another's, a PIN is a long one.
func TestPINUncounted(t *testing.T) {
	m := provisionedMachine(t, pinned)
	c := tpm.OpenTransport(m.emulator)
	m.must(c.CountPINs([]byte("their own")))
	m.must(c.Close())
	m.chipChanged = true
	m.asksForPIN(nextboot.SetPIN)
	m.typed = []string{m.recoveryKey(), "1234", "1234", "correct horse", "correct horse"}
	if end := m.boot(); end != "reboot" || !m.hasPIN() {
		t.Fatalf("ends in %s:\n%s", end, m.printed.String())
	}
	if text := m.printed.String(); !strings.Contains(text, "a password that is not this machine's") || !strings.Contains(text, "That is too short: 12") {
		t.Errorf("it says:\n%s", text)
	}
	m.startsBy("correct horse")
}

// A TPM without room for the record could not shut out a copy of the header from before
// the PIN: none is set, and that is said before anybody is asked for the recovery key.
func TestNoPINWithoutRecord(t *testing.T) {
	m := newMachine(t, pinned)
	m.fillTPM()
	m.ends("system")
	m.runs(1)
	m.asksForPIN(nextboot.SetPIN)
	m.typed = []string{m.recoveryKey(), "1234", "1234"}
	m.ends("system", "has no room for the list of systems")
	if m.hasPIN() || len(m.typed) != 3 || !strings.Contains(m.printed.String(), "A NEW PIN, which was asked for") {
		t.Errorf("it asks, or has a PIN: %t:\n%s", m.hasPIN(), m.printed.String())
	}
}

// A release of a source tree that knows of no PINs takes such a machine's root partition
// for damaged. It is not staged. FAULTS 108
func TestStageWithoutPINs(t *testing.T) {
	m := withPIN(t, "1234")
	able := contract.Own()
	able.NewSecret = rootpart.KnowsPIN - 1
	m.fetch(newReleaseOf(t, 2, 5, able, pinned))
	m.startsBy("1234")
	if !strings.Contains(m.said.String(), "it knows nothing of PINs") || m.agent.Contract.Version != 1 {
		t.Errorf("version %s runs:\n%s", m.agent.Contract.Version, m.said.String())
	}
}

// What types at the other end of a serial line uses up three of the TPM's tries, and the
// owner goes on.
func TestPINBesideNoise(t *testing.T) {
	m := withPIN(t, "1234")
	m.startsBy("tty login:", "Password:", "Login incorrect", "tty login:", "Password:", "Login incorrect", "y", "1234")
	if _, left := m.countsPINs(); left != 7 {
		t.Errorf("%d of 10 tries are left", left)
	}
	m.startsBy("1235", "1236", "1237", "", m.recoveryKey(), "n")
}
