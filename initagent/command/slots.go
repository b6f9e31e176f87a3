package command

import (
	"fmt"
	"time"

	"halogenos.internal/boot/layout"
)

// Slots are those that the arguments name: one, or both where they name none.
func Slots(args []string) ([]layout.Slot, error) {
	if len(args) == 0 {
		return layout.Slots[:], nil
	}
	var s layout.Slot
	if err := s.UnmarshalText([]byte(args[0])); err != nil || !s.Valid() {
		return nil, fmt.Errorf("%w: %q is not a slot, a and b are", ErrUsage, args[0])
	}
	return []layout.Slot{s}, nil
}

// Progress returns a function that says how much of something is done: on
// stderr, at most once a second, and only of work that lasts longer than two.
func Progress(c *Call, what string) func(done, total int64) {
	last := time.Now().Add(time.Second)
	return func(done, total int64) {
		if now := time.Now(); total > 0 && now.Sub(last) > time.Second {
			last = now
			fmt.Fprintf(c.Stderr, "%s: %d %%\n", what, done*100/total)
		}
	}
}
