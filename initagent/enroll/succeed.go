package enroll

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"halogenos.internal/boot/secureboot"
)

// A Successor replaces this machine's keys in firmware that enforces the old ones.
//
// The order is the argument. PK comes first, signed by the old PK; then KEK, signed by
// the new PK; db, signed by the new KEK, comes last. Whatever was signed by the old db key
// starts until that last write, and whatever was signed by the new one starts after it, so
// that a file with both signatures starts all the time, and Secure Boot is enforced all the
// time. Each is one write to the firmware, of which a cut leaves the old content or the
// new one: from any of the four states that there can be the same run goes on. A firmware
// that takes nothing from a running system refuses PK, and nothing has changed then.
//
// The old certificates are in no variable afterwards, and that is enough: firmware starts
// what db allows. They do not go to dbx, since firmware refuses an image of which any
// signature is revoked, and the files bear both.
type Successor struct {
	Variables   Variables
	Old, Fresh  *secureboot.KeySet // stay the caller's, who wipes them
	Had, Wanted secureboot.Wanted
	// Time of the updates, as secureboot.Timestamp chose it.
	Time time.Time
	// Signed reports why the machine would not start by the new db. It is asked right
	// before db.
	Signed func() error
	// Foretell is told what the firmware holds before each write to it, and after the
	// last one; an error keeps the write from being made.
	Foretell func(State) error
	Pause    func(time.Duration)
	Say      func(message string)
}

// succession is the order of writing.
func succession() []secureboot.Variable {
	return []secureboot.Variable{secureboot.PK, secureboot.KEK, secureboot.DB}
}

// Succeeded reports how many of PK, KEK and db hold what is wanted. It is an error when
// one of them holds neither that nor what it had: nobody knows who changed it.
func Succeeded(s State, had, wanted secureboot.Wanted) (int, error) {
	if s.SetupMode != Off {
		return 0, errors.New("the firmware is in Setup Mode: `enroll` gives it this machine's keys again, and the replacement goes on after that")
	}
	done := 0
	for _, v := range succession() {
		now := s.of(v)
		switch {
		case now.Problem != nil:
			return 0, now.Problem
		case now.holds(wanted.Of(v)):
			done++
		case len(now.Content) == 0 || len(now.Content.Without(had.Of(v))) > 0 || !now.authenticated():
			return 0, fmt.Errorf("%s holds %s, which are neither this machine's old keys nor its new ones", v, named(now.Content))
		}
	}
	return done, nil
}

// Run writes what is missing. It may be cut anywhere and run again.
func (e *Successor) Run() error {
	for i, v := range succession() {
		s, err := Observe(e.Variables)
		if err != nil {
			return err
		}
		if s.of(v).holds(e.Wanted.Of(v)) {
			continue
		}
		if err := e.guard(s, succession()[:i], v == secureboot.DB); err != nil {
			return err
		}
		if _, err := Succeeded(s, e.Had, e.Wanted); err != nil {
			return err
		}
		if err := e.Foretell(s); err != nil {
			return err
		}
		if err := e.give(v, s.of(v)); err != nil {
			return err
		}
	}
	s, err := Observe(e.Variables)
	if err != nil {
		return err
	}
	return e.Foretell(s)
}

// give writes one variable.
func (e *Successor) give(v secureboot.Variable, now *Stored) error {
	keys := e.Fresh
	if v == secureboot.PK {
		if keys = e.Old; keys == nil {
			return errors.New("the private key of the old PK is gone, which alone could sign the new one")
		}
	}
	want := e.Wanted.Of(v)
	e.Say(replaces(v, now, want))
	w := Enroller{Variables: e.Variables, Keys: keys, Time: e.Time, Pause: e.Pause, Say: e.Say, later: laterTimes}
	return w.write(Action{Variable: v, Content: want})
}

// guard looks with fresh reads whether what was written is still there: firmware has
// been seen to take a variable and drop it.
func (e *Successor) guard(s State, written []secureboot.Variable, last bool) error {
	dropped := func(v secureboot.Variable) bool { return !s.of(v).holds(e.Wanted.Of(v)) }
	if at := slices.IndexFunc(written, dropped); at >= 0 {
		return &Problem{Kind: Unsafe, What: fmt.Sprintf("%s no longer holds what was written to it", written[at]), Cure: []string{cureUpdate}}
	}
	if !last {
		return nil
	}
	if err := e.Signed(); err != nil {
		return &Problem{Kind: Unsafe, What: "db was not written, because the machine would not start with it", Err: err}
	}
	return nil
}
