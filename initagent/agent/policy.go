package agent

import "errors"

// policyOutdated reports whether the TPM's record is not the one that the
// machine's systems call for.
func (a *Agent) policyOutdated() bool { return false }

func (a *Agent) updatePolicy() error { return errors.ErrUnsupported }
