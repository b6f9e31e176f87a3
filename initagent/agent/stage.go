package agent

import (
	"context"
	"errors"
)

// releaseWaits reports whether the fetcher has left a release to be staged.
func (a *Agent) releaseWaits() bool { return false }

func (a *Agent) stage(context.Context) error { return errors.ErrUnsupported }
