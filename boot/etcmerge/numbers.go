package etcmerge

import (
	"cmp"
	"fmt"
	"maps"
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

// number reads a number that is written as programs write it.
func number(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && strconv.FormatUint(n, 10) == s
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

// A pool is the numbers of passwd or group.
type pool struct {
	used map[uint32]bool // in any of the versions, or given by this merge
	// next is the least ordinary number that may be free.
	next uint32
}

func poolOf(t *table) *pool {
	p := &pool{used: map[uint32]bool{}, next: lastSystem + 1}
	if t == nil {
		return p
	}
	for _, version := range []records{t.base, t.theirs, t.ours} {
		for name := range version.first {
			if n, ok := version.own(name); ok {
				p.used[n] = true
			}
		}
	}
	return p
}

// free finds a number in place of n. An ordinary user's is the least one that nobody
// has. All others get one of the system's range, from above as useradd gives them; one
// that is free in other, too, comes first, so that a user and its group can have the
// same.
func (p *pool) free(n uint32, other *pool) (uint32, bool) {
	if n > lastSystem && n <= lastOrdinary {
		for ; p.next <= lastOrdinary; p.next++ {
			if !p.used[p.next] {
				return p.next, true
			}
		}
		return 0, false
	}
	for _, taken := range []map[uint32]bool{other.used, nil} {
		for at := uint32(lastSystem); at >= firstSystem; at-- {
			if !p.used[at] && !taken[at] {
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
}

func (p *planner) mergeUsers(tables map[string]*table) {
	u := users{
		planner: p, group: tables["group"], passwd: tables["passwd"],
		gids: poolOf(tables["group"]), uids: poolOf(tables["passwd"]),
		given: map[string]uint32{}, noGroup: map[string]bool{}, noUser: map[string]bool{},
	}
	if u.group != nil {
		p.mergeTable(u.group, "group", u.mergeGroup, u.admitGroup)
		p.groups = renumbered(u.group)
		u.baseGroups, u.theirGroups = u.group.base.byNumber(), u.group.theirs.byNumber()
	}
	if u.passwd != nil {
		p.mergeTable(u.passwd, "user", u.mergeUser, u.admitUser)
		p.users = renumbered(u.passwd)
	}
	if t := tables["gshadow"]; t != nil {
		p.mergeTable(t, "group", mergeGshadow, func(rec record) (record, bool) { return rec, !u.noGroup[rec.name] })
	}
	if t := tables["shadow"]; t != nil {
		p.mergeTable(t, "user", mergeShadow, func(rec record) (record, bool) { return rec, !u.noUser[rec.name] })
	}
}

func (u *users) mergeGroup(base *record, theirs, ours record) (record, []string) {
	var clashes []string
	return record{ours.name, []string{
		ours.fields[0],
		field(base, theirs, ours, 1, "password", &clashes),
		u.stays(u.group, "group", base, theirs, ours, &clashes),
		members(base, theirs, ours, 3),
	}}, clashes
}

func (u *users) mergeUser(base *record, theirs, ours record) (record, []string) {
	var clashes []string
	out := record{ours.name, slices.Clone(ours.fields)}
	out.fields[1] = field(base, theirs, ours, 1, "password", &clashes)
	out.fields[numberField] = u.stays(u.passwd, "user", base, theirs, ours, &clashes)
	theirs.fields = slices.Clone(theirs.fields)
	theirs.fields[groupField] = u.groupHere(u.theirGroups, theirs.fields[groupField])
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
	if here == there || base != nil && base.fields[numberField] == there {
		return here
	}
	a, isA := number(here)
	b, isB := number(there)
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
		return strconv.FormatUint(uint64(here), 10)
	}
	if u.noGroup[name] {
		return nobody
	}
	return gid
}

// nobody is the number of the group without rights.
const nobody = "65534"

func (u *users) admitGroup(rec record) (record, bool) {
	rec, ok := u.admit(u.group, "group", rec, func(n uint32) (uint32, bool) { return u.gids.free(n, u.uids) })
	if n, is := number(rec.fields[numberField]); ok && is {
		u.gids.used[n] = true
		u.given[rec.name] = n
	}
	u.noGroup[rec.name] = !ok
	return rec, ok
}

func (u *users) admitUser(rec record) (record, bool) {
	gid := rec.fields[groupField]
	rec, ok := u.admit(u.passwd, "user", rec, func(n uint32) (uint32, bool) {
		// The user's own group may just have been given a number that is free for both.
		if g, is := u.given[rec.name]; is && rec.fields[numberField] == gid && g != n && !u.uids.used[g] {
			return g, true
		}
		return u.uids.free(n, u.gids)
	})
	if n, is := number(rec.fields[numberField]); ok && is {
		u.uids.used[n] = true
	}
	rec.fields[groupField] = u.groupHere(u.theirGroups, gid)
	u.noUser[rec.name] = !ok
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
		p.clash(t.path, rec.name, stateLine, fmt.Sprintf("%s %s of the image is left out: number %d belongs to %s here, and none is free", kind, Name(rec.name), n, Name(holder)))
		t.clashes = true
		return rec, false
	}
	rec.fields[numberField] = strconv.FormatUint(uint64(other), 10)
	p.note(t.path, "%s %s of the image has number %d here: %d belongs to %s", kind, Name(rec.name), other, n, Name(holder))
	return rec, true
}

// holder is who has a number on this machine, and not in the image as well.
func (t *table) holder(n uint32) (string, bool) {
	if t.holders == nil {
		t.holders = map[uint32]string{}
		for _, rec := range t.ours.lines {
			has, ok := t.ours.own(rec.name)
			if there, is := t.theirs.own(rec.name); ok && (!is || there != has) {
				t.holders[has] = rec.name
			}
		}
	}
	name, held := t.holders[n]
	return name, held
}

// renumbered leads from the image's numbers to those that the same names have here.
func renumbered(t *table) map[uint32]uint32 {
	out := map[uint32]uint32{}
	stays := map[uint32]bool{0: true}
	for name := range t.theirs.first {
		there, ok := t.theirs.own(name)
		here, is := t.out.own(name)
		switch {
		case !ok || !is:
		case there == here:
			stays[there] = true
		default:
			if before, twice := out[there]; !twice || here < before {
				out[there] = here
			}
		}
	}
	maps.DeleteFunc(out, func(there, _ uint32) bool { return stays[there] })
	return out
}

// A span is a range of subordinate numbers.
type span struct{ first, count uint64 }

func (s span) end() uint64 { return s.first + s.count }

func spanOf(rec record) (span, bool) {
	first, err := strconv.ParseUint(rec.fields[1], 10, 32)
	count, err2 := strconv.ParseUint(rec.fields[2], 10, 32)
	return span{first, count}, err == nil && err2 == nil && count > 0
}

// mergeRanges merges subuid or subgid, where a name may have several lines. This
// machine's ranges stay, since files of containers belong to them. A new range of the
// image's that would overlap one of them is moved.
func (p *planner) mergeRanges(t *table) {
	base, theirs, ours := rangesOf(t.base), rangesOf(t.theirs), rangesOf(t.ours)
	t.out.lines = slices.Clone(t.ours.lines)
	used := slices.Concat(spansOf(t.theirs), spansOf(t.ours))
	slices.SortFunc(used, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	taken := spansOf(t.ours)
	for _, name := range slices.Sorted(maps.Keys(theirs)) {
		was, before := base[name]
		here, now := ours[name]
		unchanged := before && slices.Equal(was, theirs[name])
		switch {
		case now && (unchanged || slices.Equal(here, theirs[name])), !now && unchanged:
		case now || before:
			if p.base != nil {
				p.clash(t.path, name, stateLine, fmt.Sprintf("ranges of %s: changed in the image, and %s", Name(name), map[bool]string{true: "this machine's stay", false: "deleted here"}[now]))
				t.clashes = true
			}
		default:
			for _, line := range theirs[name] {
				rec, ok := p.admitRange(t, record{name, strings.Split(line, ":")}, taken, &used)
				if ok {
					t.out.lines = append(t.out.lines, rec)
				}
			}
		}
	}
}

// admitRange takes in a range that is new in the image.
func (p *planner) admitRange(t *table, rec record, taken []span, used *[]span) (record, bool) {
	s, ok := spanOf(rec)
	overlaps := func(o span) bool { return s.first < o.end() && o.first < s.end() }
	if !ok || !slices.ContainsFunc(taken, overlaps) {
		return rec, true
	}
	at := uint64(firstRange)
	for _, o := range *used {
		if at+s.count <= o.first {
			break
		}
		at = max(at, o.end())
	}
	if at+s.count-1 > lastRange {
		p.clash(t.path, rec.name, stateLine, fmt.Sprintf("range %d:%d of %s is left out: some of it was given away here, and there is no room for it elsewhere", s.first, s.count, Name(rec.name)))
		t.clashes = true
		return rec, false
	}
	p.note(t.path, "range %d:%d of %s begins with %d here: some of it was given away", s.first, s.count, Name(rec.name), at)
	rec.fields[1] = strconv.FormatUint(at, 10)
	*used = append(*used, span{at, s.count})
	slices.SortFunc(*used, func(a, b span) int { return cmp.Compare(a.first, b.first) })
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
