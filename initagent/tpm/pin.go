package tpm

import (
	"time"

	"github.com/google/go-tpm/tpm2"
)

// PINTries says how many wrong PINs the TPM still takes, and how long it then wants to be
// left alone. Other software's wrong authorisations count as well, and so does, in many a
// TPM, each time that the power is cut. It is not authenticated: it is for people.
type PINTries struct {
	Failed int           // that it has counted and not forgotten
	Left   int           // 0: it takes none, not even the right one
	Wait   time.Duration // until it takes one more; the machine has to stay switched on
}

// PINTries asks for them.
func (t *TPM) PINTries() (tries PINTries, err error) {
	const op = "asking for what is left of the PIN's tries"
	defer fence(op, &err)
	variable, err := t.properties(tpm2.TPMPTPermanent, 32)
	if err != nil {
		return PINTries{}, wrap(op, err)
	}
	var c Capabilities
	c.fill(nil, variable)
	if !c.Lockout.Active && c.Lockout.Failures < c.Lockout.Limit {
		tries.Left = int(c.Lockout.Limit - c.Lockout.Failures)
	}
	tries.Failed, tries.Wait = int(c.Lockout.Failures), c.Lockout.Interval
	return tries, nil
}
