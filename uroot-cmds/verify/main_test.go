package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/inventory"
	"halogenos.internal/initagent/inventory/inventorytest"
)

func TestVerify(t *testing.T) {
	m := inventorytest.New(t)
	m.Install(layout.SlotA, "os_7.efi")
	take := func() (*inventory.Inventory, error) { return inventory.Take(m.Hardware()) }
	check := func(args []string, code int, wants ...string) {
		t.Helper()
		var out bytes.Buffer
		if got := run(context.Background(), args, &out, &out, take); got != code {
			t.Errorf("verify %q: exit code %d, want %d\n%s", args, got, code, &out)
		}
		for _, want := range wants {
			if !strings.Contains(out.String(), want) {
				t.Errorf("verify %q lacks %q:\n%s", args, want, &out)
			}
		}
	}
	check(nil, 0, "slot a: 1 MiB are what os_7.efi names", "slot b: empty")
	check([]string{"a"}, 0, "slot a: 1 MiB")
	check([]string{"b"}, 1, "no UKI names the content of this slot")
	check([]string{"c"}, 2, "usage: verify")
	check([]string{"a", "b"}, 2, "usage: verify")
	check([]string{"none"}, 2, "usage: verify")
	check([]string{"--help"}, 0, "usage: verify")
	if _, err := m.Partition(layout.SlotA.VerityNumber()).WriteAt([]byte{1}, 4096); err != nil {
		t.Fatal(err)
	}
	check(nil, 1, "slot a (os_7.efi): ")
	take = func() (*inventory.Inventory, error) { return nil, errors.New("no disk") }
	check(nil, 1, "verify: no disk")
}
