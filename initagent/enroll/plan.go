package enroll

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"halogenos.internal/boot/secureboot"
)

const (
	// attempts is how often one variable is written before it is given up.
	attempts = 3
	// firstPause is the wait after a refusal; it doubles every time.
	firstPause = 250 * time.Millisecond
	// MaxEnrollments is how often an enrollment may come to its end on one machine:
	// firmware that loses its keys would otherwise restart for ever.
	MaxEnrollments = 3
)

// An Action is one variable to write.
type Action struct {
	Variable secureboot.Variable
	Content  secureboot.Database
	Reason   string // for the console
}

// Plan decides what is still to be written, in the order of writing. Nothing
// and no error means that there is nothing left but to restart. enrollments is
// how often an enrollment was completed on this machine before.
//
// The order is the argument. In Setup Mode the firmware starts anything, so a
// cut after dbx, db or KEK leaves a machine that starts and comes back here. PK
// ends Setup Mode: from then on the machine starts what db allows, and so db
// must be there and right, and KEK must, or db could never be changed. What was
// written already is told by reading it, so a plan resumes from any prefix.
func Plan(s State, wanted secureboot.Wanted, enrollments int) ([]Action, error) {
	if len(wanted.PK) != 1 || len(wanted.KEK) == 0 || len(wanted.DB) == 0 {
		return nil, fmt.Errorf("plan enrollment: %d PK, %d KEK and %d db entries are wanted, want exactly one PK and the others not empty", len(wanted.PK), len(wanted.KEK), len(wanted.DB))
	}
	ours := s.PK.holds(wanted.PK)
	if err := mayWrite(s, wanted, ours, enrollments); err != nil {
		return nil, err
	}
	var plan []Action
	if missing := wanted.DBX.Without(s.DBX.Content); !s.DBX.holdsAtLeast(wanted.DBX) {
		plan = append(plan, Action{secureboot.DBX, slices.Concat(s.DBX.Content, missing), fmt.Sprintf("dbx gets %d revocations of the vendor's", len(missing))})
	}
	for _, v := range []secureboot.Variable{secureboot.DB, secureboot.KEK} {
		if want := wanted.Of(v); !s.of(v).holds(want) {
			plan = append(plan, Action{v, want, replaces(v, s.of(v), want)})
		}
	}
	if !ours {
		plan = append(plan, Action{secureboot.PK, wanted.PK, "PK gets " + wanted.PK.String() + ", which ends Setup Mode"})
	}
	if s.SetupMode != On && len(plan) > 0 {
		// PK is ours and something below it is not: who changed that had our keys
		// or the firmware's setup, and writing it back would hide it.
		return nil, &Problem{Kind: NotSetupMode, What: "this machine's Platform Key is enrolled, but " + describe(Enforced(s, wanted)), Cure: []string{cureSetupMode}}
	}
	return plan, nil
}

// mayWrite is everything that forbids writing.
func mayWrite(s State, wanted secureboot.Wanted, ours bool, enrollments int) error {
	switch {
	case s.SetupMode == Absent:
		return &Problem{Kind: NoSecureBoot, What: "the firmware has no Secure Boot, or its variables cannot be reached",
			Cure: []string{"switch the firmware from legacy (CSM) to UEFI boot", cureUpdate}}
	case s.PK.Problem != nil:
		return &Problem{Kind: Unreadable, What: "what the firmware holds as its Platform Key is malformed", Cure: []string{cureSetupMode, cureUpdate}, Err: s.PK.Problem}
	case s.SetupMode != On && !ours:
		return notSetupMode(s)
	case !ours && len(s.PK.Content) > 0:
		return &Problem{Kind: ForeignPK, What: "the firmware says it is in Setup Mode, and yet holds a Platform Key that is not this machine's (" + s.PK.Content.String() + ")",
			Cure: []string{"switch the machine off and on, since some firmware needs that after its keys were cleared", cureSetupMode, cureUpdate}}
	case !ours && enrollments >= MaxEnrollments:
		return &Problem{Kind: Forgetful, What: fmt.Sprintf("the keys were enrolled %d times, and the firmware has lost them at every restart", enrollments),
			Cure: []string{"replace the machine's CMOS battery", cureUpdate}}
	case s.DBX.Problem != nil && len(wanted.DBX) > 0:
		return &Problem{Kind: Unreadable, What: "the firmware's list of revoked signatures is malformed", Cure: []string{cureRestore, cureUpdate}, Err: s.DBX.Problem}
	}
	return nil
}

func replaces(v secureboot.Variable, now *Stored, want secureboot.Database) string {
	reason := fmt.Sprintf("%s gets %s", v, want)
	switch gone := now.Content.Without(want); {
	case now.Problem != nil:
		reason += ", in place of something that is malformed"
	case len(gone) > 0:
		reason += ", and loses " + gone.String()
	}
	return reason
}

// An Enroller applies a plan.
type Enroller struct {
	Variables Variables
	Keys      *secureboot.KeySet // stays the caller's, who wipes it
	Wanted    secureboot.Wanted
	// Time of the updates, as secureboot.Timestamp chose it.
	Time time.Time
	// Signed reports why the machine would not start with only db to go by: a
	// boot manager or a UKI that is not signed. It is asked right before PK.
	Signed func() error
	Pause  func(time.Duration)
	Say    func(message string)

	// later is how many years later than Time an update is said to be where the firmware
	// refuses one of now; see laterTimes.
	later []int
}

// laterTimes is for a clock that is behind the one of the last update: firmware takes no
// update that is not newer than that, no matter who has signed it, and tells nobody when that
// was (UEFI 2.10, section 8.2.2). A time in the future is as good to it as any other, and
// the last of these is later than the last of an earlier change of keys.
var laterTimes = []int{1, 10, 100}

// cureClock is for a time that no later one was good for.
const cureClock = "set date and time in the firmware's setup: it refuses an update that is older than its last one"

// Run enrolls whatever is missing. After it, only a restart shows whether the
// firmware enforces the keys. It may be cut anywhere and run again.
func (e *Enroller) Run(enrollments int) error {
	s, err := Observe(e.Variables)
	if err != nil {
		return err
	}
	plan, err := Plan(s, e.Wanted, enrollments)
	if err != nil {
		return err
	}
	for _, a := range plan {
		if a.Variable == secureboot.PK {
			if err := e.guard(); err != nil {
				return err
			}
		}
		e.Say(a.Reason)
		if err := e.write(a); err != nil {
			return err
		}
	}
	return nil
}

// guard decides whether PK may be written: it looks at everything again, with
// fresh reads, since firmware has been seen to take a variable and drop it.
func (e *Enroller) guard() error {
	s, err := Observe(e.Variables)
	if err != nil {
		return err
	}
	stop := func(what string, err error) error {
		return &Problem{Kind: Unsafe, What: "the Platform Key was not written, because " + what, Err: err,
			Cure: []string{"switch the machine off and on, which starts the enrollment where it stopped", cureRestore, cureUpdate}}
	}
	for _, v := range []secureboot.Variable{secureboot.DB, secureboot.KEK} {
		if !s.of(v).holds(e.Wanted.Of(v)) {
			return stop(fmt.Sprintf("%s no longer holds what was written to it", v), s.of(v).Problem)
		}
	}
	if !s.DBX.holdsAtLeast(e.Wanted.DBX) {
		return stop("dbx no longer holds what was written to it", s.DBX.Problem)
	}
	if err := e.Signed(); err != nil {
		return stop("the machine would not start with it", err)
	}
	return nil
}

// write writes one variable until it reads back, a bounded number of times. The
// reading decides: firmware reports failures for writes that happened, and
// success for those that did not.
func (e *Enroller) write(a Action) error {
	pause := firstPause
	var refusal error
	stale := false
	for attempt := range attempts + len(e.later) {
		if attempt >= attempts && !stale {
			break // another time would not help
		}
		if attempt > 0 {
			e.Say(fmt.Sprintf("%s was not taken (%v): trying again", a.Variable, refusal))
			e.Pause(pause)
			pause *= 2
		}
		// A later timestamp each time: one that the firmware has seen is refused.
		at := e.Time.Add(time.Duration(attempt) * time.Second)
		if attempt >= attempts {
			at = at.AddDate(e.later[attempt-attempts], 0, 0)
		}
		payload, err := e.Keys.Update(a.Variable, a.Content, at)
		if err != nil {
			return fmt.Errorf("sign enrollment: %w", err)
		}
		writing := e.Variables.WriteAuthenticated(a.Variable.Name, a.Variable.GUID, secureboot.KeyAttributes, payload)
		back := readStored(e.Variables, a.Variable)
		if back.holds(a.Content) {
			return nil
		}
		refusal, stale = whyNot(a, writing, back), errors.Is(writing, syscall.EACCES)
	}
	cure := cureWrite(refusal)
	if stale {
		cure = append(cure, cureClock)
	}
	return &Problem{Kind: Refused, What: fmt.Sprintf("the firmware did not take %s in %d attempts", a.Variable, attempts), Cure: cure, Err: refusal}
}

func whyNot(a Action, writing error, back Stored) error {
	switch {
	case writing != nil:
		return fmt.Errorf("%s: %w", explainWrite(writing), writing)
	case back.Problem != nil:
		return back.Problem
	case len(back.Content) == 0:
		return errors.New("the write was reported as done, but nothing is there")
	case back.Content.Same(a.Content):
		return fmt.Errorf("it was stored with attributes %#x, which let anybody change it", back.Attributes)
	}
	return fmt.Errorf("the write was reported as done, but it reads back as %s", back.Content)
}
