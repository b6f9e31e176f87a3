// Package enroll gives a machine in Setup Mode its own Secure Boot keys: it signs
// what the machine starts, writes the key variables in an order that can be cut
// anywhere, and judges at later boots whether the firmware enforces exactly
// these keys.
//
// It refuses to write the Platform Key before everything else reads back as it
// was written: a machine with a Platform Key and no db of its own starts
// nothing any more. It believes no write that it has not read back.
package enroll

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"halogenos.internal/boot/bootflow"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/secureboot"
)

// Variables is the firmware's variable store.
type Variables interface {
	// Read returns a variable, or fs.ErrNotExist.
	Read(name string, guid gpt.GUID) (attributes uint32, data []byte, err error)
	// WriteAuthenticated hands an EFI_VARIABLE_AUTHENTICATION_2 with its content
	// to the firmware, whole and once.
	WriteAuthenticated(name string, guid gpt.GUID, attributes uint32, payload []byte) error
	// Room is how many bytes of variables the firmware still takes, where it is known.
	Room() (bytes int64, known bool)
}

// A Flag is a variable of one byte that is 0 or 1.
type Flag uint8

// Values of a flag. The zero value says that the firmware has no such variable.
const (
	Absent Flag = iota
	Off
	On
)

// String returns "absent", "off" or "on".
func (f Flag) String() string {
	switch f {
	case Off:
		return "off"
	case On:
		return "on"
	}
	return "absent"
}

// Stored is a key variable as the firmware has it. An absent one and an empty
// one are the same: firmware in Setup Mode shows either.
type Stored struct {
	Attributes uint32
	Content    secureboot.Database
	Raw        []byte // as the firmware measures it
	Problem    error  // it is there, and cannot be read
}

// authenticated reports whether the variable outlives a restart and only a
// signed update changes it.
func (s Stored) authenticated() bool {
	const must = secureboot.NonVolatile | secureboot.TimeBasedAuthenticated
	return s.Attributes&must == must
}

// holds reports whether the variable has exactly this content, kept as a key
// must be.
func (s Stored) holds(want secureboot.Database) bool {
	return s.Problem == nil && s.Content.Same(want) && (len(want) == 0 || s.authenticated())
}

// holdsAtLeast is holds for dbx, to which revocations may have been added.
func (s Stored) holdsAtLeast(want secureboot.Database) bool {
	return s.Problem == nil && len(want.Without(s.Content)) == 0 && (len(want) == 0 || s.authenticated())
}

// State is what the firmware says about Secure Boot.
type State struct {
	SecureBoot, SetupMode   Flag
	AuditMode, DeployedMode Flag // absent before UEFI 2.5
	PK, KEK, DB, DBX        Stored
	// Factory is what the vendor left; defaults that are absent or cannot be
	// read are empty.
	Factory secureboot.Factory
}

// of returns a key variable's state.
func (s *State) of(v secureboot.Variable) *Stored {
	switch v {
	case secureboot.PK:
		return &s.PK
	case secureboot.KEK:
		return &s.KEK
	case secureboot.DB:
		return &s.DB
	}
	return &s.DBX
}

// Observe reads the firmware's state. A key variable that cannot be read is a
// fact of the state; a mode that cannot be read is an error, since everything
// depends on it.
func Observe(vars Variables) (State, error) {
	var s State
	for _, f := range []struct {
		v  secureboot.Variable
		to *Flag
	}{
		{secureboot.SecureBoot, &s.SecureBoot}, {secureboot.SetupMode, &s.SetupMode},
		{secureboot.AuditMode, &s.AuditMode}, {secureboot.DeployedMode, &s.DeployedMode},
	} {
		var err error
		if *f.to, err = readFlag(vars, f.v); err != nil {
			return State{}, err
		}
	}
	for _, v := range []secureboot.Variable{secureboot.PK, secureboot.KEK, secureboot.DB, secureboot.DBX} {
		*s.of(v) = readStored(vars, v)
	}
	_, types, _ := read(vars, secureboot.SignatureSupport) // firmware without it says nothing about hashes
	s.Factory.Hashes = secureboot.TakesHashes(types)
	s.Factory.DBXDefault = readStored(vars, secureboot.DBXDefault).Content // it only takes away
	var others secureboot.Database
	s.Factory.DBDefault, others = readDefault(vars, secureboot.DBDefault)
	s.Factory.KEKDefault, _ = readDefault(vars, secureboot.KEKDefault)
	s.Factory.Others = secureboot.KnownOthers(others)
	return s, nil
}

// readDefault reads a default that the firmware may be given keys from. The specification
// has it without NV (UEFI 2.10, table 3-1), and such a variable can be made in no running
// system: the firmware has made it since the machine was switched on (section 8.2,
// SetVariable). One with NV any system may have written, also one that ran years ago.
func readDefault(vars Variables, v secureboot.Variable) (own, others secureboot.Database) {
	s := readStored(vars, v)
	if s.Attributes&secureboot.NonVolatile != 0 {
		return nil, s.Content
	}
	return s.Content, nil
}

// read finds a variable by its name, or by its name in lower case: some
// firmware lists its variables so.
func read(vars Variables, v secureboot.Variable) (uint32, []byte, error) {
	attributes, data, err := vars.Read(v.Name, v.GUID)
	if lower := strings.ToLower(v.Name); errors.Is(err, fs.ErrNotExist) && lower != v.Name {
		return vars.Read(lower, v.GUID)
	}
	return attributes, data, err
}

func readFlag(vars Variables, v secureboot.Variable) (Flag, error) {
	_, data, err := read(vars, v)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Absent, nil
	case err != nil:
		return Absent, fmt.Errorf("read EFI variable %s: %w", v, err)
	case len(data) == 1 && data[0] == 0:
		return Off, nil
	case len(data) == 1 && data[0] == 1:
		return On, nil
	}
	return Absent, fmt.Errorf("read EFI variable %s: %d bytes, want one that is 0 or 1", v, len(data))
}

func readStored(vars Variables, v secureboot.Variable) Stored {
	attributes, data, err := read(vars, v)
	if errors.Is(err, fs.ErrNotExist) {
		return Stored{}
	}
	if err != nil {
		return Stored{Problem: fmt.Errorf("read EFI variable %s: %w", v, err)}
	}
	content, err := secureboot.ParseDatabase(data)
	if err != nil {
		return Stored{Attributes: attributes, Raw: data, Problem: fmt.Errorf("EFI variable %s: %w", v, err)}
	}
	return Stored{Attributes: attributes, Content: content, Raw: data}
}

// Keys says how far this machine's keys have come, as the decision about the
// next step wants it. wanted is empty when none were made yet. Whether Secure
// Boot is wanted at all is not known here, nor whether the keys were enrolled
// since the machine started: SecureBoot changes at a restart alone, so until
// then keys that are all in place look switched off.
func Keys(s State, wanted secureboot.Wanted) bootflow.Keys {
	switch ours := len(wanted.PK) > 0 && s.PK.holds(wanted.PK); {
	case ours && len(Enforced(s, wanted)) == 0:
		return bootflow.KeysEnrolled
	case ours && s.SetupMode == On && s.KEK.holds(wanted.KEK) && s.DB.holds(wanted.DB):
		return bootflow.KeysFinished
	case s.SetupMode == On && (ours || len(s.PK.Content) == 0 && s.PK.Problem == nil):
		return bootflow.KeysMissing
	case ours && s.SecureBoot == Off && s.DB.holds(wanted.DB) && s.KEK.holds(wanted.KEK):
		return bootflow.KeysOff
	}
	return bootflow.KeysForeign
}
