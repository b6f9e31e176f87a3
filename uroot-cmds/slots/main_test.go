package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/initagent/inventory"
	"halogenos.internal/initagent/inventory/inventorytest"
)

func TestSlots(t *testing.T) {
	m := inventorytest.New(t)
	m.Install(layout.SlotA, "os_7.efi")
	take := func() (*inventory.Inventory, error) { return inventory.Take(m.Hardware()) }
	var out, errs bytes.Buffer
	if code := run(nil, &out, &errs, take); code != 0 {
		t.Fatalf("exit code %d: %s", code, &errs)
	}
	for _, want := range []string{"disk disk0\n", "* slot a     version 7 ", "blessed (os_7.efi)", "  slot b     empty\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("lacks %q:\n%s", want, &out)
		}
	}
	out.Reset()
	if code := run([]string{"--json"}, &out, &errs, take); code != 0 {
		t.Fatalf("exit code %d: %s", code, &errs)
	}
	var inv inventory.Inventory
	if err := json.Unmarshal(out.Bytes(), &inv); err != nil || len(inv.Systems) != 1 || inv.Systems[0].Slot != layout.SlotA || inv.Systems[0].Version != "7" {
		t.Errorf("%v: %s", err, &out)
	}
}

func TestUse(t *testing.T) {
	fails := func() (*inventory.Inventory, error) { return nil, errors.New("no disk") }
	for _, c := range []struct {
		args        []string
		code        int
		out, errOut string
	}{
		{[]string{"--help"}, 0, "usage: slots", ""},
		{[]string{"--colour"}, 2, "", "usage: slots"},
		{[]string{"a"}, 2, "", "usage: slots"},
		{nil, 1, "", "slots: no disk"},
	} {
		var out, errs bytes.Buffer
		if code := run(c.args, &out, &errs, fails); code != c.code || !strings.Contains(out.String(), c.out) || !strings.Contains(errs.String(), c.errOut) {
			t.Errorf("slots %q: %d, %q, %q", c.args, code, &out, &errs)
		}
	}
}
