package release

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/gpt"
	"halogenos.internal/boot/secureboot"
)

// Revocations are entries for dbx of one type and owner (UEFI 2.10, section 32.4.1).
type Revocations struct {
	// Type is "sha256" for Authenticode hashes of programs, "x509" for certificates.
	Type string `json:"type"`
	// Owner is the GUID that the entries carry; without one each machine puts its own.
	Owner   string         `json:"owner,omitempty"`
	Entries []contract.Hex `json:"entries"`
}

// types of entries by their names.
var types = map[string]gpt.GUID{"sha256": secureboot.TypeSHA256, "x509": secureboot.TypeX509}

// SetRevocations replaces the entries for dbx. Neighbours of a type and owner go
// together, so that the same entries give the same text.
func (r *Release) SetRevocations(d secureboot.Database) error {
	r.Revocations = nil
	for _, e := range d {
		owner, name := "", ""
		if e.Owner != (gpt.GUID{}) {
			owner = e.Owner.String()
		}
		for n, t := range types {
			if t == e.Type {
				name = n
			}
		}
		last := len(r.Revocations) - 1
		if last < 0 || r.Revocations[last].Type != name || r.Revocations[last].Owner != owner {
			r.Revocations = append(r.Revocations, Revocations{Type: name, Owner: owner})
			last++
		}
		r.Revocations[last].Entries = append(r.Revocations[last].Entries, contract.Hex(e.Data))
	}
	if err := r.CheckRevocations(); err != nil {
		return err
	}
	return r.Validate()
}

// DBX returns the entries for dbx. Those without an owner have the zero GUID; those of a type
// that is not known here are left out.
func (r *Release) DBX() secureboot.Database {
	var d secureboot.Database
	for _, l := range r.Revocations {
		if types[l.Type] == (gpt.GUID{}) {
			continue
		}
		owner, _ := gpt.ParseGUID(l.Owner) // Validate has read it
		for _, data := range l.Entries {
			d = append(d, secureboot.Entry{Type: types[l.Type], Owner: owner, Data: data})
		}
	}
	return d
}

// stops reports which of the release's own programs one of the entries would stop; empty
// for none.
func (r *Release) stops() string {
	for _, e := range r.DBX() {
		for _, f := range r.Files {
			if e.Type == secureboot.TypeSHA256 && bytes.Equal(e.Data, f.Authenticode) {
				return f.Name
			}
		}
	}
	return ""
}

// validateRevocations checks the form alone. What a machine makes of an entry it judges one by
// one ([secureboot.JudgeRevocations]): a kind of entry that a later release brings, a list
// that has grown or a certificate that one release of Go reads and another does not would
// otherwise keep machines from every release that has it.
func (r *Release) validateRevocations() error {
	for i, l := range r.Revocations {
		if !typeName.MatchString(l.Type) {
			return fmt.Errorf("revocations %d are of type %.40q, want a name in small letters and digits", i+1, l.Type)
		}
		if owner, err := gpt.ParseGUID(l.Owner); l.Owner != "" && (err != nil || owner.String() != l.Owner || owner == gpt.GUID{}) {
			return fmt.Errorf("revocations %d have the owner %.40q, want a GUID in small letters, or none", i+1, l.Owner)
		}
		if len(l.Entries) == 0 || slices.ContainsFunc(l.Entries, func(data contract.Hex) bool { return len(data) == 0 }) {
			return fmt.Errorf("revocations %d have an entry without content, or none", i+1)
		}
	}
	return nil
}

var typeName = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)

// CheckRevocations refuses entries that a publisher does not bring: of a kind whose effect is
// not known here, too many, or one that stops the release itself.
func (r *Release) CheckRevocations() error {
	if len(r.Revocations) == 0 {
		return nil
	}
	for i, l := range r.Revocations {
		if types[l.Type] == (gpt.GUID{}) {
			return fmt.Errorf("revocations %d are of type %.20q, want sha256 or x509", i+1, l.Type)
		}
	}
	if err := secureboot.CheckRevocations(r.DBX()); err != nil {
		return fmt.Errorf("revocations: %w", err)
	}
	if name := r.stops(); name != "" {
		return fmt.Errorf("revocations: one is the hash of %s, which the release itself brings", name)
	}
	return nil
}
