package etcmerge

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// accessList is the attribute that has an access control list. It is one with the
// permissions: the kernel keeps the mask of the list in the group's bits.
const accessList = "system.posix_acl_access"

// capability is the attribute by which a program has rights of root's (capabilities(7)).
const capability = "security.capability"

// ofContent are attributes that sign a file's content or all of its metadata. They are
// worth something only beside what they were made for.
var ofContent = []string{"security.ima", "security.evm"}

// metadata is what an entry has beside its content.
type metadata struct {
	mode     string // in octal, with the access control list behind it; empty of a link
	uid, gid uint32
	xattrs   map[string]string
}

func metadataOf(e *Entry) metadata {
	m := metadata{uid: e.UID, gid: e.GID, xattrs: maps.Clone(e.Xattrs)}
	if e.Type != Link {
		m.mode = fmt.Sprintf("%04o", e.Mode&0o7777) + e.Xattrs[accessList]
	}
	delete(m.xattrs, accessList)
	for _, name := range ofContent {
		delete(m.xattrs, name)
	}
	return m
}

func (m metadata) equal(o metadata) bool {
	return m.mode == o.mode && m.uid == o.uid && m.gid == o.gid && maps.Equal(m.xattrs, o.xattrs)
}

// mergeMetadata merges permissions, owner, group and each attribute by itself. base is
// nil where there was nothing to compare with. It returns the entry that takes the type
// and the content's size of ours, and what clashed. changed says that the content is not
// the image's.
func mergeMetadata(base, theirs, ours *Entry, changed bool) (Entry, []string) {
	out := *ours
	t, o := metadataOf(theirs), metadataOf(ours)
	var clashes []string
	clash := func(what, here, there string) {
		clashes = append(clashes, fmt.Sprintf("%s %s here, %s in the image", what, here, there))
	}
	var b metadata
	if base != nil {
		b = metadataOf(base)
	}
	known := base != nil
	access := o.mode
	if take, bad := three(known, b.mode, t.mode, o.mode); take {
		out.Mode, access = theirs.Mode, t.mode
	} else if bad {
		what := "permissions"
		if o.mode[4:] != t.mode[4:] {
			what = "permissions and access control list"
		}
		clash(what, o.mode[:4], t.mode[:4])
	}
	if take, bad := three(known, b.uid, t.uid, o.uid); take {
		out.UID = t.uid
	} else if bad {
		clash("owner", fmt.Sprint(o.uid), fmt.Sprint(t.uid))
	}
	if take, bad := three(known, b.gid, t.gid, o.gid); take {
		out.GID = t.gid
	} else if bad {
		clash("group", fmt.Sprint(o.gid), fmt.Sprint(t.gid))
	}
	out.Xattrs = mergeXattrs(known, b.xattrs, t.xattrs, o.xattrs, func(name string) {
		clashes = append(clashes, "attribute "+Name(name).String())
	})
	if given := out.UID != o.uid || out.GID != o.gid; given && (changed || access != t.mode) && othersMayWrite(o) {
		out.UID, out.GID, out.Mode, access = o.uid, o.gid, ours.Mode, o.mode
		clash("owner", fmt.Sprintf("%d:%d", o.uid, o.gid), fmt.Sprintf("%d:%d", t.uid, t.gid))
	}
	if changed && ours.Type == Regular && othersMayWrite(o) {
		if more := given(access, o.mode); more != 0 {
			out.Mode, access = ours.Mode, o.mode
			clash("permissions", o.mode[:4], t.mode[:4])
		}
		if able, is := o.xattrs[capability], out.Xattrs[capability]; is != "" && is != able {
			delete(out.Xattrs, capability)
			if able != "" {
				out.Xattrs[capability] = able
			}
			clashes = append(clashes, "attribute "+capability)
		}
	}
	if len(access) > 4 {
		out.Xattrs[accessList] = access[4:]
	}
	return out, clashes
}

// given are the setuid and setgid bits that one mode has and another has not. With a content
// that others have written they would make these others a program's owner.
func given(mode, without string) byte {
	if mode == "" {
		return 0
	}
	have := byte('0')
	if without != "" {
		have = without[0]
	}
	return (mode[0] - '0') &^ (have - '0') & 6
}

// othersMayWrite reports whether somebody who is not root may have written what has these
// owners, or changed its permissions. What the image gives to another owner is then taken
// as the image has it or not at all: else a service's program would be root's, with the
// setuid bit that the service has set.
func othersMayWrite(m metadata) bool {
	return m.uid != 0 || len(m.mode) > 4 || m.mode != "" && strings.ContainsAny(m.mode[2:], "2367")
}

// three is the rule for a single value: whether theirs is taken, and, where ours stays,
// whether that is a clash.
func three[T comparable](known bool, base, theirs, ours T) (take, clash bool) {
	switch {
	case theirs == ours:
		return true, false
	case known && ours == base:
		return true, false
	case known && theirs == base:
		return false, false
	}
	return false, true
}

func mergeXattrs(known bool, base, theirs, ours map[string]string, clash func(name string)) map[string]string {
	type value struct {
		text string
		has  bool
	}
	of := func(m map[string]string, name string) value {
		text, has := m[name]
		return value{text, has}
	}
	names := slices.Concat(slices.Collect(maps.Keys(theirs)), slices.Collect(maps.Keys(ours)))
	slices.Sort(names)
	out := map[string]string{}
	for _, name := range slices.Compact(names) {
		v := of(ours, name)
		take, bad := three(known, of(base, name), of(theirs, name), v)
		if take {
			v = of(theirs, name)
		} else if bad {
			clash(name)
		}
		if v.has {
			out[name] = v.text
		}
	}
	return out
}

// signed adds the attributes that sign content: those of the entry that the content
// comes from, if the rest is as it was there, too.
func signed(out *Entry, content *Entry) {
	if content == nil || !metadataOf(out).equal(metadataOf(content)) {
		return
	}
	for _, name := range ofContent {
		if text, has := content.Xattrs[name]; has {
			if out.Xattrs == nil {
				out.Xattrs = map[string]string{}
			}
			out.Xattrs[name] = text
		}
	}
}

// kindOf names a type for people.
func kindOf(e *Entry) string {
	if e == nil {
		return "nothing"
	}
	if i := int(e.Type) - 1; i >= 0 && i < len(kinds) {
		return kinds[i]
	}
	return "something unknown"
}

var kinds = strings.Split("a file,a directory,a link,a character device,a block device,a pipe,a socket,nothing", ",")
