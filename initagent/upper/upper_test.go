package upper

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/stateconf"
	"halogenos.internal/boot/testkit"
)

// disk is a root partition with the images around it.
type disk struct {
	t                 testing.TB
	root, base, image string
	store             Store
	unnamed           bool // it is of a release that kept one state for all systems
}

// states are the names in the directory of states, without the lists of links.
func (d *disk) states() []string {
	names, err := d.store.Names(Directory)
	must(d.t, err)
	return slices.DeleteFunc(names, func(n string) bool { return strings.HasSuffix(n, linked) })
}

var conf = []stateconf.Entry{{Mode: stateconf.Overlay, Path: "/etc"}, {Mode: stateconf.Overlay, Path: "/usr/local"}, {Mode: stateconf.Bind, Path: "/var"}, {Mode: stateconf.Bind, Path: "/srv"}, {Mode: stateconf.Tmpfs, Path: "/tmp"}}

// A machine whose system a has run, and whose system b starts for the first time.
var (
	baseFiles = map[string]string{
		"etc/same": "=1", "etc/theirs": "=old", "etc/ours": "=1", "etc/gone-here": "=1", "etc/both": "=a\nb\nc\nd\ne\n", "etc/passwd": "=root:x:0:0::/root:/bin/sh\n",
		"usr/local/passwd": "=1", "var/kept": "=1", "var/deleted": "dir", "var/link": "->old", "var/own-link": "->old", "var/lib/d/x": "=1",
	}
	imageFiles = map[string]string{
		"etc/same": "=1", "etc/theirs": "=new", "etc/ours": "=1", "etc/gone-here": "=1", "etc/both": "=a\nb\nc\nd\nE\n", "etc/passwd": "=root:x:0:0::/root:/bin/sh\nd:x:999:999::/:/bin/false\n", "etc/fresh": "=new",
		"usr/local/passwd": "=2", "var/kept": "=2", "var/deleted": "dir", "var/link": "->new", "var/own-link": "->new", "var/lib/d/x": "=2", "var/lib/d/y": "=2", "var/lib/fresh/deep/x": "=2", "var/lib/fresh/l": "->x", "var/taken/x": "=2",
	}
	oursFiles = map[string]string{"ours": "=2", "gone-here": "gone", "both": "=A\nb\nc\nd\ne\n", "added/x": "=mine", "passwd": "=root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n", ".updated": "=t"}
	bindFiles = map[string]string{"var/kept": "=mine", "var/link": "->old", "var/own-link": "->mine", "var/lib/d/x": "=mine", "var/.updated": "=t", "var/taken": "=mine"}
	wantEtc   = map[string]string{
		"ours": "=2", "gone-here": "gone", "both": "=A\nb\nc\nd\nE\n", "added": "dir", "added/x": "=mine",
		"passwd": "=root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\nd:x:999:999::/:/bin/false\n",
	}
	wantVar = map[string]string{
		"kept": "=mine", "link": "->new", "own-link": "->mine", "lib": "dir", "lib/d": "dir", "lib/d/x": "=mine", "lib/d/y": "=2",
		"lib/fresh": "dir", "lib/fresh/deep": "dir", "lib/fresh/deep/x": "=2", "lib/fresh/l": "->x", "taken": "=mine",
	}
)

func newDisk(t testing.TB, ours string) *disk {
	top := t.TempDir()
	d := &disk{t: t, root: filepath.Join(top, "root"), base: filepath.Join(top, "base"), image: filepath.Join(top, "image")}
	d.store, d.unnamed = Store{Root: d.root}, ours == Unnamed
	lay(t, d.base, baseFiles)
	lay(t, d.image, imageFiles)
	lay(t, d.root, map[string]string{"halogen": "dir"})
	lay(t, filepath.Join(d.root, Bind), bindFiles)
	if ours != "" {
		lay(t, filepath.Join(d.root, ours, "etc", "upper"), oursFiles)
		lay(t, filepath.Join(d.root, ours, "usr-local", "upper"), map[string]string{"passwd": "=mine"})
	}
	return d
}

func (d *disk) carry(from Source) Carry {
	return Carry{
		System: hash("b"), From: from, Image: d.image, Base: d.base, Entries: conf, Options: etcmerge.Options{From: 1, To: 2},
		Progress: func(int64) func(int64) { return func(int64) {} },
	}
}

// whole says what is missing of the state that system b is to have.
func (d *disk) whole() error {
	got := shown(d.t, filepath.Join(d.root, own(hash("b"), "etc", "upper")))
	delete(got, "halogen")
	delete(got, etcmerge.ListPath)
	if !maps.Equal(got, wantEtc) {
		return fmt.Errorf("/etc has %q, want %q", got, wantEtc)
	}
	if got := shown(d.t, filepath.Join(d.root, own(hash("b"), "usr-local", "upper"))); got["passwd"] != "=mine" || !strings.Contains(got[etcmerge.ListPath], `"path": "passwd"`) || len(got) != 3 {
		return fmt.Errorf("/usr/local has %q", got)
	}
	want := maps.Clone(wantVar)
	if d.unnamed {
		want["deleted"] = "dir"
	}
	if got := shown(d.t, filepath.Join(d.root, Bind, "var")); !maps.Equal(got, want) {
		return fmt.Errorf("/var has %q, want %q", got, want)
	}
	for _, entry := range []string{"etc", "usr-local"} {
		if info, err := os.Stat(filepath.Join(d.root, own(hash("b"), entry, "work"))); err != nil || !info.IsDir() {
			return fmt.Errorf("%s has no work directory: %w", entry, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(d.root, Bind, "srv")); err == nil {
		return errors.New("/srv, which is not in the image, was made")
	}
	return nil
}

// FAULTS 105
func TestCarry(t *testing.T) {
	local := etcmerge.Name("/usr/local/passwd")
	for name, c := range map[string]struct {
		ours      string
		from      Source
		conflicts []etcmerge.Name
	}{
		"of another system": {Directory + "/" + hash("a"), Source{System: hash("a")}, []etcmerge.Name{local}},
		// What it hid is not what somebody deleted: lines of the image are missing.
		"as it was kept for all": {Unnamed, Source{Unnamed: true}, []etcmerge.Name{"/etc/both", "/etc/ours", local}},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t, c.ours)
			before := shown(t, filepath.Join(d.root, c.ours))
			report, err := d.store.Carry(t.Context(), d.carry(c.from))
			must(t, err)
			must(t, d.whole())
			if after := shown(t, filepath.Join(d.root, c.ours)); !maps.Equal(before, after) {
				t.Errorf("the state that it was made from was %q and is %q", before, after)
			}
			var conflicts []etcmerge.Name
			for _, c := range report.Conflicts {
				conflicts = append(conflicts, c.Path)
			}
			if !slices.Equal(conflicts, c.conflicts) {
				t.Errorf("report is %+v", report)
			}
			if names, err := d.store.Names(Directory); err != nil || len(Systems(names)) == 0 {
				t.Errorf("systems are %v, %v", names, err)
			}
		})
	}
}

// Whose number is whose is decided in /etc, for all directories, whatever their order and
// whether anything was kept for them. FAULTS 106
func TestCarryOwners(t *testing.T) {
	testkit.Root(t, "give files to others")
	d := newDisk(t, Directory+"/"+hash("a"))
	must(t, os.RemoveAll(filepath.Join(d.root, Directory, hash("a"), "usr-local")))
	lay(t, d.image, map[string]string{"etc/passwd": "=root:x:0:0::/root:/bin/sh\nsvc:x:1000:0::/:/bin/false\n", "usr/local/svc": "=1", "var/lib/svc": "dir", "var/lib/lost": "=1", "var/lib/kept": "=1"})
	lay(t, d.base, map[string]string{"etc/passwd": "=root:x:0:0::/root:/bin/sh\nlost:x:990:0::/:/bin/false\n"})
	lay(t, d.image, map[string]string{"etc/passwd": "=root:x:0:0::/root:/bin/sh\nsvc:x:1000:0::/:/bin/false\nlost:x:990:0::/:/bin/false\n"})
	lay(t, filepath.Join(d.root, Directory, hash("a"), "etc", "upper"), map[string]string{"passwd": "=root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\nyou:x:990:990::/:/bin/sh\n"})
	for name, uid := range map[string]int{"usr/local/svc": 1000, "var/lib/svc": 1000, "var/lib/lost": 990, "var/lib/kept": 5} {
		must(t, os.Chown(filepath.Join(d.image, name), uid, 0))
		must(t, unix.Chmod(filepath.Join(d.image, name), 0o4755))
	}
	c := d.carry(Source{System: hash("a")})
	c.Entries = []stateconf.Entry{conf[1], conf[2], conf[0]}
	_, err := d.store.Carry(t.Context(), c)
	must(t, err)
	local := filepath.Join(own(hash("b"), "usr-local", "upper"), "svc")
	for name, want := range map[string][2]uint32{local: {1001, 0o4755}, Bind + "/var/lib/svc": {1001, 0o4755}, Bind + "/var/lib/lost": {0, 0o755}, Bind + "/var/lib/kept": {5, 0o4755}} {
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(d.root, name), &st))
		if st.Uid != want[0] || st.Mode&0o7777 != want[1] {
			t.Errorf("%s belongs to %d with permissions %o, want %d and %o", name, st.Uid, st.Mode&0o7777, want[0], want[1])
		}
	}
}

// A new machine's state is empty, and looks like the image's directory.
func TestCarryNothing(t *testing.T) {
	d := newDisk(t, "")
	must(t, os.RemoveAll(filepath.Join(d.root, Bind)))
	must(t, os.Chmod(filepath.Join(d.image, "etc"), 0o711))
	c := d.carry(Source{})
	c.Base = ""
	_, err := d.store.Carry(t.Context(), c)
	must(t, err)
	top := filepath.Join(d.root, own(hash("b"), "etc", "upper"))
	if got := shown(t, top); len(got) != 0 {
		t.Errorf("/etc has %q", got)
	}
	if info, err := os.Stat(top); err != nil || info.Mode().Perm() != 0o711 {
		t.Errorf("/etc is %v, %v", info.Mode(), err)
	}
	if _, err := os.Lstat(filepath.Join(d.root, Bind)); err == nil {
		t.Error("a shared directory was made, which is to be seeded whole")
	}
}

// Without the image before, all that was changed is this machine's, and what it lacks
// of the image appears. FAULTS 105
func TestCarryWithoutBase(t *testing.T) {
	d := newDisk(t, Directory+"/"+hash("a"))
	c := d.carry(Source{System: hash("a")})
	c.Base = ""
	_, err := d.store.Carry(t.Context(), c)
	must(t, err)
	got := shown(t, filepath.Join(d.root, own(hash("b"), "etc", "upper")))
	for name, want := range map[string]string{"ours": "=2", "gone-here": "gone", "both": oursFiles["both"], "added/x": "=mine", "passwd": wantEtc["passwd"]} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	got = shown(t, filepath.Join(d.root, Bind, "var"))
	for name, want := range map[string]string{"link": "->old", "deleted": "dir", "kept": "=mine", "lib/fresh/deep/x": "=2"} {
		if got[name] != want {
			t.Errorf("/var/%s is %q, want %q", name, got[name], want)
		}
	}
}

// errCut is a power cut: nothing is done from there on.
var errCut = errors.New("cut")

// Power is cut before every change that the making of a state makes on the file system:
// what it is made from is as it was, the system has the whole of its own or none, and
// the next start makes it whole. FAULTS 105
func TestCarryCut(t *testing.T) {
	from := Directory + "/" + hash("a")
	names := map[string]bool{}
	for at := 1; ; at++ {
		d := newDisk(t, from)
		before := shown(t, filepath.Join(d.root, from))
		c := d.carry(Source{System: hash("a")})
		n, last := 0, ""
		cut := func() (done bool) {
			defer func() {
				if p := recover(); p != nil && p != errCut {
					panic(p)
				}
			}()
			c.Step = func(what string) error {
				if n++; n == at {
					last = what
					panic(errCut)
				}
				return nil
			}
			_, err := d.store.Carry(t.Context(), c)
			must(t, err)
			return true
		}
		if cut() {
			if at < 55 {
				t.Errorf("there are only %d steps", at)
			}
			t.Logf("%d cuts, of %d kinds", at-1, len(names))
			return
		}
		names[strings.Fields(last)[0]] = true
		if got := shown(t, filepath.Join(d.root, from)); !maps.Equal(before, got) {
			t.Fatalf("cut %d, before %s: the state before is %q, and was %q", at, last, got, before)
		}
		found, err := d.store.Names(Directory)
		if must(t, err); len(Systems(found)) != 1 {
			t.Fatalf("cut %d, before %s: there is %q", at, last, found)
		}
		for name := range shown(t, filepath.Join(d.root, Bind)) {
			if strings.Contains(name, unfinished) {
				t.Fatalf("cut %d, before %s: %s is left", at, last, name)
			}
		}
		c.Step = nil
		_, err = d.store.Carry(t.Context(), c)
		must(t, err)
		if err := d.whole(); err != nil {
			t.Fatalf("cut %d, before %s: %v", at, last, err)
		}
		if found := d.states(); len(found) != 2 {
			t.Fatalf("cut %d, before %s: there is %q", at, last, found)
		}
	}
}

// What cannot be written is named, the state before is as it was, and nothing is left
// behind.
func TestCarryFails(t *testing.T) {
	from := Directory + "/" + hash("a")
	for _, at := range []string{"write both", "make work", "rename", "flush"} {
		d := newDisk(t, from)
		before := shown(t, filepath.Join(d.root, from))
		c := d.carry(Source{System: hash("a")})
		hit := false
		c.Step = func(what string) error {
			if what == at {
				hit = true
				return syscall.ENOSPC
			}
			return nil
		}
		_, err := d.store.Carry(t.Context(), c)
		if !hit || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: %v", at, err)
		}
		if at == "write both" && (err == nil || err.Error() != "/etc: make both: no space left on device") {
			t.Errorf("%s: %v", at, err)
		}
		if got := shown(t, filepath.Join(d.root, from)); !maps.Equal(before, got) {
			t.Errorf("%s: the state before is %q, and was %q", at, got, before)
		}
		if found := d.states(); len(found) != 1 {
			t.Errorf("%s: there is %q", at, found)
		}
	}
}

// FAULTS 107
func TestCarryHostile(t *testing.T) {
	from := Directory + "/" + hash("a")
	d := newDisk(t, from)
	lay(t, filepath.Dir(d.root), map[string]string{"outside/passwd": "=secret", "outside/d/x": "=secret"})
	out := filepath.Join(filepath.Dir(d.root), "outside")
	etcOf := filepath.Join(d.root, from, "etc", "upper")
	lay(t, etcOf, map[string]string{
		"link-out": "->" + out, "link-file": "->" + filepath.Join(out, "passwd"), "pipe": "pipe", "a\nnewline": "=x", "theirs/in-a-files-place": "=x", strings.Repeat("n", 255): "=x", "\xff\xfe": "=x",
	})
	must(t, os.RemoveAll(filepath.Join(d.root, Bind, "var", "lib")))
	must(t, os.Symlink(filepath.Join(out, "d"), filepath.Join(d.root, Bind, "var", "lib")))
	_, err := d.store.Carry(t.Context(), d.carry(Source{System: hash("a")}))
	must(t, err)
	got := shown(t, filepath.Join(d.root, own(hash("b"), "etc", "upper")))
	for name, want := range map[string]string{"link-out": "->" + out, "pipe": "pipe", "a\nnewline": "=x", "theirs/in-a-files-place": "=x", "\xff\xfe": "=x"} {
		if got[name] != want {
			t.Errorf("%q is %q, want %q", name, got[name], want)
		}
	}
	if got := shown(t, out); !maps.Equal(got, map[string]string{"passwd": "=secret", "d": "dir", "d/x": "=secret"}) {
		t.Errorf("outside is %q", got)
	}
}

// A directory of the root partition goes whole, cut where it may be.
func TestDiscardCut(t *testing.T) {
	name := Directory + "/" + hash("a")
	for at := 1; ; at++ {
		d := newDisk(t, name)
		lay(t, filepath.Join(d.root, Directory), map[string]string{hash("c") + "/etc/upper/x": "=1", "outside/x": "=1"})
		must(t, os.Symlink("../outside", filepath.Join(d.root, name, "link")))
		before := shown(t, filepath.Join(d.root, name))
		n, done := 0, false
		func() {
			defer func() {
				if p := recover(); p != nil && p != errCut {
					panic(p)
				}
			}()
			must(t, d.store.Discard(name, func(string) error {
				if n++; n == at {
					panic(errCut)
				}
				return nil
			}))
			done = true
		}()
		if found, _ := d.store.Names(Directory); len(Systems(found)) == 2 {
			if got := shown(t, filepath.Join(d.root, name)); !maps.Equal(before, got) {
				t.Fatalf("cut %d: it has its name, and only %q", at, got)
			}
		}
		must(t, d.store.Discard(name, nil))
		found, _ := d.store.Names(Directory)
		if len(Systems(found)) != 1 || len(found) != 2 {
			t.Fatalf("cut %d: there is %q", at, found)
		}
		if got := shown(t, filepath.Join(d.root, Directory, "outside")); len(got) != 1 {
			t.Fatalf("cut %d: what a link leads to is %q", at, got)
		}
		if done {
			return
		}
	}
}

// A user of the image's whose number this machine has given away gets another one, and
// so do the files that the image brings for them.
func TestCarryTranslates(t *testing.T) {
	testkit.Root(t, "give files away")
	d := newDisk(t, Directory+"/"+hash("a"))
	passwd := filepath.Join(d.root, Directory, hash("a"), "etc/upper/passwd")
	must(t, os.WriteFile(passwd, []byte(baseFiles["etc/passwd"][1:]+"other:x:999:1000::/:/bin/sh\n"), 0o644))
	must(t, os.Chown(filepath.Join(d.image, "var/lib/fresh"), 999, 0))
	must(t, os.Chmod(filepath.Join(d.image, "var/lib/fresh"), os.ModeSetgid|0o770))
	_, err := d.store.Carry(t.Context(), d.carry(Source{System: hash("a")}))
	must(t, err)
	var number uint32
	for line := range strings.Lines(shown(t, filepath.Join(d.root, own(hash("b"), "etc", "upper")))["passwd"]) {
		_, _ = fmt.Sscanf(line, "d:x:%d:", &number)
	}
	info, err := os.Stat(filepath.Join(d.root, Bind, "var/lib/fresh"))
	must(t, err)
	if got := info.Sys().(*syscall.Stat_t).Uid; number == 0 || number == 999 || got != number || info.Mode() != os.ModeDir|os.ModeSetgid|0o770 {
		t.Errorf("the user is %d, and the directory's owner %d (%v)", number, got, info.Mode())
	}
}

// What the first start of a trial costs: /etc with 2,000 files, of which 50 were changed.
func BenchmarkCarry(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		d := newDisk(b, "")
		for i := range 2000 {
			name := fmt.Sprintf("etc/d%d/f%d", i%100, i)
			lay(b, d.base, map[string]string{name: strings.Repeat("a line of text\n", 60)})
			lay(b, d.image, map[string]string{name: strings.Repeat("a line of text\n", 60+i%2)})
			if i%40 == 0 {
				lay(b, filepath.Join(d.root, Directory, hash("a"), "etc/upper"), map[string]string{name[4:]: "mine\n" + strings.Repeat("a line of text\n", 60)})
			}
		}
		b.StartTimer()
		_, err := d.store.Carry(b.Context(), d.carry(Source{System: hash("a")}))
		must(b, err)
	}
}
