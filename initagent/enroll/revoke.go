package enroll

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"halogenos.internal/boot/secureboot"
)

// Revocations are the entries that dbx is wanted to hold and does not, and its
// content once they are appended, as the firmware then measures it into PCR 7:
// EDK II puts what is appended behind what is there. Without any, the content is
// what it is now.
func Revocations(s State, wanted secureboot.Wanted) (missing secureboot.Database, after []byte, err error) {
	if s.DBX.Problem != nil {
		return nil, nil, s.DBX.Problem
	}
	missing = wanted.DBX.Without(s.DBX.Content)
	added, err := missing.Marshal()
	if err != nil {
		return nil, nil, fmt.Errorf("encode revocations: %w", err)
	}
	return missing, slices.Concat(s.DBX.Raw, added), nil
}

// Revoke appends to dbx what is wanted there and missing, on a machine whose
// firmware holds its keys: what is appended is not taken back. That
// the machine still starts, and that PCR 7 is expected to change, is for the caller
// to see to.
//
// It is one write to the firmware, of which a cut leaves the old content or the new
// one, and doing it again appends what is missing still. An update that appends may
// carry a time before the last one's, so a clock that went back does not matter.
func (e *Enroller) Revoke() error {
	s, err := Observe(e.Variables)
	if err != nil {
		return err
	}
	missing, _, err := Revocations(s, e.Wanted)
	if err != nil || len(missing) == 0 {
		return err
	}
	if e.Keys.KEK.Key == nil {
		return errors.New("revoke: the private keys were wiped")
	}
	content, err := missing.Marshal()
	if err != nil {
		return err
	}
	const attributes = secureboot.KeyAttributes | secureboot.AppendWrite
	var refusal error
	for attempt := range attempts {
		if attempt > 0 {
			e.Pause(firstPause << attempt)
		}
		payload, err := secureboot.SignUpdate(secureboot.DBX, attributes, e.Time.Add(time.Duration(attempt)*time.Second), content, e.Keys.KEK)
		if err != nil {
			return err
		}
		writing := e.Variables.WriteAuthenticated(secureboot.DBX.Name, secureboot.DBX.GUID, attributes, payload)
		back := readStored(e.Variables, secureboot.DBX)
		if back.holdsAtLeast(e.Wanted.DBX) {
			e.Say(fmt.Sprintf("dbx gets %s", missing))
			return nil
		}
		refusal = whyNot(Action{Variable: secureboot.DBX, Content: e.Wanted.DBX}, writing, back)
	}
	return &Problem{Kind: Refused, What: fmt.Sprintf("the firmware did not take %d revocations in %d attempts", len(missing), attempts), Cure: cureWrite(refusal), Err: refusal}
}
