package etcmerge

import (
	"context"
	"strings"
	"testing"
)

const (
	rootUser  = "root:x:0:0:root:/root:/bin/sh\n"
	rootGroup = "root:x:0:\n"
	aliceUser = "alice:x:1000:1000::/home/alice:/bin/sh\n"
)

// planWith merges with other options.
func planWith(t testing.TB, options Options, base, theirs, upper memory) (*Result, memory) {
	t.Helper()
	var b Tree
	if base != nil {
		b = base
	}
	options.To = 2
	r, err := Plan(context.Background(), b, theirs, upper, options)
	if err != nil {
		t.Fatal(err)
	}
	made := applied(t, r, base, theirs, upper)
	checkListed(t, r, made)
	return r, made
}

var masked = Options{Masked: true}

// lines of a plan's conflicts and notes.
func said(r *Result) (conflicts, notes string) {
	for _, c := range r.Conflicts {
		conflicts += string(c.Path) + " " + string(c.Entry) + ": " + c.Reason + "\n"
	}
	for _, n := range r.Notes {
		notes += string(n.Path) + ": " + n.Text + "\n"
	}
	return conflicts, notes
}

func wantContent(t *testing.T, shown memory, want map[string]string) {
	t.Helper()
	for p, text := range want {
		if got := shown[p].content; got != text {
			t.Errorf("%s shows\n%s\nwant\n%s", p, got, text)
		}
	}
}

func wantSaid(t *testing.T, what, said string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(said, w) {
			t.Errorf("%s:\n%s\nwant %q", what, said, w)
		}
	}
	if len(want) == 0 && said != "" {
		t.Errorf("%s:\n%s\nwant none", what, said)
	}
}

// An upper directory that was over several images hid the accounts that they brought. The
// system's come in, with all that belongs to them; nobody deleted them. FAULTS 106
func TestMaskedAccounts(t *testing.T) {
	image := accountsOf(
		"passwd", rootUser+"svc:x:990:990::/:/sbin/nologin\npi:x:1001:1001::/home/pi:/bin/sh\n",
		"group", rootGroup+"audio:x:29:svc,pi\nsvc:x:990:\n",
		"shadow", "root:*:1::::::\nsvc:!*:1::::::\npi:$6$known:1::::::\n",
		"gshadow", "root:*::\naudio:*::svc,pi\nsvc:!*::\n",
		"subuid", "svc:300000:65536\n", "shells", "/bin/sh\n/bin/new\n")
	upper := accountsOf(
		"passwd", rootUser+aliceUser, "group", rootGroup+"audio:x:29:alice\nalice:x:1000:\n",
		"shadow", "root:$y$1:1::::::\nalice:$y$2:1::::::\n", "gshadow", "root:*::\naudio:*::alice\nalice:!::\n",
		"subuid", "alice:100000:65536\n", "shells", "/bin/sh\n/opt/mine\n")
	r, made := planWith(t, masked, image, image, upper)
	wantContent(t, over(image, made), map[string]string{
		"passwd":  rootUser + aliceUser + "svc:x:990:990::/:/sbin/nologin\n",
		"group":   rootGroup + "audio:x:29:alice,svc\nalice:x:1000:\nsvc:x:990:\n",
		"shadow":  "root:$y$1:1::::::\nalice:$y$2:1::::::\nsvc:!*:1::::::\n",
		"gshadow": "root:*::\naudio:*::alice,svc\nalice:!::\nsvc:!*::\n",
		"subuid":  "alice:100000:65536\nsvc:300000:65536\n",
		"shells":  "/bin/sh\n/opt/mine\n/bin/new\n",
	})
	conflicts, notes := said(r)
	wantSaid(t, "conflicts", conflicts)
	wantSaid(t, "notes", notes, "user svc of the image comes in", "group svc of the image comes in", "user pi of the image stays out")

	r, made = planWith(t, Options{}, image, image, made)
	conflicts, notes = said(r)
	wantSaid(t, "conflicts of the next", conflicts)
	wantSaid(t, "notes of the next", notes)
	if !strings.Contains(made["passwd"].content, "svc") {
		t.Errorf("the next loses svc:\n%s", made["passwd"].content)
	}
}

// A number that was given away meanwhile is not given twice.
func TestMaskedNumber(t *testing.T) {
	image := accountsOf("passwd", rootUser+"svc:x:990:990::/:/x\n", "group", rootGroup+"svc:x:990:\n")
	image["svc.conf"] = text("1").owner(990, 990)
	upper := accountsOf("passwd", rootUser+"bob:x:990:990::/:/x\n", "group", rootGroup+"bob:x:990:\n")
	upper["svc.conf"] = text("2").owner(990, 990)
	r, made := planWith(t, masked, image, image, upper)
	wantContent(t, made, map[string]string{"passwd": rootUser + "bob:x:990:990::/:/x\nsvc:x:989:989::/:/x\n", "svc.conf": "2"})
	if n := made["svc.conf"]; n.UID != 989 || n.GID != 989 || r.Users[990] != 989 {
		t.Errorf("svc.conf belongs to %d:%d, users %v", n.UID, n.GID, r.Users)
	}
}

// What may never have shown is not lost in silence, nor is anything of the owner's.
func TestMaskedText(t *testing.T) {
	for _, c := range []struct {
		name                string
		base, theirs, upper node
		want, conflict      string
	}{
		{"lines that the image brought", text("a\nnew\n"), text("a\nnew\n"), text("a\nmine\n"), "a\nmine\n", "lines of the image are missing"},
		{"all of the image's lines", text("a\nb\n"), text("a\nb\n"), text("a\nmine\nb\n"), "a\nmine\nb\n", ""},
		{"a change elsewhere", text("a\nnew\nb\nc\nd\n"), text("a\nnew\nb\nc\ne\n"), text("a\nb\nc\nd\n"), "a\nb\nc\ne\n", "lines of the image are missing"},
		{"a clean merge", text("a\nb\nc\n"), text("a\nb\nd\n"), text("0\na\nb\nc\n"), "0\na\nb\nd\n", ""},
		{"no text", text("a\x00"), text("a\x00"), text("b\x00"), "b\x00", "the image's may never have shown"},
		{"put back", text("a\n"), text("b\n"), text("a\n"), "b\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			theirs := memory{"f": c.theirs}
			r, made := planWith(t, masked, memory{"f": c.base}, theirs, memory{"f": c.upper})
			wantContent(t, over(theirs, made), map[string]string{"f": c.want})
			conflicts, _ := said(r)
			if c.conflict == "" {
				wantSaid(t, "conflicts", conflicts)
			} else {
				wantSaid(t, "conflicts", conflicts, c.conflict)
			}
		})
	}
	image, upper := memory{"d/a": text("1"), "machine-id": text("uninitialized\n")}, memory{"d": opaque, "d/b": text("1"), "machine-id": text("0123\n")}
	r, _ := planWith(t, masked, image, image, upper)
	wantGolden(t, r, `
			parent d (a directory): holds what was changed here
			conflict d/a (nothing, whiteout): not here, though nobody is known to have deleted it
			keep d/b (a file, old): added here
			keep machine-id (a file, old): says which machine this is
			! d/a: not here, though nobody is known to have deleted it`)
}

// Without the old image, an account that its owner deleted is not to come back with
// the password and the rights that the image gives it. FAULTS 106
func TestDeletedUserWithoutBase(t *testing.T) {
	theirs := accountsOf(
		"passwd", rootUser+"svc:x:990:990::/:/usr/sbin/nologin\npi:x:1000:1000::/home/pi:/bin/sh\ndebug:x:900:0::/:/bin/sh\nold::901:0::/:/bin/sh\n",
		"group", rootGroup+"sudo:x:27:pi\npi:x:1000:\n", "gshadow", "root:*::\nsudo:*:pi:pi\n",
		"shadow", "root:*:1::::::\nsvc:!*:1::::::\npi:$6$known:1::::::\ndebug::1::::::\n")
	mine := "sudo:x:27:alice\n"
	want := map[string]string{
		"passwd": rootUser + "svc:x:990:990::/:/usr/sbin/nologin\npi:x:1000:1000::/home/pi:/usr/sbin/nologin\ndebug:x:900:0::/:/usr/sbin/nologin\nold:!*:901:0::/:/usr/sbin/nologin\n",
		"group":  rootGroup + mine + "pi:x:1000:\n",
	}
	upper := accountsOf("passwd", rootUser, "group", rootGroup+mine, "shadow", "root:$6$secret:1::::::\n", "gshadow", "root:*::\nsudo:*::alice\n")
	r, made := planWith(t, Options{}, nil, theirs, upper)
	want["shadow"] = "root:$6$secret:1::::::\nsvc:!*:1::::::\npi:!*:1::::::\ndebug:!*:1::::::\n"
	want["gshadow"] = "root:*::\nsudo:*::alice\n"
	wantContent(t, made, want)
	_, notes := said(r)
	wantSaid(t, "notes", notes, "user pi of the image comes in locked", "user debug of the image comes in locked", "user old of the image comes in locked", "members pi of group sudo")
	if strings.Contains(notes, "secret") || strings.Contains(notes, "known") || strings.Contains(notes, "user svc of the image comes in locked") {
		t.Errorf("notes:\n%s", notes)
	}

	delete(upper, "shadow") // so that the image's is in effect
	_, made = planWith(t, Options{}, nil, theirs, upper)
	want["shadow"] = "root:*:1::::::\nsvc:!*:1::::::\npi:!*:1::::::\ndebug:!*:1::::::\n"
	wantContent(t, made, want)
}

// The account files that this machine never changed are the image's, and follow those
// that it did. FAULTS 106
func TestOneTableWithoutBase(t *testing.T) {
	theirs := accountsOf("passwd", rootUser+"svc:x:990:990::/:/sbin/nologin\n", "group", rootGroup+"svc:x:990:\n")
	theirs["svc.conf"] = text("a").owner(0, 990)
	_, made := planWith(t, Options{}, nil, theirs, accountsOf("group", rootGroup+"docker:x:990:alice\n"))
	shown := over(theirs, made)
	wantContent(t, shown, map[string]string{
		"passwd": rootUser + "svc:x:990:989::/:/sbin/nologin\n",
		"group":  rootGroup + "docker:x:990:alice\nsvc:x:989:\n",
	})
	if n := shown["svc.conf"]; n.GID != 989 {
		t.Errorf("svc.conf has group %d", n.GID)
	}
	for _, base := range []memory{nil, theirs} {
		_, made := planWith(t, Options{}, base, theirs, memory{"group": text(rootGroup + "svc:x:990:alice\n")})
		if _, written := made["passwd"]; written {
			t.Error("passwd is written, though nothing of it is this machine's")
		}
	}
}

// What hides a thing of another kind of the image's is said.
func TestOtherTypeWithoutBase(t *testing.T) {
	r, _ := planWith(t, Options{}, nil, memory{"alt": link("/usr/share/alt")}, memory{"alt/mine": text("x")})
	_, notes := said(r)
	wantSaid(t, "notes", notes, "alt: a directory from before hides a link of the image's")
}
