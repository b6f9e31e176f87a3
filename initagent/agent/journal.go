package agent

import (
	"errors"

	"halogenos.internal/boot/slot"
)

// judgeTrial says what is held of a trial that has used up its tries.
func (a *Agent) judgeTrial() slot.Verdict { return slot.NoTrial }

func (a *Agent) remember() error { return errors.ErrUnsupported }

func (a *Agent) retry() error { return errors.ErrUnsupported }
