package pcr

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"halogenos.internal/boot/secureboot"
)

// This file reads PCR 4 and 7 for somebody who has the registers' values and does
// not trust the machine that gave the log. An event's type and data can be made up as
// long as the digests stay: so each event must be of a kind whose digest proves what it
// says, and one that is not is an error and never passed over.

// MeasuredKeys is what PCR 7 proves of Secure Boot.
type MeasuredKeys struct {
	SecureBootVariables
	// Authorities are the entries of db that let images start, in order: each an
	// EFI_SIGNATURE_DATA.
	Authorities [][]byte
	// Actions are the texts that the firmware measured besides, such as that its debug
	// mode was on.
	Actions []string
}

// measuredLists are the variables that every firmware measures.
var measuredLists = []string{"SecureBoot", "PK", "KEK", "db", "dbx"}

// MeasuredKeys returns the state of Secure Boot that the firmware measured. It is true
// where PCR 7 is what a replay of the log gives.
func (l *Log) MeasuredKeys() (*MeasuredKeys, error) {
	k := new(MeasuredKeys)
	seen := map[string]bool{}
	for _, e := range l.measured(SecureBoot) {
		if err := k.take(e, seen); err != nil {
			return nil, fmt.Errorf("PCR 7, event %d (%s): %w", e.Number, e.Describe(), err)
		}
	}
	for _, name := range measuredLists {
		if !seen[name] {
			return nil, fmt.Errorf("PCR 7: the firmware measured no %s", name)
		}
	}
	return k, nil
}

func (k *MeasuredKeys) take(e Event, seen map[string]bool) error {
	switch {
	case !e.Stated():
		return errors.New("what it says is not what was measured")
	case e.Type == EventVariableAuthority:
		if err := checkAuthority(e); err != nil {
			return err
		}
		v, err := parseVariable(e.Data)
		if err != nil {
			return err
		}
		return k.takeAuthority(v.data, seen)
	case e.Type != EventVariableConfig:
		if !e.harmless() {
			return errors.New("it is of a kind that may stand for anything")
		}
		if e.Type != EventSeparator {
			k.Actions = append(k.Actions, string(e.Data))
		}
		return nil
	}
	v, err := parseVariable(e.Data)
	if err != nil {
		return err
	}
	if _, ours := k.content(v); !ours {
		return nil
	}
	if seen[v.name] {
		return fmt.Errorf("%s is measured twice", v.name)
	}
	seen[v.name] = true
	return k.set(v)
}

// takeAuthority takes an entry of the db that was measured before it, once. Root can
// measure an event more, but none that the firmware could not have measured.
func (k *MeasuredKeys) takeAuthority(entry []byte, seen map[string]bool) error {
	for _, name := range measuredLists {
		if !seen[name] {
			return fmt.Errorf("an authority before %s was measured", name)
		}
	}
	db, err := secureboot.ParseDatabase(k.DB)
	if err != nil {
		return fmt.Errorf("db: %w", err)
	}
	if !slices.ContainsFunc(db, func(e secureboot.Entry) bool { return bytes.Equal(e.SignatureData(), entry) }) {
		return errors.New("an authority that is not an entry of the db that was measured")
	}
	if contains(k.Authorities, entry) {
		return errors.New("an authority is measured twice")
	}
	k.Authorities = append(k.Authorities, entry)
	return nil
}

// set is the inverse of content.
func (k *MeasuredKeys) set(v variable) error {
	switch v.name {
	case "SecureBoot":
		if len(v.data) != 1 || v.data[0] > 1 {
			return fmt.Errorf("SecureBoot is %.16x, want 00 or 01", v.data)
		}
		k.SecureBoot = v.data[0] == 1
	case "PK":
		k.PK = v.data
	case "KEK":
		k.KEK = v.data
	case "db":
		k.DB = v.data
	case "dbx":
		k.DBX = v.data
	}
	return nil
}

// MeasuredPrograms returns the Authenticode digests of the EFI programs that ran before
// the kernel did, in order. It is true where PCR 4 is what a replay of the log gives.
func (l *Log) MeasuredPrograms() (all []Digest, err error) {
	for _, e := range l.measured(BootPrograms) {
		d, ok := e.program()
		switch {
		case ok:
			all = append(all, d)
		case !e.harmless():
			return nil, fmt.Errorf("PCR 4, event %d (%s): it may stand for a program", e.Number, e.Describe())
		}
	}
	return all, nil
}

// A Driver is something that the firmware measured into PCR 2, and that may have run.
type Driver struct {
	Digest Digest // of a driver, its Authenticode digest
	Text   string // what the log says that it is, which proves nothing
}

// MeasuredDrivers returns what may be a driver or an option ROM: all that was measured
// into PCR 2 and is not a mark of the firmware. It is true where PCR 2 is what a replay of
// the log gives.
func (l *Log) MeasuredDrivers() (all []Driver) {
	for _, e := range l.measured(Drivers) {
		sum, ok := e.Digest(SHA256)
		if ok && !e.harmless() {
			all = append(all, Driver{Digest: Digest(sum), Text: e.Describe()})
		}
	}
	return all
}

// Returned reports whether a boot option has ended after a program ran: then the firmware
// went on to another. It is true where MeasuredPrograms has no error.
func (l *Log) Returned(program Digest) bool {
	ran := false
	for _, e := range l.measured(BootPrograms) {
		d, ok := e.program()
		switch {
		case ok && d == program:
			ran = true
		case ran && !ok && string(e.Data) == returningOption:
			return true
		}
	}
	return false
}

// maxAction bounds an action's text; those of the profile have less than 80 bytes.
const maxAction = 200

// harmless reports whether what was measured is a mark of the firmware and can be
// nothing else: a program, a variable and a certificate have bytes that are not text,
// and more than four of them.
func (e Event) harmless() bool {
	if !e.Stated() {
		return false
	}
	switch e.Type {
	case EventSeparator:
		return len(e.Data) == 4
	case EventAction, EventEFIAction, EventOmitBootDevice:
		return len(e.Data) <= maxAction && !slices.ContainsFunc(e.Data, func(b byte) bool { return b < ' ' || b > '~' })
	}
	return false
}
