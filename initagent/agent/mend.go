package agent

import "errors"

// espUnwell reports whether the ESP and the root partition's copies differ.
func (a *Agent) espUnwell() bool { return false }

func (a *Agent) mend() error { return errors.ErrUnsupported }
