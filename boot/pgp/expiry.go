package pgp

import (
	"errors"
	"fmt"
	"time"
)

// soon is how long before a key ends its owner is told: a machine may sleep for as
// long, and anyone who holds the key on paper needs time.
const soon = 365 * 24 * time.Hour

// A reason is why a key cannot sign, as far as what cures it differs.
type reason uint8

const (
	ended    reason = iota + 1 // it, or its last subkey, has expired
	revoked                    // the primary key
	weak                       // the primary key's signature over its own name
	early                      // made later than now
	nameless                   // nothing that the primary key says of itself counts
)

// unusableError is a key that cannot sign.
type unusableError struct {
	reason reason
	text   string
	subkey string // whose end it is; empty for the primary key's
}

func (e *unusableError) Error() string { return e.text }

func unusable(r reason, format string, args ...any) error {
	return &unusableError{reason: r, text: fmt.Sprintf(format, args...)}
}

// reasonOf returns why a key cannot sign; zero for something else.
func reasonOf(err error) reason {
	if e, ok := errors.AsType[*unusableError](err); ok {
		return e.reason
	}
	return 0
}

// An EndsError is a key that ends within a year, or has ended: it is as good as
// any until then, and can be renewed.
type EndsError struct{ text string }

// Error implements error.
func (e *EndsError) Error() string { return e.text }

// Pinnable reports why machines should not get the key to keep: one that can
// sign nothing, or not for another year (*EndsError), with what to do about it.
func (k *Key) Pinnable(now time.Time) error {
	end, err := k.Ends(now)
	switch {
	case reasonOf(err) == ended:
		return &EndsError{fmt.Sprintf("%v: %s", err, k.Cure(err))}
	case err != nil:
		return fmt.Errorf("no machine would take what the release key signs: %w: %s", err, k.Cure(err))
	case !end.IsZero() && end.Sub(now) < soon:
		return &EndsError{fmt.Sprintf("the release key ends on %s, in %d days, and machines may sleep for a year: %s", end.UTC().Format(time.DateOnly), int(end.Sub(now).Hours()/24), k.Cure(nil))}
	}
	return nil
}

// Warning says what a distributor must do about a key that signs nothing, or ends
// soon; empty is nothing.
func (k *Key) Warning(now time.Time) string {
	end, err := k.Ends(now)
	switch {
	case err != nil:
		return fmt.Sprintf("nothing that the release key signs is taken: %v; %s", err, k.Cure(err))
	case !end.IsZero() && end.Sub(now) < soon:
		return fmt.Sprintf("the release key ends on %s, in %d days: %s", end.UTC().Format(time.DateOnly), int(end.Sub(now).Hours()/24), k.Cure(nil))
	}
	return ""
}

// Cure says what to do about a key that Ends or SigningKeys has refused, or, for nil,
// that ends soon.
func (k *Key) Cure(err error) string {
	publish := fmt.Sprintf("gpg --export %s into ReleaseKeyFile; then build and publish, or 'halogen release refresh --public FILE'. Machines learn of it from the server", k.fingerprint)
	switch reasonOf(err) {
	case revoked:
		return "this cannot be taken back: make another key ('halogen keys generate') and pin that one. Machines that have pinned this key take nothing else, and must be installed again"
	case weak:
		return fmt.Sprintf("take cert-digest-algo out of gpg.conf, and have the key sign its name again: gpg --cert-digest-algo SHA256 --quick-set-expire %s 5y; %s", k.fingerprint, publish)
	case nameless:
		return fmt.Sprintf("give it a name: gpg --quick-add-uid %s NAME; %s", k.fingerprint, publish)
	case early:
		return "correct the clock of this machine, or of the one that made the key"
	case 0:
		if err != nil {
			return fmt.Sprintf("give it a subkey that signs: gpg --quick-add-key %s ed25519 sign 5y; %s", k.fingerprint, publish)
		}
	}
	subkeys := "'*'"
	if e, ok := errors.AsType[*unusableError](err); ok && e.subkey != "" {
		subkeys = e.subkey // gpg's '*' leaves out those that have expired
	}
	return fmt.Sprintf("renew it: gpg --quick-set-expire %[1]s 5y; gpg --quick-set-expire %[1]s 5y %[2]s; %[3]s", k.fingerprint, subkeys, publish)
}
