package unlock_test

import (
	"fmt"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// A machine whose TPM has died, or was taken out, and which can do without, goes on
// taking updates: its owner opens it by the recovery key. A TPM that comes back does
// not know the new system, which is neither given up nor opened without its owner.
// FAULTS 71
func TestUpdateWithoutTPM(t *testing.T) {
	for _, c := range []struct {
		name    string
		noTPM   error
		answers []string
	}{{"dead", machinetest.ErrDead, []string{"weaker"}}, {"taken out", tpm.ErrAbsent, nil}} {
		t.Run(c.name, func(t *testing.T) {
			m := machinetest.ProvisionedMachine(t, machinetest.OptionalTPM)
			m.NoTPM = c.noTPM
			m.Fetch(machinetest.NewRelease(t, 2, 6, machinetest.OptionalTPM))
			m.Said.Reset()
			if end := m.StartsTyped(c.answers...); end != "system" || m.Agent.Contract.Version != 2 {
				t.Fatalf("version %s ends in %s:\n%s", m.Agent.Contract.Version, end, m.Said.String())
			}
			if !strings.Contains(m.Said.String(), "WARNING: the TPM was not told of version 2") {
				t.Errorf("says nothing of it:\n%s", m.Said.String())
			}
			m.Bless()
			for range 2 {
				if end := m.StartsTyped(c.answers...); end != "system" || m.Agent.Contract.Version != 2 {
					t.Fatalf("version %s ends in %s:\n%s", m.Agent.Contract.Version, end, m.Said.String())
				}
			}
			m.Wants("test_1.efi", "test_2.efi")
			m.NoTPM = nil
			m.Holds(5, 1) // nothing was changed in the TPM
			m.Typed = nil
			if end := m.Boot(); end != "recovery" || m.Agent.Contract.Version != 2 {
				t.Errorf("version %s ends in %s without a key:\n%s", m.Agent.Contract.Version, end, m.Said.String())
			}
			m.Wants("test_1.efi", "test_2.efi")
			m.Typed = []string{m.RecoveryKey(), "y", "weaker"}
			m.Ends("system")
			m.Runs(2)
			m.Holds(6, 2)
		})
	}
}

// A TPM that works again while the key is typed is told of the new system by the next
// boot: the release is not lost, and is not started without it. Neither is one where the
// owner has not answered.
func TestUpdateWaitsForTPM(t *testing.T) { // FAULTS 71
	m := machinetest.ProvisionedMachine(t, machinetest.OptionalTPM)
	m.Fetch(machinetest.NewRelease(t, 2, 5, machinetest.OptionalTPM))
	fetched := m.World(true, nil)
	m.TpmBusy = 1
	m.Typed = []string{m.RecoveryKey()}
	m.Ends("system", "the TPM cannot be told of the new system in this boot")
	m.Wants("test_1.efi")
	m.Runs(2)
	m.PowerOn(fetched)
	m.NoTPM = machinetest.ErrDead
	m.Typed = []string{m.RecoveryKey(), ""}
	if end := m.Boot(); end != "reboot" {
		t.Errorf("ends in %s", end)
	}
	m.Wants("test_1.efi")
}

// The owner of a machine that requires a TPM which has died has two ways to go on, and
// is told of them: another TPM, and an image that does without one beside the root
// partition that is kept. FAULTS 71
func TestLiveOnWithoutTPM(t *testing.T) {
	ways := []string{"put in a TPM that works", "built with TPM=optional", "--keep-root"}
	t.Run("another TPM", func(t *testing.T) {
		m := inUseAs(t, machinetest.Pinned)
		m.NoTPM = machinetest.ErrDead
		m.Said.Reset()
		if end := m.Boot(); end != "reboot" {
			t.Errorf("ends in %s", end)
		}
		for _, way := range ways {
			if !strings.Contains(m.Said.String(), way) {
				t.Errorf("says nothing of %q:\n%s", way, m.Said.String())
			}
		}
		m.NoTPM = nil
		w := m.World(true, nil)
		w.Chip = nil
		m.PowerOn(w)
		m.Printed.Reset()
		m.Rebinds()
		if !strings.Contains(m.Printed.String(), "Bound to this TPM.") {
			t.Errorf("says %s", m.Printed.String())
		}
		m.Runs(1)
		m.Fetch(machinetest.NewRelease(t, 2, 5, machinetest.Pinned))
		m.Runs(2)
		m.Must(m.Kept())
	})
	for name, noTPM := range map[string]error{"dead": machinetest.ErrDead, "taken out": tpm.ErrAbsent} {
		t.Run("an image that does without, TPM "+name, func(t *testing.T) {
			m := inUseAs(t, machinetest.Pinned)
			m.Releases[2] = machinetest.NewRelease(t, 2, 5, machinetest.OptionalTPM)
			m.NoTPM = noTPM
			if noTPM == tpm.ErrAbsent {
				m.Ends("recovery", ways...)
			}
			m.PowerOn(m.Reinstalled(2))
			var answers []string
			if noTPM == machinetest.ErrDead {
				answers = []string{"weaker"}
			}
			answers = append(answers, "y")
			if end := m.StartsTyped(answers...); end != "system" || m.Agent.Contract.Version != 2 {
				t.Fatalf("version %s ends in %s:\n%s", m.Agent.Contract.Version, end, m.Said.String())
			}
			if m.Vars["SecureBoot"].Data[0] != 1 {
				t.Error("Secure Boot is not on")
			}
			m.KeysAreKept()
			m.Must(m.Kept())
			m.Fetch(machinetest.NewRelease(t, 3, 5, machinetest.OptionalTPM))
			if end := m.StartsTyped(answers[:len(answers)-1]...); end != "system" || m.Agent.Contract.Version != 3 {
				t.Errorf("version %s ends in %s:\n%s", m.Agent.Contract.Version, end, m.Said.String())
			}
			m.Must(m.Kept())
		})
	}
}

// inUseAs is inUse of a machine with another contract.
func inUseAs(t *testing.T, change func(*contract.Contract)) *machinetest.Machine {
	t.Helper()
	m := machinetest.ProvisionedMachine(t, change)
	m.RootFiles()[machinetest.Marker] = []byte("the only copy")
	return m
}

// Firmware in Setup Mode gets this machine's keys from its owner alone, whatever becomes
// of the TPM: anyone who has cleared them may have switched it off, too. FAULTS 63
func TestNotEnrolledWithoutAsking(t *testing.T) {
	for name, noTPM := range map[string]error{"taken out": tpm.ErrAbsent, "dead": machinetest.ErrDead} {
		for _, lost := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, keys lost: %t", name, lost), func(t *testing.T) {
				m := inUseAs(t, machinetest.OptionalTPM)
				w := m.World(true, nil)
				w.Vars = machinetest.NewVariables()
				m.PowerOn(w)
				if lost {
					delete(m.RootFiles(), rootpart.ListFile)
				}
				m.NoTPM = noTPM
				made := m.KeysNo
				answers := []string{m.RecoveryKey()}
				if noTPM == machinetest.ErrDead {
					answers = append(answers, "weaker")
				}
				for _, last := range []string{"n", "y"} {
					m.Typed = append(slices.Clone(answers), last)
					m.Ops = nil
					m.Printed.Reset()
					if end := m.Boot(); end != "system" && (last == "n" || lost) {
						t.Fatalf("after %q it ends in %s:\n%s", last, end, m.Said.String())
					}
					asks, enrolled := strings.Contains(m.Printed.String(), "it is in Setup Mode"), len(m.Written("variable PK")) > 0
					if asks == lost || enrolled != (last == "y" && !lost) || m.KeysNo != made {
						t.Errorf("after %q it has enrolled: %t, made keys: %t; it asks:\n%s", last, enrolled, m.KeysNo != made, m.Printed.String())
					}
				}
				m.Must(m.Kept())
			})
		}
	}
}

// A machine that is made without a TPM, and is cut before its keys are enrolled, is asked
// as well: the disk says no more than a stranger could have written.
func TestCutFirstEnrollment(t *testing.T) {
	m := machinetest.New(t, machinetest.OptionalTPM)
	m.NoTPM = tpm.ErrAbsent
	m.Owner = true
	states, end := m.Record(m.World(true, nil), mrand.New(mrand.NewPCG(31, 32)), "")
	if end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	asked := 0
	for _, s := range states {
		m.PowerOn(s.World)
		if len(m.Shown) == 0 || m.Vars["SetupMode"].Data[0] == 0 {
			continue
		}
		m.Owner, m.Typed = false, []string{m.RecoveryKey(), "n"}
		m.Printed.Reset()
		if end := m.Run(); end == "system" && strings.Contains(m.Printed.String(), "Recovery key (") {
			if asked++; len(m.Typed) > 0 || len(m.Written("variable PK")) > 0 && m.Vars["SetupMode"].Data[0] == 0 {
				t.Fatalf("%s: it enrolls without asking; it says %s", s.How, m.Printed.String())
			}
		}
		m.PowerOn(s.World)
		m.Owner = true
		if end := m.Run(); end != "system" || m.Vars["SetupMode"].Data[0] != 0 {
			t.Errorf("%s: it ends in %s:\n%s", s.How, end, m.Said.String())
		}
	}
	if asked == 0 {
		t.Errorf("none of %d states asks", len(states))
	}
}
