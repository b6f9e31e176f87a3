package etcmerge

import (
	"math"
	"strconv"
	"strings"
)

// The numbers of system users, as useradd gives them, and of others.
const (
	firstSystem, lastSystem = 100, 999
	lastOrdinary            = 59999
	// firstRange and lastRange are what subordinate numbers are given from.
	firstRange, lastRange = 100_000, 600_100_000
)

// The fields of a line of passwd or group that hold a number.
const (
	numberField = 2 // the user's or group's own
	groupField  = 3 // of passwd: the user's group
)

// decimal writes a number.
func decimal(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// number reads a number as the GNU C library does in passwd and group (strtoul(3), and no more
// than 32 bits of it): space and zeros in front do not matter, and one that is too large is the
// largest. One with a minus in front is counted down from 2^64, which makes most too large, and
// "-18446744073709551589" 27.
func number(s string) (uint32, bool) {
	s = strings.TrimLeft(s, spaces)
	digits, negative := strings.CutPrefix(s, "-")
	if !negative {
		digits = strings.TrimPrefix(s, "+")
	}
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if negative && err == nil {
		n = -n
	}
	return uint32(min(n, math.MaxUint32)), true // n is the largest where there is an error
}

// spaces are those that the GNU C library passes over in front of a line and of a number.
const spaces = " \t\n\v\f\r"

// passedOver reports whether a name begins with what programs do not take for a part of it: " root"
// is root to them.
func passedOver(name string) bool { return strings.TrimLeft(name, spaces) != name }

// numbers are those of all lines, with the names: of lines that come second for a name, or
// have more fields or fewer, too, since programs read them as well.
func (r records) numbers(each func(name string, n uint32)) {
	for _, rec := range r.lines {
		if len(rec.fields) <= numberField || strings.HasPrefix(rec.fields[0], "#") || directory(rec.fields[0]) {
			continue
		}
		if n, ok := number(rec.fields[numberField]); ok {
			each(rec.fields[0], n)
		}
	}
}

// directory reports whether a line stands for accounts of a directory service (nsswitch's
// compat). Its number counts for nothing: the service's does.
func directory(name string) bool {
	return strings.HasPrefix(name, "+") || strings.HasPrefix(name, "-")
}

// own is the number of a name.
func (r records) own(name string) (uint32, bool) {
	rec, ok := r.get(name)
	if !ok || directory(name) {
		return 0, false
	}
	return number(rec.fields[numberField])
}

// byNumber are the names that have each number; the first counts, as it does for programs.
func (r records) byNumber() map[uint32]string {
	out := map[uint32]string{}
	for _, rec := range r.lines {
		if n, ok := r.own(rec.name); ok {
			if _, twice := out[n]; !twice {
				out[n] = rec.name
			}
		}
	}
	return out
}

// moves reports whether the image gives a name another number than the old image did, or
// gives on the number of a name that it dropped. Files of the machine have the old one.
func (t *table) moves() bool {
	if t == nil || !t.known {
		return false
	}
	held := t.base.byNumber()
	for name := range t.theirs.first {
		n, ok := t.theirs.own(name)
		was, before := t.base.own(name)
		holder, given := held[n]
		if ok && (before && was != n || !before && given && t.dropped(holder)) {
			return true
		}
	}
	return false
}

// A pool is the numbers of passwd or group.
type pool struct {
	used map[uint32]bool // in any of the versions, or given by this merge
	// lowest is the least one of the system's in use, highest the greatest ordinary one.
	// What lies between them and is free may have been that of somebody who was deleted,
	// and whose files are still there.
	lowest, highest uint32
	// next is the least ordinary number that may be free.
	next uint32
}

func poolOf(t *table) *pool {
	p := &pool{used: map[uint32]bool{}, lowest: lastSystem + 1, highest: lastSystem, next: lastSystem + 1}
	if t == nil {
		return p
	}
	for _, version := range []records{t.base, t.theirs, t.ours} {
		version.numbers(func(_ string, n uint32) { p.take(n) })
	}
	return p
}

func (p *pool) take(n uint32) {
	switch p.used[n] = true; {
	case n >= firstSystem && n <= lastSystem:
		p.lowest = min(p.lowest, n)
	case n > lastSystem && n <= lastOrdinary:
		p.highest = max(p.highest, n)
	}
}

// offers reports whether a number is free, and not one between others while there is room
// beside them.
func (p *pool) offers(n uint32) bool {
	switch {
	case p.used[n]:
		return false
	case system(n):
		return n < p.lowest || p.lowest == firstSystem
	}
	return n > p.highest || p.highest == lastOrdinary
}

// free finds a number in place of n, as useradd does: an ordinary user's above the
// greatest, all others' below the least of the system's, and numbers between others last.
// One that other offers, too, comes first, so that a user and its group can have the same.
func (p *pool) free(n uint32, other *pool) (uint32, bool) {
	if !system(n) {
		if p.highest < lastOrdinary {
			return p.highest + 1, true
		}
		for ; p.next <= lastOrdinary; p.next++ {
			if !p.used[p.next] {
				return p.next, true
			}
		}
		return 0, false
	}
	for _, both := range []bool{true, false} {
		for at := uint32(lastSystem); at >= firstSystem; at-- {
			if p.offers(at) && (!both || other.offers(at)) {
				return at, true
			}
		}
	}
	return 0, false
}

// system reports whether a number is one of the image's, and not of a person.
func system(n uint32) bool { return n <= lastSystem || n > lastOrdinary }
