package enroll

import (
	"errors"
	"slices"

	"halogenos.internal/boot/secureboot"
)

// ReplaceDB gives db another content, in firmware that enforces this machine's keys. had is
// what this machine wanted in it so far: where the firmware holds anything else, somebody has
// changed it, and writing over that would hide it. That PCR 7 is expected to change is for the
// caller to see to.
//
// It is one write to the firmware, of which a cut leaves the old content or the new one. This
// machine's own certificate is in both, so that it starts either way.
func (e *Enroller) ReplaceDB(had secureboot.Database) error {
	s, err := Observe(e.Variables)
	if err != nil {
		return err
	}
	want := e.Wanted.DB
	switch {
	case s.SetupMode != Off:
		return errors.New("the firmware is in Setup Mode: `enroll` gives it this machine's keys again")
	case s.DB.Problem != nil:
		return s.DB.Problem
	case s.DB.holds(want):
		return nil
	case len(s.DB.Content.Without(slices.Concat(had, want))) > 0:
		return &Problem{Kind: Unsafe, What: "db holds " + named(s.DB.Content.Without(had)) + ", which this machine has not put there", Cure: []string{cureSetupMode}}
	case !want.Contains(secureboot.Certificate(e.Keys.Owner, e.Keys.DB.Certificate)):
		return errors.New("what is wanted in db lacks this machine's own certificate")
	}
	e.Say(replaces(secureboot.DB, &s.DB, want))
	e.later = laterTimes
	return e.write(Action{Variable: secureboot.DB, Content: want})
}
