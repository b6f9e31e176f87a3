package etcmerge

import (
	"context"
	"strings"
	"testing"
)

// What the owner has in place of the list's directory is not lost: it lies beside it and
// is listed until somebody decides. FAULTS 107
func TestListMovesAside(t *testing.T) {
	base, theirs := memory{"a": text("1")}, memory{"a": text("2"), "halogen.before": text("image's")}
	const aside = "halogen.before.before"
	for name, n := range map[string]node{"a link": link("/data/halogen"), "a file": text("mine\n").mode(0o600).owner(1, 2)} {
		r, made := planWith(t, Options{}, base, theirs, memory{"a": text("3"), "halogen": n})
		if got := made[aside]; got.Type != n.Type || got.content != n.content || got.Target != n.Target || got.Mode != n.Mode || got.UID != n.UID {
			t.Errorf("%s: %s is %+v %q", name, aside, got.Entry, got.content)
		}
		conflicts, _ := said(r)
		wantSaid(t, "conflicts", conflicts, aside+" : "+name+" that was halogen")

		r, made = planWith(t, Options{}, theirs, theirs, made)
		if conflicts, _ = said(r); !strings.Contains(conflicts, aside) || made[aside].Type != n.Type {
			t.Errorf("%s: after the next, conflicts\n%s", name, conflicts)
		}
		delete(made, aside)
		r, _ = planWith(t, Options{}, theirs, theirs, made)
		if conflicts, _ = said(r); strings.Contains(conflicts, aside) {
			t.Errorf("%s: removed, and listed:\n%s", name, conflicts)
		}
	}
}

// So it is where the merge itself has nothing to list, and something is left out after it.
func TestLeaveOutMovesAside(t *testing.T) {
	r, made := planWith(t, Options{}, memory{"a": text("1")}, memory{"a": text("1")}, memory{"halogen": text("mine\n")})
	if made["halogen"].content != "mine\n" {
		t.Fatalf("nothing is to be listed, and it is %+v", made["halogen"])
	}
	changes, err := r.LeaveOut([]LeftOut{{Path: "/var/x", Reason: "left out"}}, 0)
	if err != nil || len(changes) != 3 {
		t.Fatalf("%+v, %v", changes, err)
	}
	for _, c := range changes {
		made[c.Path] = node{c.Entry, string(c.Content)}
	}
	list, err := ParseList(changes[2].Content)
	if err != nil || made["halogen.before"].content != "mine\n" || made["halogen"].Type != Directory {
		t.Fatalf("%+v, %v", made, err)
	}
	if open, err := Undecided(context.Background(), list, made); err != nil || len(open) != 1 || open[0].Path != "halogen.before" {
		t.Errorf("undecided are %+v, %v", open, err)
	}
}

// An account file that is not text is not merged by entry, no matter who changed it, and the list says why.
func TestAccountFileWithControlCharacters(t *testing.T) {
	base, theirs := memory{"passwd": text("root:x:0:0::/:/bin/sh\n")}, memory{"passwd": text("root:x:0:0::/:/bin/sh\nd:x:2:2::/:/bin/false\n")}
	upper := memory{"passwd": text("root:x:0:0::/:/bin/sh\nme:x:1000:1000:\x07:/home/me:/bin/sh\n")}
	for name, was := range map[string]memory{"the image before is known": base, "it is not": nil} {
		r, made := planWith(t, Options{}, was, theirs, upper)
		if made["passwd"].content != upper["passwd"].content {
			t.Errorf("%s: passwd is %q", name, made["passwd"].content)
		}
		conflicts, _ := said(r)
		wantSaid(t, name, conflicts, "passwd : it has control characters", "users or groups may be missing")
	}
	r, _ := planWith(t, Options{}, theirs, theirs, upper)
	conflicts, _ := said(r)
	wantSaid(t, "the image has not changed it", conflicts)
}

// Ranges that the image moves, or takes away, are in effect where this machine never changed
// the file, and it is said.
func TestMovedRangesAreSaid(t *testing.T) {
	base := memory{"subuid": text("a:100000:65536\nb:165536:65536\nc:300000:10\n"), "passwd": text("a:x:1:1::/:/bin/sh\n")}
	theirs := memory{"subuid": text("a:165536:65536\nc:300000:10\nd:1:2\n"), "passwd": text("a:x:1:1::/:/bin/sh\n")}
	r, made := planWith(t, Options{}, base, theirs, memory{"issue": text("mine")})
	if _, kept := made["subuid"]; kept {
		t.Errorf("subuid is %q", made["subuid"].content)
	}
	_, notes := said(r)
	wantSaid(t, "notes", notes, "subuid: ranges of a are others in the image, and in effect; files of containers may have numbers of a:100000:65536", "ranges of b are others")
	if strings.Contains(notes, "ranges of c") || strings.Contains(notes, "ranges of d") {
		t.Errorf("notes:\n%s", notes)
	}
	r, _ = planWith(t, Options{}, base, base, memory{"issue": text("mine")})
	_, notes = said(r)
	wantSaid(t, "notes", notes)
}
