package pgp

import (
	"errors"
	"fmt"
)

// ErrPinned is wrapped when two systems have not pinned the same release key:
// machines of the one would take no release of the other.
var ErrPinned = errors.New("they have not pinned the same release key")

// SamePinned compares the keys that two boot contracts have pinned, by their whole
// fingerprints: a key whose expiry was moved, or that has got another subkey, is
// still the same. Empty is none, and none is only the same as none.
func SamePinned(was, is []byte) error {
	if len(was) == 0 && len(is) == 0 {
		return nil
	}
	if len(was) == 0 || len(is) == 0 {
		return fmt.Errorf("%w: only one of them has any", ErrPinned)
	}
	a, err := ParseKey(was)
	if err != nil {
		return fmt.Errorf("the first pinned key: %w", err)
	}
	b, err := ParseKey(is)
	if err != nil {
		return fmt.Errorf("the second pinned key: %w", err)
	}
	if a.Fingerprint() != b.Fingerprint() {
		return fmt.Errorf("%w: %s, and now %s", ErrPinned, a.Fingerprint(), b.Fingerprint())
	}
	return nil
}
