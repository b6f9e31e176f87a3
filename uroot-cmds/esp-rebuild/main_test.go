package main

import (
	"errors"
	"testing"

	"halogenos.internal/initagent/command/commandtest"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/rescue"
)

// locked keeps nothing.
type locked struct{ rescue.Keeper }

func (locked) Kept() (*rescue.Opened, error) { return nil, rescue.ErrLocked }

// nobody is a console at which nobody may be asked.
type nobody struct{ hw.Console }

func (nobody) Close() error { return nil }

// What it does is tested where a whole machine is, in initagent/agent.
func TestUse(t *testing.T) {
	machine := func() (*rescue.Machine, error) { return &rescue.Machine{Keeper: locked{}}, nil }
	terminal := func() (hw.Console, error) { return nobody{}, nil }
	commandtest.Use(t, cmd(machine, terminal))
	fails := errors.New("not here")
	for _, c := range []struct {
		machine  func() (*rescue.Machine, error)
		terminal func() (hw.Console, error)
		want     string
	}{
		{machine, terminal, "the root partition is not open: type `unlock` first"},
		{func() (*rescue.Machine, error) { return nil, fails }, terminal, "not here"},
		{machine, func() (hw.Console, error) { return nil, fails }, "not here"},
	} {
		code, out, errs := commandtest.Run(cmd(c.machine, c.terminal))
		if code != 1 || out != "" || errs != "esp-rebuild: "+c.want+"\n" {
			t.Errorf("%d, %q, %q, want %q", code, out, errs, c.want)
		}
	}
}
