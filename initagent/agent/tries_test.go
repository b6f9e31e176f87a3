package agent

import (
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/secureboot"
)

// A boot manager that cannot rename a file counts no tries: the trial counts itself, and
// ends, and a good one is blessed as ever. FAULTS 49
func TestUncountedTrial(t *testing.T) {
	m := fetchedMachine(t)
	m.countsNothing = true
	fetched := m.world(true, nil)
	for _, name := range []string{"test_2+2-1.efi", "test_2+1-2.efi", "test_2+0-3.efi"} {
		m.said.Reset()
		if end := m.boot(); end != "system" || m.agent.Contract.Version != 2 || !m.agent.State.Trial {
			t.Fatalf("version %s ends in %s, on trial: %v:\n%s", m.agent.Contract.Version, end, m.agent.State.Trial, m.said.String())
		}
		m.wants("test_1.efi", name)
		if !strings.Contains(m.said.String(), "has not counted this start") {
			t.Errorf("says nothing of it:\n%s", m.said.String())
		}
	}
	if end := m.boot(); end == "recovery" || m.agent.Contract.Version != 1 {
		t.Errorf("version %s ends in %s:\n%s", m.agent.Contract.Version, end, m.said.String())
	}
	m.powerOn(fetched)
	m.runs(2)
	m.bless()
	m.runs(2)
	m.wants("test_1.efi", "test_2.efi")
	// Where nobody can rename anything it starts all the same, and says so.
	m.powerOn(fetched)
	m.esp.fails = syscall.EIO
	m.runs(2, "was not counted, so that the trial does not end by itself")
	m.wants("test_1.efi", "test_2+3.efi")
}

// The boot manager cannot say that it has counted where somebody has stored something
// under its variable's name: no try is lost by that. FAULTS 49
func TestPlantedCountVariable(t *testing.T) {
	const text = `\EFI\Linux\test_1+2-1.efi`
	m := fetchedMachine(t)
	m.storeLoaderVariables(planted, text)
	m.runs(2, "LoaderBootCountPath, which says that a system is on trial")
	m.wants("test_1.efi", "test_2+2-1.efi")
	m.runs(2)
	m.wants("test_1.efi", "test_2+1-2.efi")
	// One that stays costs a try a start, and ends nevertheless.
	m = fetchedMachine(t)
	m.storeLoaderVariables(planted|secureboot.TimeBasedAuthenticated, text)
	m.keepsAll = true
	m.runs(2)
	m.wants("test_1.efi", "test_2+1-2.efi")
	// A boot manager that counts nothing is counted for in the start after.
	m = fetchedMachine(t)
	m.countsNothing = true
	m.storeLoaderVariables(planted, text)
	m.runs(2)
	m.wants("test_1.efi", "test_2+3.efi")
	m.runs(2, "has not counted this start")
	m.wants("test_1.efi", "test_2+2-1.efi")
}
