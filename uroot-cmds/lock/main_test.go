package main

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/initagent/command/commandtest"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/recovery"
)

// closed is a root partition that is closed, or will not be.
type closed struct {
	recovery.Keeper
	hw.Mounts
	hw.Mapper
	busy error
}

func (closed) Forget() error          { return nil }
func (closed) Close(string) error     { return unix.ENXIO }
func (c closed) Unmount(string) error { return c.busy }

func TestLock(t *testing.T) {
	machine := func(busy error) func() (*recovery.Machine, error) {
		c := closed{busy: busy}
		return func() (*recovery.Machine, error) {
			return &recovery.Machine{Host: host.Host{Given: host.Given{Machine: hw.Machine{Mounts: c, Mapper: c}}}, Keeper: c}, nil
		}
	}
	commandtest.Use(t, cmd(machine(nil)))
	for _, c := range []struct {
		machine func() (*recovery.Machine, error)
		code    int
		errs    string
	}{
		{machine(unix.EINVAL), 0, ""},
		{machine(unix.EBUSY), 1, "lock: close the root partition (is something open in it?): device or resource busy\n"},
		{func() (*recovery.Machine, error) { return nil, errors.New("not here") }, 1, "lock: not here\n"},
	} {
		if code, _, errs := commandtest.Run(cmd(c.machine)); code != c.code || errs != c.errs {
			t.Errorf("%d, %q, want %d, %q", code, errs, c.code, c.errs)
		}
	}
}
