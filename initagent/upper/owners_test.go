package upper

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/testkit"
)

// A program that gives rights to a group whose number is somebody else's here, as
// dbus-daemon-launch-helper does: root's and setuid, and its group alone may run it.
func TestCarryRefusesRightsOfAnothersGroup(t *testing.T) {
	testkit.Root(t, "give files to others")
	for name, c := range map[string]struct {
		uid, gid   int
		mode       uint32
		capability bool
		refused    string
	}{
		"setuid, for the group":         {0, 101, 0o4754, false, "runs with other rights for its group"},
		"setuid, for everybody":         {0, 101, 0o4755, false, ""},
		"setuid, not for the group":     {0, 101, 0o4744, false, ""},
		"setgid":                        {0, 101, 0o2755, false, "runs as its group"},
		"setgid, for its user":          {101, 0, 0o2750, false, "runs with other rights for its user"},
		"setgid, for everybody":         {101, 0, 0o2755, false, ""},
		"capabilities, for the group":   {0, 101, 0o750, true, "runs with capabilities for its group"},
		"capabilities, for everybody":   {0, 101, 0o755, true, ""},
		"for the group":                 {0, 101, 0o750, false, ""},
		"of a group that has not moved": {0, 0, 0o4750, true, ""},
	} {
		d := newDisk(t, Directory+"/"+hash("a"))
		lay(t, d.base, map[string]string{"etc/group": "=root:x:0:\n"})
		lay(t, d.image, map[string]string{"etc/group": "=root:x:0:\nbus:x:101:\n", "etc/passwd": "=root:x:0:0::/root:/bin/sh\nbus:x:101:101::/:/bin/sh\n", "usr/lib/helper": "=x"})
		upper := filepath.Join(d.root, Directory, hash("a"), "etc/upper")
		lay(t, upper, map[string]string{"group": "=root:x:0:\nbob:x:101:\n", "passwd": "=root:x:0:0::/root:/bin/sh\nbob:x:101:101::/:/bin/sh\n"})
		helper := filepath.Join(d.image, "usr/lib/helper")
		must(t, os.Chown(helper, c.uid, c.gid))
		must(t, unix.Chmod(helper, c.mode))
		if c.capability {
			must(t, unix.Setxattr(helper, capability, []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
		}
		report, err := d.store.Carry(t.Context(), d.carry(Source{System: hash("a")}))
		switch {
		case c.refused != "" && (err == nil || !strings.Contains(err.Error(), "/usr/lib/helper "+c.refused) || !strings.Contains(err.Error(), `Rename or renumber "bob" here`)):
			t.Errorf("%s: %v", name, err)
		case c.refused == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case err == nil && (len(report.LeftOut) == 1) == (c.gid+c.uid == 0):
			t.Errorf("%s: listed are %q", name, report.LeftOut)
		}
	}
}

// An account in the way of a program of the image's is found without a write.
func TestTryPeople(t *testing.T) {
	testkit.Root(t, "give files to others")
	d := newDisk(t, "")
	lay(t, d.image, map[string]string{
		"etc/group": "=root:x:0:\nguest:x:1000:\n", "etc/passwd": "=root:x:0:0::/root:/bin/sh\nguest:x:1000:1000::/var/guest:/bin/sh\n", "usr/bin/game": "=x",
	})
	game := filepath.Join(d.image, "usr/bin/game")
	must(t, os.Chown(game, 1000, 0))
	for _, c := range []struct {
		mode   uint32
		number string
		says   string
	}{
		{0o4755, "1000", `/usr/bin/game runs as its user: it belongs to the image's user "guest", number 1000, which is "anna" on this machine. Rename or renumber "anna" here`},
		{0o755, "1000", ""}, {0o4755, "1001", ""},
	} {
		must(t, unix.Chmod(game, c.mode))
		carry := d.carry(Source{})
		carry.People, _ = etcmerge.PeopleOf(map[string][]byte{"passwd": []byte("anna:x:" + c.number + ":100::/home/anna:/bin/sh\n")})
		carry.Step = func(what string) error { t.Errorf("it does %s", what); return nil }
		err := d.store.TryPeople(t.Context(), carry)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%o, %s: %v", c.mode, c.number, err)
		}
	}
}

// Who has which number is read once, however many files there are and users.
func TestOwnersReadsAccountsOnce(t *testing.T) {
	d := newDisk(t, "")
	lay(t, d.image, map[string]string{"etc/group": "=root:x:0:\nd:x:999:\n"})
	lay(t, d.root, map[string]string{"etc/upper/passwd": "=me:x:5:5::/:/\nother:x:999:5::/:/\nlater:x:999:5::/:/\nbad\nworse:x:y:5::/:/\n"})
	top, err := os.Open(d.root)
	must(t, err)
	defer top.Close()
	o := &owners{maker: &maker{Carry: d.carry(Source{})}, etc: int(top.Fd())}
	for range 2 {
		if image, here := o.name("passwd", 999); image != "d" || here != "other" {
			t.Errorf("user 999 is %q in the image and %q here", image, here)
		}
		if image, here := o.name("group", 999); image != "d" || here != "" {
			t.Errorf("group 999 is %q in the image and %q here", image, here)
		}
		must(t, os.RemoveAll(filepath.Join(d.root, "etc")))
	}
}

// A look at a large image ends when its time has run out.
func TestOwnersEnds(t *testing.T) {
	testkit.Root(t, "give files to others")
	d := newDisk(t, Directory+"/"+hash("a"))
	passwd := filepath.Join(d.root, Directory, hash("a"), "etc/upper/passwd")
	must(t, os.WriteFile(passwd, []byte(baseFiles["etc/passwd"][1:]+"other:x:999:1000::/:/bin/sh\n"), 0o644))
	lay(t, d.image, map[string]string{"usr/bin/x": "="})
	ctx, cancel := context.WithCancel(t.Context())
	m := &maker{Carry: d.carry(Source{}), users: map[uint32]uint32{999: 990}}
	cancel()
	if err := m.checkOwners(ctx, -1); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// A program that gives rights is found however many entries come before it, and an image
// that cannot be searched as a whole is not run.
func TestCarrySearchesAllOfTheImage(t *testing.T) {
	testkit.Root(t, "give files to others")
	d := newDisk(t, Directory+"/"+hash("a"))
	lay(t, d.base, map[string]string{"etc/group": "=root:x:0:\n"})
	lay(t, d.image, map[string]string{"etc/group": "=root:x:0:\nbus:x:101:\n"})
	lay(t, filepath.Join(d.root, Directory, hash("a"), "etc/upper"), map[string]string{"group": "=root:x:0:\nbob:x:101:\n"})
	deep := strings.Repeat("d/", maxImageDepth+10)
	mkdirs(t, d.image, deep)
	_, err := d.store.Carry(t.Context(), d.carry(Source{System: hash("a")}))
	if err == nil || !strings.Contains(err.Error(), "nobody can say whether a program there gives rights") {
		t.Errorf("%v", err)
	}
}
