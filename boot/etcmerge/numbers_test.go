package etcmerge

import (
	"strings"
	"testing"
)

// Numbers are read as the C library reads them. FAULTS 106
func TestNumber(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "0990": 990, "+7": 7, " 7": 7, "4294967295": 1<<32 - 1, "99999999999": 1<<32 - 1, "": -1, "7x": -1, "0x7": -1, "+": -1, "-": -1, "+-7": -1, "- 7": -1,
		"-7": 1<<32 - 1, "-0": 0, " -18446744073709551589": 27, "-4294967269": 1<<32 - 1, "18446744073709551643": 1<<32 - 1, "-99999999999999999999": 1<<32 - 1} {
		n, ok := number(s)
		if ok != (want >= 0) || ok && int64(n) != want {
			t.Errorf("%q is %d, %v", s, n, ok)
		}
	}
}

// A number that is written otherwise, or in a line that lacks fields, is given away all
// the same. FAULTS 106
func TestNumbersOfOddLines(t *testing.T) {
	base := accountsOf("passwd", rootUser, "group", rootGroup)
	theirs := accountsOf("passwd", rootUser+"svc:x:990:990::/:/x\n", "group", rootGroup+"svc:x:990:\n")
	upper := accountsOf("passwd", rootUser+"bob:x:0990:990::/:/x\n", "group", rootGroup+"bob:x:990\n")
	_, made := planWith(t, Options{}, base, theirs, upper)
	wantContent(t, made, map[string]string{
		"passwd": rootUser + "bob:x:0990:990::/:/x\nsvc:x:989:989::/:/x\n",
		"group":  rootGroup + "bob:x:990\nsvc:x:989:\n",
	})
	upper = accountsOf("passwd", rootUser+"svc:x:0990:990::/:/x\n"+aliceUser)
	r, _ := planWith(t, Options{}, theirs, theirs, upper)
	if len(r.Users) > 0 || len(r.Conflicts) > 0 {
		t.Errorf("users %v, conflicts %v", r.Users, r.Conflicts)
	}
}

// The accounts of a directory service stay last, whatever lies between their lines.
func TestCompat(t *testing.T) {
	base := accountsOf("passwd", rootUser, "group", rootGroup)
	theirs := accountsOf("passwd", rootUser+"svc:x:990:990::/:/x\n", "group", rootGroup+"svc:x:990:\n")
	upper := accountsOf("passwd", rootUser+"# service\n-bad::::::\n+::::::\n\n# end\n", "group", rootGroup+"+nis:::\n"+"own:x:5:\n"+"+:::\n+\n")
	_, made := planWith(t, Options{}, base, theirs, upper)
	wantContent(t, made, map[string]string{
		"passwd": rootUser + "# service\nsvc:x:990:990::/:/x\n-bad::::::\n+::::::\n\n# end\n",
		"group":  rootGroup + "+nis:::\nown:x:5:\nsvc:x:990:\n+:::\n+\n",
	})
}

// A number between others may be that of a user who was deleted, and whose files are still
// there: it is given last, as useradd does. FAULTS 106
func TestDeletedNumbers(t *testing.T) {
	base := accountsOf("passwd", rootUser, "group", rootGroup)
	// alice (1000) and backup (999) were deleted here.
	here := rootUser + "bob:x:1001:100::/:/x\neve:x:990:100::/:/x\nlater:x:998:100::/:/x\n"
	theirs := accountsOf("passwd", rootUser+"kiosk:x:1001:100::/:/x\nsvc:x:990:990::/:/x\n", "group", rootGroup+"svc:x:990:\n")
	_, made := planWith(t, Options{}, base, theirs, accountsOf("passwd", here, "group", rootGroup+"eve:x:990:\nmost:x:500:\n"))
	wantContent(t, made, map[string]string{
		"passwd": here + "kiosk:x:1002:100::/:/x\nsvc:x:499:499::/:/x\n",
		"group":  rootGroup + "eve:x:990:\nmost:x:500:\nsvc:x:499:\n",
	})

	// Where the ends of the ranges are in use, those between others are all that is left.
	here += "first:x:100:100::/:/x\nlast:x:59999:100::/:/x\n"
	_, made = planWith(t, Options{}, base, theirs, accountsOf("passwd", here, "group", rootGroup+"eve:x:990:\nfirst:x:100:\n"))
	wantContent(t, made, map[string]string{
		"passwd": here + "kiosk:x:1000:100::/:/x\nsvc:x:999:999::/:/x\n",
		"group":  rootGroup + "eve:x:990:\nfirst:x:100:\nsvc:x:999:\n",
	})

	// A group's number that is between others for users is not the user's.
	groups := rootGroup + "eve:x:990:\nfirst:x:100:\n"
	users := rootUser + "eve:x:990:100::/:/x\n"
	_, made = planWith(t, Options{}, base, theirs, accountsOf("passwd", users+"svc2:x:500:100::/:/x\n", "group", groups))
	wantContent(t, made, map[string]string{
		"passwd": users + "svc2:x:500:100::/:/x\nkiosk:x:1001:100::/:/x\nsvc:x:499:499::/:/x\n",
		"group":  groups + "svc:x:499:\n",
	})
}

// Who was left out for want of a number comes in once there is one; who is to stay out
// does not. FAULTS 106
func TestLeftOutComesIn(t *testing.T) {
	var passwd strings.Builder
	for n := firstSystem; n <= lastSystem; n++ {
		user := "u" + strings.Repeat("x", n-firstSystem)
		passwd.WriteString(user + ":x:" + decimal(uint32(n)) + ":0:::\n")
	}
	base := accountsOf("passwd", rootUser, "group", rootGroup, "shadow", "root:*:1::::::\n", "subuid", "")
	theirs := accountsOf("passwd", rootUser+"pg:x:110:0:::\n", "group", rootGroup, "shadow", "root:*:1::::::\npg:!:1::::::\n", "subuid", "pg:100000:4000000000\n")
	upper := accountsOf("passwd", rootUser+passwd.String(), "subuid", "alice:100000:65536\n")
	r, made := planWith(t, Options{}, base, theirs, upper)
	conflicts, _ := said(r)
	wantSaid(t, "conflicts", conflicts, "passwd pg: user pg of the image is left out", "subuid pg: ")

	r, full := planWith(t, Options{}, theirs, theirs, made)
	conflicts, _ = said(r)
	wantSaid(t, "conflicts while there is no number", conflicts, "passwd pg: user pg of the image is left out", "subuid pg: ")

	lines := strings.SplitAfter(made["passwd"].content, "\n")
	full["passwd"] = text(strings.Join(lines[:len(lines)-2], ""))
	full["subuid"] = text("alice:4200000000:65536\n")
	list, err := ParseList([]byte(full[ListPath].content))
	if err != nil {
		t.Fatal(err)
	}
	r, in := planWith(t, Options{}, theirs, theirs, full)
	if shown := over(theirs, in); !strings.Contains(shown["passwd"].content, "pg:x:999:") || !strings.Contains(shown["shadow"].content, "pg:") || !strings.Contains(shown["subuid"].content, "pg:") {
		t.Errorf("pg is not in\n%s\n%s", shown["passwd"].content[len(shown["passwd"].content)-100:], shown["shadow"].content)
	}
	conflicts, _ = said(r)
	wantSaid(t, "conflicts once it is in", conflicts)

	list.Keep("passwd")
	encoded, err := list.Encode()
	if err != nil {
		t.Fatal(err)
	}
	full[ListPath] = text(string(encoded))
	if _, out := planWith(t, Options{}, theirs, theirs, full); strings.Contains(over(theirs, out)["passwd"].content, "pg:") {
		t.Error("pg comes in, though somebody decided that it stays out")
	}
}

// A number that the image moves stays here, and is listed, on machines that never touched
// an account file as well: files belong to it. FAULTS 106
func TestMovedNumbers(t *testing.T) {
	base := accountsOf(
		"passwd", rootUser+"bus:x:101:101::/:/x\nmail:x:102:102::/:/x\n", "group", rootGroup+"bus:x:101:\nmail:x:102:\n",
		"shadow", "root:*:1::::::\nbus:!*:1::::::\nmail:!*:1::::::\n")
	theirs := accountsOf(
		"passwd", rootUser+"bus:x:102:102::/:/new\nmail:x:101:101::/:/x\n", "group", rootGroup+"bus:x:102:\nmail:x:101:\n",
		"shadow", "root:*:2::::::\nbus:!*:2::::::\nmail:!*:2::::::\n")
	theirs["mail.key"] = text("k").owner(101, 101).mode(0o600)
	for name, upper := range map[string]memory{
		"not here": {},
		"the same": accountsOf("passwd", base["passwd"].content, "group", base["group"].content),
	} {
		upper["bus.key"] = text("k").owner(101, 101).mode(0o600)
		r, made := planWith(t, Options{}, base, theirs, upper)
		shown := over(theirs, made)
		want := map[string]string{
			"passwd": rootUser + "bus:x:101:101::/:/new\nmail:x:102:102::/:/x\n",
			"group":  rootGroup + "bus:x:101:\nmail:x:102:\n",
			"shadow": theirs["shadow"].content,
		}
		wantContent(t, shown, want)
		if _, written := made["shadow"]; written {
			t.Errorf("%s: shadow is written, though it is as in the image", name)
		}
		if a, b := shown["bus.key"], shown["mail.key"]; a.UID != 101 || a.GID != 101 || b.UID != 102 || b.GID != 102 {
			t.Errorf("%s: bus.key belongs to %d:%d, mail.key to %d:%d", name, a.UID, a.GID, b.UID, b.GID)
		}
		if r.Users[101] != 102 || r.Users[102] != 101 || r.Groups[101] != 102 || r.Groups[102] != 101 {
			t.Errorf("%s: users %v, groups %v", name, r.Users, r.Groups)
		}
		conflicts, _ := said(r)
		wantSaid(t, "conflicts", conflicts, "passwd bus: user bus: number 101 here, 102 in the image", "passwd mail: ", "group bus: ", "group mail: ")

		r, made = planWith(t, Options{}, theirs, theirs, made)
		wantContent(t, over(theirs, made), want)
		if len(r.Conflicts) != 4 || r.Users[101] != 102 {
			t.Errorf("%s: after the next, conflicts %v, users %v", name, r.Conflicts, r.Users)
		}
	}
}

// The number of a user that the image drops is not given to the next: its files may still
// be there. The user itself goes, as nothing of it is this machine's. FAULTS 106
func TestNumberGivenOn(t *testing.T) {
	base := accountsOf("passwd", rootUser+"ntp:x:500:500::/:/x\n", "group", rootGroup+"ntp:x:500:\n", "shadow", "root:*:1::::::\nntp:$6$known:1::::::\n")
	theirs := accountsOf("passwd", rootUser+"time:x:500:500::/:/x\n", "group", rootGroup+"time:x:500:\n", "shadow", "root:*:1::::::\ntime:!*:1::::::\n")
	r, made := planWith(t, Options{}, base, theirs, memory{})
	shown := over(theirs, made)
	if n := shown["passwd"].content; strings.Contains(n, ":500:") || strings.Contains(n, "ntp") || !strings.Contains(n, "time:x:") {
		t.Errorf("passwd shows\n%s", n)
	}
	wantContent(t, shown, map[string]string{"shadow": theirs["shadow"].content})
	if r.Users[500] == 0 || r.Users[500] != r.Groups[500] {
		t.Errorf("users %v, groups %v", r.Users, r.Groups)
	}
	conflicts, notes := said(r)
	wantSaid(t, "conflicts", conflicts)
	wantSaid(t, "notes", notes, "user time of the image has number", "500 belonged to ntp")

	// A dropped user whose number nobody has, and a new one: the image's files show.
	theirs = accountsOf("passwd", rootUser+"time:x:501:501::/:/x\n", "group", rootGroup+"time:x:501:\n", "shadow", "root:*:1::::::\ntime:!*:1::::::\n")
	if _, made = planWith(t, Options{}, base, theirs, memory{}); len(made) > 1 {
		t.Errorf("made %v", made)
	}
}
