package etcmerge

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// shownBy is what an overlay of a plan shows.
func shownBy(t testing.TB, image memory, r *Result) memory {
	t.Helper()
	upper := memory{}
	for _, c := range r.Changes {
		switch {
		case c.Action == Take || c.Path == ".":
		case c.Entry.Type != Regular:
			upper[c.Path] = node{Entry: c.Entry}
		case c.From == FromContent:
			upper[c.Path] = node{c.Entry, string(c.Content)}
		case c.From == FromImage:
			upper[c.Path] = node{c.Entry, image[c.Path].content}
		default:
			t.Errorf("%s comes from %d", c.Path, c.From)
		}
	}
	return over(image, upper)
}

func machineFiles() map[string][]byte {
	out := map[string][]byte{}
	for file, text := range map[string]string{
		"passwd": "root:x:0:0:root:/root:/bin/bash\ndaemon:x:998:998::/:/usr/sbin/nologin\nanna:x:1000:1000:Anna Ä,,,:/home/anna:/bin/zsh\n" +
			"ben:x:1001:100::/home/ben:/bin/bash\nserver:x:1002:1002::/srv/server:/bin/bash\nhome:x:1003:1003::/home:/bin/sh\n" +
			"up:x:1004:1004::/home/../etc:/bin/sh\nanna:x:0:0:second:/home/anna:/bin/sh\nshort:x:1005\n+nis:x:1006:1006::/home/nis:/bin/sh\n" +
			"big:x:70000:70000::/home/big:/bin/sh\n",
		"shadow":  "root:$6$rootpw:1:0:99999:7:::\nanna:$6$annapw:20000:0:99999:7:::\nben:!:20001:0:99999:7:::\nserver:x:1:::::: \n",
		"group":   "root:x:0:\nsudo:x:997:anna,server\nusers:x:100:\nanna:x:1000:\nfamily:x:1500:anna,ben\ndocker:x:990:anna\nserver:x:1002:\nvideo:x:44:server\n",
		"gshadow": "root:*::\nsudo:!:server,anna:anna,server\nanna:!::\nfamily:!:anna:anna,ben\ndocker:!::anna\n",
		"subuid":  "anna:100000:65536\nserver:165536:65536\n1001:231072:65536\n",
		"subgid":  "anna:100000:65536\n",
	} {
		out[file] = []byte(text)
	}
	return out
}

func TestPeopleOf(t *testing.T) {
	kept, people := PeopleOf(machineFiles())
	var said []string
	for _, p := range people {
		said = append(said, string(p.Name))
	}
	if strings.Join(said, " ") != "anna ben" || people[0].Number != 1000 || len(people[0].Groups) != 3 {
		t.Errorf("people are %+v", people)
	}
	want := map[string]string{
		"passwd":  "anna:x:1000:1000:Anna Ä,,,:/home/anna:/bin/zsh\nben:x:1001:100::/home/ben:/bin/bash\n",
		"shadow":  "anna:$6$annapw:20000:0:99999:7:::\nben:!:20001:0:99999:7:::\n",
		"group":   "sudo:x:997:anna\nusers:x:100:\nanna:x:1000:\nfamily:x:1500:anna,ben\ndocker:x:990:anna\n",
		"gshadow": "sudo:!:anna:anna\nanna:!::\nfamily:!:anna:anna,ben\ndocker:!::anna\n",
		"subuid":  "anna:100000:65536\n1001:231072:65536\n",
		"subgid":  "anna:100000:65536\n",
	}
	got := map[string]string{}
	for file, text := range kept {
		got[file] = string(text)
	}
	if !maps.Equal(got, want) {
		t.Errorf("kept is\n%q\nwant\n%q", got, want)
	}
	if kept, people := PeopleOf(map[string][]byte{"passwd": []byte("root:x:0:0::/root:/bin/sh\n")}); kept != nil || people != nil {
		t.Errorf("nobody is %v, %v", kept, people)
	}
}

// What lets a person become somebody else is shown with them, or goes.
func TestPeopleOfIntruder(t *testing.T) {
	kept, people := PeopleOf(map[string][]byte{
		"passwd":  []byte("root:x:1004:1004::/home/root:/bin/sh\nanna:x:1000:27::/home/anna:/bin/sh\nben:x:1001:10::/home/ben:/bin/sh\neve:x:1002:1002::/home/eve:/bin/sh\nown:x:1003:0::/home/own:/bin/sh\n"),
		"shadow":  []byte("root:$eves:1::::::\n"),
		"group":   []byte("sudo:x:27:\neve:x:1002:eve\nwheel:x:1002:anna\nadm:x:4:anna,anna\nown:x:0:\nlarge:x:200000:anna\n"),
		"gshadow": []byte("sudo:!:eve:\nadm:!::anna\n"),
		"subuid":  []byte("eve:0:65536\neve:999:2\neve:01100:10\neve:1000:1\neve:100000:65536\nanna:1100:65536\nben:-1:5\nroot:100000:65536\n"),
		"subgid":  []byte("eve:27:1\neve:200000:1\n1002:100000:65536\n"),
	})
	said := ""
	for _, p := range people {
		said += fmt.Sprintf("%s %v\n", p.Name, p.Groups)
	}
	if want := "anna [sudo wheel adm large]\nben [10]\neve [sudo wheel]\nown [own]\n"; said != want {
		t.Errorf("it says\n%s, want\n%s", said, want)
	}
	for file, want := range map[string]string{"subuid": "eve:100000:65536\n", "subgid": "1002:100000:65536\n", "shadow": ""} {
		if got := string(kept[file]); got != want {
			t.Errorf("%s has %q, want %q", file, got, want)
		}
	}
	if again, _ := PeopleOf(kept); !maps.EqualFunc(again, kept, bytes.Equal) {
		t.Errorf("read again it is %q, and was %q", again, kept)
	}
}

func peoplesImage() memory {
	return memory{
		"passwd":     text("root:*:0:0:root:/root:/bin/bash\ndaemon:x:2:2::/:/usr/sbin/nologin\nguest:x:1000:1000::/var/guest:/bin/sh\n"),
		"shadow":     text("root:*:1:0:99999:7:::\nguest:!:1:0:99999:7:::\n").mode(0o640).owner(0, 42),
		"group":      text("root:x:0:\nsudo:x:27:daemon\nusers:x:100:\nguest:x:1000:\nnew:x:997:\n"),
		"gshadow":    text("root:*::\nsudo:*::daemon\nusers:*::\nguest:!::\n").mode(0o640).owner(0, 42),
		"subuid":     text("guest:100000:65536\n"),
		"shells":     text("# those\n/bin/sh\n/bin/bash\n"),
		"guest.conf": text("x").owner(1000, 1000),
		"motd":       text("hello"),
	}
}

// People get their places among the image's accounts, with their numbers, passwords and
// the groups that the image has; who is in their way moves.
func TestPlanPeople(t *testing.T) {
	image := peoplesImage()
	kept, _ := PeopleOf(machineFiles())
	r, err := PlanPeople(t.Context(), image, kept, Options{To: 7})
	if err != nil {
		t.Fatal(err)
	}
	shown := shownBy(t, image, r)
	want := map[string]string{
		"passwd": "root:*:0:0:root:/root:/bin/bash\ndaemon:x:2:2::/:/usr/sbin/nologin\nanna:x:1000:1000:Anna Ä,,,:/home/anna:/bin/bash\n" +
			"ben:x:1001:100::/home/ben:/bin/bash\nguest:x:1501:1501::/var/guest:/bin/sh\n",
		"shadow":  "root:*:1:0:99999:7:::\nguest:!:1:0:99999:7:::\nanna:$6$annapw:20000:0:99999:7:::\nben:!:20001:0:99999:7:::\n",
		"group":   "root:x:0:\nsudo:x:27:daemon,anna\nusers:x:100:\nnew:x:997:\nanna:x:1000:\nfamily:x:1500:anna,ben\nguest:x:1501:\n",
		"gshadow": "root:*::\nsudo:*:anna:daemon,anna\nusers:*::\nguest:!::\nanna:!::\nfamily:!:anna:anna,ben\n",
		"subuid":  "anna:100000:65536\n1001:231072:65536\nguest:165536:65536\n",
		"subgid":  "anna:100000:65536\n",
		"motd":    "hello", "shells": "# those\n/bin/sh\n/bin/bash\n",
	}
	for file, text := range want {
		if shown[file].content != text {
			t.Errorf("%s is\n%s\nwant\n%s", file, shown[file].content, text)
		}
	}
	for file, mode := range map[string]uint32{"passwd": 0o644, "shadow": 0o640, "gshadow": 0o640, "subgid": 0o644} {
		if e := shown[file].Entry; e.Mode != mode || (mode == 0o640) != (e.GID == 42) {
			t.Errorf("%s is %+v", file, e)
		}
	}
	if e := shown["guest.conf"].Entry; e.UID != 1501 || e.GID != 1501 || r.Users[1000] != 1501 {
		t.Errorf("what belongs to guest belongs to %d:%d; users %v", e.UID, e.GID, r.Users)
	}
	said := ""
	for _, n := range r.Notes {
		said += n.Text + "\n"
	}
	for _, s := range []string{"anna has the shell /bin/bash now: /bin/zsh", "group docker, which the image does not have", "user guest of the image has number 1501 here", "range 100000:65536 of guest"} {
		if !strings.Contains(said, s) {
			t.Errorf("it does not say %q:\n%s", s, said)
		}
	}
	if len(r.Conflicts) > 0 {
		t.Errorf("conflicts: %+v", r.Conflicts)
	}
}

// Somebody whom the image has, too, keeps the password and the number of here, and the
// system's own users are the image's.
func TestPlanPeopleOfTheImage(t *testing.T) {
	image := memory{
		"passwd": text("root:x:0:0::/root:/bin/sh\nadmin:x:1000:1000:Admin:/home/admin:/bin/sh\n+::::::\n"),
		"shadow": text("root:*:1::::::\nadmin:$image:1::::::\n"),
		"group":  text("root:x:0:\nwheel:x:10:admin\nadmin:x:1000:\n"),
	}
	kept, _ := PeopleOf(map[string][]byte{
		"passwd": []byte("root:x:0:0:changed:/:/bin/sh\nadmin:x:1007:1007:Me:/home/me:/bin/sh\neve:x:1000:1000::/home/eve:/bin/sh\n"),
		"shadow": []byte("root:$mine:1::::::\nadmin:$mine:2::::::\neve:$eve:3::::::\n"),
		"group":  []byte("root:x:0:eve\nwheel:x:10:eve\nadmin:x:1007:\neve:x:1000:\n"),
	})
	r, err := PlanPeople(t.Context(), image, kept, Options{To: 7})
	if err != nil {
		t.Fatal(err)
	}
	shown := shownBy(t, image, r)
	for file, want := range map[string]string{
		"passwd": "root:x:0:0::/root:/bin/sh\nadmin:x:1007:1007:Me:/home/me:/bin/sh\neve:x:1000:1000::/home/eve:/bin/sh\n+::::::\n",
		"shadow": "root:*:1::::::\nadmin:$mine:2::::::\neve:$eve:3::::::\n",
		"group":  "root:x:0:eve\nwheel:x:10:admin,eve\nadmin:x:1007:\neve:x:1000:\n",
	} {
		if shown[file].content != want {
			t.Errorf("%s is\n%s\nwant\n%s", file, shown[file].content, want)
		}
	}
	if len(r.Conflicts) > 0 {
		t.Errorf("conflicts: %+v", r.Conflicts)
	}
}

// The numbers of the image's own groups are its programs', whatever a group of that name had
// here, and no account that was kept becomes one of its services.
func TestPlanPeopleOfIntruder(t *testing.T) {
	image := memory{
		"passwd": text("root:x:0:0::/root:/bin/sh\npolkitd:x:990:990::/:/sbin/nologin\n"),
		"shadow": text("root:*:1::::::\npolkitd:!:1::::::\n"),
		"group":  text("root:x:0:\nsudo:x:27:\nshadow:x:42:\npolkitd:x:990:\n"),
	}
	image["unix_chkpwd"] = text("x").owner(0, 42).mode(0o2755)
	kept, _ := PeopleOf(map[string][]byte{
		"passwd": []byte("alice:x:1000:1000::/home/alice:/bin/sh\neve:x:1001:1500::/home/eve:/bin/sh\npolkitd:x:1005:1005::/home/p:/bin/sh\n"),
		"shadow": []byte("alice:$a:2::::::\neve:$eve:3::::::\npolkitd:$eve:3::::::\n"),
		"group":  []byte("eve:x:1500:eve\nsudo:x:1500:alice,polkitd\nshadow:x:1500:\npolkitd:x:1005:polkitd\nalice:x:1000:\n"),
		"subuid": []byte("polkitd:100000:65536\n"),
	})
	r, err := PlanPeople(t.Context(), image, kept, Options{To: 7})
	if err != nil {
		t.Fatal(err)
	}
	shown := shownBy(t, image, r)
	for file, want := range map[string]string{
		"passwd": "root:x:0:0::/root:/bin/sh\npolkitd:x:990:990::/:/sbin/nologin\nalice:x:1000:1000::/home/alice:/bin/sh\neve:x:1001:1500::/home/eve:/bin/sh\n",
		"shadow": "root:*:1::::::\npolkitd:!:1::::::\nalice:$a:2::::::\neve:$eve:3::::::\n",
		"group":  "root:x:0:\nsudo:x:27:alice\nshadow:x:42:\npolkitd:x:990:\nalice:x:1000:\neve:x:1500:eve\n",
		"subuid": "",
	} {
		lines := func(text string) []string { return slices.Sorted(strings.Lines(text)) }
		if got := shown[file].content; !slices.Equal(lines(got), lines(want)) {
			t.Errorf("%s is\n%s\nwant\n%s", file, got, want)
		}
	}
	if n := shown["unix_chkpwd"]; n.GID != 42 || len(r.Groups) > 0 {
		t.Errorf("a program of the image's has group %d; groups %v", n.GID, r.Groups)
	}
}

// Who had a group of the system's as first group is in that of this name afterwards, as the
// owner was shown, and not in the one that has its former number in the image.
func TestPlanPeopleFirstGroup(t *testing.T) {
	image := memory{
		"passwd": text("root:x:0:0::/root:/bin/sh\n"), "shadow": text("root:*:1::::::\n"),
		"group": text("root:x:0:\ndisk:x:6:\nusers:x:100:\ndocker:x:990:\n"),
	}
	for _, c := range []struct{ name, passwd, group, want string }{
		{"renumbered", "alice:x:1000:6::/home/alice:/bin/sh\n", "users:x:6:\n", "alice:x:1000:100::/home/alice:/bin/sh\n"},
		{"of root's number", "alice:x:1000:0::/home/alice:/bin/sh\n", "users:x:0:\n", "alice:x:1000:100::/home/alice:/bin/sh\n"},
		{"another has come to it", "alice:x:1000:6::/home/alice:/bin/sh\n", "users:x:6:\ndisk:x:50:alice\n", "alice:x:1000:100::/home/alice:/bin/sh\n"},
		{"another has it still", "alice:x:1000:1500::/home/alice:/bin/sh\n", "family:x:1500:alice\nusers:x:1500:\n", "alice:x:1000:1500::/home/alice:/bin/sh\n"},
		{"the same number", "alice:x:1000:100::/home/alice:/bin/sh\n", "users:x:100:\n", "alice:x:1000:100::/home/alice:/bin/sh\n"},
		{"of another group's", "alice:x:1000:6::/home/alice:/bin/sh\n", "other:x:1200:alice\nfamily:x:6:\n", "alice:x:1000:1201::/home/alice:/bin/sh\n"},
	} {
		kept, people := PeopleOf(map[string][]byte{"passwd": []byte(c.passwd), "group": []byte(c.group)})
		r, err := PlanPeople(t.Context(), image, kept, Options{To: 7})
		if err != nil {
			t.Fatal(err)
		}
		shown := shownBy(t, image, r)
		if got := shown["passwd"].content; !strings.Contains(got, "\n"+c.want) || len(people) != 1 {
			t.Errorf("%s: passwd is\n%s\nwant\n%s", c.name, got, c.want)
		}
		for _, line := range []string{"disk:x:6:", "users:x:100:"} {
			if got := shown["group"].content; !strings.Contains(got, line) {
				t.Errorf("%s: group is\n%s\nwithout %s", c.name, got, line)
			}
		}
		if len(r.Groups) > 0 {
			t.Errorf("%s: groups of the image's move: %v", c.name, r.Groups)
		}
		if _, notes := said(r); strings.Contains(notes, "the first group is ") != !strings.Contains(c.passwd, c.want) {
			t.Errorf("%s: notes:\n%s", c.name, notes)
		}
	}
}

// A group keeps no system number that the image gives to another name, by which programs of
// the image run as that: it gets an ordinary one that nobody has, and its people with it.
func TestPlanPeopleNumbersOfTheImage(t *testing.T) {
	image := memory{
		"passwd": text("root:x:0:0::/root:/bin/sh\nguest:x:1003:1003::/var/guest:/bin/sh\n"), "shadow": text("root:*:1::::::\n"),
		"group": text("root:x:0:\nshadow:x:42:\nguest:x:1003:\nnogroup:x:65534:\n"),
	}
	const anna, ben, theirs = "anna:x:1000:42::/home/anna:/bin/sh\n", "ben:x:1001:1700::/home/ben:/bin/sh\n", "root:x:0:\nshadow:x:42:\nguest:x:1003:\nnogroup:x:65534:\n"
	var all strings.Builder
	for n := lastSystem + 1; n <= lastOrdinary; n++ {
		fmt.Fprintf(&all, "g%d:x:%d:anna\n", n, n)
	}
	at := func(number string) string { return strings.Replace(anna, ":42:", ":"+number+":", 1) }
	for _, c := range []struct{ name, passwd, group, wantPasswd, wantGroup string }{
		{"a first group", anna, "family:x:42:\n", at("1004"), theirs + "family:x:1004:\n"},
		{"beside a number without a group", anna + ben, "family:x:42:ben\n", at("1701") + ben, theirs + "family:x:1701:ben\n"},
		{"two names", anna, "family:x:42:\nclan:x:42:anna\n", at("1004"), theirs + "family:x:1004:\nclan:x:1004:anna\n"},
		{"of an ordinary group of the image's", at("1000"), "anna:x:1000:\nguest:x:42:anna\n", at("1000"), "root:x:0:\nshadow:x:42:\nguest:x:1004:anna\nnogroup:x:65534:\nanna:x:1000:\n"},
		{"nobody's", strings.Replace(anna, ":42:", ":65534:", 1), "nobody:x:65534:\n", at("1004"), theirs + "nobody:x:1004:\n"},
		{"of none of the image's", at("300"), "family:x:300:\n", at("300"), theirs + "family:x:300:\n"},
		{"a number alone", anna, "", anna, theirs},
		{"none is free", anna, all.String() + "family:x:42:\n", at("65534"), ""},
	} {
		kept, _ := PeopleOf(map[string][]byte{"passwd": []byte(c.passwd), "group": []byte(c.group)})
		r, err := PlanPeople(t.Context(), image, kept, Options{To: 7})
		if err != nil {
			t.Fatal(err)
		}
		shown := shownBy(t, image, r)
		passwd, group := shown["passwd"].content, shown["group"].content
		if !strings.Contains(passwd, c.wantPasswd) || c.wantGroup != "" && group != c.wantGroup || !strings.Contains(group, "shadow:x:42:\n") || strings.Contains(group, "family:x:65534:") {
			t.Errorf("%s: /etc has\n%s\n%.500s\nwant\n%s\n%s", c.name, passwd, group, c.wantPasswd, c.wantGroup)
		}
	}
}

// Nobody is in a system group of the image's because it has their name: a group of their own
// has another name then, and what somebody had of the image's is shown.
func TestPeopleNamedAsGroups(t *testing.T) {
	image := memory{
		"passwd": text("root:x:0:0::/root:/bin/sh\n"), "shadow": text("root:*:1::::::\n"), "gshadow": text("root:*::\nwheel:!::\n"),
		"group": text("root:x:0:\nwheel:x:10:\nstaff:x:50:\nwheel-1501:x:70:\n"),
	}
	theirs := map[string][]byte{"passwd": []byte(image["passwd"].content), "group": []byte(image["group"].content)}
	const me, wheel = "wheel:x:1500:1500::/home/wheel:/bin/sh\n", "root:x:0:\nwheel:x:10:\nstaff:x:50:\nwheel-1501:x:70:\n"
	for _, c := range []struct{ name, passwd, group, gshadow, says, wantPasswd, wantGroup string }{
		{"a group of one's own", me, "wheel:x:1500:\n", "", "wheel [wheel-1500]\n", me, wheel + "wheel-1500:x:1500:\n"},
		{"with members", me + "ben:x:1001:1001::/home/ben:/bin/sh\n", "wheel:x:1500:wheel,ben\nben:x:1001:\n", "wheel:!:ben:wheel\n", "wheel [wheel-1500]\nben [wheel-1500]\n", me + "ben:x:1001:1001::/home/ben:/bin/sh\n", wheel + "wheel-1500:x:1500:wheel,ben\nben:x:1001:\n"},
		{"whose other name the image has", "wheel:x:1501:1501::/home/wheel:/bin/sh\n", "wheel:x:1501:\n", "", "wheel [wheel-1501_]\n", "wheel:x:1501:1501::/home/wheel:/bin/sh\n", wheel + "wheel-1501_:x:1501:\n"},
		{"a member alone", "wheel:x:1500:1700::/home/wheel:/bin/sh\n", "mine:x:1700:\nwheel:x:1500:wheel\n", "", "wheel [mine wheel-1500]\n", "wheel:x:1500:1700::/home/wheel:/bin/sh\n", wheel + "mine:x:1700:\nwheel-1500:x:1500:wheel\n"},
		{"the image's as first group", "staff:x:1500:50::/home/staff:/bin/sh\n", "staff:x:50:\n", "", "staff [staff]\n", "staff:x:1500:50::/home/staff:/bin/sh\n", wheel},
		{"a member of the image's", me, "wheel:x:10:wheel\nmine:x:1500:\n", "", "wheel [wheel mine]\n", me, strings.Replace(wheel, "10:", "10:wheel", 1) + "mine:x:1500:\n"},
		{"the image's groups first", me, "mine:x:1500:\nother:x:1700:wheel\nstaff:x:1500:wheel\n", "", "wheel [staff mine other]\n", me, strings.Replace(wheel, "50:", "50:wheel", 1) + "mine:x:1500:\nother:x:1700:wheel\n"},
		{"as no group of the image's", "anna:x:1500:1500::/home/anna:/bin/sh\n", "anna:x:1500:\n", "", "anna []\n", "anna:x:1500:1500::/home/anna:/bin/sh\n", wheel + "anna:x:1500:\n"},
	} {
		kept, people := PeopleOf(WithoutServices(map[string][]byte{"passwd": []byte(c.passwd), "group": []byte(c.group), "gshadow": []byte(c.gshadow)}, theirs))
		says := ""
		for _, p := range people {
			says += fmt.Sprintf("%s %v\n", p.Name, p.Groups)
		}
		r, err := PlanPeople(t.Context(), image, kept, Options{To: 7})
		if err != nil {
			t.Fatal(err)
		}
		shown := shownBy(t, image, r)
		if got := shown["passwd"].content; says != c.says || got != image["passwd"].content+c.wantPasswd || shown["group"].content != c.wantGroup {
			t.Errorf("%s: it says\n%s and /etc has\n%s\n%s\nwant\n%s\n%s\n%s", c.name, says, got, shown["group"].content, c.says, c.wantPasswd, c.wantGroup)
		}
		if strings.Contains(shown["gshadow"].content, "wheel:!:ben") || len(r.Groups) > 0 {
			t.Errorf("%s: gshadow is\n%s and groups move: %v", c.name, shown["gshadow"].content, r.Groups)
		}
	}
}

// Programs pass over space in front of a name, and count a number with a minus down: nobody is
// in a group of the image's by that, and not shown in it.
func TestPeopleAsProgramsRead(t *testing.T) {
	image := map[string][]byte{"passwd": []byte("root:x:0:0::/root:/bin/sh\n"), "group": []byte("root:x:0:\nsudo:x:27:\n")}
	kept, people := PeopleOf(WithoutServices(map[string][]byte{
		"passwd": []byte(" sudo:x:1500:1500::/home/a:/bin/sh\n\troot:x:1501:1501::/home/b:/bin/sh\neve:x:1502:-18446744073709551589::/home/eve:/bin/sh\n" +
			"zero:x:1503:-0::/home/zero:/bin/sh\nnone:x:1504:::/home/none:/bin/sh\nanna:x:1505:1505::/home/anna:/bin/sh\n"),
		"shadow": []byte(" sudo:p:::::::\n\troot:p:::::::\nanna:p:::::::\n"),
		"group":  []byte(" sudo:x:1500:anna\nfriends:x:0:\nsudo:x:27:eve, anna\nanna:x:1505:\n\vother:x:1600:anna\n"),
	}, image))
	if got := fmt.Sprint(people); got != "[{eve 1502 [sudo]} {zero 1503 [friends]} {anna 1505 [sudo]}]" {
		t.Errorf("people are %s", got)
	}
	for file, want := range map[string]string{
		"passwd": "eve:x:1502:-18446744073709551589::/home/eve:/bin/sh\nzero:x:1503:-0::/home/zero:/bin/sh\nanna:x:1505:1505::/home/anna:/bin/sh\n",
		"group":  "sudo:x:27:eve,anna\nfriends:x:0:\nanna:x:1505:\n", "shadow": "anna:p:::::::\n",
	} {
		if got := string(kept[file]); got != want {
			t.Errorf("%s has %q, want %q", file, got, want)
		}
	}
}

// checkShown checks that whom a result has in a system group of the image's, that was shown,
// and that these groups have their numbers.
func checkShown(t *testing.T, people []Person, image, passwd, group records) {
	t.Helper()
	for name := range image.first {
		n, is := image.own(name)
		if !is || !system(n) {
			continue
		}
		rec, _ := group.get(name)
		for _, p := range people {
			line, _ := passwd.get(string(p.Name))
			first, numbered := number(line.fields[groupField])
			in := numbered && first == n || slices.Contains(splitList(rec.fields[3]), string(p.Name))
			if in && !slices.Contains(p.Groups, Name(name)) && !slices.ContainsFunc(p.Groups, func(g Name) bool { bare, is := number(string(g)); return is && bare == n }) {
				t.Errorf("%q is in %s, and was shown in %q", p.Name, name, p.Groups)
			}
		}
	}
}

// An image without some of the files, or with none, is not an obstacle.
func TestPlanPeopleBare(t *testing.T) {
	kept, _ := PeopleOf(machineFiles())
	image := memory{"motd": text("x")}
	r, err := PlanPeople(t.Context(), image, kept, Options{To: 7})
	if err != nil {
		t.Fatal(err)
	}
	shown := shownBy(t, image, r)
	if !strings.Contains(shown["passwd"].content, "anna:x:1000") || !strings.Contains(shown["shadow"].content, "annapw") || shown["shadow"].Mode != 0o600 {
		t.Errorf("it shows %+v", shown)
	}
}

// Whatever a machine's files hold, those who were picked out are in the result with their
// numbers and passwords, once, and nobody else of the machine's.
func FuzzPlanPeople(f *testing.F) {
	m := machineFiles()
	f.Add(m["passwd"], m["group"], m["shadow"], m["subuid"])
	f.Add([]byte("a:x:1000:27::/home/a:/bin/sh"), []byte("sudo:x:1000:a\nnew:x:27:a"), []byte("a:p:::::::"), []byte("a:1:4294967295\n"))
	f.Add([]byte("guest:x:997:1::/home/a:\nguest:x:1000:1::/home/a:\nx:x: +1000:1::/home//x/:"), []byte("guest:x:27:x\nx:x:0:"), []byte("x:p"), []byte(":::\n"))
	f.Fuzz(func(t *testing.T, passwd, group, shadow, subuid []byte) {
		image := peoplesImage()
		files := map[string][]byte{"passwd": passwd, "group": group, "shadow": shadow, "subuid": subuid}
		theirs := map[string][]byte{"passwd": []byte(image["passwd"].content), "group": []byte(image["group"].content)}
		kept, people := PeopleOf(WithoutServices(files, theirs))
		if again, same := PeopleOf(kept); len(same) != len(people) || !bytes.Equal(again["passwd"], kept["passwd"]) || !bytes.Equal(again["shadow"], kept["shadow"]) {
			t.Errorf("read again it is %q, and was %q", again, kept)
		}
		r, err := PlanPeople(t.Context(), image, kept, Options{To: 7})
		if err != nil {
			t.Fatal(err)
		}
		shown := shownBy(t, image, r)
		have, were := parseRecords([]byte(shown["passwd"].content), 7), parseRecords(passwd, 7)
		for _, p := range people {
			rec, ok := have.get(string(p.Name))
			was, _ := were.get(string(p.Name))
			if n, isNumber := number(rec.fields[numberField]); !ok || !isNumber || n != p.Number || rec.fields[1] != was.fields[1] {
				t.Errorf("%q becomes %q", was.line(), rec.line())
			}
			mine, _ := parseRecords(shadow, 9).get(string(p.Name))
			if now, _ := parseRecords([]byte(shown["shadow"].content), 9).get(string(p.Name)); isText([]byte(mine.line())) && mine.name != "" && now.line() != mine.line() {
				t.Errorf("the password %q becomes %q", mine.line(), now.line())
			}
		}
		for from, to := range r.Groups {
			if system(from) && from != to {
				t.Errorf("the image's group %d has the number %d", from, to)
			}
		}
		checkShown(t, people, parseRecords(theirs["group"], 4), have, parseRecords([]byte(shown["group"].content), 4))
		holders := map[uint32]string{}
		own := parseRecords(kept["passwd"], 7)
		for name := range have.first {
			n, ok := have.own(name)
			_, person := own.get(name)
			_, image := parseRecords([]byte(peoplesImage()["passwd"].content), 7).get(name)
			if !person && !image {
				t.Errorf("%q comes from nowhere", name)
			}
			if other, twice := holders[n]; ok && twice && !(person && func() bool { _, is := own.get(other); return is }()) {
				t.Errorf("%q and %q have the number %d", name, other, n)
			}
			holders[n] = name
		}
	})
}
