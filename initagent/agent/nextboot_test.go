package agent_test

import (
	"errors"
	mrand "math/rand/v2"
	"strings"
	"testing"

	"halogenos.internal/boot/nextboot"
	"halogenos.internal/boot/pcr"
	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/tpm"
)

// Wherever a boot is when somebody asks for the console, it opens in a boot that
// has had no secret in memory, and the next start is an ordinary one. person.Shell
// looks at the rest. FAULTS 85
func TestConsoleBesideNoSecret(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	m.Looks = 0
	m.Ends("system")
	looks, restarts := m.Looks, 0
	for m.Presses = 1; m.Presses <= looks; m.Presses++ {
		m.Looks = 0
		m.Said.Reset()
		end := m.Boot()
		if end == "reboot" { // the secret was there: this boot opens nothing
			restarts++
			m.Presses = looks + m.Presses // nobody presses again
			end = m.Boot()
			m.Presses -= looks
			if !strings.Contains(m.Said.String(), "RECOVERY: the boot before this one asked for it: the recovery console was asked for") {
				t.Errorf("it says:\n%s", m.Said.String())
			}
		}
		if end != "recovery" {
			t.Fatalf("pressed at look %d of %d: it ends in %s:\n%s", m.Presses, looks, end, m.Said.String())
		}
	}
	if restarts == 0 || restarts == looks {
		t.Errorf("%d of %d restart first", restarts, looks)
	}
	m.Presses = 0
	m.Ends("system")
}

// What the boot before has asked for is forged, damaged or of another system: the
// console opens without a key, or nothing happens; and the start after it is an
// ordinary one. FAULTS 85
func TestForgedRequest(t *testing.T) {
	request := func(c nextboot.Console) []byte {
		text, err := nextboot.Request{Console: &c}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	for _, c := range []struct {
		name, ends, says string
		text             []byte
	}{
		{"a person's", "recovery", "RECOVERY: the boot before this one asked for it: x", request(nextboot.Console{Person: true, Version: 9, Reason: "x"})},
		{"of this version", "recovery", "unlock", request(nextboot.Console{Version: 1, Failed: "mount-state", Reason: "x\x1b[2J"})},
		{"of another version", "system", "", request(nextboot.Console{Version: 9, Reason: "x"})},
		{"of nobody", "system", "it is ignored", []byte(`{"format":1,"console":{"reason":`)},
		{"of a later format", "system", "it is ignored", []byte(`{"format":2,"console":{"person":true,"reason":"x"}}`)},
		{"large", "system", "it is ignored", []byte(strings.Repeat(" ", 1<<16))},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := machinetest.ProvisionedMachine(t, nil)
			m.Vars[nextboot.Variable] = machinetest.EFIVariable{Attributes: nextboot.Attributes, Data: c.text}
			m.Said.Reset()
			if end := m.Boot(); end != c.ends || !strings.Contains(m.Said.String(), c.says) || strings.Contains(m.Said.String(), "\x1b") {
				t.Errorf("it ends in %s, want %s with %q:\n%s", end, c.ends, c.says, m.Said.String())
			}
			m.Ends("system")
		})
	}
}

// A request that nobody but its writer can take away does not keep the machine from
// its system. FAULTS 85
func TestRequestThatStays(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	text, err := nextboot.Request{Console: &nextboot.Console{Person: true, Reason: "x"}}.Encode()
	m.Must(err)
	m.Vars[nextboot.Variable] = machinetest.EFIVariable{Attributes: nextboot.Attributes | secureboot.TimeBasedAuthenticated, Data: text}
	m.Ends("system", "and is ignored")
	m.Ends("system")
}

// The power is cut at every write of a boot that was asked for the console after
// the TPM had released the secret. The next boot opens the console or is an
// ordinary one; what is on the disk stays. FAULTS 85
func TestCutRequest(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	m.Looks = 0
	m.Ends("system")
	m.Presses = m.Looks // right before the system takes over
	m.Looks = 0
	states, end := m.RecordOnce(mrand.New(mrand.NewPCG(21, 22)))
	if end != "reboot" {
		t.Fatalf("it ends in %s", end)
	}
	m.Presses = 0
	consoles := 0
	for _, s := range states {
		m.PowerOn(s.World)
		m.Said.Reset()
		switch end := m.Boot(); end {
		case "recovery":
			consoles++
			if end = m.Run(); end != "system" {
				t.Errorf("%s: after the console it ends in %s:\n%s", s.How, end, m.Said.String())
			}
		case "system":
		default:
			t.Errorf("%s: it ends in %s:\n%s", s.How, end, m.Said.String())
		}
	}
	if consoles == 0 || consoles == len(states) {
		t.Errorf("%d of %d states open the console", consoles, len(states))
	}
}

// A TPM whose driver is a module shows itself when the console's drivers are
// loaded, or later: it is told before the shell opens. FAULTS 97
func TestConsoleTellsLateTPM(t *testing.T) {
	for _, c := range []struct {
		name         string
		plugs, opens int
	}{{"with the console's drivers", 1, 0}, {"while the console is prepared", 0, 1}} {
		t.Run(c.name, func(t *testing.T) {
			m := machinetest.ProvisionedMachine(t, nil)
			lock, volumeKey, secret := m.Unlocked()
			clear(volumeKey)
			secret.Wipe()
			m.NoEFI, m.TpmPlugs, m.TpmOpens = errors.New("input/output error"), c.plugs, c.opens
			m.Ends("recovery", "input/output error") // before any driver was loaded
			chip := tpm.OpenTransport(m.Emulator)
			m.Must(chip.ExtendText(pcr.KernelImage, pcr.EnterInitrd))
			if _, _, err := chip.Unseal(lock.Sealed); err == nil {
				t.Error("the console's shell unseals")
			}
		})
	}
}

// The console's drivers, of which anyone who is there chooses by what they plug in, are
// loaded when a TPM that is there releases nothing any more. FAULTS 97
func TestConsolesDriversComeLater(t *testing.T) {
	m := machinetest.ProvisionedMachine(t, nil)
	loads := 0
	m.Presses, m.Looks = 1, 0
	m.Plugging = func() {
		if loads++; m.Agent.Lock != nil {
			m.NothingUnseals("a driver of the console's")
		}
	}
	m.Ends("recovery")
	if loads < 2 {
		t.Errorf("drivers were loaded %d times", loads)
	}
}
