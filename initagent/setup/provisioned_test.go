package setup_test

import (
	"strings"
	"testing"

	"halogenos.internal/initagent/machinetest"
)

func TestProvision(t *testing.T) {
	m := machinetest.New(t, nil)
	if end := m.Run(); end != "system" {
		t.Fatalf("ends in %s:\n%s", end, m.Said.String())
	}
	if len(m.Shown) != 1 || strings.Contains(m.Said.String(), m.Shown[0]) {
		t.Errorf("recovery keys %q, or it was logged (FAULTS 75)", m.Shown)
	}
	t.Logf("%d operations", len(m.Ops))
	if err := m.Provisioned(); err != nil {
		t.Error(err)
	}
}
