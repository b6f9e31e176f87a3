package agent_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/luks2"
	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// A TPM that has died, on a machine that can do without: the recovery key opens the
// data, by the verified system and never by a shell, once the owner has read what that
// means and typed the word for it; each time.
func TestDeadTPM(t *testing.T) { // FAULTS 71, 99
	m := machinetest.ProvisionedMachine(t, machinetest.OptionalTPM)
	good := m.World(true, nil)
	m.NoTPM = machinetest.ErrDead
	for range 2 {
		m.Typed = []string{m.RecoveryKey(), "Weaker"}
		m.Printed.Reset()
		m.Ends("system", "the TPM cannot open the root partition: "+machinetest.ErrDead.Error(), "WARNING: the TPM could not be told")
		hint, key := strings.Index(m.Printed.String(), "can switch the TPM off"), strings.Index(m.Printed.String(), "Recovery key (")
		if hint < 0 || hint > key || strings.Count(m.Printed.String(), "can switch the TPM off") != 1 {
			t.Errorf("what to do is not said before the key is typed: %s", m.Printed.String())
		}
		if m.OpenVolume == nil || !strings.Contains(m.Printed.String(), "can have it release this machine's secret") || strings.Contains(m.Printed.String(), "Accept this machine") {
			t.Errorf("the root partition is open: %v; it says %s", m.OpenVolume != nil, m.Printed.String())
		}
	}
	// No is the answer that needs nothing: nothing is open, and no shell opens.
	for _, answer := range []string{"", "y", "yes"} {
		m.PowerOn(good)
		m.Typed = []string{m.RecoveryKey(), answer}
		m.Said.Reset()
		if end := m.Boot(); end != "reboot" || m.OpenVolume != nil || !strings.Contains(m.Said.String(), "was not to be started without it") {
			t.Errorf("%q ends in %s:\n%s", answer, end, m.Said.String())
		}
		m.Said.Reset()
		if end := m.Boot(); end != "reboot" || !strings.Contains(m.Said.String(), "no console") || !strings.Contains(m.Said.String(), "this system starts without a TPM, too") {
			t.Errorf("%q, and then it ends in %s:\n%s", answer, end, m.Said.String())
		}
		m.Typed = []string{m.RecoveryKey(), "weaker"} // the boot after that asks again
		if end := m.Boot(); end != "system" {
			t.Errorf("ends in %s", end)
		}
	}
	// What died was a contact: the TPM opens it as before.
	m.PowerOn(good)
	m.NoTPM = nil
	m.Runs(1)
}

// A TPM that works again by the time it matters is told, and nobody is asked anything
// but the key.
func TestTPMThatComesBack(t *testing.T) { // FAULTS 71
	m := machinetest.ProvisionedMachine(t, machinetest.OptionalTPM)
	for busy := range 3 {
		m.TpmBusy = 1 + busy
		m.Typed = []string{m.RecoveryKey()}
		if busy > 0 { // it is busy at the prompt, too
			m.Typed = append(m.Typed, "weaker")
		}
		m.Ends("system")
		if len(m.Typed) > 0 || m.OpenVolume == nil {
			t.Errorf("busy %d: %q were not asked for", busy, m.Typed)
		}
		secret, _, err := tpm.OpenTransport(m.Emulator).Unseal(m.Agent.Lock.Sealed)
		if err == nil {
			secret.Wipe()
		}
		if busy < 2 && !errors.Is(err, tpm.ErrPolicy) {
			t.Errorf("busy %d: the running system unseals: %v", busy, err)
		}
	}
	// It takes no measurements, and then it does.
	m.Deaf = true
	m.Typed = []string{m.RecoveryKey(), "weaker"}
	m.Ends("system", "the TPM cannot be used: measure phase")
	m.Deaf = false
	m.Runs(1)
}

// A machine that was made beside a TPM that does not work starts by its key, and the
// word each time: nothing on the disk can say that no TPM was ever given anything,
// since a note of that time can be put back. FAULTS 71, 91
func TestNeverBound(t *testing.T) {
	m := machinetest.New(t, machinetest.OptionalTPM)
	m.NoTPM = machinetest.ErrDead
	for range 3 {
		m.Owner = true
		m.Types("weaker")
		m.Ends("system")
		m.Owner = false
		if m.OpenVolume == nil {
			t.Fatal("it runs without its root partition")
		}
		if g := m.Noted(); g.Record {
			t.Fatalf("it notes %+v", g)
		}
	}
	old := m.RootFiles()[rootpart.GuaranteesFile]
	// Bound to a TPM for the first time, it is asked once.
	m.NoTPM = nil
	m.Owner = true
	m.Types("weaker")
	m.Ends("system")
	m.Owner = false
	m.Runs(1)
	if g := m.Noted(); !g.Record {
		t.Errorf("it notes %+v", g)
	}
	m.RootFiles()[rootpart.GuaranteesFile] = old
	m.ChangeToken(func(c *luks2.Change, n int, _ luks2.Token) error { return c.RemoveToken(n) })
	m.NoTPM = machinetest.ErrDead
	m.Typed = []string{m.RecoveryKey(), ""}
	if end := m.Boot(); end != "reboot" || m.OpenVolume != nil {
		t.Errorf("ends in %s", end)
	}
	if !m.Agent.Facts().Answered {
		t.Error("an empty answer counts as none")
	}
	// Nor does it help to delete the record.
	m.NoTPM, m.ChipState = nil, nil
	m.Ends("recovery")
	m.Typed = []string{m.RecoveryKey(), "y", ""}
	m.Printed.Reset()
	m.Ends("system")
	if !strings.Contains(m.Printed.String(), "can be an old one") || len(m.Typed) != 0 {
		t.Errorf("it says %s", m.Printed.String())
	}
}

// An image that requires a TPM does not start without one, and says what to do.
func TestDeadTPMRequired(t *testing.T) { // FAULTS 71
	m := machinetest.ProvisionedMachine(t, nil)
	m.NoTPM = machinetest.ErrDead
	m.Typed = []string{m.RecoveryKey(), "weaker"}
	m.Said.Reset()
	m.Printed.Reset()
	if end := m.Boot(); end != "reboot" || len(m.Typed) != 2 || m.Printed.Len() > 0 {
		t.Errorf("ends in %s, and asks %q", end, m.Printed.String())
	}
	for _, says := range []string{"this system requires a TPM, and this machine's cannot be used: " + machinetest.ErrDead.Error(), "no console", "switch the TPM off in the firmware's setup", "`cryptsetup open` of any Linux opens the partition \"root\""} {
		if !strings.Contains(m.Said.String(), says) {
			t.Errorf("says nothing of %q:\n%s", says, m.Said.String())
		}
	}
	m.NoTPM = tpm.ErrAbsent // as its setup makes it
	m.Ends("recovery")
	r, c := m.Console()
	m.Typed = []string{m.RecoveryKey()}
	m.Works(r.Unlock(c))
	if m.Agent.Lock.Sealed.Kind != policy.KindNV {
		t.Error("it is not bound: this proves nothing")
	}
}

// FAULTS 112: a TPM that the firmware knows, whose driver is a module that takes its time,
// is waited for; one that never comes ends the boot, with words about the driver.
func TestLateTPM(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	m.TpmFrom = m.Clock.Add(host.TPMTimeout / 2)
	start := m.Clock
	m.Runs(1)
	if took := m.Clock.Sub(start); took > host.TPMTimeout {
		t.Errorf("it took %s", took)
	}
	start, m.TpmFrom = m.Clock, m.Clock.Add(time.Hour)
	m.Said.Reset()
	// No console beside it, which could load the driver and ask it.
	if end := m.Boot(); end != "reboot" || !strings.Contains(m.Said.String(), "the kernel has no device for it: its driver is missing, or failed") || m.OpenVolume != nil {
		t.Errorf("it ends in %s:\n%s", end, m.Said.String())
	}
	m.TpmFrom = start
	m.Runs(1)
}
