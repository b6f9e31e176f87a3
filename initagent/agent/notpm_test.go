package agent

import (
	"bytes"
	"fmt"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/initagent/rootpart"
	"halogenos.internal/initagent/tpm"
)

// startsTyped boots a machine whose TPM opens nothing, by the recovery key and what
// else is asked, until it runs a system or stops.
func (m *machine) startsTyped(answers ...string) (end string) {
	m.t.Helper()
	for range 4 {
		m.typed = append([]string{m.recoveryKey()}, answers...)
		m.printed.Reset()
		if end = m.boot(); end != "reboot" {
			return end
		}
	}
	return end
}

// A machine whose TPM has died, or was taken out, and which can do without, goes on
// taking updates: its owner opens it by the recovery key. A TPM that comes back does
// not know the new system, which is neither given up nor opened without its owner.
// FAULTS 71
func TestUpdateWithoutTPM(t *testing.T) {
	for _, c := range []struct {
		name    string
		noTPM   error
		answers []string
	}{{"dead", errDead, []string{"weaker"}}, {"taken out", tpm.ErrAbsent, nil}} {
		t.Run(c.name, func(t *testing.T) {
			m := provisionedMachine(t, optionalTPM)
			m.noTPM = c.noTPM
			m.fetch(newRelease(t, 2, 6, optionalTPM))
			m.said.Reset()
			if end := m.startsTyped(c.answers...); end != "system" || m.agent.Contract.Version != 2 {
				t.Fatalf("version %s ends in %s:\n%s", m.agent.Contract.Version, end, m.said.String())
			}
			if !strings.Contains(m.said.String(), "WARNING: the TPM was not told of version 2") {
				t.Errorf("says nothing of it:\n%s", m.said.String())
			}
			m.bless()
			for range 2 {
				if end := m.startsTyped(c.answers...); end != "system" || m.agent.Contract.Version != 2 {
					t.Fatalf("version %s ends in %s:\n%s", m.agent.Contract.Version, end, m.said.String())
				}
			}
			m.wants("test_1.efi", "test_2.efi")
			m.noTPM = nil
			m.holds(5, 1) // nothing was changed in the TPM
			m.typed = nil
			if end := m.boot(); end != "recovery" || m.agent.Contract.Version != 2 {
				t.Errorf("version %s ends in %s without a key:\n%s", m.agent.Contract.Version, end, m.said.String())
			}
			m.wants("test_1.efi", "test_2.efi")
			m.typed = []string{m.recoveryKey(), "y", "weaker"}
			m.ends("system")
			m.runs(2)
			m.holds(6, 2)
		})
	}
}

// A TPM that works again while the key is typed is told of the new system by the next
// boot: the release is not lost, and is not started without it. Neither is one where the
// owner has not answered.
func TestUpdateWaitsForTPM(t *testing.T) { // FAULTS 71
	m := provisionedMachine(t, optionalTPM)
	m.fetch(newRelease(t, 2, 5, optionalTPM))
	fetched := m.world(true, nil)
	m.tpmBusy = 1
	m.typed = []string{m.recoveryKey()}
	m.ends("system", "the TPM cannot be told of the new system in this boot")
	m.wants("test_1.efi")
	m.runs(2)
	m.powerOn(fetched)
	m.noTPM = errDead
	m.typed = []string{m.recoveryKey(), ""}
	if end := m.boot(); end != "reboot" {
		t.Errorf("ends in %s", end)
	}
	m.wants("test_1.efi")
}

// The owner of a machine that requires a TPM which has died has two ways to go on, and
// is told of them: another TPM, and an image that does without one beside the root
// partition that is kept. FAULTS 71
func TestLiveOnWithoutTPM(t *testing.T) {
	ways := []string{"put in a TPM that works", "built with TPM=optional", "--keep-root"}
	t.Run("another TPM", func(t *testing.T) {
		m := inUseAs(t, pinned)
		m.noTPM = errDead
		m.said.Reset()
		if end := m.boot(); end != "reboot" {
			t.Errorf("ends in %s", end)
		}
		for _, way := range ways {
			if !strings.Contains(m.said.String(), way) {
				t.Errorf("says nothing of %q:\n%s", way, m.said.String())
			}
		}
		m.noTPM = nil
		w := m.world(true, nil)
		w.chip = nil
		m.powerOn(w)
		m.printed.Reset()
		m.rebinds()
		if !strings.Contains(m.printed.String(), "Bound to this TPM.") {
			t.Errorf("says %s", m.printed.String())
		}
		m.runs(1)
		m.fetch(newRelease(t, 2, 5, pinned))
		m.runs(2)
		m.must(m.kept())
	})
	for name, noTPM := range map[string]error{"dead": errDead, "taken out": tpm.ErrAbsent} {
		t.Run("an image that does without, TPM "+name, func(t *testing.T) {
			m := inUseAs(t, pinned)
			m.releases[2] = newRelease(t, 2, 5, optionalTPM)
			m.noTPM = noTPM
			if noTPM == tpm.ErrAbsent {
				m.ends("recovery", ways...)
			}
			m.powerOn(m.reinstalled(2))
			var answers []string
			if noTPM == errDead {
				answers = []string{"weaker"}
			}
			answers = append(answers, "y")
			if end := m.startsTyped(answers...); end != "system" || m.agent.Contract.Version != 2 {
				t.Fatalf("version %s ends in %s:\n%s", m.agent.Contract.Version, end, m.said.String())
			}
			if m.vars["SecureBoot"].data[0] != 1 {
				t.Error("Secure Boot is not on")
			}
			m.keysAreKept()
			m.must(m.kept())
			m.fetch(newRelease(t, 3, 5, optionalTPM))
			if end := m.startsTyped(answers[:len(answers)-1]...); end != "system" || m.agent.Contract.Version != 3 {
				t.Errorf("version %s ends in %s:\n%s", m.agent.Contract.Version, end, m.said.String())
			}
			m.must(m.kept())
		})
	}
}

// inUseAs is inUse of a machine with another contract.
func inUseAs(t *testing.T, change func(*contract.Contract)) *machine {
	t.Helper()
	m := provisionedMachine(t, change)
	m.rootFiles()[marker] = []byte("the only copy")
	return m
}

// keysAreKept checks that the firmware has the keys of the root partition.
func (m *machine) keysAreKept() {
	m.t.Helper()
	list, err := m.storedList()
	m.must(err)
	own, err := list.DBCertificate()
	m.must(err)
	if !bytes.Contains(m.vars["db"].data, own.Raw) {
		m.t.Error("the firmware's keys are not those of the root partition")
	}
}

// Firmware in Setup Mode gets this machine's keys from its owner alone, whatever becomes
// of the TPM: whoever has cleared them may have switched it off, too. FAULTS 63
func TestNotEnrolledWithoutAsking(t *testing.T) {
	for name, noTPM := range map[string]error{"taken out": tpm.ErrAbsent, "dead": errDead} {
		for _, lost := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, keys lost: %t", name, lost), func(t *testing.T) {
				m := inUseAs(t, optionalTPM)
				w := m.world(true, nil)
				w.vars = newVariables()
				m.powerOn(w)
				if lost {
					delete(m.rootFiles(), rootpart.ListFile)
				}
				m.noTPM = noTPM
				made := m.keysNo
				answers := []string{m.recoveryKey()}
				if noTPM == errDead {
					answers = append(answers, "weaker")
				}
				for _, last := range []string{"n", "y"} {
					m.typed = append(slices.Clone(answers), last)
					m.ops = nil
					m.printed.Reset()
					if end := m.boot(); end != "system" && (last == "n" || lost) {
						t.Fatalf("after %q it ends in %s:\n%s", last, end, m.said.String())
					}
					asks, enrolled := strings.Contains(m.printed.String(), "it is in Setup Mode"), len(m.written("variable PK")) > 0
					if asks == lost || enrolled != (last == "y" && !lost) || m.keysNo != made {
						t.Errorf("after %q it has enrolled: %t, made keys: %t; it asks:\n%s", last, enrolled, m.keysNo != made, m.printed.String())
					}
				}
				m.must(m.kept())
			})
		}
	}
}

// A machine that is made without a TPM, and is cut before its keys are enrolled, is asked
// as well: the disk says no more than a stranger could have written.
func TestCutFirstEnrollment(t *testing.T) {
	m := newMachine(t, optionalTPM)
	m.noTPM = tpm.ErrAbsent
	m.owner = true
	states, end := m.record(m.world(true, nil), mrand.New(mrand.NewPCG(31, 32)), "")
	if end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.said.String())
	}
	asked := 0
	for _, s := range states {
		m.powerOn(s.world)
		if len(m.shown) == 0 || m.vars["SetupMode"].data[0] == 0 {
			continue
		}
		m.owner, m.typed = false, []string{m.recoveryKey(), "n"}
		m.printed.Reset()
		if end := m.run(); end == "system" && strings.Contains(m.printed.String(), "Recovery key (") {
			if asked++; len(m.typed) > 0 || len(m.written("variable PK")) > 0 && m.vars["SetupMode"].data[0] == 0 {
				t.Fatalf("%s: it enrolls without asking; it says %s", s.how, m.printed.String())
			}
		}
		m.powerOn(s.world)
		m.owner = true
		if end := m.run(); end != "system" || m.vars["SetupMode"].data[0] != 0 {
			t.Errorf("%s: it ends in %s:\n%s", s.how, end, m.said.String())
		}
	}
	if asked == 0 {
		t.Errorf("none of %d states asks", len(states))
	}
}
