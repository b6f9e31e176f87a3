package agent

import (
	"time"

	"halogenos.internal/boot/bootflow"
)

// Facts is what the boot has seen and done.
func (a *Agent) Facts() bootflow.Facts { return a.facts }

// Stopped are the facts to give advice about.
func (a *Agent) Stopped() bootflow.Facts { return a.stopped() }

// StepTime is how long a step may take for the watchdog.
func StepTime(k bootflow.Kind) time.Duration { return steps[k].time() }
