package host

import (
	"errors"
	"time"

	"halogenos.internal/initagent/watchdog"
)

// Watching is the hardware watchdog that guards a boot, where the machine has one.
type Watching struct {
	feeder *watchdog.Feeder // or nil
	Reset  bool             // it ended the boot before this one
}

// Name is the watchdog's; "" where there is none.
func (w *Watching) Name() string {
	if w.feeder == nil {
		return ""
	}
	return w.feeder.Name
}

// StepLimit is how long a step may take before the boot counts as hanging.
const StepLimit = 5 * time.Minute

// StartWatchdog takes the machine's hardware watchdog. Having none is a fact:
// such a machine is restarted by hand when it hangs.
func (h *Host) StartWatchdog() error {
	name, timer, err := h.Watchdog()
	if errors.Is(err, watchdog.ErrNone) {
		// Some are a part of a chip whose driver has only just shown them.
		if tried, kerr := h.Kernel.Coldplug(h.Way); kerr != nil || tried == 0 {
			return nil
		}
		name, timer, err = h.Watchdog()
	}
	if errors.Is(err, watchdog.ErrNone) {
		return nil
	}
	if err != nil {
		h.Log.Say("no watchdog guards this boot: %v", err)
		return nil
	}
	if h.Watching.feeder, err = watchdog.Start(name, timer, h.Now); err != nil {
		h.Log.Say("no watchdog guards this boot: %v", err)
		return nil
	}
	h.AllowWatchdog(StepLimit)
	h.Log.Say("watchdog %s guards this boot", name)
	if h.Watching.Reset = h.Watching.feeder.CausedReset; h.Watching.Reset {
		h.Log.Say("the watchdog ended the boot before this one: it hung")
	}
	return nil
}

// AllowWatchdog gives what comes its time: without a limit where it is 0.
func (h *Host) AllowWatchdog(limit time.Duration) {
	if h.Watching.feeder != nil {
		h.Watching.feeder.Allow(limit)
	}
}

// ReleaseWatchdog hands the watchdog to the program that feeds it within that time, or,
// with zero, stops it: nobody will.
func (h *Host) ReleaseWatchdog(within time.Duration) {
	if h.Watching.feeder == nil {
		return
	}
	if err := h.Watching.feeder.Hand(within); err != nil {
		h.Log.Say("%v", err)
	}
	h.Watching.feeder = nil
}
