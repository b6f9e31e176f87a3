package etcmerge

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

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
