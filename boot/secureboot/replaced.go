package secureboot

import (
	"slices"
	"strconv"
	"strings"
)

// MaxRevoked bounds how many of this machine's own images dbx is made to hold. dbx
// can only grow, and shares its room with what the firmware's maker and the
// distributions revoke: some firmware has no more than 8 KiB for it. Each of ours
// takes 76 bytes, so that this is less than a third of that, and years of boot
// managers.
const MaxRevoked = 32

// MaxTries bounds how often the firmware is asked to revoke an image.
const MaxTries = 2

// replaced is the origin of an image's hash, which dbx does not hold yet, once
// another image has taken its place: by how often the firmware was asked to
// revoke it. An earlier release reads it, and does nothing by it.
var replaced = [MaxTries + 1]Origin{"replaced", "replaced, to be revoked once", "replaced, to be revoked twice"}

func (l *List) hashID(digest [32]byte) string { return entryID(Hash(l.Owner, digest)) }

// Replace notes that another image has taken the place of one of this machine's own,
// or is about to, and reports whether the list has changed.
func (l *List) Replace(digest [32]byte) bool {
	if !l.Allows(digest) || l.Replaced(digest) {
		return false
	}
	l.origins[l.hashID(digest)] = replaced[0]
	return true
}

// Restore notes that an image is in its place, after all.
func (l *List) Restore(digest [32]byte) bool {
	id := l.hashID(digest)
	if !slices.Contains(replaced[:], l.origins[id]) {
		return false
	}
	delete(l.origins, id)
	return true
}

// Replaced reports whether an image was this machine's own and another has taken its
// place.
func (l *List) Replaced(digest [32]byte) bool {
	o := l.origins[l.hashID(digest)]
	return slices.Contains(replaced[:], o) || strings.HasPrefix(string(o), string(FromRevoked))
}

// managerOf is under what the origins have, in place of where an entry came from, the
// version of the release whose boot manager this machine has. It is nobody's entry; an
// earlier release keeps it, and does nothing by it.
const managerOf = "boot manager of version"

// ManagerOf is the version of the newest release that has put its boot manager in place,
// and 0 where no release has.
func (l *List) ManagerOf() uint64 {
	version, err := strconv.ParseUint(string(l.origins[managerOf]), 10, 64)
	if err != nil {
		return 0
	}
	return version
}

// TakeManager notes that a release puts its boot manager in place, and reports whether the
// list has changed. It never goes back: an older release's boot manager may have holes that
// are known, so that it must not have the newer one revoked.
func (l *List) TakeManager(version uint64) bool {
	if version <= l.ManagerOf() {
		return false
	}
	l.origins[managerOf] = Origin(strconv.FormatUint(version, 10))
	return true
}

// ToRevoke are the replaced images that the firmware may still be asked to revoke,
// the oldest first. Of more than dbx has room for they are the newest.
func (l *List) ToRevoke() (out []Image) {
	for _, i := range l.images {
		if slices.Contains(replaced[:MaxTries], l.origins[l.hashID([32]byte(i.Digest))]) {
			out = append(out, i)
		}
	}
	room := MaxRevoked
	for _, e := range l.Wanted.DBX {
		if strings.HasPrefix(string(l.Origin(e)), string(FromRevoked)) {
			room--
		}
	}
	return out[len(out)-min(len(out), max(room, 0)):]
}

// Try counts that the firmware is asked to revoke these images.
func (l *List) Try(images []Image) {
	for _, i := range images {
		id := l.hashID([32]byte(i.Digest))
		if n := slices.Index(replaced[:MaxTries], l.origins[id]); n >= 0 {
			l.origins[id] = replaced[n+1]
		}
	}
}
