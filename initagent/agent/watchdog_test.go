package agent

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	uroot "github.com/u-root/u-root/pkg/watchdog"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
	"halogenos.internal/initagent/watchdog"
)

// timer is a watchdog device that keeps what it was told.
type timer struct {
	timeout time.Duration
	stopped bool
	closed  bool
	status  uroot.Status
}

func (t *timer) BootStatus() (uroot.Status, error) { return t.status, nil }

func (t *timer) SetTimeout(d time.Duration) error { t.timeout = d; return nil }
func (t *timer) Timeout() (time.Duration, error)  { return t.timeout, nil }
func (t *timer) KeepAlive() error                 { return nil }
func (t *timer) MagicClose() error                { t.stopped, t.closed = true, true; return nil }
func (t *timer) Close() error                     { t.closed = true; return nil }

// watchdog is the machine's, where it has one.
func (m *machine) watchdog() (string, watchdog.Timer, error) {
	if m.watchdogReset {
		return "watchdog0 (test)", &timer{status: uroot.StatusCardReset}, nil
	}
	return "", nil, watchdog.ErrNone
}

func guarded(open func() (string, watchdog.Timer, error)) (*Agent, *bytes.Buffer) {
	said := new(bytes.Buffer)
	return &Agent{Host: host.Host{Machine: hw.Machine{Log: hw.NewLog(said, io.Discard), Now: time.Now, Kernel: kernel{}, Watchdog: open}}}, said
}

func TestWatchdog(t *testing.T) {
	for within, stopped := range map[time.Duration]bool{0: true, 3 * time.Minute: false} {
		device := new(timer)
		a, said := guarded(func() (string, watchdog.Timer, error) { return "watchdog0 (test)", device, nil })
		if err := a.StartWatchdog(); err != nil || !strings.Contains(said.String(), "watchdog0 (test) guards this boot") {
			t.Fatalf("%v, said %q", err, said)
		}
		for _, kind := range []bootflow.Kind{bootflow.MakeTree, bootflow.AskKey, bootflow.Unlock} {
			a.AllowWatchdog(steps[kind].time())
		}
		a.ReleaseWatchdog(within)
		if !device.closed || device.stopped != stopped || !stopped && device.timeout != within {
			t.Errorf("handed over for %s: %+v", within, device)
		}
		a.ReleaseWatchdog(within) // there is nothing left to hand over
		a.AllowWatchdog(steps[bootflow.Unlock].time())
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
	a.AllowWatchdog(steps[bootflow.Unlock].time())
	a.ReleaseWatchdog(0)
}
