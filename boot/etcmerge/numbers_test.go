package etcmerge

import (
	"strings"
	"testing"
)

// Numbers are read as the C library reads them. FAULTS 106
func TestNumber(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "0990": 990, "+7": 7, " 7": 7, "4294967295": 1<<32 - 1, "99999999999": 1<<32 - 1, "": -1, "7x": -1, "-7": -1, "0x7": -1, "+": -1} {
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
		"passwd": rootUser + "bob:x:0990:990::/:/x\nsvc:x:999:999::/:/x\n",
		"group":  rootGroup + "bob:x:990\nsvc:x:999:\n",
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
