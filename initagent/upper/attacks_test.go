package upper

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/stateconf"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/initagent/subvolume"
)

// What an overlay has written that redirects renamed directories, and leaves content in
// the image: the machine has it as it was. FAULTS 107
func TestCarryRedirected(t *testing.T) {
	testkit.Root(t, "set trusted.overlay attributes")
	set := func(d *disk) {
		lay(t, d.base, map[string]string{"etc/dir/a": "=base's a", "etc/dir/b": "=base's b", "etc/dir/in/c": "=base's c", "etc/split": "=base's", "etc/from": "=base's from"})
		etcOf := filepath.Join(d.root, Directory, hash("a"), "etc/upper")
		lay(t, etcOf, map[string]string{
			"renamed/b": "gone", "renamed/new": "=mine", "renamed/in/d": "=mine", "dir": "gone", "split": "=", "moved-file": "=", "lost": "=", "from": "gone", "sub/beside": "dir", "wild": "dir", "wild/x": "=mine",
		})
		lay(t, d.base, map[string]string{"etc/sub/was/y": "=base's y"})
		for _, a := range [][3]string{
			{"renamed", redirect, "/dir"}, {"split", metacopy, ""}, {"moved-file", metacopy, ""}, {"moved-file", redirect, "/from"}, {"lost", metacopy, ""}, {"sub/beside", redirect, "was"}, {"wild", redirect, "/../../outside"},
		} {
			must(t, unix.Lsetxattr(filepath.Join(etcOf, a[0]), a[1], []byte(a[2]), 0))
		}
		must(t, os.Truncate(filepath.Join(etcOf, "split"), 6)) // as the kernel has it
		must(t, os.Chmod(filepath.Join(etcOf, "split"), 0o600))
	}
	d := newDisk(t, Directory+"/"+hash("a"))
	set(d)
	report, err := d.store.Carry(t.Context(), d.carry(Source{System: hash("a")}))
	must(t, err)
	top := filepath.Join(d.root, own(hash("b"), "etc", "upper"))
	got := shown(t, top)
	for name, want := range map[string]string{
		"renamed": "dir", "renamed/a": "=base's a", "renamed/b": "", "renamed/new": "=mine", "renamed/in/c": "=base's c", "renamed/in/d": "=mine", "split": "=base's", "moved-file": "=base's from", "lost": "", "sub/beside/y": "=base's y", "wild/x": "=mine",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	if info, err := os.Stat(filepath.Join(top, "split")); err != nil || info.Mode() != 0o600 {
		t.Errorf("split is %v, %v", info, err)
	}
	for name, attribute := range map[string]string{"renamed": redirect, "split": metacopy, "moved-file": redirect} {
		if n, err := unix.Lgetxattr(filepath.Join(top, name), attribute, nil); !errors.Is(err, unix.ENODATA) {
			t.Errorf("%s has %s still: %d, %v", name, attribute, n, err)
		}
	}
	if left := strings.Join(report.LeftOut, "\n"); !strings.Contains(left, `"/etc/lost": left out: its content is in the image before`) || !strings.Contains(left, "/etc/wild") || len(report.LeftOut) != 2 {
		t.Errorf("left out: %s", left)
	}

	d = newDisk(t, Directory+"/"+hash("a"))
	set(d)
	c := d.carry(Source{System: hash("a")})
	c.Base = ""
	report, err = d.store.Carry(t.Context(), c)
	must(t, err)
	got = shown(t, filepath.Join(d.root, own(hash("b"), "etc", "upper")))
	for name, want := range map[string]string{"renamed/a": "", "renamed/new": "=mine", "split": "", "ours": "=2"} {
		if got[name] != want {
			t.Errorf("without the image before: %s is %q, want %q", name, got[name], want)
		}
	}
	if len(report.LeftOut) != 6 {
		t.Errorf("without the image before, left out: %q", report.LeftOut)
	}
}

// Attributes that cannot be set here, and names that no path leads to, are left out. Where
// there is no room, nothing is.
func TestCarryUnfit(t *testing.T) {
	from := Directory + "/" + hash("a")
	deep := strings.Repeat("d/", 300) + "x"
	long := strings.Repeat(strings.Repeat("l", 250)+"/", 17)
	for _, c := range []struct {
		at  string
		err syscall.Errno
	}{
		{"attribute user.mine of ours", syscall.EPERM}, {"attribute user.mine of ours", syscall.ENOSPC}, {"attribute user.mine of ours", syscall.E2BIG}, {"make both", syscall.EINVAL}, {"make added", syscall.ENAMETOOLONG},
	} {
		d := newDisk(t, from)
		etcOf := filepath.Join(d.root, from, "etc/upper")
		lay(t, etcOf, map[string]string{deep: "=x"})
		mkdirs(t, etcOf, long)
		must(t, unix.Lsetxattr(filepath.Join(etcOf, "ours"), "user.mine", []byte("1"), 0))
		carry := d.carry(Source{System: hash("a")})
		hit := false
		carry.Step = func(what string) error {
			if what == c.at {
				hit = true
				return c.err
			}
			return nil
		}
		report, err := d.store.Carry(t.Context(), carry)
		must(t, err)
		if left := strings.Join(report.LeftOut, "\n"); !hit || len(report.LeftOut) != 3 || !strings.Contains(left, c.err.Error()) || !strings.Contains(left, "directories") || !strings.Contains(left, "4000 bytes") {
			t.Errorf("%v: left out: %s", c, left)
		}
		got := shown(t, filepath.Join(d.root, own(hash("b"), "etc", "upper")))
		want := maps.Clone(wantEtc)
		switch c.at {
		case "make both":
			delete(want, "both")
		case "make added":
			delete(want, "added")
			delete(want, "added/x")
		}
		maps.DeleteFunc(got, func(name, _ string) bool {
			return name[0] == 'd' || strings.HasPrefix(name, "ll") || strings.HasPrefix(name, "halogen")
		})
		if !maps.Equal(got, want) {
			t.Errorf("%v: /etc has %q, want %q", c, got, want)
		}
	}
	d := newDisk(t, from)
	c := d.carry(Source{System: hash("a")})
	c.Step = func(what string) error {
		if what == "write ours" {
			return syscall.ENOSPC
		}
		return nil
	}
	if _, err := d.store.Carry(t.Context(), c); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("without room: %v", err)
	}
}

// mkdirs makes directories whose path is longer than a call takes.
func mkdirs(t *testing.T, root, name string) {
	t.Helper()
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	for part := range strings.SplitSeq(strings.Trim(name, "/"), "/") {
		must(t, unix.Mkdirat(fd, part, 0o755))
		next, err := unix.Openat(fd, part, unix.O_PATH|unix.O_DIRECTORY, 0)
		must(t, err)
		must(t, unix.Close(fd))
		fd = next
	}
	must(t, unix.Close(fd))
}

// A key of the machine signs each file's attributes; the signature is no other file's.
func TestTreeHidesEVM(t *testing.T) {
	testkit.Root(t, "set security attributes")
	root := filepath.Join(t.TempDir(), "etc")
	lay(t, root, map[string]string{"x": "=x"})
	must(t, unix.Lsetxattr(filepath.Join(root, "x"), "security.other", []byte("1"), 0))
	tr := opened(t, root, true)
	tr.buf = make([]byte, maxXattrs)
	e, err := tr.Entry("x")
	if err != nil || e.Xattrs["security.other"] != "1" {
		t.Fatalf("%+v, %v", e, err)
	}
	err = unix.Lsetxattr(filepath.Join(root, "x"), evm, []byte("\x02hmac"), 0)
	must(t, err)
	if e, err = tr.Entry("x"); err != nil || len(e.Xattrs) != 1 {
		t.Errorf("%+v, %v", e, err)
	}
}

// A user who may write to a shared directory can take any name in it.
func TestCarryNameTaken(t *testing.T) {
	d := newDisk(t, Directory+"/"+hash("a"))
	for _, in := range []string{"var", "var/lib", "var/lib/d"} {
		lay(t, filepath.Join(d.root, Bind, in), map[string]string{beside + "/theirs": "=x"})
	}
	_, err := d.store.Carry(t.Context(), d.carry(Source{System: hash("a")}))
	must(t, err)
	if got := shown(t, filepath.Join(d.root, Bind, "var")); got["lib/fresh/deep/x"] != "=2" || got["lib/d/y"] != "=2" {
		t.Errorf("/var has %q", got)
	}
}

// A directory on another file system, as a subvolume, gets its entries from beside them.
func TestPutBeside(t *testing.T) {
	shm, err := os.MkdirTemp("/dev/shm", "upper")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(shm) })
	top := t.TempDir()
	lay(t, top, map[string]string{"own/" + beside + "/theirs": "=x", "image/new": "=image's"})
	all, err := os.Open(shm)
	must(t, err)
	defer all.Close()
	image := opened(t, filepath.Join(top, "image"), false)
	e, err := image.Entry("new")
	must(t, err)
	step := func(string) error { return nil }
	must(t, put(all, opened(t, filepath.Join(top, "own"), false), placing{"new", e, image, step, func(string, string) {}}))
	if got := shown(t, filepath.Join(top, "own")); !maps.Equal(got, map[string]string{"new": "=image's"}) {
		t.Errorf("it has %q", got)
	}
	if left := shown(t, shm); len(left) > 0 {
		t.Errorf("%q is left", left)
	}
}

// A release that kept one state for all systems did not make what a later image brought.
func TestCarryFromUnnamedMakesDirectories(t *testing.T) {
	d := newDisk(t, Unnamed)
	for _, in := range []string{d.base, d.image} {
		lay(t, in, map[string]string{"var/lib/never/here/file": "=x", "var/lib/never/link": "->here"})
	}
	_, err := d.store.Carry(t.Context(), d.carry(Source{Unnamed: true}))
	must(t, err)
	got := shown(t, filepath.Join(d.root, Bind, "var"))
	for name, want := range map[string]string{"lib/never/here": "dir", "lib/never/link": "->here", "lib/never/here/file": ""} {
		if got[name] != want {
			t.Errorf("/var/%s is %q, want %q", name, got[name], want)
		}
	}
}

// A shared directory that a trial makes has this machine's numbers.
func TestCarrySeedsWithOwnNumbers(t *testing.T) {
	testkit.Root(t, "give files away")
	d := newDisk(t, Directory+"/"+hash("a"))
	passwd := filepath.Join(d.root, Directory, hash("a"), "etc/upper/passwd")
	must(t, os.WriteFile(passwd, []byte(baseFiles["etc/passwd"][1:]+"other:x:999:1000::/:/bin/sh\n"), 0o644))
	lay(t, d.image, map[string]string{"srv/d/x": "=2", "srv/pipe": "pipe"})
	for _, name := range []string{"srv", "srv/d", "srv/d/x"} {
		must(t, os.Chown(filepath.Join(d.image, name), 999, 0))
	}
	must(t, os.Chmod(filepath.Join(d.image, "srv"), 0o750))
	_, err := d.store.Carry(t.Context(), d.carry(Source{System: hash("a")}))
	must(t, err)
	if got := shown(t, filepath.Join(d.root, Bind, "srv")); !maps.Equal(got, map[string]string{"d": "dir", "d/x": "=2", "pipe": "pipe"}) {
		t.Errorf("/srv has %q", got)
	}
	for _, name := range []string{"srv", "srv/d", "srv/d/x"} {
		info, err := os.Stat(filepath.Join(d.root, Bind, name))
		must(t, err)
		if uid := info.Sys().(*syscall.Stat_t).Uid; uid == 999 || uid == 0 || name == "srv" && info.Mode().Perm() != 0o750 {
			t.Errorf("/%s is %d's, %v", name, uid, info.Mode())
		}
	}
}

// On btrfs it is a subvolume, as one that is copied when it is mounted.
func TestCarrySeedsSubvolume(t *testing.T) {
	d := newDisk(t, "")
	d.root = testkit.Btrfs(t)
	d.store = Store{Root: d.root}
	lay(t, filepath.Join(d.root, Directory, hash("a"), "etc", "upper"), map[string]string{"passwd": baseFiles["etc/passwd"] + "other:x:999:1000::/:/bin/sh\n"})
	lay(t, d.image, map[string]string{"srv/d/x": "=2"})
	must(t, os.Chown(filepath.Join(d.image, "srv/d"), 999, 0))
	for range 2 { // what is left of a first attempt is removed
		_, err := d.store.Carry(t.Context(), d.carry(Source{System: hash("a")}))
		must(t, err)
		bind, err := os.Open(filepath.Join(d.root, Bind))
		must(t, err)
		if kind, err := subvolume.Look(int(bind.Fd()), "srv"); err != nil || kind != subvolume.Subvolume {
			t.Errorf("/srv is of kind %d, %v", kind, err)
		}
		if text, err := os.ReadFile(filepath.Join(bind.Name(), "srv/d/x")); err != nil || string(text) != "2" {
			t.Errorf("/srv/d/x is %q, %v", text, err)
		}
		bind.Close()
		must(t, os.RemoveAll(filepath.Join(d.root, Directory, hash("b"))))
		must(t, os.Rename(filepath.Join(d.root, Bind, "srv"), filepath.Join(d.root, Directory, seeding)))
	}
}

// Nor is anything in the way where one of the directories that it is moved between is a subvolume
// of its own, as root can make one of each.
func TestCarrySeedsAcrossSubvolumes(t *testing.T) {
	for _, apart := range []string{Bind, Directory} {
		d := newDisk(t, "")
		d.root = testkit.Btrfs(t)
		d.store = Store{Root: d.root}
		subvolumes(t, d.root, apart)
		lay(t, filepath.Join(d.root, Directory, hash("a"), "etc", "upper"), map[string]string{"passwd": baseFiles["etc/passwd"] + "other:x:999:1000::/:/bin/sh\n"})
		lay(t, d.image, map[string]string{"srv/d/x": "=2", "home/d/x": "=2"})
		for _, name := range []string{"srv/d", "home/d"} {
			must(t, os.Chown(filepath.Join(d.image, name), 999, 0))
		}
		lay(t, filepath.Join(d.root, Bind), map[string]string{seeding + "/cut": "=1"})
		c := d.carry(Source{System: hash("a")})
		c.Entries = append(slices.Clone(conf), stateconf.Entry{Mode: stateconf.Bind, Path: "/home"})
		_, err := d.store.Carry(t.Context(), c)
		if err != nil {
			t.Errorf("%s is a subvolume: %v", apart, err)
			continue
		}
		for name, want := range map[string]string{"srv/d/x": "2", "home/d/x": "2"} {
			if text, err := os.ReadFile(filepath.Join(d.root, Bind, name)); err != nil || string(text) != want {
				t.Errorf("%s is a subvolume: /%s is %q, %v", apart, name, text, err)
			}
		}
		if _, err := os.Lstat(filepath.Join(d.root, Bind, seeding)); !os.IsNotExist(err) {
			t.Errorf("%s is a subvolume: what was cut is left: %v", apart, err)
		}
	}
}

// A link that a trial has set goes back with it, unless somebody has changed it, and does
// not count as changed for the next release.
func TestCarryGivesLinksBack(t *testing.T) {
	d := newDisk(t, Directory+"/"+hash("a"))
	link := filepath.Join(d.root, Bind, "var/link")
	leads := func(want string) {
		t.Helper()
		if got, err := os.Readlink(link); err != nil || got != want {
			t.Fatalf("the link leads to %q, %v, want %q", got, err, want)
		}
	}
	_, err := d.store.Carry(t.Context(), d.carry(Source{System: hash("a")}))
	must(t, err)
	leads("new")
	names, err := d.store.Names(Directory)
	must(t, err)
	f := Found{Systems: Systems(names), Linked: Linked(names), Blessed: []string{hash("a")}}
	if stale := Stale(f, hash("a")); !slices.Equal(stale, []string{hash("b")}) {
		t.Errorf("stale are %q", stale)
	}
	must(t, d.store.GiveBack(hash("b"), d.image)) // as b, updated, would for an older one
	leads("new")

	// The trial is cut before it has state of its own, and given up.
	d = newDisk(t, Directory+"/"+hash("a"))
	link = filepath.Join(d.root, Bind, "var/link")
	c := d.carry(Source{System: hash("a")})
	c.Step = func(what string) error {
		if what == "flush" {
			return syscall.EIO
		}
		return nil
	}
	if _, err := d.store.Carry(t.Context(), c); err == nil {
		t.Fatal("it was not cut")
	}
	leads("new")
	names, err = d.store.Names(Directory)
	must(t, err)
	f = Found{Systems: Systems(names), Linked: Linked(names), Blessed: []string{hash("a")}}
	if stale := Stale(f, hash("a")); !slices.Equal(stale, []string{hash("b")}) {
		t.Errorf("stale are %q", stale)
	}
	// A release that knows nothing of it runs, and another one is tried.
	c = d.carry(Source{System: hash("a")})
	c.System = hash("c")
	must(t, os.Remove(filepath.Join(d.image, "var/link")))
	must(t, os.Symlink("newer", filepath.Join(d.image, "var/link")))
	_, err = d.store.Carry(t.Context(), c)
	must(t, err)
	leads("newer")
	must(t, d.store.GiveBack(hash("b"), d.base))
	leads("newer")
	must(t, os.Remove(link))
	must(t, os.Symlink("new", link))
	must(t, d.store.GiveBack(hash("b"), d.base)) // its list is gone
	leads("new")
}

// Put back where nobody has changed it.
func TestGiveBack(t *testing.T) {
	d := newDisk(t, Directory+"/"+hash("a"))
	_, err := d.store.Carry(t.Context(), d.carry(Source{System: hash("a")}))
	must(t, err)
	must(t, d.store.GiveBack(hash("b"), d.base))
	if got := shown(t, filepath.Join(d.root, Bind, "var")); got["link"] != "->old" || got["own-link"] != "->mine" {
		t.Errorf("the links are %q and %q", got["link"], got["own-link"])
	}
	names, err := d.store.Names(Directory)
	if must(t, err); len(Linked(names)) > 0 {
		t.Errorf("there is %q", names)
	}
	must(t, d.store.GiveBack(hash("b"), d.base))
	for _, text := range []string{"", "[", `[{"entry":"/../../x","path":"../../y","from":"a","to":"b"}]`, strings.Repeat(" ", maxLinks+1)} {
		must(t, os.WriteFile(filepath.Join(d.root, Directory, hash("b")+linked), []byte(text), 0o600))
		if err := d.store.GiveBack(hash("b"), d.base); err != nil {
			t.Errorf("%.60q: %v", text, err)
		}
	}
}

// A program of the image's that runs as a user whose number is somebody else's here.
func TestCarryRefusesAnothersSetuid(t *testing.T) {
	testkit.Root(t, "give files away")
	d := newDisk(t, Directory+"/"+hash("a"))
	passwd := filepath.Join(d.root, Directory, hash("a"), "etc/upper/passwd")
	must(t, os.WriteFile(passwd, []byte(baseFiles["etc/passwd"][1:]+"other:x:999:1000::/:/bin/sh\n"), 0o644))
	lay(t, d.image, map[string]string{"usr/bin/d": "=d", "usr/lib/d/data": "=d", "var/lib/fresh/own": "=d"})
	for _, name := range []string{"usr/bin/d", "usr/lib/d/data", "var/lib/fresh/own"} {
		must(t, os.Chown(filepath.Join(d.image, name), 999, 0))
	}
	must(t, os.Chmod(filepath.Join(d.image, "var/lib/fresh/own"), os.ModeSetuid|0o755))
	report, err := d.store.Carry(t.Context(), d.carry(Source{System: hash("a")}))
	must(t, err)
	want := `it belongs to the image's user "d", number 999, which is "other" on this machine`
	slices.Sort(report.LeftOut)
	if !slices.Equal(report.LeftOut, []string{`"/usr/bin/d": ` + want, `"/usr/lib/d/data": ` + want}) {
		t.Errorf("listed are %q", report.LeftOut)
	}

	must(t, d.store.Discard(Directory+"/"+hash("b"), nil))
	must(t, os.Chmod(filepath.Join(d.image, "usr/bin/d"), os.ModeSetuid|0o755))
	_, err = d.store.Carry(t.Context(), d.carry(Source{System: hash("a")}))
	if err == nil || err.Error() != "/usr/bin/d runs as its user: "+want+`. Rename or renumber "other" here (usermod, groupmod), and try again` {
		t.Errorf("%v", err)
	}
	if found := d.states(); !slices.Equal(found, []string{hash("a")}) {
		t.Errorf("there is %q", found)
	}
}

// A release whose state.conf has no overlay for a directory keeps what it held for one
// that has it again.
func TestCarryKeepsWhatIsNotMounted(t *testing.T) {
	for name, from := range map[string]Source{Directory + "/" + hash("a"): {System: hash("a")}, Unnamed: {Unnamed: true}} {
		d := newDisk(t, name)
		opt := map[string]string{"tool/x": "=mine", "removed": "gone", "link": "->tool"}
		lay(t, filepath.Join(d.root, name, "opt/upper"), opt)
		report, err := d.store.Carry(t.Context(), d.carry(from))
		must(t, err)
		must(t, d.whole())
		opt["tool"] = "dir"
		if got := shown(t, filepath.Join(d.root, own(hash("b"), "opt", "upper"))); !maps.Equal(got, opt) {
			t.Errorf("/opt has %q, want %q", got, opt)
		}
		if len(report.LeftOut) != 1 || !strings.Contains(report.LeftOut[0], "/opt/upper") {
			t.Errorf("listed are %q", report.LeftOut)
		}
	}
}
