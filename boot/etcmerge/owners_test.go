package etcmerge

import (
	"encoding/binary"
	"maps"
	"strings"
	"testing"
)

// acl is an access control list, as the kernel keeps it.
func acl(entries ...[3]uint32) string {
	out := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		out = binary.LittleEndian.AppendUint16(out, uint16(e[0]))
		out = binary.LittleEndian.AppendUint16(out, uint16(e[1]))
		out = binary.LittleEndian.AppendUint32(out, e[2])
	}
	return string(out)
}

// list is one with a user and a group.
func listOf(uid, gid uint32) string {
	return acl([3]uint32{1, 6, ^uint32(0)}, [3]uint32{2, 4, uid}, [3]uint32{4, 4, ^uint32(0)}, [3]uint32{8, 4, gid}, [3]uint32{16, 4, ^uint32(0)}, [3]uint32{32, 0, ^uint32(0)})
}

// Access control lists name users, too. FAULTS 106
func TestAccessListsAreTranslated(t *testing.T) {
	base := accountsOf("passwd", rootUser, "group", rootGroup)
	theirs := accountsOf("passwd", rootUser+"svc:x:990:990::/:/x\n", "group", rootGroup+"svc:x:990:\n")
	theirs["f"] = text("x").attr(accessList, listOf(990, 990))
	theirs["d"] = dir().attr("system.posix_acl_default", listOf(990, 5))
	upper := accountsOf("passwd", rootUser+"bob:x:990:990::/:/x\n", "group", rootGroup+"bob:x:990:\n")
	_, made := planWith(t, Options{}, base, theirs, upper)
	if got := made["f"].Xattrs[accessList]; got != listOf(989, 989) {
		t.Errorf("f has list %x", got)
	}
	if got := made["d"].Xattrs["system.posix_acl_default"]; got != listOf(989, 5) {
		t.Errorf("d has list %x", got)
	}
	_, again := planWith(t, Options{}, theirs, theirs, made)
	if got := again["f"].Xattrs[accessList]; got != listOf(989, 989) {
		t.Errorf("after the next, f has list %x", got)
	}
}

func TestTranslate(t *testing.T) {
	o := Owners{Users: map[uint32]uint32{5: 6, 7: 0}, Groups: map[uint32]uint32{5: 9, 7: 0}}
	for _, c := range []struct {
		name    string
		in, out node
		moved   bool
	}{
		{"nobody of them", text("").owner(1, 1).mode(0o6755), text("").owner(1, 1).mode(0o6755), false},
		{"both", text("").owner(5, 5).mode(0o6755), text("").owner(6, 9).mode(0o6755), true},
		{"a user who is not here", text("").owner(7, 1).mode(0o6755), text("").owner(0, 1).mode(0o2755), true},
		{"a group that is not here", text("").owner(1, 7).mode(0o6755), text("").owner(1, 0).mode(0o4755), true},
		{"those of a list", text("").attr(accessList, listOf(7, 7)), text("").attr(accessList, acl([3]uint32{1, 6, ^uint32(0)}, [3]uint32{4, 4, ^uint32(0)}, [3]uint32{16, 4, ^uint32(0)}, [3]uint32{32, 0, ^uint32(0)})), true},
		{"an unknown list", text("").attr(accessList, "\x03\x00\x00\x00\x02\x00\x04\x00\x05\x00\x00\x00"), text("").attr(accessList, "\x03\x00\x00\x00\x02\x00\x04\x00\x05\x00\x00\x00"), false},
		{"a short list", text("").attr(accessList, listOf(5, 5)[:21]), text("").attr(accessList, listOf(5, 5)[:21]), false},
	} {
		e := c.in.Entry
		was := c.in.Xattrs[accessList]
		if moved := o.Translate(&e); moved != c.moved || !metadataOf(&e).equal(metadataOf(&c.out.Entry)) {
			t.Errorf("%s: %v %+v, want %+v", c.name, moved, e, c.out.Entry)
		}
		if c.in.Xattrs[accessList] != was {
			t.Errorf("%s: the image's entry was changed", c.name)
		}
	}
}

// Owners are compared by name: a number that differs here is not a change. FAULTS 106
func TestOwnersOfBase(t *testing.T) {
	image := accountsOf("passwd", rootUser+"svc:x:990:990::/:/x\n", "group", rootGroup+"svc:x:990:\n")
	base := image.clone()
	for _, p := range []string{"dropped", "mine", "replaced", "raw"} {
		base[p] = text("1").owner(990, 990)
	}
	theirs := image.clone()
	theirs["mine"], theirs["raw"] = text("1").owner(990, 990).mode(0o600), text("2").owner(990, 990)
	theirs["replaced"] = link("other")
	upper := accountsOf("passwd", rootUser+"bob:x:990:990::/:/x\nsvc:x:989:989::/:/x\n", "group", rootGroup+"bob:x:990:\nsvc:x:989:\n")
	upper["dropped"], upper["replaced"] = text("1").owner(989, 989), text("1").owner(989, 989)
	upper["mine"] = text("1").owner(1000, 989)
	upper["raw"] = text("1").owner(990, 990)
	r, made := planWith(t, Options{}, base, theirs, upper)
	conflicts, _ := said(r)
	wantSaid(t, "conflicts", conflicts)
	shown := over(theirs, made)
	if _, there := shown["dropped"]; there || shown["replaced"].Type != Link {
		t.Errorf("dropped %v, replaced %v", shown["dropped"], shown["replaced"])
	}
	if n := shown["mine"]; n.UID != 1000 || n.GID != 989 || n.Mode != 0o600 {
		t.Errorf("mine is %+v", n.Entry)
	}
	if n := shown["raw"]; n.UID != 989 || n.GID != 989 || n.content != "2" {
		t.Errorf("raw is %+v", n)
	}
}

// A file of the image's whose user was deleted here is not to be read by the account that has the
// number now. FAULTS 106
func TestFilesOfNobody(t *testing.T) {
	image := accountsOf("passwd", rootUser+"svc:x:990:990::/:/x\nother:x:980:980::/:/x\n", "group", rootGroup+"svc:x:990:\nother:x:980:\n")
	image["svc.d/conf"], image["svc.d"] = text("1").owner(990, 0), dir().owner(990, 0)
	theirs := image.clone()
	theirs["svc.d/conf"] = text("2").owner(990, 0)
	theirs["svc.key"] = text("secret").owner(990, 990).mode(0o600)
	theirs["svc.tool"] = text("tool").owner(990, 990).mode(0o6755)
	theirs["other.key"] = text("secret").owner(980, 980).mode(0o600)
	theirs["plain"] = text("plain").owner(555, 555)
	upper := accountsOf("passwd", rootUser+"eve:x:990:990::/:/x\nmel:x:555:555::/:/x\n", "group", rootGroup+"eve:x:990:\nmel:x:555:\n")
	upper["svc.d"], upper["svc.d/conf"] = image["svc.d"], image["svc.d/conf"]
	r, made := planWith(t, Options{}, image, theirs, upper)
	shown := over(theirs, made)
	for p, want := range map[string]node{
		"svc.key": text("").mode(0o600), "svc.tool": text("").mode(0o755),
		"svc.d": dir(), "svc.d/conf": text(""),
		"other.key": text("").mode(0o600).owner(980, 980), "plain": text("").owner(555, 555),
	} {
		if n := shown[p]; n.UID != want.UID || n.GID != want.GID || n.Mode != want.Mode {
			t.Errorf("%s is %+v", p, n.Entry)
		}
	}
	_, notes := said(r)
	wantSaid(t, "notes", notes, "svc.key: belongs to root here: user svc of the image is not here, and its number 990 belongs to eve", "svc.tool: ")
	if strings.Count(notes, "svc.d: ") != 1 || strings.Count(notes, "svc.d/conf: ") != 1 {
		t.Errorf("notes:\n%s", notes)
	}
	if to, ok := r.Users[990]; !ok || to != 0 {
		t.Errorf("users %v", r.Users)
	}
}

// A file of an account's that has a number of the image's stays that account's: it is not
// root's at the next update with the setuid bit that its owner gave it, nor the group's
// that has the number in the image. FAULTS 106
func TestOwnFilesUnderNumbersOfTheImage(t *testing.T) {
	image := accountsOf("passwd", rootUser+"svc:x:990:990::/:/x\n", "group", rootGroup+"svc:x:990:\npg:x:980:\n")
	image["tool"], image["copy"] = text("tool").owner(990, 990).mode(0o6755), text("tool").owner(990, 990).mode(0o6755)
	theirs := image.clone()
	theirs["new"], theirs["same"] = text("image's").owner(0, 980), text("image's").owner(0, 980)
	upper := accountsOf("passwd", rootUser+"eve:x:990:990::/:/x\n", "group", rootGroup+"eve:x:990:\nmel:x:980:\npg:x:979:\n")
	upper["tool"], upper["copy"] = text("shell").owner(990, 990).mode(0o6755), image["copy"]
	upper["new"], upper["same"] = text("mel's").owner(0, 980).mode(0o640), text("image's").owner(0, 980)
	made := upper
	for range 3 {
		base := image
		_, made = planWith(t, Options{}, base, theirs, made)
		image = theirs
		shown := over(theirs, made)
		for p, want := range map[string]node{
			"tool": upper["tool"], "copy": text("tool").mode(0o755), "new": upper["new"], "same": text("image's").owner(0, 979),
		} {
			if n := shown[p]; n.UID != want.UID || n.GID != want.GID || n.Mode != want.Mode || n.content != want.content {
				t.Errorf("%s is %+v %q", p, n.Entry, n.content)
			}
		}
	}
}

// Nor is an account's copy that it has changed somebody else's, by its permissions alone.
// FAULTS 106
func TestOwnPermissionsUnderNumbersOfTheImage(t *testing.T) {
	image := accountsOf("passwd", rootUser+"svc:x:990:990::/:/x\n", "group", rootGroup+"svc:x:990:\n")
	image["d/conf"], image["d"], image["tool"] = text("1"), dir().owner(990, 990), text("tool").owner(990, 990).mode(0o755)
	upper := accountsOf("passwd", rootUser+"eve:x:990:990::/:/x\nsvc:x:985:985::/:/x\n", "group", rootGroup+"eve:x:990:\nsvc:x:985:\n")
	upper["d"], upper["d/eve's"] = dir().owner(990, 990).mode(0o700), text("eve's").owner(990, 990)
	upper["tool"] = text("tool").owner(990, 990).mode(0o6777)
	theirs := image.clone()
	theirs["tool"] = text("tool").owner(990, 990).mode(0o750)
	for name, there := range map[string]memory{"the same": image, "another": theirs} {
		_, made := planWith(t, Options{}, image, there, upper)
		for _, p := range []string{"d", "tool"} {
			if n := over(there, made)[p]; n.UID != 990 || n.GID != 990 || n.Mode != upper[p].Mode {
				t.Errorf("%s: %s is %+v", name, p, n.Entry)
			}
		}
	}
}

// What the image gives to another owner comes with the image's permissions and content, or
// stays its former owner's and is listed. FAULTS 106
func TestGivenToAnotherOwner(t *testing.T) {
	was := text("1").owner(7, 7)
	for _, c := range []struct {
		name       string
		was, is    node // in the images
		here, want node
		listed     bool
	}{
		{"untouched", was, text("1"), was, text("1"), false},
		{"new content", was, text("2"), was, text("2"), false},
		{"a program of its owner's", was, text("1"), text("shell").owner(7, 7).mode(0o4755), text("shell").owner(7, 7).mode(0o4755), true},
		{"permissions of its owner's", was, text("1"), was.mode(0o4755), was.mode(0o4755), true},
		{"words of its owner's", was.mode(0o755), text("1").mode(0o755), text("mine").owner(7, 7).mode(0o755), text("mine").owner(7, 7).mode(0o755), true},
		{"another group", was, text("1").owner(7, 8), was.mode(0o2755), was.mode(0o2755), true},
		{"lines of both", text("1\n2\n3\n").owner(7, 7), text("1\n2\n4\n"), text("0\n1\n2\n3\n").owner(7, 7), text("0\n1\n2\n4\n").owner(7, 7), true},
		{"root's words", text("1"), text("1").owner(7, 7), text("mine"), text("mine").owner(7, 7), false},
		{"words of anybody's", text("1").mode(0o666), text("1").mode(0o666).owner(7, 7), text("mine").mode(0o666), text("mine").mode(0o666), true},
		{"a directory, open", dir().owner(7, 7), dir(), dir().owner(7, 7).mode(0o777), dir().owner(7, 7).mode(0o777), true},
		{"a link", link("x").owner(7, 7), link("x"), link("y").owner(7, 7), link("y").owner(7, 7), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			theirs := memory{"f": c.is}
			r, made := planWith(t, Options{}, memory{"f": c.was}, theirs, memory{"f": c.here})
			n := over(theirs, made)["f"]
			if n.UID != c.want.UID || n.GID != c.want.GID || n.Mode != c.want.Mode || n.content != c.want.content || n.Target != c.want.Target {
				t.Errorf("it is %+v %q, want %+v %q", n.Entry, n.content, c.want.Entry, c.want.content)
			}
			if conflicts, _ := said(r); strings.Contains(conflicts, "owner ") != c.listed {
				t.Errorf("conflicts:\n%s", conflicts)
			}
		})
	}
}

// What an image gives to its own program, setuid and setgid bits and capabilities, is not put
// on what somebody else may have written in its place. FAULTS 106
func TestRightsForAnotherContent(t *testing.T) {
	const able = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	tool, mine := text("1").mode(0o755), text("mine").mode(0o755)
	for _, c := range []struct {
		name           string
		was, is        node // in the images
		here           node
		mode           uint32
		able, conflict bool
	}{
		{"capability of its owner's", tool.owner(7, 7), tool.owner(7, 7).attr(capability, able), mine.owner(7, 7), 0o755, false, true},
		{"capability that goes", tool.owner(7, 7).attr(capability, able), tool.owner(7, 7), mine.owner(7, 7).attr(capability, able), 0o755, false, false},
		{"capability of root's", tool, tool.attr(capability, able), mine, 0o755, true, false},
		{"capability, untouched", tool.owner(7, 7), tool.owner(7, 7).attr(capability, able), tool.owner(7, 7), 0o755, true, false},
		{"setuid of the group's", text("1").owner(0, 7).mode(0o664), text("1").owner(0, 7).mode(0o4775), text("mine").owner(0, 7).mode(0o664), 0o664, false, true},
		{"setuid, untouched", text("1").owner(0, 7).mode(0o664), text("1").owner(0, 7).mode(0o4775), text("1").owner(0, 7).mode(0o664), 0o4775, false, false},
		{"setuid that it had", tool.owner(7, 7).mode(0o4755), tool.owner(7, 7).mode(0o4711), mine.owner(7, 7).mode(0o4755), 0o4711, false, false},
		{"other permissions", tool.owner(7, 7), tool.owner(7, 7).mode(0o700), mine.owner(7, 7), 0o700, false, false},
	} {
		theirs := memory{"f": c.is}
		r, made := planWith(t, Options{}, memory{"f": c.was}, theirs, memory{"f": c.here})
		n := over(theirs, made)["f"]
		if has := n.Xattrs[capability] != ""; n.Mode != c.mode || has != c.able || n.content != c.here.content {
			t.Errorf("%s: it is %+v %q", c.name, n.Entry, n.content)
		}
		if conflicts, _ := said(r); (conflicts != "") != c.conflict {
			t.Errorf("%s: conflicts:\n%s", c.name, conflicts)
		}
	}
}

// A number that the image moves for an account that nobody touched here waits for a
// decision: programs of the image have it elsewhere, too. FAULTS 106
func TestMovedNumber(t *testing.T) {
	base := accountsOf("passwd", rootUser+"bus:x:101:101::/:/x\n", "group", rootGroup+"bus:x:101:\n")
	theirs := accountsOf("passwd", rootUser+"bus:x:102:102::/:/x\n", "group", rootGroup+"bus:x:102:\n")
	upper := accountsOf("passwd", rootUser+"bus:x:101:101::/:/x\n"+aliceUser, "group", rootGroup+"bus:x:101:\nalice:x:1000:\n")
	r, made := planWith(t, Options{}, base, theirs, upper)
	conflicts, _ := said(r)
	wantSaid(t, "conflicts", conflicts, "passwd bus: user bus: number 101 here, 102 in the image", "group bus: group bus: number 101 here, 102 in the image")
	if r.Users[102] != 101 || r.Groups[102] != 101 {
		t.Errorf("users %v, groups %v", r.Users, r.Groups)
	}
	r, _ = planWith(t, Options{}, theirs, theirs, made)
	conflicts, _ = said(r)
	wantSaid(t, "conflicts of the next", conflicts, "number 101 here, 102 in the image")
}

// A directory beside /etc has the same users.
func TestOtherDirectory(t *testing.T) {
	base := accountsOf("passwd", rootUser, "group", rootGroup)
	theirs := accountsOf("passwd", rootUser+"svc:x:990:990::/:/x\n", "group", rootGroup+"svc:x:990:\n")
	etc, _ := planWith(t, Options{}, base, theirs, accountsOf("passwd", rootUser+"bob:x:990:990::/:/x\n", "group", rootGroup+"bob:x:990:\n"))
	image := memory{"svc/data": text("1").owner(990, 990), "passwd": text("1"), "ld.so.cache": text("1"), "c": text("1")}
	theirs = image.clone()
	theirs["passwd"], theirs["ld.so.cache"], theirs["c"] = text("2"), text("2"), text("2")
	r, made := planWith(t, Options{Other: true, Etc: etc}, image, theirs, memory{"passwd": text("3"), "c": text("3"), ".updated": text("3"), "passwd-": text("1")})
	wantGolden(t, r, `
			take .updated: made again at the first start
			conflict c (a file, old): changed here and in the image
			conflict passwd (a file, old): changed here and in the image
			keep passwd- (a file, old): added here
			parent svc (a directory): holds what has another owner here
			merge svc/data (a file, image's): its owner has another number here
			! c: changed here and in the image
			! passwd: changed here and in the image`)
	if n := made["svc/data"]; n.UID != 989 || n.GID != 989 {
		t.Errorf("data belongs to %d:%d", n.UID, n.GID)
	}
}

// Who reads the account files after a merge finds the numbers that the merge translated by.
func TestOwnersBetween(t *testing.T) {
	theirs := accountsOf("passwd", rootUser+"svc:x:990:990::/:/x\ngone:x:980:980::/:/x\n", "group", rootGroup+"svc:x:990:\ngone:x:980:\n")
	upper := accountsOf("passwd", rootUser+"bob:x:990:990::/:/x\nsvc:x:999:999::/:/x\neve:x:980:980::/:/x\n", "group", rootGroup+"bob:x:990:\nsvc:x:999:\neve:x:980:\n")
	r, made := planWith(t, Options{}, theirs, theirs, upper)
	text := func(tree memory) Accounts {
		return Accounts{[]byte(tree["passwd"].content), []byte(tree["group"].content)}
	}
	have, want := OwnersBetween(text(theirs), text(over(theirs, made))), r.Owners()
	if !maps.Equal(have.Users, want.Users) || !maps.Equal(have.Groups, want.Groups) || have.Users[990] != 999 || len(have.Groups) != 2 {
		t.Errorf("%v, want %v", have, want)
	}
	if o := OwnersBetween(text(theirs), Accounts{}); len(o.Users)+len(o.Groups) != 0 {
		t.Errorf("without users here: %v", o)
	}
}
