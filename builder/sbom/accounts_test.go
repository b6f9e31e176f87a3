package sbom

import (
	"slices"
	"strings"
	"testing"
)

// accounts are written "u:name=1" for a user and "g:name=1" for a group.
func accounts(t *testing.T, text string) []Account {
	t.Helper()
	files := memory{}
	for _, one := range strings.Fields(text) {
		kind, rest, _ := strings.Cut(one, ":")
		name, number, _ := strings.Cut(rest, "=")
		file := map[string]string{"u": "etc/passwd", "g": "etc/group"}[kind]
		files[file] += name + ":x:" + number + ":0:secret::\n"
	}
	all, err := ReadAccounts(files)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestMoved(t *testing.T) {
	for _, c := range []struct{ was, is, want string }{
		{"", "", ""},
		{"u:root=0 g:root=0", "u:root=0 g:root=0", ""},
		{"u:root=0", "u:root=0 u:new=999", ""},
		{"u:root=0 u:gone=999", "u:root=0 u:other=999", `user "other" has 999, which was that of "gone"`},
		{"u:gone=999 g:gone=999", "u:other=998 g:other=999", `group "other" has 999, which was that of "gone"`},
		{"u:root=0 u:toor=0", "u:root=0 u:admin=0", ""},  // still root's
		{"u:a=1", "u:a=2 u:b=1", `user "a" from 1 to 2`}, // said once
		{"u:gone=999", "u:one=999 u:two=999 u:one=999", `user "one" has 999, which was that of "gone"; user "two" has 999, which was that of "gone"`},
		{"u:gone=999 u:gone=5", "u:other=5", ""}, // never had it
		{"u:bus=101 g:bus=101", "u:bus=102 g:bus=101", `user "bus" from 101 to 102`},
		{"u:bus=101 g:bus=101", "u:bus=101 g:bus=103", `group "bus" from 101 to 103`},
		{"u:a=1 u:b=2", "u:a=2 u:b=1", `user "a" from 1 to 2; user "b" from 2 to 1`},
		{"u:a=1 u:a=5", "u:a=1 u:a=7", ""}, // the first counts
		{"u:a=1 u:a=5", "u:a=5", `user "a" from 1 to 5`},
		{"", "u:a=1", ""}, // an earlier release of halogen wrote it
	} {
		if got := strings.Join(Moved(accounts(t, c.was), accounts(t, c.is)), "; "); got != c.want {
			t.Errorf("from %q to %q: %q, want %q", c.was, c.is, got, c.want)
		}
	}
}

// The bill has names and numbers, and nothing else of the account files.
func TestAccountsInBill(t *testing.T) {
	files := memory{
		"etc/passwd": "# c:x:1\nroot:$6$secret:0:0:Secret Name:/secret:/bin/sh\n+nis\nshort:x\nbad:x:y:0::/:\nlarge:x:4294967296:0::/:\nä b:x:4294967295:0::/:\n",
		"etc/group":  "root:x:0:\n",
		// of ostree
		"usr/lib/passwd": "polkitd:x:999:998::/:/sbin/nologin\n", "usr/lib/group": "polkitd:x:998:\n",
	}
	all, err := ReadAccounts(files)
	want := []Account{{"user", "root", 0}, {"user", "ä b", 4294967295}, {"user", "polkitd", 999}, {"group", "root", 0}, {"group", "polkitd", 998}}
	if err != nil || !slices.Equal(all, want) {
		t.Errorf("%+v, %v", all, err)
	}
	b := bill()
	b.Accounts = all
	text, err := b.Encode()
	if err != nil || strings.Contains(strings.ToLower(string(text)), "secret") {
		t.Errorf("%s, %v", text, err)
	}
	if got, err := AccountsOf(text); err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if text, err = bill().Encode(); err != nil {
		t.Fatal(err)
	}
	if got, err := AccountsOf(text); err != nil || len(got) > 0 {
		t.Errorf("without accounts: %+v, %v", got, err)
	}
	for _, text := range []string{"", "x", `{"metadata":{"component":{"name":"x","type":"data","properties":[{"name":"halogenos:user:a","value":"-1"}]}}}`} {
		if _, err := AccountsOf([]byte(text)); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
	if got, err := AccountsOf([]byte(`{"metadata":{"component":{"name":"x","type":"data","properties":[{"name":"halogenos:later:a","value":"x"},{"name":"other"}]}}}`)); err != nil || len(got) > 0 {
		t.Errorf("others' properties: %+v, %v", got, err)
	}
}
