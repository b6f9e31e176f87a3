package etcmerge

import (
	"path"
	"strings"
	"testing"
)

// put makes a file, and whatever has to be there or gone for it.
func (m memory) put(p string, n node) {
	for at := path.Dir(p); at != "."; at = path.Dir(at) {
		if up, ok := m[at]; ok && up.Type != Directory {
			delete(m, at)
		}
	}
	if n.Type != Directory {
		for name := range m {
			if strings.HasPrefix(name, p+"/") {
				delete(m, name)
			}
		}
	}
	m[p] = n
}

// grown makes three trees of any bytes.
func grown(program []byte) (base, theirs, upper memory) {
	paths := []string{"a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "passwd", "group", "shadow", ".updated", "halogen", "halogen/changes.json", "ld.so.cache", "x\ny"}
	nodes := []node{
		text("1\n2\n3\n4\n"), text("0\n1\n2\n3\n4\n"), text("1\n2\n3\n4\n5\n"), text("1\n2\nx\n4\n"), text("1\n2\ny\n4\n"), text("\x00"),
		text("1\n2\n3\n4\n").mode(0o600), text("1\n2\n3\n4\n").owner(7, 110), dir(), dir().mode(0o700), link("a"), link("/"), {Entry: Entry{Type: Pipe}},
		text("root:x:0:0:::\n"), text("root:x:0:0:::\npg:x:110:110:::\n"), text("root:x:0:0:::/bin/sh\nme:x:110:110:::\n"),
		text("root:x:0:\n"), text("root:x:0:\npg:x:110:me\n"), text("root:x:0:me\nme:x:110:\n"), gone, opaque,
	}
	trees := []memory{{}, {}, {}}
	for len(program) >= 2 {
		which, p, n := program[0]&7, paths[int(program[0]>>3)%len(paths)], nodes[int(program[1])%len(nodes)]
		program = program[2:]
		for i, m := range trees {
			// 0, 1 and 2 are one tree each; then images, image and upper, all.
			if which < 3 && int(which) != i || which == 3 && i == 2 || which == 4 && i == 0 || which == 5 && i == 1 {
				continue
			}
			if i != 2 && (n.Type == Whiteout || n.Opaque) {
				continue
			}
			m.put(p, n)
		}
	}
	return trees[0], trees[1], trees[2]
}

// listedAt reports whether a path or what it lies in or holds is listed.
func listedAt(r *Result, p string) bool {
	for _, c := range r.Conflicts {
		if within(p, string(c.Path)) || within(string(c.Path), p) {
			return true
		}
	}
	for _, n := range r.Notes {
		if within(p, string(n.Path)) || within(string(n.Path), p) {
			return true
		}
	}
	return false
}

// Nothing that this machine has is lost without being listed, and a merge with nothing
// new changes nothing. FAULTS 107
func FuzzPlan(f *testing.F) {
	f.Add([]byte{0x06, 0, 0x1b, 1, 0x1a, 2, 0x01, 3})
	f.Add([]byte{0x3e, 13, 0x39, 14, 0x3a, 15, 0x46, 16, 0x41, 17, 0x42, 18})
	f.Add([]byte{0x16, 8, 0x1e, 0, 0x12, 20, 0x22, 1, 0x11, 10})
	f.Add([]byte{0x3b, 13, 0x3b, 14, 0x42, 15, 0x03, 2, 0x0b, 3, 0x02, 0, 0x0a, 4})
	f.Add([]byte("\x14\x14\x11\x11(d-33\xc1"))                                           // a directory made in one that was made again
	f.Add([]byte(":\x0fF\x10:\x0f\xbd\xf6\xec\xda\x95\xfe\x94\x94\x94F\x10AA\x11B\x12")) // an owner's file with an image's number
	f.Add([]byte("ByA'"))                                                                // a group that is made here and new in the image, with members there
	f.Fuzz(func(t *testing.T, program []byte) {
		base, theirs, upper := grown(program)
		ours := over(base, upper)

		plan(t, nil, theirs, upper) // without the old image

		r, same := plan(t, base, base, upper)
		checkShows(t, "merged with nothing new", r, over(base, same), ours)

		for _, options := range []Options{{}, {Masked: true}, {Other: true}} {
			r, made := planWith(t, options, base, theirs, upper)
			shown := over(theirs, made)
			checkOwners(t, options, r, base, theirs, ours, shown)
			checkImages(t, options, r, base, theirs, ours, shown)
			r, again := planWith(t, Options{Other: options.Other}, theirs, theirs, made)
			checkShows(t, "merged again", r, over(theirs, again), shown)
		}
	})
}

// checkOwners: nothing that this machine has is lost, and nothing that was deleted is
// back, without being listed.
func checkOwners(t *testing.T, options Options, r *Result, base, theirs, ours, shown memory) {
	t.Helper()
	for p, n := range ours {
		was := base[p]
		if ignored(p) || n.Type != Regular || was.content == n.content && was.Type == n.Type {
			continue
		}
		had, has := count([]byte(was.content)), count([]byte(shown[p].content))
		if was.Type != Regular {
			had = nil
		}
		for line, times := range count([]byte(n.content)) {
			if has[line] < times-had[line] && !listedAt(r, p) {
				t.Fatalf("%+v: %q: line %q is lost: it shows %q, here was %q, base %q, image %q\n%s", options, p, line, shown[p].content, n.content, was.content, theirs[p].content, golden(r))
			}
		}
	}
	for p := range base {
		_, here := ours[p]
		_, there := theirs[p]
		_, now := shown[p]
		if !here && there && now && !ignored(p) && !listedAt(r, p) {
			t.Fatalf("%+v: %q was deleted here, and is back\n%s", options, p, golden(r))
		}
	}
}

// checkImages: what the image brings shows, or is listed. Over an upper directory that
// was over several images that is so for what the old image had as well.
func checkImages(t *testing.T, options Options, r *Result, base, theirs, ours, shown memory) {
	t.Helper()
	for p, n := range theirs {
		was, had := base.node(p)
		now, has := shown[p]
		_, here := ours[p]
		if ignored(p) || listedAt(r, p) {
			continue
		}
		if !had && !here && !has {
			t.Fatalf("%+v: %q of the image's does not show\n%s", options, p, golden(r))
		}
		old := had && has && n.Type == Regular && was.content != n.content && now.content == was.content
		if old && ours[p].content == was.content && (options.Other || !isAccount(p)) {
			t.Fatalf("%+v: %q shows what the old image had\n%s", options, p, golden(r))
		}
		if !options.Masked || n.Type != Regular || was.content != n.content || now.Type != Regular || isAccount(p) {
			continue
		}
		if shows := count([]byte(now.content)); lacks([]byte(now.content), []byte(n.content), []byte(n.content)) {
			t.Fatalf("%q lacks lines of the image: %v\n%s", p, shows, golden(r))
		}
	}
}

// ignored are paths that do not follow the rules of others.
func ignored(p string) bool {
	return p == neverKept || within(p, "halogen") || p == "ld.so.cache"
}

func isAccount(p string) bool { return p == "passwd" || p == "group" || p == "shadow" }

// checkShows: one directory shows what another does. A file of an account that is not here
// may have become root's, and one may have moved aside, which is listed.
func checkShows(t *testing.T, when string, r *Result, got, want memory) {
	t.Helper()
	for p, n := range want {
		if ignored(p) {
			continue
		}
		now, ok := got.node(p)
		if !ok || now.Type != n.Type || now.content != n.content || now.Target != n.Target || now.Mode != n.Mode || (now.UID != n.UID || now.GID != n.GID) && !listedAt(r, p) {
			t.Fatalf("%s, %q shows %v %q, want %v %q", when, p, now.Entry, now.content, n.Entry, n.content)
		}
	}
	for p, n := range got {
		if _, ok := want.node(p); !ok && !ignored(p) && p != "." && !listedAt(r, p) {
			t.Fatalf("%s, %q shows %v", when, p, n.Entry)
		}
	}
}
