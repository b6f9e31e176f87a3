package agent_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/initagent/agent"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/machinetest"
	"halogenos.internal/initagent/watchdog"
)

func guarded(open func() (string, watchdog.Timer, error)) (*agent.Agent, *bytes.Buffer) {
	said := new(bytes.Buffer)
	return &agent.Agent{Host: host.Host{Given: host.Given{Machine: hw.Machine{Log: hw.NewLog(said, io.Discard), Now: time.Now, Kernel: machinetest.Kernel{}, Watchdog: open}}}}, said
}

func TestWatchdog(t *testing.T) {
	for within, stopped := range map[time.Duration]bool{0: true, 3 * time.Minute: false} {
		device := new(machinetest.Timer)
		a, said := guarded(func() (string, watchdog.Timer, error) { return "watchdog0 (test)", device, nil })
		if err := a.StartWatchdog(); err != nil || !strings.Contains(said.String(), "watchdog0 (test) guards this boot") {
			t.Fatalf("%v, said %q", err, said)
		}
		for _, kind := range []bootflow.Kind{bootflow.MakeTree, bootflow.AskKey, bootflow.Unlock} {
			a.AllowWatchdog(agent.StepTime(kind))
		}
		a.ReleaseWatchdog(within)
		if !device.Closed || device.Stopped != stopped || !stopped && device.Limit != within {
			t.Errorf("handed over for %s: %+v", within, device)
		}
		a.ReleaseWatchdog(within) // there is nothing left to hand over
		a.AllowWatchdog(agent.StepTime(bootflow.Unlock))
	}
}

func TestNoWatchdog(t *testing.T) {
	a, said := guarded(func() (string, watchdog.Timer, error) { return "", nil, watchdog.ErrNone })
	if err := a.StartWatchdog(); err != nil || said.Len() > 0 {
		t.Errorf("none: %v, said %q", err, said)
	}
	a, said = guarded(func() (string, watchdog.Timer, error) { return "", nil, errors.New("device or resource busy") })
	if err := a.StartWatchdog(); err != nil || !strings.Contains(said.String(), "no watchdog guards this boot: device or resource busy") {
		t.Errorf("busy: %v, said %q", err, said)
	}
	a.AllowWatchdog(agent.StepTime(bootflow.Unlock))
	a.ReleaseWatchdog(0)
}
