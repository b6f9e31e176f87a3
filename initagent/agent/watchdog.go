package agent

import (
	"errors"
	"time"

	"halogenos.internal/boot/slot"
	"halogenos.internal/initagent/watchdog"
)

// How long a step may take before the boot counts as hanging. A step that asks a
// person has no limit.
const (
	stepLimit = 5 * time.Minute
	treeLimit = time.Hour // a slow stick with a large image
	// secretLimit is for a step that waits for a person as long as secretTimeout lets it.
	secretLimit = 20 * time.Minute
)

// startWatchdog takes the machine's hardware watchdog. Having none is a fact:
// such a machine is restarted by hand when it hangs.
func (a *Agent) startWatchdog() error {
	name, timer, err := a.Watchdog()
	if errors.Is(err, watchdog.ErrNone) {
		// Some are a part of a chip whose driver has only just shown them.
		if tried, kerr := a.Kernel.Coldplug(a.Way); kerr != nil || tried == 0 {
			return nil
		}
		name, timer, err = a.Watchdog()
	}
	if errors.Is(err, watchdog.ErrNone) {
		return nil
	}
	if err != nil {
		a.Log.Say("no watchdog guards this boot: %v", err)
		return nil
	}
	if a.watchdog, err = watchdog.Start(name, timer, a.Now); err != nil {
		a.Log.Say("no watchdog guards this boot: %v", err)
		return nil
	}
	a.watchdog.Allow(stepLimit)
	a.Log.Say("watchdog %s guards this boot", name)
	if a.WatchdogReset = a.watchdog.CausedReset; a.WatchdogReset {
		a.Log.Say("the watchdog ended the boot before this one: it hung")
	}
	return nil
}

// allow gives the next step its time.
func (a *Agent) allow(step slot.Kind) {
	if a.watchdog == nil {
		return
	}
	switch limit := steps[step].limit; limit {
	case noLimit:
		a.watchdog.Allow(0)
	case 0:
		a.watchdog.Allow(stepLimit)
	default:
		a.watchdog.Allow(limit)
	}
}

// releaseWatchdog hands the watchdog to whoever feeds it within that time, or,
// with zero, stops it: nobody will.
func (a *Agent) releaseWatchdog(within time.Duration) {
	if a.watchdog == nil {
		return
	}
	if err := a.watchdog.Hand(within); err != nil {
		a.Log.Say("%v", err)
	}
	a.watchdog = nil
}
