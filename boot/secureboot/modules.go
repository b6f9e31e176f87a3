package secureboot

import (
	"fmt"
	"slices"

	"halogenos.internal/boot/gpt"
)

// Certificates of kernel modules are in db for the kernel, which takes db's certificates for
// modules where a distribution has patched it so. The firmware takes them for EFI programs as
// well, and nothing of a certificate keeps it from that: it does not look at extended key
// usages (EDK II, SecurityPkg, DxeImageVerificationLib). So each is there by a yes of the
// owner's, who is told that.

// modulesOwner is the owner of these entries, which tells them from this machine's own.
var modulesOwner = gpt.MustGUID("6c0e7a0f-9f0b-4c8e-8b1d-5a7e3d2f41c6")

// ModuleKey is the entry of db for a certificate of kernel modules, in DER.
func ModuleKey(der []byte) Entry { return Entry{Type: TypeX509, Owner: modulesOwner, Data: der} }

// IsModuleKey reports whether an entry of db is one for kernel modules: nothing that this
// machine makes is signed by it, so that it vouches for nothing but modules.
func IsModuleKey(e Entry) bool { return e.Type == TypeX509 && e.Owner == modulesOwner }

// What the owner has said of such a certificate, in place of where an entry came from. Earlier
// releases keep it, and do nothing by it.
const (
	// FromModules: db has it, or had it until its owner took it out in the firmware's setup.
	FromModules Origin = "kernel modules"
	// joins: the owner has said yes, and db does not have it yet.
	joins Origin = "kernel modules, to be added"
	// declined: the owner has said no, or has taken the yes back, or nobody has answered.
	declined Origin = "kernel modules, not trusted"
)

// A Trust is what the owner has said of a certificate.
type Trust int

// Answers.
const (
	Unasked Trust = iota
	Trusted
	Declined
)

// ModuleTrust is what the owner has said of a certificate of kernel modules.
func (l *List) ModuleTrust(e Entry) Trust {
	switch l.Origin(e) {
	case FromModules, joins:
		return Trusted
	case declined:
		return Declined
	}
	return Unasked
}

// TrustModules notes the owner's answer, and reports whether the list has changed. A yes and a
// no are for db later: until then the list wants what it wanted.
func (l *List) TrustModules(e Entry, yes bool) (changed bool) {
	is := declined
	if yes {
		is = joins
	}
	if l.Origin(e) == is || yes && l.ModuleTrust(e) == Trusted && l.Wanted.DB.Contains(e) {
		return false
	}
	l.origins[entryID(e)] = is
	return true
}

// AskAgain forgets what the owner has said of a certificate that db does not have.
func (l *List) AskAgain(e Entry) (changed bool) {
	if trust := l.ModuleTrust(e); trust == Unasked || trust == Trusted && l.Wanted.DB.Contains(e) {
		return false
	}
	delete(l.origins, entryID(e))
	return true
}

// DBFor is what db shall have for releases with these certificates of kernel modules: those
// that the owner trusts, and no others. Without them it is what the list wants.
func (l *List) DBFor(releases Database) (db Database) {
	for _, e := range l.Wanted.DB {
		if !IsModuleKey(e) || releases.Contains(e) && l.ModuleTrust(e) == Trusted {
			db = append(db, e)
		}
	}
	for _, e := range releases {
		if l.Origin(e) == joins && !db.Contains(e) {
			db = append(db, e)
		}
	}
	return db
}

// TakeDB has the list want what db holds by now, as DBFor has told. What is gone from it is
// asked for again where a release brings it again, but for what the owner has declined.
func (l *List) TakeDB(db Database) {
	for _, e := range l.Wanted.DB.Without(db) {
		if IsModuleKey(e) && l.Origin(e) != declined {
			delete(l.origins, entryID(e))
		}
	}
	for _, e := range db {
		if IsModuleKey(e) {
			l.origins[entryID(e)] = FromModules
		}
	}
	l.Wanted.DB = slices.Clone(db)
}

// modulesOf is under what the origins have which content of db the firmware was asked to take
// last, and how often. It is nobody's entry.
const modulesOf = "kernel modules in db"

const modulesForm = "%d times %s"

// MayTryDB reports whether the firmware may be asked to take a content of db once more: one
// that it has refused MaxTries times is left alone.
func (l *List) MayTryDB(db Database) bool { return l.triedDB(db) < MaxTries }

// TryDB counts that the firmware is asked to.
func (l *List) TryDB(db Database) {
	l.origins[modulesOf] = Origin(fmt.Sprintf(modulesForm, l.triedDB(db)+1, name(db)))
}

func (l *List) triedDB(db Database) (times int) {
	what := ""
	if n, err := fmt.Sscanf(string(l.origins[modulesOf]), modulesForm, &times, &what); n != 2 || err != nil || what != name(db) {
		return 0
	}
	return times
}
