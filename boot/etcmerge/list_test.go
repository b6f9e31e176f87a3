package etcmerge

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/contract"
)

// undecided are the conflicts of what was made that are still open in upper.
func undecided(t *testing.T, made, upper memory) []string {
	t.Helper()
	list, err := ParseList([]byte(made[ListPath].content))
	if err != nil {
		t.Fatal(err)
	}
	open, err := Undecided(context.Background(), list, upper)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, c := range open {
		out = append(out, fmt.Sprintf("%s%s@%s", string(c.Path), string(c.Entry), c.Since))
	}
	return out
}

// A conflict stays on the list over the next merges, until somebody decides.
func TestConflictsAreCarried(t *testing.T) {
	base := accountsOf("a", "1", "c", "1", "passwd", passwdBase)
	theirs := accountsOf("a", "2", "c", "1", "d", "1", "passwd", strings.Replace(passwdBase, "bash", "fish", 1))
	upper := accountsOf("a", "3", "passwd", strings.Replace(passwdBase, "bash", "zsh", 1))
	upper["d"] = dir()
	upper["d/x"] = text("1")
	_, made := plan(t, base, theirs, upper)
	all := []string{"a@2", "d@2", "passwdroot@2"}
	if got := undecided(t, made, made); !slices.Equal(got, all) {
		t.Fatalf("undecided %v", got)
	}
	change := func(edit func(m memory)) memory {
		m := made.clone()
		edit(m)
		return m
	}
	for _, c := range []struct {
		name string
		edit func(memory)
		want []string
	}{
		{"nothing", func(memory) {}, all},
		{"a file is changed", func(m memory) { m["a"] = text("4") }, all[1:]},
		{"a file gets other permissions", func(m memory) { m["a"] = m["a"].mode(0o600) }, all[1:]},
		{"a file is only touched", func(m memory) { n := m["a"]; n.ModTime = n.ModTime.AddDate(1, 0, 0); m["a"] = n }, all},
		{"a file is relabelled", func(m memory) { m["a"] = m["a"].attr("security.selinux", "x") }, all},
		{"the image's is taken", func(m memory) { delete(m, "a") }, all[1:]},
		{"it is deleted", func(m memory) { m["a"] = gone }, all[1:]},
		{"something within is changed", func(m memory) { m["d/x"] = text("2") }, []string{"a@2", "passwdroot@2"}},
		{"a user is added", func(m memory) { m["passwd"] = text(m["passwd"].content + "bob:x:1000:1000:::\n") }, all},
		{"the user is changed", func(m memory) { m["passwd"] = text(strings.Replace(m["passwd"].content, "zsh", "sh", 1)) }, all[:2]},
		{"it is kept", func(m memory) {
			list, err := ParseList([]byte(m[ListPath].content))
			if err != nil || !list.Keep("passwd") || list.Keep("nothing") {
				t.Errorf("keep: %v", err)
			}
			content, err := list.Encode()
			if err != nil {
				t.Error(err)
			}
			m[ListPath] = text(string(content))
		}, all[:2]},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := change(c.edit)
			if got := undecided(t, now, now); !slices.Equal(got, c.want) {
				t.Errorf("undecided %v, want %v", got, c.want)
			}
			later := theirs.clone()
			later["c"] = text("2")
			r, err := Plan(context.Background(), theirs, later, now, Options{From: 2, To: 3})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, x := range r.Conflicts {
				got = append(got, fmt.Sprintf("%s%s@%s", string(x.Path), string(x.Entry), x.Since))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("the next merge lists %v, want %v", got, c.want)
			}
			checkListed(t, r, applied(t, r, theirs, later, now))
		})
	}
	// A new conflict of the same file takes the place of the old one.
	later := theirs.clone()
	later["a"] = text("5")
	r, err := Plan(context.Background(), theirs, later, made, Options{From: 2, To: 3})
	if err != nil || len(r.Conflicts) != 3 || r.Conflicts[0].Since != 2 {
		t.Errorf("conflicts %v, %v", r.Conflicts, err)
	}
}

// What was left out stays on the list over the next merges, until somebody has seen it; what
// lasts is found again by each. FAULTS 107
func TestLeftOutIsCarried(t *testing.T) {
	one, two := memory{"a": text("1")}, memory{"a": text("1"), "halogen": dir().mode(0o750)}
	leaveOut := func(base, theirs, upper memory, to int, found ...LeftOut) memory {
		t.Helper()
		r, err := Plan(t.Context(), base, theirs, upper, Options{From: 1, To: contract.Version(to)})
		if err != nil {
			t.Fatal(err)
		}
		made := applied(t, r, base, theirs, upper)
		changes, err := r.LeaveOut(found, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range changes {
			made[c.Path] = node{Entry: c.Entry, content: string(c.Content)}
		}
		return made
	}
	unseen := func(m memory, want ...string) List {
		t.Helper()
		list := List{}
		if n, there := m[ListPath]; there {
			var err error
			if list, err = ParseList([]byte(n.content)); err != nil {
				t.Fatal(err)
			}
		}
		var got []string
		for _, l := range list.Unseen() {
			got = append(got, fmt.Sprintf("%s@%s", string(l.Path), l.Since))
		}
		if !slices.Equal(got, want) {
			t.Errorf("unseen %v, want %v", got, want)
		}
		return list
	}
	event, lasts := LeftOut{Path: "/var/x", Reason: "r"}, LeftOut{Path: "/usr/y", Reason: "r", Lasts: true}
	m := leaveOut(one, two, memory{"b": text("mine")}, 2, event, lasts)
	unseen(m, "/var/x@2", "/usr/y@2")
	if n := m["halogen"]; n.Mode != 0o750 {
		t.Errorf("its directory is %+v", n.Entry)
	}
	unseen(leaveOut(two, two, m, 3), "/var/x@2")                    // no longer so
	unseen(leaveOut(two, two, m, 3, lasts), "/var/x@2", "/usr/y@2") // still so
	unseen(leaveOut(two, two, m, 3, event, event, lasts), "/var/x@2", "/usr/y@2")
	list := unseen(m, "/var/x@2", "/usr/y@2")
	if !list.KeepLeftOut("/var/x") || !list.KeepLeftOut("/usr/y") || list.KeepLeftOut("/var") {
		t.Error("what was seen is not noted")
	}
	text, err := list.Encode()
	if err != nil {
		t.Fatal(err)
	}
	n := m[ListPath]
	n.content = string(text)
	m[ListPath] = n
	unseen(m)
	if _, listed := leaveOut(two, two, m, 3)[ListPath]; listed {
		t.Error("there is a list of what has been seen")
	}
	again := leaveOut(two, two, m, 3, event, lasts)
	unseen(again, "/var/x@2") // it has happened again
	again = leaveOut(two, two, again, 4, lasts)
	unseen(again, "/var/x@2") // what lasts stays seen
}

// The directory of the list is made where it was deleted, or is something else.
func TestLeftOutNeedsRoom(t *testing.T) {
	for name, n := range map[string]node{"a whiteout": gone, "a link": link("/usr"), "nothing": {}} {
		upper := memory{"halogen": n}
		if name == "nothing" {
			upper = memory{}
		}
		images := memory{"halogen": dir(), "halogen/x": text("1")}
		r, err := Plan(t.Context(), images, images, upper, Options{To: 2})
		if err != nil {
			t.Fatal(err)
		}
		if changes, err := r.LeaveOut(nil, 0); err != nil || len(changes) > 0 {
			t.Errorf("%s: with nothing left out: %v, %v", name, changes, err)
		}
		changes, err := r.LeaveOut([]LeftOut{{Path: "/etc/x"}}, 7)
		if name == "a link" && len(changes) > 0 && changes[0].Path == "halogen.before" {
			changes = changes[1:] // where the owner finds it
		}
		if err != nil || len(changes) != 2 || changes[0].Entry.Type != Directory || changes[0].Entry.Opaque != (name != "nothing") {
			t.Fatalf("%s: %+v, %v", name, changes, err)
		}
		list, err := ParseList(changes[1].Content)
		if err != nil || list.More != 7 || len(list.Notes)+len(list.Conflicts) != len(upper) || (len(list.Conflicts) > 0) != (name == "a link") {
			t.Errorf("%s: %+v, %v", name, list, err)
		}
	}
}

// A release that does not know of what is left out reads each list without it. One with it
// has another number, and room for itself before anything else.
func TestListFormats(t *testing.T) {
	list := List{To: 2, Notes: []Note{{Path: "a", Text: "x"}}}
	if text, err := list.Encode(); err != nil || !strings.Contains(string(text), `"format": 1,`) {
		t.Errorf("%s, %v", text, err)
	}
	for range 2 * maxLeftOut {
		list.LeftOut = append(list.LeftOut, LeftOut{Path: "/x", Reason: "y", Since: 2})
	}
	for range 4_000 {
		list.Conflicts = append(list.Conflicts, Conflict{Path: Name(strings.Repeat("p", 400)), Reason: "x", Since: 2})
	}
	text, err := list.Encode()
	if err != nil || !strings.Contains(string(text), `"format": 2,`) {
		t.Errorf("%.100s, %v", text, err)
	}
	back, err := ParseList(text)
	if err != nil || len(back.LeftOut) != maxLeftOut || len(back.Conflicts) == 0 || len(back.Notes) > 0 || back.More != 1+4_000-len(back.Conflicts)+maxLeftOut {
		t.Errorf("%d, %d, %d, %d, %v", len(back.LeftOut), len(back.Conflicts), len(back.Notes), back.More, err)
	}
	list = List{To: 2, LeftOut: []LeftOut{{Path: Name(strings.Repeat("\xff", MaxList/4)), Since: 2}}}
	if text, err := list.Encode(); err != nil || len(text) > 1000 {
		t.Errorf("one that has no room: %.100s, %v", text, err)
	}
}

// The list is for root alone: it has digests of files that others must not read.
func TestListIsPrivate(t *testing.T) {
	_, made := plan(t, memory{"a": text("1")}, memory{"a": text("2")}, memory{"a": text("3")})
	if n := made[ListPath]; n.Mode != 0o600 || n.UID != 0 || n.GID != 0 {
		t.Errorf("%+v", n.Entry)
	}
	if n := made["halogen"]; n.Mode != 0o755 || n.Type != Directory {
		t.Errorf("%+v", n.Entry)
	}
	theirs := memory{"a": text("2"), "halogen": dir().mode(0o750)}
	_, made = plan(t, memory{"a": text("1")}, theirs, memory{"a": text("3")})
	if n := made["halogen"]; n.Mode != 0o750 {
		t.Errorf("%+v", n.Entry)
	}
}

// An old list that cannot be read is not a reason not to start, but it is said.
func TestOldListCannotBeRead(t *testing.T) {
	for name, n := range map[string]node{
		"no JSON":                         text("x"),
		"another format":                  text(`{"format":3,"to":"1"}`),
		"an unknown name":                 text(`{"format":1,"to":"1","more2":1}`),
		"no release":                      text(`{"format":1}`),
		"no release of a conflict":        text(`{"format":1,"to":"1","conflicts":[{"path":"a"}]}`),
		"no release of what was left out": text(`{"format":2,"to":"1","leftOut":[{"path":"/a"}]}`),
		"too large":                       text(`{"format":1,"to":"1"}` + strings.Repeat(" ", MaxList)),
		"a link":                          link("/etc/shadow"),
		"a directory":                     dir(),
	} {
		t.Run(name, func(t *testing.T) {
			r, made := plan(t, memory{}, memory{}, memory{ListPath: n})
			if len(r.Notes) != 1 || r.Notes[0].Path != ListPath || made[ListPath].Type != Regular {
				t.Errorf("notes %v, made %v", r.Notes, made)
			}
		})
	}
}

// Paths of a list lead nowhere but into the directory.
func TestForgedPaths(t *testing.T) {
	list := List{To: 1}
	for _, path := range []string{"", "/", "/etc/shadow", "..", "../x", "a/../b", "a//b", "l/x", "./a", "a/"} {
		list.Conflicts = append(list.Conflicts, Conflict{Path: Name(path), State: "tree:x"}, Conflict{Path: Name(path), State: "later:x"})
	}
	open, err := Undecided(context.Background(), list, strict{memory{"a": dir(), "l": link("/etc")}, t})
	if err != nil || len(open) > 0 {
		t.Errorf("%v, %v", open, err)
	}
}

func TestName(t *testing.T) {
	for name, want := range map[Name]string{
		"a/b c": `a/b c`, "ä": "ä", `a\b`: `a\\b`, "\xff\xfe": `\xff\xfe`, "a\n": "a\n", "\ufffd": "\ufffd", "": "",
	} {
		got, err := name.MarshalText()
		if err != nil || string(got) != want {
			t.Errorf("%q is written %q, %v", string(name), got, err)
		}
		var back Name
		if err := back.UnmarshalText(got); err != nil || back != name {
			t.Errorf("%q is read back as %q, %v", string(name), string(back), err)
		}
	}
	for _, bad := range []string{`\`, `\x`, `\x1`, `\xgg`, `\n`} {
		if err := new(Name).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	for name, want := range map[Name]string{"a b": "a b", "": `""`, "\x1b[2J": `"\x1b[2J"`, "\xff": `"\xff"`, "a\u202eb": `"a\u202eb"`} {
		if got := name.String(); got != want {
			t.Errorf("%q shows as %s", string(name), got)
		}
	}
}

func FuzzList(f *testing.F) {
	f.Add([]byte(`{"format":2,"to":"2","leftOut":[{"path":"/etc/x","reason":"x","since":"2","lasts":true,"kept":true}],"more":3}`))
	f.Add([]byte(`{"format":1,"from":"1","to":"2","conflicts":[{"path":"a\\xff","entry":"b","reason":"x","since":"2","state":"tree:00","kept":true}],"notes":[{"path":"","text":"\u001b"}]}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		list, err := ParseList(content)
		if err != nil {
			return
		}
		again, err := list.Encode()
		if err != nil || len(again) > MaxList {
			if list.To == 0 {
				return
			}
			t.Fatal(err)
		}
		back, err := ParseList(again)
		if err != nil {
			t.Fatal(err)
		}
		if back.More == list.More && !reflect.DeepEqual(normal(back), normal(list)) {
			t.Fatalf("%+v is read back as %+v", list, back)
		}
		if _, err := Undecided(context.Background(), list, memory{"a": text("1")}); err != nil {
			t.Fatal(err)
		}
	})
}

// normal is a list whose empty parts are nil.
func normal(l List) List {
	if len(l.Conflicts) == 0 {
		l.Conflicts = nil
	}
	if len(l.Notes) == 0 {
		l.Notes = nil
	}
	if len(l.LeftOut) == 0 {
		l.LeftOut = nil
	}
	return l
}
