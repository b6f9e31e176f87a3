package etcmerge

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
)

const passwdBase = "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"

// accounts is a tree of account files.
func accountsOf(files ...string) memory {
	m := memory{}
	for i := 0; i < len(files); i += 2 {
		m[files[i]] = text(files[i+1])
	}
	return m
}

// Each rule of the account files.
func TestAccounts(t *testing.T) {
	const (
		root    = "root:x:0:0:root:/root:/bin/bash\n"
		alice   = "alice:x:1000:1000:Alice:/home/alice:/bin/bash\n"
		pg      = "postgres:x:110:111::/var/lib/postgresql:/bin/sh\n"
		mine    = "mine:x:110:110::/srv:/bin/sh\n"
		groups  = "root:x:0:\nsudo:x:27:\n"
		pgGroup = "postgres:x:111:\n"
	)
	for _, c := range []struct {
		name                string
		path                string
		base, theirs, ours  string
		want                string
		conflicts, somewhat string // parts of the conflicts and notes; "" for none
	}{
		{"a user of each side", "passwd", root, root + pg, root + alice, root + alice + pg, "", ""},
		{"fields of each side", "passwd", root, "root:x:0:0:The Admin:/root:/bin/bash\n", "root:x:0:0:root:/root:/bin/zsh\n", "root:x:0:0:The Admin:/root:/bin/zsh\n", "", ""},
		{"a field of both", "passwd", root, "root:x:0:0:root:/root:/bin/fish\n", "root:x:0:0:root:/root:/bin/zsh\n", "root:x:0:0:root:/root:/bin/zsh\n", "user root: shell /bin/zsh here, /bin/fish in the image", ""},
		{"a number given away", "passwd", root, root + pg, root + mine, root + mine + "postgres:x:109:111::/var/lib/postgresql:/bin/sh\n", "", "user postgres of the image has number 109 here: 110 belongs to mine"},
		{"a number given away, of a person", "passwd", root, root + "live:x:1000:0::/:/bin/sh\n", root + alice, root + alice + "live:x:1001:0::/:/bin/sh\n", "", "number 1001 here"},
		{"a number that two share in the image", "passwd", root, root + "toor:x:0:0::/root:/bin/sh\n", root + alice, root + alice + "toor:x:0:0::/root:/bin/sh\n", "", ""},
		{"a number that changes", "passwd", root + pg, root + strings.Replace(pg, "110", "120", 1), root + pg + alice, root + pg + alice, "number 110 here, 120 in the image", ""},
		{"a number that changes, and is given on", "passwd", root + pg, root + strings.Replace(pg, "110", "120", 1) + "new:x:110:0::/:/bin/sh\n", root + pg + alice, root + pg + alice + "new:x:109:0::/:/bin/sh\n", "number 110 here, 120 in the image", "110 belongs to postgres"},
		{"the same name", "passwd", root, root + "alice:x:110:110::/var/lib/alice:/bin/sh\n", root + alice, root + alice, "number 1000 here, 110 in the image, which means another user", ""},
		{"dropped by the image", "passwd", root + pg, root, root + pg + alice, root + pg + alice, "", "postgres is no longer in the image and stays"},
		{"deleted here", "passwd", root + pg, root + pg + mine, root, root + mine, "", ""},
		{"deleted here, changed there", "passwd", root + pg, root + strings.Replace(pg, "sh\n", "bash\n", 1), root + alice, root + alice, "postgres: deleted here, changed in the image", ""},
		{"a directory service", "passwd", root, root + pg, root + "+::::::\n", root + pg + "+::::::\n", "", ""},
		{"lines that nobody understands", "passwd", root, root + "# new\nbad\n" + pg, "# here\n" + root + "x:y\n\n", "# here\n" + root + "x:y\n\n" + pg, "", ""},
		{"no last line feed", "passwd", root, root + pg, root + "alice:x:1000:1000:::", root + "alice:x:1000:1000:::\n" + pg, "", ""},
		{"a name that is not text", "passwd", root, root + pg, root + "\xff:x:1:1:::\n", root + "\xff:x:1:1:::\n" + pg, "", ""},

		{"members of both", "group", groups + "audio:x:29:a,b,c\n", groups + "audio:x:29:a,b,d\n", groups + "audio:x:29:alice,b,c\n", groups + "audio:x:29:alice,b,d\n", "", ""},
		{"members here", "group", groups, groups + pgGroup, "root:x:0:\nsudo:x:27:alice\n", "root:x:0:\nsudo:x:27:alice\n" + pgGroup, "", ""},
		{"a group's number given away", "group", groups, groups + pgGroup, groups + "mine:x:111:alice\n", groups + "mine:x:111:alice\npostgres:x:110:\n", "", "group postgres of the image has number 110 here: 111 belongs to mine"},

		{"a password here, the build's day there", "shadow", "root:*:1:0:99999:7:::\nd:*:1:0:99999:7:::\n", "root:*:2:0:99999:7:::\nd:*:2:0:99999:7:::\ne:!*:2::::::\n", "root:$y$secret:3:0:99999:7:::\nd:*:1:0:99999:7:::\n", "root:$y$secret:3:0:99999:7:::\nd:*:2:0:99999:7:::\ne:!*:2::::::\n", "", ""},
		{"a password of both", "shadow", "root:*:1:0:99999:7:::\n", "root:!*:2:0:99999:7:::\n", "root:$y$secret:3:0:99999:7:::\n", "root:$y$secret:3:0:99999:7:::\n", "user root: password", ""},
		{"administrators of a group", "gshadow", "a:*::\n", "a:*:x:y\n", "a:*:z:y\n", "a:*:z,x:y\n", "", ""},

		{"a range of each side", "subuid", "", "podman:300000:65536\n", "alice:100000:65536\n", "alice:100000:65536\npodman:300000:65536\n", "", ""},
		{"a range given away", "subuid", "", "podman:100000:65536\n", "alice:100000:65536\nbob:165536:65536\n", "alice:100000:65536\nbob:165536:65536\npodman:231072:65536\n", "", "begins with 231072 here"},
		{"a range without room", "subuid", "", "podman:100000:4000000000\n", "alice:100000:65536\n", "alice:100000:65536\n", "is left out", ""},
		{"ranges of a name", "subuid", "alice:1:1\n", "alice:1:1\nalice:5:1\n", "alice:1:1\nbob:9:1\n", "alice:1:1\nbob:9:1\n", "ranges of alice: changed in the image, and this machine's stay", ""},

		{"shells", "shells", "# valid\n/bin/sh\n/bin/old\n/bin/gone\n", "# valid\n/bin/sh\n/bin/new\n", "# valid\n/bin/sh\n/bin/old\n/bin/gone\n/opt/mine\n", "# valid\n/bin/sh\n/opt/mine\n/bin/new\n", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, made := plan(t, accountsOf(c.path, c.base), accountsOf(c.path, c.theirs), accountsOf(c.path, c.ours))
			if got := over(accountsOf(c.path, c.theirs), made)[c.path].content; got != c.want {
				t.Errorf("%s is\n%s\nwant\n%s", c.path, got, c.want)
			}
			var conflicts, notes []string
			for _, x := range r.Conflicts {
				conflicts = append(conflicts, x.Reason)
			}
			for _, x := range r.Notes {
				notes = append(notes, x.Text)
			}
			check := func(what string, got []string, want string) {
				if (want == "") != (len(got) == 0) || !strings.Contains(strings.Join(got, "\n"), want) {
					t.Errorf("%s: %q, want %q", what, got, want)
				}
				if strings.Contains(strings.Join(got, ""), "secret") {
					t.Errorf("%s show a password: %q", what, got)
				}
			}
			check("conflicts", conflicts, c.conflicts)
			check("notes", notes, c.somewhat)
			checkListed(t, r, made)
		})
	}
}

// A shell that somebody has stays.
func TestShellsInUse(t *testing.T) {
	base := accountsOf("shells", "/bin/sh\n/bin/old\n", "passwd", passwdBase)
	theirs := accountsOf("shells", "/bin/sh\n", "passwd", passwdBase)
	upper := accountsOf("shells", "/bin/sh\n/bin/old\n/opt/x\n", "passwd", passwdBase+"a:x:1000:0:::/bin/old\n")
	r, made := plan(t, base, theirs, upper)
	if got := made["shells"].content; got != "/bin/sh\n/bin/old\n/opt/x\n" || len(r.Notes) != 1 {
		t.Errorf("shells are %q, notes %v", got, r.Notes)
	}
}

// A daemon of the image's whose number and group this machine has given away gets
// others, in all files; what belongs to it in the image belongs to it here, and the next
// merge does not change that. FAULTS 106
func TestNumberClash(t *testing.T) {
	groups := "root:x:0:\nnogroup:x:65534:\n"
	base := accountsOf("passwd", passwdBase, "group", groups, "shadow", "root:*:1::::::\n", "gshadow", "root:*::\n")
	theirs := accountsOf(
		"passwd", passwdBase+"pg:x:998:998::/var/lib/pg:/bin/sh\nfree:x:500:998::/:/bin/sh\n",
		"group", groups+"pg:x:998:\nmember:x:700:pg\n",
		"shadow", "root:*:2::::::\npg:!:2::::::\nfree:!:2::::::\n",
		"gshadow", "root:*::\npg:!::\nmember:!::pg\n")
	theirs["pg/pg.conf"] = text("conf").owner(998, 998).mode(0o4640)
	theirs["pg/plain"] = text("plain")
	theirs["pg/deep"] = dir().owner(0, 998)
	upper := accountsOf(
		"passwd", passwdBase+"bob:x:998:999::/home/bob:/bin/bash\n",
		"group", groups+"bob:x:999:\nbobs:x:998:bob\n",
		"shadow", "root:*:1::::::\nbob:$y$1:5::::::\n")
	r, made := plan(t, base, theirs, upper)
	want := memory{
		"passwd":  text(passwdBase + "bob:x:998:999::/home/bob:/bin/bash\npg:x:499:499::/var/lib/pg:/bin/sh\nfree:x:500:499::/:/bin/sh\n"),
		"group":   text(groups + "bob:x:999:\nbobs:x:998:bob\npg:x:499:\nmember:x:700:pg\n"),
		"shadow":  text("root:*:2::::::\nbob:$y$1:5::::::\npg:!:2::::::\nfree:!:2::::::\n"),
		"pg":      dir(),
		"pg/deep": dir().owner(0, 499), "pg/pg.conf": text("conf").owner(499, 499).mode(0o4640),
	}
	list := made[ListPath]
	for _, name := range []string{".", "halogen", ListPath} {
		delete(made, name)
	}
	if !same(made, want) {
		t.Errorf("made\n%v\nwant\n%v", made, want)
	}
	if r.Users[998] != 499 || r.Groups[998] != 499 || len(r.Users) != 1 || len(r.Groups) != 1 {
		t.Errorf("users %v, groups %v", r.Users, r.Groups)
	}
	if len(r.Conflicts) != 0 || len(r.Notes) != 2 || !strings.Contains(list.content, "user pg of the image has number 499 here: 998 belongs to bob") {
		t.Errorf("conflicts %v, notes %v", r.Conflicts, r.Notes)
	}
	later := theirs.clone()
	later["pg/pg.conf"] = text("new conf").owner(998, 998).mode(0o4640)
	later["pg/more"] = text("more").owner(998, 0)
	r, made = plan(t, theirs, later, made)
	want["pg/pg.conf"] = text("new conf").owner(499, 499).mode(0o4640)
	want["pg/more"] = text("more").owner(499, 0)
	delete(made, ".")
	if !same(made, want) || len(r.Conflicts)+len(r.Notes) != 0 {
		t.Errorf("next, made\n%v\nwant\n%v; conflicts %v, notes %v", made, want, r.Conflicts, r.Notes)
	}
}

// When the system's range is full, a new user is left out of all files, and listed.
func TestNoNumberLeft(t *testing.T) {
	var passwd, group strings.Builder
	for n := firstSystem; n <= lastSystem; n++ {
		passwd.WriteString("u" + strconv.Itoa(n) + ":x:" + strconv.Itoa(n) + ":0:::\n")
		group.WriteString("g" + strconv.Itoa(n) + ":x:" + strconv.Itoa(n) + ":\n")
	}
	base := accountsOf("passwd", passwdBase, "group", "root:x:0:\n", "shadow", "root:*:1::::::\n")
	theirs := accountsOf("passwd", passwdBase+"pg:x:110:110:::\nother:x:50:110:::\n", "group", "root:x:0:\npg:x:110:\n", "shadow", "root:*:1::::::\npg:!:1::::::\n")
	upper := accountsOf("passwd", passwdBase+passwd.String(), "group", "root:x:0:\n"+group.String())
	r, made := plan(t, base, theirs, upper)
	if len(r.Conflicts) != 2 || !strings.Contains(r.Conflicts[1].Reason, "user pg of the image is left out: number 110 belongs to u110 here, and none is free") {
		t.Errorf("conflicts %v", r.Conflicts)
	}
	for path, n := range made {
		if path != ListPath && strings.Contains(n.content, "pg") {
			t.Errorf("%s has it:\n%s", path, n.content)
		}
	}
	if !strings.Contains(made["passwd"].content, "other:x:50:"+nobody+":") {
		t.Error("a user got the group of somebody else")
	}
}

// The accounts of a Debian, changed by useradd here and in the image, as pwck and grpck
// see them afterwards. FAULTS 106
func TestDebianAccounts(t *testing.T) {
	const useradd, pwck, grpck = "/usr/sbin/useradd", "/usr/sbin/pwck", "/usr/sbin/grpck"
	for _, tool := range []string{useradd, pwck, grpck} {
		testkit.Need(t, tool)
	}
	testkit.Root(t, "run useradd on other files")
	debian := map[string][]byte{}
	for _, name := range []string{"passwd", "group", "shadow", "gshadow"} {
		content, err := os.ReadFile(filepath.Join("testdata", "debian", name))
		if err != nil {
			t.Fatal(err)
		}
		debian[name] = content
	}
	etc := func(t *testing.T, files map[string][]byte) string {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, content := range files {
			if err := os.WriteFile(filepath.Join(dir, "etc", name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	read := func(t *testing.T, dir string) memory {
		m := memory{}
		for _, name := range []string{"passwd", "group", "shadow", "gshadow", "subuid", "subgid"} {
			if content, err := os.ReadFile(filepath.Join(dir, "etc", name)); err == nil {
				m[name] = text(string(content))
			}
		}
		return m
	}
	add := func(t *testing.T, dir string, args ...string) {
		out, err := exec.Command(useradd, append([]string{"--prefix", dir}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("useradd %q: %v\n%s", args, err, out)
		}
	}
	base := read(t, etc(t, debian))
	here := etc(t, debian)
	add(t, here, "--system", "--user-group", "mine")
	add(t, here, "--user-group", "--groups", "sudo,audio", "alice")
	image := etc(t, debian)
	add(t, image, "--system", "--user-group", "postgres")
	add(t, image, "--system", "--gid", "nogroup", "--groups", "audio,video", "web")
	theirs := read(t, image)
	r, made := plan(t, base, theirs, read(t, here))
	merged := map[string][]byte{}
	for name, n := range over(theirs, made) {
		if n.Type == Regular && name != ListPath {
			merged[name] = []byte(n.content)
		}
	}
	if len(r.Conflicts) > 0 {
		t.Errorf("conflicts: %v", r.Conflicts)
	}
	names := func(name string) (all, numbers []string) {
		for line := range bytes.Lines(merged[name]) {
			fields := strings.Split(string(line), ":")
			all, numbers = append(all, fields[0]), append(numbers, fields[2])
		}
		return all, numbers
	}
	for _, name := range []string{"passwd", "shadow"} {
		if all, _ := names(name); !slices.Equal(all[len(all)-4:], []string{"mine", "alice", "postgres", "web"}) {
			t.Errorf("%s ends with %q", name, all[len(all)-4:])
		}
	}
	for _, name := range []string{"passwd", "group"} {
		_, numbers := names(name)
		slices.Sort(numbers)
		if len(slices.Compact(slices.Clone(numbers))) != len(numbers) {
			t.Errorf("%s gives a number twice:\n%s", name, merged[name])
		}
	}
	if !strings.Contains(string(merged["group"]), "audio:x:29:alice,web\n") {
		t.Errorf("group:\n%s", merged["group"])
	}
	dir := filepath.Join(etc(t, merged), "etc")
	// grpck asks for the members in the passwd of the machine that the test runs on.
	out, err := exec.Command(grpck, "-r", filepath.Join(dir, "group"), filepath.Join(dir, "gshadow")).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if !strings.Contains(line, ": no user ") && !strings.Contains(line, "delete member") && !strings.Contains(line, "no changes") {
			t.Errorf("grpck: %v\n%s", err, line)
		}
	}
	// pwck wants the home directories, too, which nobody has here.
	out, err = exec.Command(pwck, "-r", filepath.Join(dir, "passwd"), filepath.Join(dir, "shadow")).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if !strings.Contains(line, "directory '") && !strings.Contains(line, "no changes") {
			t.Errorf("pwck: %v\n%s", err, line)
		}
	}
}

func FuzzAccounts(f *testing.F) {
	f.Add(passwdBase, passwdBase+"pg:x:110:111:::\n", passwdBase+"mine:x:110:110:::\n", uint8(0))
	f.Add("root:x:0:\n", "root:x:0:\npg:x:110:a,b\n", "mine:x:110:c\n+:::\n", uint8(1))
	f.Add("a:100000:65536\n", "a:100000:65536\nb:1:2\n", "c:1:2\n", uint8(2))
	long := strings.Repeat("D", maxReason)
	f.Add("root:x:0:\np"+long+":x:110:\n", "root:x:0:\n", "root:x:0:\np"+long+":x:110:me\n", uint8(0))
	f.Add("", "root:x:0:0:::\ndaemon:x:1:1:::\n", "+nis:x:1:0:::\n", uint8(1))
	f.Add("0", "root:x:w:", "root:x:0:\n", uint8(2)) // gshadow, and no group
	f.Fuzz(func(t *testing.T, base, theirs, ours string, which uint8) {
		path := accountFiles[int(which)%len(accountFiles)].path
		b, th, o := accountsOf(path, base), accountsOf(path, theirs), accountsOf(path, ours)
		r, made := plan(t, b, th, o)
		checkListed(t, r, made)
		if !isText([]byte(base + theirs + ours)) {
			return
		}
		fields := accountFiles[int(which)%len(accountFiles)].fields
		now := parseRecords([]byte(over(th, made)[path].content), fields)
		here, was, there := parseRecords([]byte(ours), fields), parseRecords([]byte(base), fields), parseRecords([]byte(theirs), fields)
		if slices.EqualFunc(here.lines, was.lines, record.equal) {
			return // the image's
		}
		for name := range here.first {
			rec, kept := now.get(name)
			if !kept && path != "shells" {
				t.Fatalf("%q is lost: %q", name, now.lines)
			}
			if old, _ := here.get(name); kept && (path == "passwd" || path == "group") && rec.fields[2] != old.fields[2] {
				t.Fatalf("%q has another number: %q", name, rec.fields)
			}
		}
		for _, rec := range here.lines {
			if rec.name == "" && !slices.ContainsFunc(now.lines, rec.equal) && string(here.text()) != string(there.text()) {
				t.Fatalf("line %q is lost", rec.line())
			}
		}
		if path != "passwd" && path != "group" {
			return
		}
		owner := map[uint32]string{}
		for name := range here.first {
			if n, ok := here.own(name); ok {
				owner[n] = name
			}
		}
		for name := range now.first {
			_, mine := here.get(name)
			n, ok := now.own(name)
			if other, taken := owner[n]; ok && taken && !mine {
				if th, ok := there.own(other); !ok || th != n {
					t.Fatalf("%q got the number of %q: %q", name, other, now.lines)
				}
			}
		}
	})
}
