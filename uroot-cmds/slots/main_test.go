package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/journal"
	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/microcode"
	"halogenos.internal/initagent/bootinfo"
	"halogenos.internal/initagent/command/commandtest"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/inventory"
	"halogenos.internal/initagent/inventory/inventorytest"
)

func TestSlots(t *testing.T) {
	m := inventorytest.New(t)
	m.Install(layout.SlotA, "os_7.efi")
	take := func() (*inventory.Inventory, error) { return inventory.Take(m.Hardware()) }
	dir := t.TempDir()
	place := bootinfo.Place{Directories: []string{filepath.Join(dir, "shared")}, Report: filepath.Join(dir, "boot.json")}
	run := func(args ...string) string {
		t.Helper()
		code, out, errs := commandtest.Run(cmd(take, place), args...)
		if code != 0 || errs != "" {
			t.Fatalf("exit code %d: %s", code, errs)
		}
		return out
	}
	has := func(out string, wants ...string) {
		t.Helper()
		for _, want := range wants {
			if !strings.Contains(out, want) {
				t.Errorf("lacks %q:\n%s", want, out)
			}
		}
	}
	has(run(), "disk disk0\n", "* slot a     version 7 ", "blessed (os_7.efi)", "  slot b     empty\n", "slot a has 8 MiB for a system image (system-a)\n", "the root partition, which is not open (unlock opens it)")

	// FAULTS 112 (M10): as initagent writes it.
	report, err := json.Marshal(bootinfo.Report{
		Version: "7", Slot: layout.SlotA, Trial: true, Reason: "it is the newest",
		Processor: &microcode.Running{Vendor: "GenuineIntel", Name: "06-9e-0a", Revision: "0xf8"},
		Steps:     []hw.Entry{{Step: "open verity", Reason: "slot a holds it"}, {Step: "unlock", Error: "PCR 7\ndiffers"}},
	})
	if err == nil {
		err = os.WriteFile(place.Report, report, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(place.Directories[0], 0o755); err != nil {
		t.Fatal(err)
	}
	for n := range 15 {
		e := journal.Entry{Time: time.Unix(int64(n), 0), Kind: journal.Boot, Version: 7, Slot: layout.SlotA, Reason: "as entry " + string(rune('a'+n))}
		if err := place.Note(e); err != nil {
			t.Fatal(err)
		}
	}
	stopped, err := json.Marshal(bootinfo.Report{Version: "7", Slot: layout.SlotA, Stopped: true, Reason: "no recovery key was given:\nPCR 7 differs"})
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := bootinfo.Place{Directories: place.Directories, Report: filepath.Join(dir, "stopped.json")}
	if err := os.WriteFile(elsewhere.Report, stopped, 0o644); err != nil {
		t.Fatal(err)
	}
	_, atConsole, _ := commandtest.Run(cmd(take, elsewhere))
	has(atConsole, "this boot: version 7 from slot a\n  stopped: no recovery key was given:\n    PCR 7 differs\n")
	out := run()
	has(out, "this boot: version 7 from slot a, on trial", "because it is the newest", "on GenuineIntel 06-9e-0a, microcode 0xf8", "slot a holds it", "FAILED: PCR 7\n    differs", "boot journal:", "3 older ones", "as entry o")
	if strings.Contains(out, "as entry c") || !strings.Contains(run("--all"), "as entry a") {
		t.Errorf("without --all it ends with the last %d entries:\n%s", shown, out)
	}

	var got output
	if err := json.Unmarshal([]byte(run("--json", "--all")), &got); err != nil || len(got.Systems) != 1 || got.Systems[0].Slot != layout.SlotA || got.Systems[0].Version != "7" ||
		len(got.Journal) != 15 || !got.Boot.Trial {
		t.Errorf("%+v, %v", got, err)
	}
}

// A slot that has grown has two partitions, and one whose table lacks the second says so.
func TestGrownSlots(t *testing.T) {
	m := inventorytest.New(t)
	m.Grow()
	m.Install(layout.SlotB, "os_7.efi")
	take := func() (*inventory.Inventory, error) { return inventory.Take(m.Hardware()) }
	place := bootinfo.Place{Report: filepath.Join(t.TempDir(), "boot.json")}
	if code, out, errs := commandtest.Run(cmd(take, place)); code != 0 || !strings.Contains(out, "slot b has 8 MiB for a system image (system-b and system-b-2)\n") || strings.Contains(out, "needs") {
		t.Errorf("%d, %s%s", code, out, errs)
	}
	m.Lose(layout.MoreSystemB)
	if code, out, errs := commandtest.Run(cmd(take, place)); code != 0 || !strings.Contains(out, "no partition system-b-2 that adds to it") || !strings.Contains(out, "slot b has 0 MiB for a system image (system-b)\n") {
		t.Errorf("%d, %s%s", code, out, errs)
	}
	m.Lose(layout.SystemB)
	if code, out, errs := commandtest.Run(cmd(take, place)); code != 0 || !strings.Contains(out, "slot b: the disk lacks a partition: none has the label \"system-b\"") {
		t.Errorf("%d, %s%s", code, out, errs)
	}
}

func TestUse(t *testing.T) {
	fails := func() (*inventory.Inventory, error) { return nil, errors.New("no disk") }
	commandtest.Use(t, cmd(fails, bootinfo.Place{}))
	if code, _, errs := commandtest.Run(cmd(fails, bootinfo.Place{})); code != 1 || errs != "slots: no disk\n" {
		t.Errorf("%d, %q", code, errs)
	}
}
