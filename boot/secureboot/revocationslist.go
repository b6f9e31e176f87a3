package secureboot

import (
	"fmt"
	"slices"
	"strings"
)

// revocationsOf is under what the origins have, in place of where an entry came from,
// which release's entries for dbx were dealt with last, or are being asked for, and how
// often. It is nobody's entry; an earlier release keeps it, and does nothing by it.
const revocationsOf = "revocations of version"

// RevocationsWait reports whether a release's entries for dbx were not dealt with: neither
// taken or left out, nor given up after MaxTries.
func (l *List) RevocationsWait(version uint64) bool {
	done, tried, tries := l.revocations()
	return done < version && (tried != version || tries < MaxTries)
}

// TryRevocations counts that the firmware is asked to take a release's entries.
func (l *List) TryRevocations(version uint64) {
	done, tried, tries := l.revocations()
	if tried != version {
		tries = 0
	}
	l.setRevocations(done, version, tries+1)
}

// TakeRevocations wants the entries that dbx has got from a release, and notes that its
// entries were dealt with.
func (l *List) TakeRevocations(version uint64, entries Database) {
	for _, e := range entries {
		if l.Wanted.DBX.Revokes(e) {
			continue
		}
		l.Wanted.DBX = append(l.Wanted.DBX, e)
		l.origins[entryID(e)] = FromRelease + Origin(fmt.Sprintf(": %d", version))
		l.giveUp(e)
	}
	done, _, _ := l.revocations()
	l.setRevocations(max(done, version), 0, 0)
}

// giveUp lets an image go that was this machine's own and that dbx has by now, whoever owns
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

func (l *List) revocations() (done, tried uint64, tries int) {
	text := string(l.origins[revocationsOf])
	if n, err := fmt.Sscanf(text, "%d, %d asked %d", &done, &tried, &tries); n != 3 || err != nil || strings.HasPrefix(text, "-") {
		return 0, 0, 0
	}
	return done, tried, tries
}

func (l *List) setRevocations(done, tried uint64, tries int) {
	l.origins[revocationsOf] = Origin(fmt.Sprintf("%d, %d asked %d", done, tried, tries))
}
