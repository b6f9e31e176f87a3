package etcmerge

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"
)

// applied is the new upper directory.
func applied(t testing.TB, r *Result, base, theirs, upper memory) memory {
	t.Helper()
	out := memory{}
	for _, c := range r.Changes {
		if c.Action == Take {
			if c.From != 0 || c.Content != nil || c.Entry.Type != 0 {
				t.Errorf("%q is taken, and yet written: %+v", c.Path, c)
			}
			continue
		}
		if _, twice := out[c.Path]; twice {
			t.Errorf("%q comes twice", c.Path)
		}
		if up, ok := out[path.Dir(c.Path)]; c.Path != "." && (!ok || up.Type != Directory) {
			t.Errorf("%q comes before its directory", c.Path)
		}
		n := node{Entry: c.Entry}
		switch c.From {
		case FromUpper:
			n.content = upper[c.Path].content
		case FromImage:
			n.content = theirs[c.Path].content
		case FromBase:
			n.content = base[c.Path].content
		case FromContent:
			n.content = string(c.Content)
		}
		if (c.From != 0) != (c.Entry.Type == Regular) {
			t.Errorf("%q is %s, and its content comes from %d", c.Path, kindOf(&c.Entry), c.From)
		}
		if c.Entry.Type == Regular && c.Entry.Size != int64(len(n.content)) {
			t.Errorf("%q has size %d, and %d bytes", c.Path, c.Entry.Size, len(n.content))
		}
		out[c.Path] = n
	}
	return out
}

func plan(t testing.TB, base, theirs, upper memory) (*Result, memory) {
	t.Helper()
	var b Tree
	if base != nil {
		b = base
	}
	r, err := Plan(context.Background(), b, theirs, upper, Options{From: 1, To: 2})
	if err != nil {
		t.Fatal(err)
	}
	return r, applied(t, r, base, theirs, upper)
}

// golden is what a plan does, a line for each change, conflict and note.
func golden(r *Result) string {
	var out strings.Builder
	for _, c := range r.Changes {
		if c.Path == "." && c.Action == Parent || c.Path == "halogen" || c.Path == ListPath {
			continue
		}
		fmt.Fprintf(&out, "%s %s", c.Action, Name(c.Path))
		if c.Action != Take {
			fmt.Fprintf(&out, " (%s", kindOf(&c.Entry))
			if c.Entry.Type == Whiteout {
				out.WriteString(", whiteout")
			}
			out.WriteString([]string{"", ", old", ", image's", ", base's", ", merged"}[c.From] + ")")
		}
		fmt.Fprintf(&out, ": %s\n", c.Reason)
	}
	for _, c := range r.Conflicts {
		fmt.Fprintf(&out, "! %s: %s\n", c.Path, c.Reason)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&out, "# %s: %s\n", n.Path, n.Text)
	}
	return out.String()
}

func wantGolden(t *testing.T, r *Result, want string) {
	t.Helper()
	want = strings.TrimLeft(strings.ReplaceAll(want, "\n\t\t\t", "\n"), "\n")
	if got := golden(r); strings.TrimSpace(got) != strings.TrimSpace(want) {
		t.Errorf("plan is\n%s\nwant\n%s", got, want)
	}
}

// Each rule of a merge, a case for each. FAULTS 107
func TestPlan(t *testing.T) {
	big := strings.Repeat("x\n", MaxText/2)
	for _, c := range []struct {
		name                string
		base, theirs, upper memory
		want                string
	}{
		{"nothing was changed here", memory{"a": text("1"), "b": text("1")}, memory{"a": text("2")}, memory{}, ""},
		{"changed here alone", memory{"a": text("1")}, memory{"a": text("1")}, memory{"a": text("2")}, "keep a (a file, old): changed here"},
		{"put back", memory{"a": text("1")}, memory{"a": text("2")}, memory{"a": text("1")}, "take a: changed by the image alone"},
		{"the image does the same", memory{"a": text("1")}, memory{"a": text("2")}, memory{"a": text("2")}, "take a: as in the image"},
		{"both, in different places", memory{"a": text("1\n2\n3\n")}, memory{"a": text("1\n2\n4\n")}, memory{"a": text("0\n2\n3\n")}, "merge a (a file, merged): changes of both merged by line"},
		{"both, in the same place", memory{"a": text("1\n")}, memory{"a": text("2\n")}, memory{"a": text("3\n")}, `
			conflict a (a file, old): changed here and in the image
			! a: changed here and in the image`},
		{"both, no text", memory{"a": text("1\n2\x00\n3\n")}, memory{"a": text("0\n2\x00\n3\n")}, memory{"a": text("1\n2\x00\n4\n")}, `
			conflict a (a file, old): changed here and in the image
			! a: changed here and in the image`},
		{"both, too large", memory{"a": text("a\n" + big + "b\n")}, memory{"a": text("1\n" + big + "b\n")}, memory{"a": text("a\n" + big + "2\n")}, `
			conflict a (a file, old): changed here and in the image
			! a: changed here and in the image`},
		{"large, and put back", memory{"a": text(big + "bb")}, memory{"a": text("2")}, memory{"a": text(big + "bb")}, "take a: changed by the image alone"},
		{"added here", memory{}, memory{}, memory{"d/a": text("1")}, "keep d (a directory): added here\nkeep d/a (a file, old): added here"},
		{"added by both", memory{}, memory{"a": text("1")}, memory{"a": text("2")}, `
			conflict a (a file, old): added here and in the image
			! a: added here and in the image`},
		{"added by both alike", memory{}, memory{"a": text("1")}, memory{"a": text("1")}, "take a: as in the image"},

		{"deleted here", memory{"a": text("1")}, memory{"a": text("1")}, memory{"a": gone}, "keep a (nothing, whiteout): deleted here"},
		{"deleted here, changed there", memory{"a": text("1")}, memory{"a": text("2")}, memory{"a": gone}, `
			conflict a (nothing, whiteout): deleted here, changed in the image
			! a: deleted here, changed in the image`},
		{"deleted by both", memory{"a": text("1")}, memory{}, memory{"a": gone}, "take a: deleted here, and not in the image"},
		{"a whiteout over nothing", memory{}, memory{"a": text("1")}, memory{"a": gone}, "take a: new in the image"},
		{"a directory deleted here", memory{"d/a": text("1")}, memory{"d/a": text("1")}, memory{"d": gone}, "keep d (nothing, whiteout): deleted here"},
		{"a directory deleted here, with something new", memory{"d/a": text("1")}, memory{"d/a": text("1"), "d/b": text("1")}, memory{"d": gone}, `
			conflict d (nothing, whiteout): deleted here, changed in the image
			! d: deleted here, changed in the image`},
		{"dropped by the image", memory{"a": text("1")}, memory{}, memory{"a": text("1")}, "take a: no longer in the image"},
		{"dropped by the image, changed here", memory{"a": text("1")}, memory{}, memory{"a": text("2")}, `
			conflict a (a file, old): changed here, no longer in the image
			! a: changed here, no longer in the image`},

		{"a directory with something new here", memory{"d/a": text("1")}, memory{"d/a": text("2")}, memory{"d/b": text("1")}, `
			parent d (a directory): holds what was changed here
			keep d/b (a file, old): added here`},
		{"a directory with nothing in it", memory{"d/a": text("1")}, memory{"d/a": text("2")}, memory{"d": dir()}, "take d: as in the image"},
		{"a directory dropped by the image", memory{"d/a": text("1"), "d/b": text("1")}, memory{}, memory{"d/b": text("2"), "d/c": text("1")}, `
			parent d (a directory): holds what was changed here
			conflict d/b (a file, old): changed here, no longer in the image
			keep d/c (a file, old): added here
			! d/b: changed here, no longer in the image`},
		{"a directory dropped by the image, closed here", memory{"d/a": text("1")}, memory{}, memory{"d": dir().mode(0o700)}, `
			conflict d (a directory): changed here, no longer in the image
			! d: permissions changed here, no longer in the image`},
		{"a directory made again here", memory{"d/a": text("1"), "d/b": text("1")}, memory{"d/a": text("1"), "d/b": text("2"), "d/c": text("1")}, memory{"d": opaque, "d/x": text("1")}, `
			parent d (a directory): holds what was changed here
			keep d/a (nothing, whiteout): deleted here
			conflict d/b (nothing, whiteout): deleted here, changed in the image
			keep d/x (a file, old): added here
			! d/b: deleted here, changed in the image`},

		{"a directory made in one that was made again here", memory{"d/e/a": text("1")}, memory{"d/e/a": text("1")}, memory{"d": opaque, "d/e": dir()}, `
			parent d (a directory): holds what was changed here
			parent d/e (a directory): holds what was changed here
			keep d/e/a (nothing, whiteout): deleted here`},
		{"a directory made in one that was made again here, and a link there", memory{"d/e/a": text("1")}, memory{"d": link("/usr/d")}, memory{"d": opaque, "d/e": dir()}, `
			conflict d (a directory): a directory here, a link in the image
			keep d/e (a directory): lies in what is kept whole
			! d: a directory here, a link in the image`},
		{"a directory made in one that was made again here, and a link in its place there", memory{"d/e/a": text("1")}, memory{"d/e": link("/usr/e")}, memory{"d": opaque, "d/e": dir()}, `
			parent d (a directory): holds what was changed here
			conflict d/e (a directory): a directory here, a link in the image
			! d/e: a directory here, a link in the image`},

		{"a directory in a file's place here", memory{"a": text("1")}, memory{"a": text("1")}, memory{"a": dir(), "a/b": text("1")}, `
			keep a (a directory): a directory here
			keep a/b (a file, old): lies in what is kept whole`},
		{"a directory in a file's place here, and the file changed", memory{"a": text("1")}, memory{"a": text("2")}, memory{"a": dir(), "a/b": text("1")}, `
			conflict a (a directory): a directory here, a file in the image
			keep a/b (a file, old): lies in what is kept whole
			! a: a directory here, a file in the image`},
		{"a directory in a file's place here, and the file dropped", memory{"a": text("1")}, memory{}, memory{"a": opaque, "a/b": text("1")}, `
			conflict a (a directory): replaced here by a directory, no longer in the image
			keep a/b (a file, old): lies in what is kept whole
			! a: replaced here by a directory, no longer in the image`},
		{"a link in a directory's place in the image", memory{"d/a": text("1"), "d/b": text("1")}, memory{"d": link("/usr/d")}, memory{"d/a": text("1")}, "take d: changed by the image alone"},
		{"a link in a directory's place in the image, changed here", memory{"d/a": text("1"), "d/b": text("1"), "d/s/x": text("1")}, memory{"d": link("/usr/d")}, memory{"d/a": text("2"), "d/b": gone}, `
			conflict d (a directory): a directory here, a link in the image
			keep d/a (a file, old): lies in what is kept whole
			keep d/s (a directory): lies in what is kept whole
			keep d/s/x (a file, base's): lies in what is kept whole
			! d: a directory here, a link in the image`},
		{"a link in a directory's place here", memory{"d/a": text("1")}, memory{"d/a": text("1")}, memory{"d": link("/srv/d")}, "keep d (a link): a link here"},
		{"a link in a directory's place here, changed in the image", memory{"d/a": text("1")}, memory{"d/a": text("2")}, memory{"d": link("/srv/d")}, `
			conflict d (a link): a link here, a directory in the image
			! d: a link here, a directory in the image`},
		{"a link that was put back", memory{"a": link("x")}, memory{"a": text("1")}, memory{"a": link("x")}, "take a: changed by the image alone"},
		{"both make a directory of a file", memory{"a": text("1")}, memory{"a/x": text("1"), "a/y": text("1")}, memory{"a": opaque, "a/x": text("1"), "a/z": text("1")}, `
			parent a (a directory): holds what was changed here
			take a/x: as in the image
			keep a/z (a file, old): added here`},
		{"links", memory{"a": link("1"), "b": link("1"), "c": link("1")}, memory{"a": link("1"), "b": link("2"), "c": link("2")}, memory{"a": link("2"), "b": link("1"), "c": link("3")}, `
			keep a (a link): changed here
			take b: changed by the image alone
			conflict c (a link): changed here and in the image
			! c: changed here and in the image`},
		{"devices and pipes", memory{}, memory{}, memory{"n": {Entry: Entry{Type: CharDevice, Rdev: 259}}, "p": {Entry: Entry{Type: Pipe}}, "s": {Entry: Entry{Type: Socket}}}, `
			keep n (a character device): added here
			keep p (a pipe): added here
			keep s (a socket): added here`},

		{"permissions here, content there", memory{"a": text("1")}, memory{"a": text("2")}, memory{"a": text("1").mode(0o600)}, "merge a (a file, image's): permissions or owner differ here"},
		{"content here, permissions there", memory{"a": text("1")}, memory{"a": text("1").mode(0o600)}, memory{"a": text("2")}, "merge a (a file, old): changed here"},
		{"permissions of both", memory{"a": text("1")}, memory{"a": text("1").mode(0o640)}, memory{"a": text("1").mode(0o600)}, `
			conflict a (a file, image's): permissions or owner differ here
			! a: permissions 0600 here, 0640 in the image`},
		{"permissions and content of both", memory{"a": text("1")}, memory{"a": text("2").mode(0o640).owner(0, 7)}, memory{"a": text("3").mode(0o600).owner(0, 8)}, `
			conflict a (a file, old): changed here and in the image
			! a: changed here and in the image; permissions 0600 here, 0640 in the image; group 8 here, 7 in the image`},
		{"a directory closed here", memory{"d/a": text("1")}, memory{"d/a": text("2")}, memory{"d": dir().mode(0o700)}, "merge d (a directory): permissions or owner differ here"},
		{"attributes", memory{"a": text("1").attr("user.x", "1").attr("user.y", "1")}, memory{"a": text("1").attr("user.x", "1").attr("user.y", "2")}, memory{"a": text("1").attr("user.x", "3").attr("user.y", "3")}, `
			conflict a (a file, image's): permissions or owner differ here
			! a: attribute user.y`},
		{"access control lists", memory{"a": text("1").mode(0o640)}, memory{"a": text("2").mode(0o600)}, memory{"a": text("1").mode(0o660).attr(accessList, "list")}, `
			conflict a (a file, image's): permissions or owner differ here
			! a: permissions and access control list 0660 here, 0600 in the image`},

		{"systemd's mark", memory{".updated": text("1")}, memory{".updated": text("1")}, memory{".updated": text("2"), "d/.updated": text("2")}, `
			take .updated: made again at the first start
			keep d (a directory): added here
			keep d/.updated (a file, old): added here`},
		{"what is made of other files", memory{"ld.so.cache": text("1"), "udev/hwdb.bin": text("1")}, memory{"ld.so.cache": text("2"), "udev/hwdb.bin": text("1")}, memory{"ld.so.cache": text("3"), "udev/hwdb.bin": text("3")}, `
			take ld.so.cache: made again at the first start
			take udev: as in the image
			take udev/hwdb.bin: made again at the first start`},
		{"the list of mounts", memory{"mtab": link("../proc/self/mounts")}, memory{"mtab": link("../proc/self/mounts")}, memory{"mtab": text("/dev/sda1 / ext4\n"), ".pwd.lock": text("")}, `
			take .pwd.lock: made again at the first start
			take mtab: made again at the first start`},
		{"what is made of other files, and deleted", memory{"ld.so.cache": text("1")}, memory{"ld.so.cache": text("2")}, memory{"ld.so.cache": gone}, "take ld.so.cache: made again at the first start"},
		{"backups", memory{"passwd-": text("1")}, memory{"passwd-": text("2")}, memory{"passwd-": text("3")}, "keep passwd- (a file, old): a copy of what was here"},

		{"without the old image", nil, memory{"a": text("1"), "b": text("1"), "c/x": text("1"), "d/x": text("1"), "e": text("1")}, memory{"a": text("2"), "b": text("1"), "c": opaque, "c/y": text("1"), "d": gone, "e": dir(), "e/x": text("1"), "f": gone}, `
			keep a (a file, old): differs from the image; who changed it is not known
			take b: as in the image
			keep c (a directory): made here
			keep c/y (a file, old): lies in what is kept whole
			keep d (nothing, whiteout): deleted here
			keep e (a directory): kept from the version before
			keep e/x (a file, old): lies in what is kept whole
			take f: deleted here, and not in the image
			# e: a directory from before hides a file of the image's`},
		{"names of any kind", memory{"new\nline": text("1"), "\xff": text("1")}, memory{"new\nline": text("2"), "\xff": text("2")}, memory{"new\nline": text("3"), "\xff": text("3"), "\x1b[2J": text("1")}, `
			keep "\x1b[2J" (a file, old): added here
			conflict "new\nline" (a file, old): changed here and in the image
			conflict "\xff" (a file, old): changed here and in the image
			! "new\nline": changed here and in the image
			! "\xff": changed here and in the image`},
		{"this directory's list in the way", memory{"a": text("1")}, memory{"a": text("2")}, memory{"a": text("3"), "halogen": link("/tmp")}, `
			conflict a (a file, old): changed here and in the image
			conflict halogen.before (a link): a link that was halogen: the list of conflicts needs the directory
			! a: changed here and in the image
			! halogen.before: a link that was halogen: the list of conflicts needs the directory`},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, made := plan(t, c.base, c.theirs, c.upper)
			wantGolden(t, r, c.want)
			checkListed(t, r, made)
		})
	}
}

// checkListed: the list in the plan is that of the result, and all of it is undecided
// as long as nobody does anything.
func checkListed(t testing.TB, r *Result, made memory) {
	t.Helper()
	n, has := made[ListPath]
	if has != (len(r.Conflicts)+len(r.Notes) > 0) {
		t.Fatalf("a list: %v; %d conflicts, %d notes", has, len(r.Conflicts), len(r.Notes))
	}
	if !has {
		return
	}
	list, err := ParseList([]byte(n.content))
	if err != nil {
		t.Fatal(err)
	}
	open, err := Undecided(context.Background(), list, made)
	if err != nil {
		t.Fatal(err)
	}
	if list.More == 0 && (!slices.Equal(list.Conflicts, r.Conflicts) || !slices.Equal(list.Notes, r.Notes)) || !slices.Equal(open, list.Conflicts) {
		t.Errorf("the list has\n%+v\nof which undecided are\n%+v\nthe result has\n%+v", list, open, r.Conflicts)
	}
}

// What the overlay shows afterwards.
func TestPlanShows(t *testing.T) {
	base := memory{"d/a": text("1"), "d/b": text("1"), "e/a": text("1"), "f": text("1")}
	theirs := memory{"d": link("/usr/d"), "e/a": text("2"), "e/b": text("2"), "f": text("2"), "g": text("2")}
	upper := memory{"d/a": text("3"), "e": opaque, "e/c": text("3"), "f": text("1").mode(0o600)}
	_, made := plan(t, base, theirs, upper)
	shown := over(theirs, made)
	want := map[string]string{"d/a": "3", "d/b": "1", "e/b": "2", "e/c": "3", "f": "2", "g": "2"}
	for p, n := range shown {
		if n.Type == Regular && p != ListPath {
			if want[p] != n.content {
				t.Errorf("%s shows %q, want %q", p, n.content, want[p])
			}
			delete(want, p)
		}
	}
	if len(want) > 0 {
		t.Errorf("%v do not show", want)
	}
	if f := shown["f"]; f.Mode != 0o600 {
		t.Errorf("f has permissions %o", f.Mode)
	}
}

// Attributes that sign content stay with that content alone.
func TestSignedContent(t *testing.T) {
	sign := func(n node, by string) node { return n.attr("security.ima", by).attr("security.evm", by) }
	base := memory{"a": sign(text("1\n2\n3\n"), "base"), "b": sign(text("1"), "base"), "c": sign(text("1"), "base")}
	theirs := memory{"a": sign(text("1\n2\n4\n"), "image"), "b": sign(text("1"), "image"), "c": sign(text("2"), "image")}
	upper := memory{"a": sign(text("0\n2\n3\n"), "here"), "b": sign(text("2"), "here"), "c": sign(text("1").mode(0o600), "here")}
	_, made := plan(t, base, theirs, upper)
	for path, want := range map[string]string{"a": "", "b": "here", "c": ""} {
		if got := made[path].Xattrs["security.ima"]; got != want {
			t.Errorf("%s is signed by %q, want %q", path, got, want)
		}
	}
}

// The machine ID is the machine's: what the image does to the file that a first boot fills
// in is not a conflict. FAULTS 107
func TestMachineID(t *testing.T) {
	empty, unset, none := memory{"machine-id": text("")}, memory{"machine-id": text("uninitialized\n")}, memory{}
	for name, c := range map[string]struct {
		base, theirs memory
		here, want   node
	}{
		"marked":            {empty, unset, text("0123\n").mode(0o444), text("0123\n").mode(0o444)},
		"dropped":           {unset, none, text("0123\n"), text("0123\n")},
		"brought":           {none, unset, text("0123\n"), text("0123\n")},
		"now a link":        {empty, memory{"machine-id": link("/run/id")}, text("0123\n"), text("0123\n")},
		"with another mode": {empty, memory{"machine-id": text("").mode(0o600)}, text("0123\n").mode(0o444), text("0123\n").mode(0o444)},
		"deleted":           {empty, unset, gone, gone},
		"never filled in":   {empty, unset, text(""), unset["machine-id"]},
	} {
		r, made := planWith(t, Options{}, c.base, c.theirs, memory{"machine-id": c.here})
		conflicts, _ := said(r)
		wantSaid(t, name+": conflicts", conflicts)
		now, shows := over(c.theirs, made)["machine-id"]
		if shows != (c.want.Type != Whiteout) || shows && (now.content != c.want.content || now.Mode != c.want.Mode || now.Type != c.want.Type) {
			t.Errorf("%s: machine-id is %+v %q", name, now.Entry, now.content)
		}
	}
}
