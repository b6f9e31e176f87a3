package main

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/initagent/command/commandtest"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/recovery"
)

type nobody struct{ hw.Console }

func (nobody) Close() error { return nil }

// What it does is tested where a whole machine is, in initagent/agent. In a
// running system it does nothing at all.
func TestUse(t *testing.T) {
	terminal := func() (hw.Console, error) { return nobody{}, nil }
	elsewhere := filepath.Join(t.TempDir(), "no-initramfs")
	machine := func() (*recovery.Machine, error) { return &recovery.Machine{Root: elsewhere}, nil }
	commandtest.Use(t, cmd(machine, terminal))
	if code, _, errs := commandtest.Run(cmd(machine, terminal), "--yes"); code != 2 || !strings.HasSuffix(errs, help) {
		t.Errorf("it takes --yes: %d, %q", code, errs)
	}
	if code, _, errs := commandtest.Run(cmd(machine, terminal)); code != 1 || !strings.HasPrefix(errs, "reset: this is not the recovery console") {
		t.Errorf("%d, %q", code, errs)
	}
	fails := func() (hw.Console, error) { return nil, errors.New("not here") }
	if code, _, errs := commandtest.Run(cmd(machine, fails)); code != 1 || errs != "reset: not here\n" {
		t.Errorf("%d, %q", code, errs)
	}
}
