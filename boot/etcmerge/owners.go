package etcmerge

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
)

// Owners lead from an image's numbers to those that the same users and groups have here.
// A number of somebody who is not here, and that is somebody else's here, becomes 0.
type Owners struct{ Users, Groups map[uint32]uint32 }

// Owners are those of a plan: who copies files out of the image translates them.
func (r *Result) Owners() Owners { return Owners{r.Users, r.Groups} }

// Accounts are the texts of /etc/passwd and /etc/group.
type Accounts struct{ Passwd, Group []byte }

// OwnersBetween are those from an image's numbers to a machine's: what a merge would have.
func OwnersBetween(image, here Accounts) Owners {
	between := func(path string, image, here []byte) map[uint32]uint32 {
		fields := fieldsOf(path)
		out, _ := numbersOf(path, parseRecords(image, fields), parseRecords(here, fields))
		return out
	}
	return Owners{Users: between("passwd", image.Passwd, here.Passwd), Groups: between("group", image.Group, here.Group)}
}

// accessLists are the attributes that name users and groups by their numbers.
var accessLists = []string{accessList, "system.posix_acl_default"}

// Translate gives a file of the image the owners that it has here, and their numbers to
// its access control lists. It reports whether anything is different. What becomes
// root's is not setuid or setgid any more.
func (o Owners) Translate(e *Entry) bool {
	if len(o.Users)+len(o.Groups) == 0 {
		return false
	}
	moved := false
	replace := func(numbers map[uint32]uint32, n *uint32, bit uint32) {
		here, ok := numbers[*n]
		if !ok || here == *n {
			return
		}
		if *n, moved = here, true; here == 0 && e.Type != Directory {
			e.Mode &^= bit
		}
	}
	replace(o.Users, &e.UID, 0o4000)
	replace(o.Groups, &e.GID, 0o2000)
	for _, name := range accessLists {
		list, has := e.Xattrs[name]
		if !has {
			continue
		}
		if here, ok := o.accessList(list); ok && here != list {
			e.Xattrs = maps.Clone(e.Xattrs)
			e.Xattrs[name], moved = here, true
		}
	}
	return moved
}

// The form of an access control list in an attribute (Linux, posix_acl_xattr.h): a header
// with the version, and entries of a tag, permissions and a number, all little endian.
const (
	aclVersion, aclHeader, aclEntry = 2, 4, 8
	aclUser, aclGroup               = 0x02, 0x08 // tags of entries that have a number
)

// accessList translates the numbers in a list, false for one that is not understood. An
// entry for somebody who is not here goes, and so does a second one for the same number.
func (o Owners) accessList(list string) (string, bool) {
	if len(list) < aclHeader || (len(list)-aclHeader)%aclEntry != 0 || binary.LittleEndian.Uint32([]byte(list)) != aclVersion {
		return "", false
	}
	type named struct {
		tag uint16
		n   uint32
	}
	seen := map[named]bool{}
	out := []byte(list[:aclHeader])
	for entry := range slices.Chunk([]byte(list[aclHeader:]), aclEntry) {
		tag, n := binary.LittleEndian.Uint16(entry), binary.LittleEndian.Uint32(entry[4:])
		numbers := map[uint16]map[uint32]uint32{aclUser: o.Users, aclGroup: o.Groups}[tag]
		here, ok := numbers[n]
		if !ok {
			here = n
		}
		if tag == aclUser || tag == aclGroup {
			if ok && here == 0 || seen[named{tag, here}] {
				continue
			}
			seen[named{tag, here}] = true
		}
		out = binary.LittleEndian.AppendUint32(append(out, entry[:4]...), here)
	}
	return string(out), true
}

// owners are the numbers of a plan.
type owners struct {
	theirs, base Owners
	// lost are the users and groups of the image that are not here, and whose number is
	// somebody else's: a few words for people, by number.
	lostUsers, lostGroups map[uint32]string
}

// numbersOf leads from an image's numbers to those of the same names here, and to 0 for
// names whose number somebody else has.
func numbersOf(kind string, image, here records) (out map[uint32]uint32, lost map[uint32]string) {
	out, lost = map[uint32]uint32{}, map[uint32]string{}
	stays := map[uint32]bool{0: true}
	for name := range image.first {
		there, ok := image.own(name)
		own, is := here.own(name)
		switch {
		case !ok || !is:
		case there == own:
			stays[there] = true
		default:
			if before, twice := out[there]; !twice || own < before {
				out[there] = own
			}
		}
	}
	holders := map[uint32]string{}
	here.numbers(func(name string, n uint32) {
		if _, twice := holders[n]; !twice {
			holders[n] = name
		}
	})
	for n, name := range image.byNumber() {
		holder, held := holders[n]
		if _, known := out[n]; held && !known && !stays[n] {
			out[n] = 0
			lost[n] = fmt.Sprintf("belongs to root here: %s %s of the image is not here, and its number %d belongs to %s", kind, Name(name), n, Name(holder))
		}
	}
	maps.DeleteFunc(out, func(there, _ uint32) bool { return stays[there] })
	return out, lost
}

// noteLost says once that a file of the image has another owner for want of its own.
func (p *planner) noteLost(t *file, made *Entry) {
	if t.raw == t.Entry || p.lost[t.path] {
		return
	}
	p.lost[t.path] = true
	if why, lost := p.owners.lostUsers[t.raw.UID]; lost && made.UID == 0 {
		p.note(t.path, "%s", why)
	}
	if why, lost := p.owners.lostGroups[t.raw.GID]; lost && made.GID == 0 {
		p.note(t.path, "%s", why)
	}
}

// asHere is this machine's copy of a file of an image's with the owners that the image's has
// here: the copy may have been made while the image's numbers still stood. What differs
// from the image's is not a copy: its owner is the one who has the number here. Where the upper
// directory was over several images, a file may have another content.
func (r *reader) asHere(image, ours *file) (*Entry, error) {
	if image == nil || image.raw == image.Entry || image.Type != ours.Type || !metadataOf(image.raw).equal(metadataOf(ours.Entry)) {
		return ours.Entry, nil
	}
	e := *ours.Entry
	e.UID, e.GID, e.Mode, e.Xattrs = image.Entry.UID, image.Entry.GID, image.Entry.Mode, maps.Clone(e.Xattrs)
	for _, name := range accessLists {
		if list, has := image.Entry.Xattrs[name]; has {
			e.Xattrs[name] = list
		}
	}
	same, err := r.sameContent(image, ours)
	switch {
	case err != nil:
		return nil, err
	case same:
		return &e, nil
	case !r.masked || e.UID == 0 && ours.UID != 0 || e.GID == 0 && ours.GID != 0:
		return ours.Entry, nil
	}
	e.Mode &^= 0o6000
	return &e, nil
}
