// Package reset is what a boot wipes because the running system has asked for it, and
// somebody at the machine has typed its name.
//
// It refuses to wipe anything that nobody has confirmed at the screen.
package reset

import (
	"errors"

	"halogenos.internal/boot/words"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/prompt"
	"halogenos.internal/initagent/recovery"
	"halogenos.internal/initagent/unlock"
)

// Asked does what the recovery console's reset does, which the running system has asked
// for, if somebody types the machine's name. An attacker who is root there gains the question
// and its two minutes, once: the request was taken away before, says nothing but what is
// asked for, and is answered by a person alone. Nothing was unsealed in this boot.
//
// An error means that nothing was changed, and the machine starts as usual, unless it
// has begun: then this boot ends in the recovery console, whose reset does
// the rest. Cut after the first write, nothing opens the root partition any more, and the
// next boot ends there.
func Asked(h *host.Host) (begun bool, err error) {
	c, err := prompt.Open(h)
	if err != nil {
		return false, err
	}
	defer c.Close()
	c.Print(h.Language.Text(words.ResetAsked))
	m := &recovery.Machine{Host: host.Host{Given: host.Given{Machine: h.Machine, Variables: h.Variables, Random: h.Random, Root: h.Root}}, Keeper: nothingKept{}, Discard: recovery.Discard}
	if err := m.ResetWithin(c, unlock.SecretTimeout); err != nil {
		c.Print(h.Language.Error(err) + "\n")
		return errors.Is(err, recovery.ErrBegun), err
	}
	return false, nil
}

// nothingKept is for a boot that has opened nothing.
type nothingKept struct{ recovery.Keeper }

// Forget implements recovery.Keeper.
func (nothingKept) Forget() error { return nil }
