package secureboot

import (
	"crypto/sha256"
	"fmt"
	"slices"
)

// revocationsOf is under what the origins have, in place of where an entry came from,
// which release's entries for dbx were dealt with last, or are being asked for, how often,
// and which those are. It is nobody's entry; an earlier release keeps it, and does nothing
// by it.
const revocationsOf = "revocations of version"

// asked is what the list keeps of a release's entries for dbx.
type asked struct {
	done  uint64 // the newest release whose entries were dealt with
	tried uint64 // the one whose entries the firmware was asked to take
	tries int
	what  string // which entries: the beginning of a hash, or nothing where they are not known
}

const (
	askedForm  = "%d, %d asked %d for %s"
	askedDigit = 16
	askedNone  = "nothing"
)

// RevocationsWait reports whether a release's entries for dbx were not dealt with: neither
// taken or left out, nor given up after MaxTries.
func (l *List) RevocationsWait(version uint64) bool {
	a := l.asked()
	return a.done < version && (a.tried != version || a.tries < MaxTries)
}

// RevocationsRefused reports whether the firmware did not take these entries in MaxTries, from
// an earlier release.
func (l *List) RevocationsRefused(entries Database) bool {
	a := l.asked()
	return a.tries >= MaxTries && a.what == name(entries) && a.what != askedNone
}

// TryRevocations counts that the firmware is asked to take a release's entries; none are
// those that cannot be known.
func (l *List) TryRevocations(version uint64, entries Database) {
	a := l.asked()
	if a.tried != version {
		a.tries = 0
	}
	l.setAsked(asked{a.done, version, a.tries + 1, name(entries)})
}

// name is the same for the same entries, by and large.
func name(entries Database) string {
	b, err := entries.Marshal()
	if err != nil || len(b) == 0 {
		return askedNone
	}
	return fmt.Sprintf("%x", sha256.Sum256(b))[:askedDigit]
}

// TakeRevocations wants the entries that dbx has got from a release, and notes that its
// entries were dealt with. What the firmware did not take before stays known.
func (l *List) TakeRevocations(version uint64, entries Database) {
	for _, e := range entries {
		if l.Wanted.DBX.Revokes(e) {
			continue
		}
		l.Wanted.DBX = append(l.Wanted.DBX, e)
		l.origins[entryID(e)] = FromRelease + Origin(fmt.Sprintf(": %d", version))
		l.giveUp(e)
	}
	a := l.asked()
	if len(entries) > 0 {
		a = asked{done: a.done, what: askedNone} // the firmware takes some
	}
	a.done = max(a.done, version)
	l.setAsked(a)
}

// giveUp lets an image go that was this machine's own and that dbx has by now, no matter who owns
// the entry. That another has replaced it stays known.
func (l *List) giveUp(e Entry) {
	if e.Type != TypeSHA256 {
		return
	}
	digest := [32]byte(e.Data)
	if at := l.image(digest); at >= 0 {
		l.images = slices.Delete(l.images, at, at+1)
	}
	if l.Replaced(digest) {
		l.origins[l.hashID(digest)] = FromRevoked + ": " + whyReplaced
	}
}

func (l *List) asked() (a asked) {
	n, err := fmt.Sscanf(string(l.origins[revocationsOf]), askedForm, &a.done, &a.tried, &a.tries, &a.what)
	if n != 4 || err != nil {
		return asked{what: askedNone}
	}
	return a
}

func (l *List) setAsked(a asked) {
	l.origins[revocationsOf] = Origin(fmt.Sprintf(askedForm, a.done, a.tried, a.tries, a.what))
}
