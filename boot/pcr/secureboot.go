package pcr

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"

	"halogenos.internal/boot/secureboot"
)

// SecureBootVariables are the contents of the firmware's variables, as after
// the four bytes of attributes in Linux's efivarfs. Empty means that the
// variable is not there.
type SecureBootVariables struct {
	SecureBoot       bool
	PK, KEK, DB, DBX []byte
}

// content returns what a variable of Secure Boot will hold; the second result
// is false for another variable.
func (s SecureBootVariables) content(v variable) ([]byte, bool) {
	switch {
	case v.is(globalVariables, "SecureBoot"):
		if s.SecureBoot {
			return []byte{1}, true
		}
		return []byte{0}, true
	case v.is(globalVariables, "PK"):
		return s.PK, true
	case v.is(globalVariables, "KEK"):
		return s.KEK, true
	case v.is(imageSecurity, "db"):
		return s.DB, true
	case v.is(imageSecurity, "dbx"):
		return s.DBX, true
	}
	return nil, false
}

// PredictPCR7 returns what PCR 7 will be after a boot of the machine that wrote
// log, with these variables, in which authorities let images start: each an
// EFI_SIGNATURE_DATA of db (owner GUID, then certificate or hash), in the order
// in which images need them for the first time. It replays the log's own
// events, so that what the firmware measures besides stays; the log may be from
// Setup Mode. The authorities of the log are replaced, see Authorities.
// It refuses a log whose order it cannot carry over to the new contents.
func PredictPCR7(log *Log, vars SecureBootVariables, authorities [][]byte) (Digest, error) {
	var (
		value    Digest
		replaced = map[string]bool{}
		placed   = false // authorities are measured
		ended    = false // an authority of the log was passed
	)
	place := func() {
		for i, authority := range authorities {
			if !contains(authorities[:i], authority) { // firmware measures each once
				value = value.Extend(sha256.Sum256(authorityVariable(authority).encode()))
			}
		}
		placed = true
	}
	for _, e := range log.Events {
		if e.PCR != SecureBoot || e.Type == EventNoAction {
			continue
		}
		sum, ok := e.Digest(SHA256)
		if !ok {
			return Digest{}, fmt.Errorf("predict PCR 7: event %d has no SHA-256 digest", e.Number)
		}
		switch {
		case e.Type == EventVariableAuthority:
			if err := checkAuthority(e); err != nil {
				return Digest{}, fmt.Errorf("predict PCR 7: event %d: %w", e.Number, err)
			}
			if !placed {
				place()
			}
			ended = true
		case ended:
			return Digest{}, fmt.Errorf("predict PCR 7: event %d (%s) follows an authority: its place among others is not known", e.Number, e.Describe())
		case e.Type == EventVariableConfig:
			event, name, err := newConfig(e, vars)
			if err != nil {
				return Digest{}, fmt.Errorf("predict PCR 7: event %d: %w", e.Number, err)
			}
			if name != "" && replaced[name] {
				return Digest{}, fmt.Errorf("predict PCR 7: event %d: %s is measured twice", e.Number, name)
			}
			replaced[name] = true
			value = value.Extend(event)
		default:
			value = value.Extend(Digest(sum))
		}
	}
	if !placed {
		place()
	}
	return value, vars.checkMeasured(replaced)
}

// newConfig returns the event for a variable's new content, with its name when
// it is one of Secure Boot.
func newConfig(e Event, vars SecureBootVariables) (Digest, string, error) {
	sum, _ := e.Digest(SHA256)
	v, err := parseVariable(e.Data)
	if err != nil {
		return Digest{}, "", err
	}
	content, ours := vars.content(v)
	if !ours {
		return Digest(sum), "", nil
	}
	if !e.Stated() || !bytes.Equal(v.encode(), e.Data) {
		return Digest{}, "", fmt.Errorf("what was measured for %s is not the variable as logged, so what will be is not known", v.name)
	}
	v.data = content
	return sha256.Sum256(v.encode()), v.name, nil
}

// checkMeasured refuses a firmware that leaves a variable out while it is
// empty, as its place is not known then.
func (s SecureBootVariables) checkMeasured(measured map[string]bool) error {
	for _, v := range []struct {
		name    string
		content []byte
	}{{"SecureBoot", []byte{1}}, {"PK", s.PK}, {"KEK", s.KEK}, {"db", s.DB}, {"dbx", s.DBX}} {
		if len(v.content) > 0 && !measured[v.name] {
			return fmt.Errorf("predict PCR 7: the firmware measured no %s", v.name)
		}
	}
	return nil
}

func authorityVariable(entry []byte) variable {
	v := variable{name: "db", data: entry}
	copy(v.guid[:], imageSecurity)
	return v
}

func checkAuthority(e Event) error {
	v, err := parseVariable(e.Data)
	if err != nil {
		return err
	}
	if !v.is(imageSecurity, "db") {
		return fmt.Errorf("an authority from %s, not from db: a shim in between is not supported", printable(v.name))
	}
	if !e.Stated() {
		return errors.New("what was measured for an authority is not its entry in db")
	}
	return nil
}

func contains(list [][]byte, entry []byte) bool {
	for _, known := range list {
		if bytes.Equal(known, entry) {
			return true
		}
	}
	return false
}

// Authorities returns the entries of db that let images start in the boot that
// wrote the log, in the order measured. It refuses an authority that is not an
// entry of db.
func (l *Log) Authorities() ([][]byte, error) {
	var entries [][]byte
	for _, e := range l.Events {
		if e.PCR != SecureBoot || e.Type != EventVariableAuthority {
			continue
		}
		if err := checkAuthority(e); err != nil {
			return nil, fmt.Errorf("event %d: %w", e.Number, err)
		}
		v, err := parseVariable(e.Data)
		if err != nil {
			return nil, fmt.Errorf("event %d: %w", e.Number, err)
		}
		entries = append(entries, v.data)
	}
	return entries, nil
}

// Drivers returns the option ROMs that the firmware started: drivers measured
// into PCR 2.
func (l *Log) Drivers() secureboot.Drivers {
	drivers := secureboot.Drivers{Known: true}
	for _, e := range l.Events {
		if e.PCR != 2 || e.Type != EventBootDriver && e.Type != EventRuntimeDriver {
			continue
		}
		rom := secureboot.OptionROM{Path: e.imagePath()}
		if sum, ok := e.Digest(SHA256); ok {
			rom.Digest = [sha256.Size]byte(sum)
		}
		drivers.ROMs = append(drivers.ROMs, rom)
	}
	return drivers
}
