package main

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/policy"
	"halogenos.internal/initagent/command/commandtest"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/recovery"
)

// kept is what an unlock before has kept, or nothing.
type kept struct {
	recovery.Keeper
	open bool
}

func (k kept) Kept() (*recovery.Opened, error) {
	if k.open {
		return &recovery.Opened{Secret: new(policy.Secret)}, nil
	}
	return nil, recovery.ErrLocked
}

type nobody struct{ hw.Console }

func (nobody) Close() error { return nil }

// What it does is tested on the simulated machine, in initagent/recovery.
func TestUse(t *testing.T) {
	terminal := func() (hw.Console, error) { return nobody{}, nil }
	elsewhere := filepath.Join(t.TempDir(), "no-initramfs")
	machine := func(open bool) func() (*recovery.Machine, error) {
		return func() (*recovery.Machine, error) {
			return &recovery.Machine{Host: host.Host{Given: host.Given{Root: elsewhere}}, Keeper: kept{open: open}}, nil
		}
	}
	commandtest.Use(t, cmd(machine(true), terminal))
	fails := errors.New("not here")
	for _, c := range []struct {
		machine  func() (*recovery.Machine, error)
		terminal func() (hw.Console, error)
		want     string
	}{
		{machine(true), terminal, "the root partition is open already"},
		{machine(false), terminal, "this is not the recovery console"},
		{func() (*recovery.Machine, error) { return nil, fails }, terminal, "not here"},
		{machine(true), func() (hw.Console, error) { return nil, fails }, "not here"},
	} {
		code, out, errs := commandtest.Run(cmd(c.machine, c.terminal))
		if code != 1 || out != "" || !strings.HasPrefix(errs, "unlock: "+c.want) {
			t.Errorf("%d, %q, %q, want %q", code, out, errs, c.want)
		}
	}
}
