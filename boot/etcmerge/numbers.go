package etcmerge

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
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

// number reads a number as the GNU C library does in passwd and group (strtoul(3)): space
// and zeros in front do not matter, and one that is too large is the largest. One with a
// minus in front, which becomes large, is not understood.
func number(s string) (uint32, bool) {
	s = strings.TrimPrefix(strings.TrimLeft(s, " \t\n\v\f\r"), "+")
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return math.MaxUint32, true
	}
	return uint32(n), true
}

// numbers are those of all lines, with the names: of lines that come second for a name, or
// have more fields or fewer, too, since programs read them as well.
func (r records) numbers(each func(name string, n uint32)) {
	for _, rec := range r.lines {
		if len(rec.fields) <= numberField || strings.ContainsAny(rec.fields[0][:min(1, len(rec.fields[0]))], "#+-") {
			continue
		}
		if n, ok := number(rec.fields[numberField]); ok {
			each(rec.fields[0], n)
		}
	}
}

// own is the number of a name.
func (r records) own(name string) (uint32, bool) {
	rec, ok := r.get(name)
	if !ok {
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

// users is the merge of group and passwd, and then of what belongs to them.
type users struct {
	*planner
	group, passwd *table
	gids, uids    *pool
	// baseGroups and theirGroups are the names of the images' groups.
	baseGroups, theirGroups map[uint32]string
	// given are the numbers of groups that are new in the image, refused the names that
	// were left out.
	given           map[string]uint32
	noGroup, noUser map[string]bool
	// cameIn are the names that this merge takes in; doubtful are those users that the
	// owner of this machine may have deleted.
	groupCameIn, userCameIn map[string]bool
	doubtful                map[string]bool
}

func (p *planner) mergeUsers(tables map[string]*table) error {
	u := users{
		planner: p, group: tables["group"], passwd: tables["passwd"],
		gids: poolOf(tables["group"]), uids: poolOf(tables["passwd"]),
		given: map[string]uint32{}, noGroup: map[string]bool{}, noUser: map[string]bool{},
		groupCameIn: map[string]bool{}, userCameIn: map[string]bool{}, doubtful: map[string]bool{},
	}
	if u.group != nil {
		p.mergeTable(u.group, "group", u.mergeGroup, intake{u.returns(u.group, "group"), u.admitGroup})
		p.owners.theirs.Groups, p.owners.lostGroups = numbersOf("group", u.group.theirs, u.group.out)
		p.owners.base.Groups, _ = numbersOf("group", u.group.base, u.group.out)
		u.baseGroups, u.theirGroups = u.group.base.byNumber(), u.group.theirs.byNumber()
	}
	if u.passwd != nil {
		p.mergeTable(u.passwd, "user", u.mergeUser, intake{u.returns(u.passwd, "user"), u.admitUser})
		p.owners.theirs.Users, p.owners.lostUsers = numbersOf("user", u.passwd.theirs, u.passwd.out)
		p.owners.base.Users, _ = numbersOf("user", u.passwd.base, u.passwd.out)
	}
	among := func(names map[string]bool) func(record) bool {
		return func(rec record) bool { return names[rec.name] }
	}
	if t := tables["gshadow"]; t != nil {
		p.mergeTable(t, "group", u.mergeGshadow, intake{among(u.groupCameIn), func(rec record) (record, bool) { return rec, !u.noGroup[rec.name] }})
	}
	if t := tables["shadow"]; t != nil {
		p.mergeTable(t, "user", mergeShadow, intake{among(u.userCameIn), func(rec record) (record, bool) { return rec, !u.noUser[rec.name] }})
	}
	return u.lock(tables["shadow"])
}

// system reports whether a number is one of the image's, and not of a person.
func system(n uint32) bool { return n <= lastSystem || n > lastOrdinary }

// returns decides over names that the old image had as well, and this machine has not:
// left out before for want of a number, or hidden by an upper directory that was over
// several images.
func (u *users) returns(t *table, kind string) func(record) bool {
	return func(rec record) bool {
		if t.leftOut[rec.name] {
			return true
		}
		n, ok := number(rec.fields[numberField])
		switch {
		case !u.options.Masked || !ok:
			return false
		case system(n):
			u.note(t.path, "%s %s of the image comes in: it was not here, and nobody is known to have deleted it", kind, Name(rec.name))
			return true
		}
		u.note(t.path, "%s %s of the image stays out: it was not here, and with number %d it may have been deleted", kind, Name(rec.name), n)
		return false
	}
}

// comesIn reports whether a user will return, before it has.
func (u *users) comesIn(name string) bool {
	if u.passwd == nil {
		return false
	}
	rec, there := u.passwd.theirs.get(name)
	if _, here := u.passwd.ours.get(name); here || !there {
		return false
	}
	n, ok := number(rec.fields[numberField])
	return u.passwd.leftOut[name] || u.options.Masked && ok && system(n)
}

const locked = "!*" // a password that nobody can have

// usable reports whether somebody can log in with what stands in place of a password.
func usable(password string) bool {
	return password == "" || password[0] != '!' && password[0] != '*'
}

// lock keeps those from logging in whom the owner of this machine may have deleted. A
// user for services that has no password is as good as before.
func (u *users) lock(shadow *table) error {
	if len(u.doubtful) == 0 {
		return nil
	}
	there, err := u.file(u.theirs, "shadow")
	if err != nil {
		return err
	}
	var nologin string
	for _, rec := range u.passwd.theirs.lines {
		if shell := rec.fields[len(rec.fields)-1]; nologin == "" && strings.HasSuffix(shell, "/nologin") {
			nologin = shell
		}
	}
	for i, rec := range u.passwd.out.lines {
		if !u.doubtful[rec.name] || u.passwd.out.first[rec.name] != i {
			continue
		}
		inShadow := rec.fields[1] == "x"
		canLogIn := usable(rec.fields[1])
		if inShadow {
			canLogIn = shadow == nil && there != nil // it cannot be read
		}
		if shadow != nil {
			if at, has := shadow.out.first[rec.name]; has && inShadow {
				canLogIn = usable(shadow.out.lines[at].fields[1])
			}
		}
		if n, ok := number(rec.fields[numberField]); ok && system(n) && !canLogIn {
			continue
		}
		u.lockOut(i, shadow, cmp.Or(nologin, "/sbin/nologin"))
	}
	return nil
}

func (u *users) lockOut(i int, shadow *table, shell string) {
	rec := &u.passwd.out.lines[i]
	rec.fields = slices.Clone(rec.fields)
	rec.fields[6] = shell
	if rec.fields[1] != "x" || shadow == nil {
		rec.fields[1] = locked
	}
	if shadow != nil {
		if at, has := shadow.out.first[rec.name]; has {
			line := &shadow.out.lines[at]
			line.fields = slices.Clone(line.fields)
			line.fields[1] = locked
		}
	}
	u.note(u.passwd.path, "user %s of the image comes in locked, with shell %s: nobody can say whether it was deleted here; usermod --shell and passwd let it in, userdel removes it", Name(rec.name), shell)
}

func (u *users) mergeGroup(base *record, theirs, ours record) (record, []string) {
	var clashes []string
	return record{ours.name, []string{
		ours.fields[0],
		field(base, theirs, ours, 1, "password", &clashes),
		u.stays(u.group, "group", base, theirs, ours, &clashes),
		u.members(ours.name, base, theirs, ours, 3),
	}}, clashes
}

func (u *users) mergeUser(base *record, theirs, ours record) (record, []string) {
	var clashes []string
	out := record{ours.name, slices.Clone(ours.fields)}
	out.fields[1] = field(base, theirs, ours, 1, "password", &clashes)
	out.fields[numberField] = u.stays(u.passwd, "user", base, theirs, ours, &clashes)
	theirs.fields = slices.Clone(theirs.fields)
	theirs.fields[groupField] = u.groupHere(u.theirGroups, theirs.fields[groupField])
	if u.passwd.absent {
		ours.fields = theirs.fields
	}
	if base != nil {
		base = &record{base.name, slices.Clone(base.fields)}
		base.fields[groupField] = u.groupHere(u.baseGroups, base.fields[groupField])
	}
	for i, what := range []string{groupField: "group", 4: "comment", 5: "home directory", 6: "shell"} {
		if what != "" {
			out.fields[i] = field(base, theirs, ours, i, what, &clashes)
		}
	}
	return out, clashes
}

// stays is the number of a name that this machine has: it never changes, since files
// belong to it.
func (u *users) stays(t *table, kind string, base *record, theirs, ours record, clashes *[]string) string {
	here, there := ours.fields[numberField], theirs.fields[numberField]
	a, isA := number(here)
	b, isB := number(there)
	if here == there || isA && isB && a == b || base != nil && base.fields[numberField] == there {
		return here
	}
	if base != nil && isA && isB {
		*clashes = append(*clashes, fmt.Sprintf("number %d here, %d in the image: this machine's files have the one, and what the image has outside them the other", a, b))
		return here
	}
	if base == nil && isA && isB && (a > lastSystem) != (b > lastSystem) {
		*clashes = append(*clashes, fmt.Sprintf("number %d here, %d in the image, which means another %s", a, b, kind))
		return here
	}
	u.note(t.path, "%s %s keeps number %s: the image has %s", kind, Name(ours.name), Name(here), Name(there))
	return here
}

// groupHere is the number that a group has on this machine, given the names of an
// image's groups.
func (u *users) groupHere(names map[uint32]string, gid string) string {
	n, ok := number(gid)
	name, known := names[n]
	if !ok || !known {
		return gid
	}
	if here, ok := u.group.out.own(name); ok {
		return decimal(here)
	}
	if _, lost := u.owners.lostGroups[n]; lost || u.noGroup[name] {
		return nobody
	}
	return gid
}

// nobody is the number of the group without rights.
const nobody = "65534"

func (u *users) admitGroup(rec record) (record, bool) {
	rec, ok := u.admit(u.group, "group", rec, func(n uint32) (uint32, bool) { return u.gids.free(n, u.uids) })
	if n, is := number(rec.fields[numberField]); ok && is {
		u.gids.take(n)
		u.given[rec.name] = n
	}
	u.noGroup[rec.name], u.groupCameIn[rec.name] = !ok, ok
	return rec, ok
}

func (u *users) admitUser(rec record) (record, bool) {
	gid := rec.fields[groupField]
	rec, ok := u.admit(u.passwd, "user", rec, func(n uint32) (uint32, bool) {
		// The user's own group may just have been given a number that is good for both.
		if g, is := u.given[rec.name]; is && rec.fields[numberField] == gid && g != n && u.uids.offers(g) {
			return g, true
		}
		return u.uids.free(n, u.gids)
	})
	if n, is := number(rec.fields[numberField]); ok && is {
		u.uids.take(n)
	}
	rec.fields[groupField] = u.groupHere(u.theirGroups, gid)
	u.noUser[rec.name], u.userCameIn[rec.name] = !ok, ok
	_, was := u.passwd.base.get(rec.name)
	u.doubtful[rec.name] = ok && !u.passwd.leftOut[rec.name] && (u.base == nil || was)
	return rec, ok
}

// admit takes in a user or group that is new in the image. Where this machine has given
// its number to somebody else it gets a free one, and that is said.
func (p *planner) admit(t *table, kind string, rec record, next func(uint32) (uint32, bool)) (record, bool) {
	rec.fields = slices.Clone(rec.fields)
	n, ok := number(rec.fields[numberField])
	holder, held := t.holder(n)
	if !ok || !held {
		return rec, true
	}
	other, ok := next(n)
	if !ok {
		p.leaveOut(t, rec.name, "%s %s of the image is left out: number %d belongs to %s here, and none is free", kind, Name(rec.name), n, Name(holder))
		return rec, false
	}
	rec.fields[numberField] = decimal(other)
	belongs := "belongs to"
	if t.follows && t.dropped(holder) {
		belongs = "belonged to"
	}
	p.note(t.path, "%s %s of the image has number %d here: %d %s %s", kind, Name(rec.name), other, n, belongs, Name(holder))
	return rec, true
}

// holder is who has a number on this machine, and not in the image as well.
func (t *table) holder(n uint32) (string, bool) {
	if t.holders == nil {
		t.holders = map[uint32]string{}
		t.ours.numbers(func(name string, has uint32) {
			if there, is := t.theirs.own(name); !is || there != has {
				t.holders[has] = name
			}
		})
	}
	name, held := t.holders[n]
	return name, held
}

// A span is a range of subordinate numbers.
type span struct{ first, count uint64 }

func (s span) end() uint64 { return s.first + s.count }

func (s span) overlaps(o span) bool { return s.first < o.end() && o.first < s.end() }

func spanOf(rec record) (span, bool) {
	first, err := strconv.ParseUint(rec.fields[1], 10, 32)
	count, err2 := strconv.ParseUint(rec.fields[2], 10, 32)
	return span{first, count}, err == nil && err2 == nil && count > 0
}

// mergeRanges merges subuid or subgid, where a name may have several lines. This
// machine's ranges stay, since files of containers belong to them. A new range of the
// image's that would overlap one of them is moved.
func (p *planner) mergeRanges(t *table, passwd records) {
	base, theirs, ours := rangesOf(t.base), rangesOf(t.theirs), rangesOf(t.ours)
	t.out.lines = slices.Clone(t.ours.lines)
	used := slices.Concat(spansOf(t.theirs), spansOf(t.ours))
	slices.SortFunc(used, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	taken := spansOf(t.ours)
	for _, name := range slices.Sorted(maps.Keys(theirs)) {
		was, before := base[name]
		here, now := ours[name]
		unchanged := before && slices.Equal(was, theirs[name])
		if before && !now && p.rangesReturn(t, name, passwd) {
			before, unchanged = false, false
		}
		switch {
		case now && (unchanged || slices.Equal(here, theirs[name])), !now && unchanged:
		case now || before:
			if p.base != nil {
				p.clash(t.path, name, stateLine, fmt.Sprintf("ranges of %s: changed in the image, and %s", Name(name), map[bool]string{true: "this machine's stay", false: "deleted here"}[now]))
				t.clashes = true
			}
		default:
			if p.budget.spent() {
				p.leaveOut(t, name, "ranges of %s are left out: there are too many to compare", Name(name))
				continue
			}
			for _, line := range theirs[name] {
				rec, ok := p.admitRange(t, record{name, strings.Split(line, ":")}, taken, &used)
				if ok {
					t.out.lines = append(t.out.lines, rec)
				}
			}
		}
	}
}

// rangesReturn decides over ranges that the old image had as well, and this machine has
// not.
func (p *planner) rangesReturn(t *table, name string, passwd records) bool {
	if t.leftOut[name] {
		return true
	}
	if _, here := passwd.get(name); !here || !p.options.Masked {
		return false
	}
	p.note(t.path, "ranges of %s of the image come in: they were not here, and nobody is known to have removed them", Name(name))
	return true
}

// admitRange takes in a range that is new in the image.
func (p *planner) admitRange(t *table, rec record, taken []span, used *[]span) (record, bool) {
	s, ok := spanOf(rec)
	if !ok || !slices.ContainsFunc(taken, s.overlaps) {
		p.budget.steps -= len(taken)
		return rec, true
	}
	p.budget.steps -= len(taken) + len(*used)
	at := uint64(firstRange)
	for _, o := range *used {
		if at+s.count <= o.first {
			break
		}
		at = max(at, o.end())
	}
	if at+s.count-1 > lastRange {
		p.leaveOut(t, rec.name, "range %d:%d of %s is left out: some of it was given away here, and there is no room for it elsewhere", s.first, s.count, Name(rec.name))
		return rec, false
	}
	p.note(t.path, "range %d:%d of %s begins with %d here: some of it was given away", s.first, s.count, Name(rec.name), at)
	rec.fields[1] = strconv.FormatUint(at, 10)
	i, _ := slices.BinarySearchFunc(*used, at, func(o span, at uint64) int { return cmp.Compare(o.first, at) })
	*used = slices.Insert(*used, i, span{at, s.count})
	return rec, true
}

func rangesOf(r records) map[string][]string {
	out := map[string][]string{}
	for _, rec := range r.lines {
		if rec.name != "" {
			out[rec.name] = append(out[rec.name], rec.line())
		}
	}
	return out
}

func spansOf(r records) []span {
	var out []span
	for _, rec := range r.lines {
		if rec.name == "" {
			continue
		}
		if s, ok := spanOf(rec); ok {
			out = append(out, s)
		}
	}
	return out
}
