package pgp

import (
	"fmt"
	"time"
)

// soon is how long before a key ends its owner is told: a machine may sleep for as
// long, and whoever holds the key on paper needs time.
const soon = 365 * 24 * time.Hour

// Warning says what a distributor must do about the key's expiry, if it is near or
// has passed; empty is nothing.
func (k *Key) Warning(now time.Time) string {
	how := fmt.Sprintf("renew it: gpg --quick-set-expire %[1]s 5y; gpg --quick-set-expire %[1]s 5y '*'; gpg --export %[1]s into ReleaseKeyFile; then build and publish, or 'halogen release refresh --public FILE'. Machines learn of it from the server", k.fingerprint)
	end, err := k.Ends(now)
	switch {
	case err != nil:
		return fmt.Sprintf("nothing that the release key signs is taken: %v; %s", err, how)
	case !end.IsZero() && end.Sub(now) < soon:
		return fmt.Sprintf("the release key ends on %s, in %d days: %s", end.UTC().Format(time.DateOnly), int(end.Sub(now).Hours()/24), how)
	}
	return ""
}
