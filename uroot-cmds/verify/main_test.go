package main

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/command/commandtest"
	"halogenos.internal/initagent/inventory"
	"halogenos.internal/initagent/inventory/inventorytest"
)

func TestVerify(t *testing.T) { testVerify(t, inventorytest.New(t)) }

// A slot that has grown is verified in both its extents.
func TestVerifyGrown(t *testing.T) {
	m := inventorytest.New(t)
	m.Grow()
	testVerify(t, m)
}

func testVerify(t *testing.T, m *inventorytest.Machine) {
	m.Install(layout.SlotA, "os_7.efi")
	take := func() (*inventory.Inventory, error) { return inventory.Take(m.Hardware()) }
	check := func(args []string, code int, wants ...string) {
		t.Helper()
		got, out, errs := commandtest.Run(cmd(take), args...)
		if got != code {
			t.Errorf("verify %q: exit code %d, want %d\n%s%s", args, got, code, out, errs)
		}
		for _, want := range wants {
			if !strings.Contains(out+errs, want) {
				t.Errorf("verify %q lacks %q:\n%s%s", args, want, out, errs)
			}
		}
	}
	check(nil, 0, "slot a: 1 MiB are what os_7.efi names", "slot b: empty")
	check([]string{"a"}, 0, "slot a: 1 MiB")
	check([]string{"b"}, 1, "no UKI names the content of this slot")
	check([]string{"c"}, 2, "usage: verify")
	check([]string{"none"}, 2, "usage: verify")
	if _, err := m.Partition(layout.SlotA.Verity()).WriteAt([]byte{1}, 4096); err != nil {
		t.Fatal(err)
	}
	check(nil, 1, "slot a (os_7.efi): ")
	_, out, _ := commandtest.Run(cmd(take), "--json")
	var outcomes []outcome
	if err := json.Unmarshal([]byte(out), &outcomes); err != nil || len(outcomes) != 2 || outcomes[0].Intact || outcomes[0].Corrupt == nil || outcomes[0].Corrupt.Area != "hash" || !outcomes[1].Empty {
		t.Errorf("%v: %s", err, out)
	}
}

func TestUse(t *testing.T) {
	take := func() (*inventory.Inventory, error) { return nil, errors.New("no disk") }
	commandtest.Use(t, cmd(take))
	if code, _, errs := commandtest.Run(cmd(take)); code != 1 || errs != "verify: no disk\n" {
		t.Errorf("%d, %q", code, errs)
	}
}
