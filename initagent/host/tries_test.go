package host_test

import (
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/secureboot"
	"halogenos.internal/initagent/machinetest"
)

// A boot manager that cannot rename a file counts no tries: the trial counts itself, and
// ends, and a good one is blessed as ever. FAULTS 49
func TestUncountedTrial(t *testing.T) {
	m := machinetest.FetchedMachine(t)
	m.CountsNothing = true
	fetched := m.World(true, nil)
	for _, name := range []string{"test_2+2-1.efi", "test_2+1-2.efi", "test_2+0-3.efi"} {
		m.Said.Reset()
		if end := m.Boot(); end != "system" || m.Agent.Contract.Version != 2 || !m.Agent.State.Trial {
			t.Fatalf("version %s ends in %s, on trial: %v:\n%s", m.Agent.Contract.Version, end, m.Agent.State.Trial, m.Said.String())
		}
		m.Wants("test_1.efi", name)
		if !strings.Contains(m.Said.String(), "has not counted this start") {
			t.Errorf("says nothing of it:\n%s", m.Said.String())
		}
	}
	if end := m.Boot(); end == "recovery" || m.Agent.Contract.Version != 1 {
		t.Errorf("version %s ends in %s:\n%s", m.Agent.Contract.Version, end, m.Said.String())
	}
	m.PowerOn(fetched)
	m.Runs(2)
	m.Bless()
	m.Runs(2)
	m.Wants("test_1.efi", "test_2.efi")
	// Where nobody can rename anything it starts all the same, and says so.
	m.PowerOn(fetched)
	m.ESP.Fails = syscall.EIO
	m.Runs(2, "was not counted, so that the trial does not end by itself")
	m.Wants("test_1.efi", "test_2+3.efi")
}

// The boot manager cannot say that it has counted where somebody has stored something
// under its variable's name: no try is lost by that. FAULTS 49
func TestPlantedCountVariable(t *testing.T) {
	const text = `\EFI\Linux\test_1+2-1.efi`
	m := machinetest.FetchedMachine(t)
	m.StoreLoaderVariables(machinetest.Planted, text)
	m.Runs(2, "LoaderBootCountPath, which says that a system is on trial")
	m.Wants("test_1.efi", "test_2+2-1.efi")
	m.Runs(2)
	m.Wants("test_1.efi", "test_2+1-2.efi")
	// One that stays costs a try a start, and ends nevertheless.
	m = machinetest.FetchedMachine(t)
	m.StoreLoaderVariables(machinetest.Planted|secureboot.TimeBasedAuthenticated, text)
	m.KeepsAll = true
	m.Runs(2)
	m.Wants("test_1.efi", "test_2+1-2.efi")
	// A boot manager that counts nothing is counted for in the start after.
	m = machinetest.FetchedMachine(t)
	m.CountsNothing = true
	m.StoreLoaderVariables(machinetest.Planted, text)
	m.Runs(2)
	m.Wants("test_1.efi", "test_2+3.efi")
	m.Runs(2, "has not counted this start")
	m.Wants("test_1.efi", "test_2+2-1.efi")
}
