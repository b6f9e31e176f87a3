package agent

import (
	"errors"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

func optionalTPM(c *contract.Contract) { pinned(c); c.TPM = contract.Optional }

var errDead = errors.New("the firmware has a TPM 2.0, and the kernel has no device for it")

// A TPM that has died, on a machine that can do without: the recovery key opens the
// data, by the verified system and never by a shell, once the owner has read what that
// means and typed the word for it; each time.
func TestDeadTPM(t *testing.T) { // FAULTS 71, 99
	m := provisionedMachine(t, optionalTPM)
	good := m.world(true, nil)
	m.noTPM = errDead
	for range 2 {
		m.typed = []string{m.recoveryKey(), "Weaker"}
		m.printed.Reset()
		m.ends("system", "the TPM cannot open the root partition: "+errDead.Error(), "WARNING: the TPM could not be told")
		hint, key := strings.Index(m.printed.String(), "can switch the TPM off"), strings.Index(m.printed.String(), "Recovery key (")
		if hint < 0 || hint > key || strings.Count(m.printed.String(), "can switch the TPM off") != 1 {
			t.Errorf("what to do is not said before the key is typed: %s", m.printed.String())
		}
		if m.openVolume == nil || !strings.Contains(m.printed.String(), "can have it release this machine's secret") || strings.Contains(m.printed.String(), "Accept this machine") {
			t.Errorf("the root partition is open: %v; it says %s", m.openVolume != nil, m.printed.String())
		}
	}
	// No is the answer that needs nothing: nothing is open, and no shell opens.
	for _, answer := range []string{"", "y", "yes"} {
		m.powerOn(good)
		m.typed = []string{m.recoveryKey(), answer}
		m.said.Reset()
		if end := m.boot(); end != "reboot" || m.openVolume != nil || !strings.Contains(m.said.String(), "was not to be started without it") {
			t.Errorf("%q ends in %s:\n%s", answer, end, m.said.String())
		}
		m.said.Reset()
		if end := m.boot(); end != "reboot" || !strings.Contains(m.said.String(), "no console") || !strings.Contains(m.said.String(), "this system starts without a TPM, too") {
			t.Errorf("%q, and then it ends in %s:\n%s", answer, end, m.said.String())
		}
		m.typed = []string{m.recoveryKey(), "weaker"} // the boot after that asks again
		if end := m.boot(); end != "system" {
			t.Errorf("ends in %s", end)
		}
	}
	// What died was a contact: the TPM opens it as before.
	m.powerOn(good)
	m.noTPM = nil
	m.runs(1)
}

// A TPM that works again by the time it matters is told, and nobody is asked anything
// but the key.
func TestTPMThatComesBack(t *testing.T) { // FAULTS 71
	m := provisionedMachine(t, optionalTPM)
	for busy := range 3 {
		m.tpmBusy = 1 + busy
		m.typed = []string{m.recoveryKey()}
		if busy > 0 { // it is busy at the prompt, too
			m.typed = append(m.typed, "weaker")
		}
		m.ends("system")
		if len(m.typed) > 0 || m.openVolume == nil {
			t.Errorf("busy %d: %q were not asked for", busy, m.typed)
		}
		secret, _, err := tpm.OpenTransport(m.emulator).Unseal(m.agent.Lock.Sealed)
		if err == nil {
			secret.Wipe()
		}
		if busy < 2 && !errors.Is(err, tpm.ErrPolicy) {
			t.Errorf("busy %d: the running system unseals: %v", busy, err)
		}
	}
	// It takes no measurements, and then it does.
	m.deaf = true
	m.typed = []string{m.recoveryKey(), "weaker"}
	m.ends("system", "the TPM cannot be used: measure phase")
	m.deaf = false
	m.runs(1)
}

// A machine that was made beside a TPM that does not work starts by its key, and the
// word each time: nothing on the disk can say that no TPM was ever given anything,
// since a note of that time can be put back. FAULTS 71, 91
func TestNeverBound(t *testing.T) {
	m := newMachine(t, optionalTPM)
	m.noTPM = errDead
	for range 3 {
		m.owner = true
		m.types("weaker")
		m.ends("system")
		m.owner = false
		if m.openVolume == nil {
			t.Fatal("it runs without its root partition")
		}
		if g := m.noted(); g.Record {
			t.Fatalf("it notes %+v", g)
		}
	}
	old := m.rootFiles()[rootpart.GuaranteesFile]
	// Bound to a TPM for the first time, it is asked once.
	m.noTPM = nil
	m.owner = true
	m.types("weaker")
	m.ends("system")
	m.owner = false
	m.runs(1)
	if g := m.noted(); !g.Record {
		t.Errorf("it notes %+v", g)
	}
	m.rootFiles()[rootpart.GuaranteesFile] = old
	m.changeToken(func(c *luks2.Change, n int, _ luks2.Token) error { return c.RemoveToken(n) })
	m.noTPM = errDead
	m.typed = []string{m.recoveryKey(), ""}
	if end := m.boot(); end != "reboot" || m.openVolume != nil {
		t.Errorf("ends in %s", end)
	}
	if !m.agent.facts.Answered {
		t.Error("an empty answer counts as none")
	}
	// Nor does it help to delete the record.
	m.noTPM, m.chipState = nil, nil
	m.ends("recovery")
	m.typed = []string{m.recoveryKey(), "y", ""}
	m.printed.Reset()
	m.ends("system")
	if !strings.Contains(m.printed.String(), "can be an old one") || len(m.typed) != 0 {
		t.Errorf("it says %s", m.printed.String())
	}
}

// An image that requires a TPM does not start without one, and says what to do.
func TestDeadTPMRequired(t *testing.T) { // FAULTS 71
	m := provisionedMachine(t, nil)
	m.noTPM = errDead
	m.typed = []string{m.recoveryKey(), "weaker"}
	m.said.Reset()
	m.printed.Reset()
	if end := m.boot(); end != "reboot" || len(m.typed) != 2 || m.printed.Len() > 0 {
		t.Errorf("ends in %s, and asks %q", end, m.printed.String())
	}
	for _, says := range []string{"this system requires a TPM, and this machine's cannot be used: " + errDead.Error(), "no console", "switch the TPM off in the firmware's setup", "`cryptsetup open` of any Linux opens partition 6"} {
		if !strings.Contains(m.said.String(), says) {
			t.Errorf("says nothing of %q:\n%s", says, m.said.String())
		}
	}
	m.noTPM = tpm.ErrAbsent // as its setup makes it
	m.ends("recovery")
	r, c := m.console()
	m.typed = []string{m.recoveryKey()}
	m.works(r.Unlock(c))
	if m.agent.Lock.Sealed.Kind != policy.KindNV {
		t.Error("it is not bound: this proves nothing")
	}
}

// FAULTS 112: a TPM that the firmware knows, whose driver is a module that takes its time,
// is waited for; one that never comes ends the boot, with words about the driver.
func TestLateTPM(t *testing.T) {
	m := provisionedMachine(t, nil)
	m.tpmFrom = m.clock.Add(host.TPMTimeout / 2)
	start := m.clock
	m.runs(1)
	if took := m.clock.Sub(start); took > host.TPMTimeout {
		t.Errorf("it took %s", took)
	}
	start, m.tpmFrom = m.clock, m.clock.Add(time.Hour)
	m.said.Reset()
	// No console beside it, which could load the driver and ask it.
	if end := m.boot(); end != "reboot" || !strings.Contains(m.said.String(), "the kernel has no device for it: its driver is missing, or failed") || m.openVolume != nil {
		t.Errorf("it ends in %s:\n%s", end, m.said.String())
	}
	m.tpmFrom = start
	m.runs(1)
}
