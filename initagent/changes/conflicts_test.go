package changes

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/etcmerge"
)

// clash makes a conflict in each of these files, as the merge of an update leaves it.
func (b *box) clash(names ...string) {
	b.t.Helper()
	base := filepath.Join(b.t.TempDir(), "base")
	b.file(base, "other", "")
	for _, name := range names {
		b.file(base, name, "line\n")
		b.file(b.image, name, "line of the image\n")
		b.file(b.merged, name, "my line\n")
	}
	if r := b.merge(base); len(r.Conflicts) != len(names) {
		b.t.Fatalf("%v", r.Conflicts)
	}
}

// merge leaves the list of an update from base.
func (b *box) merge(base string) *etcmerge.Result {
	b.t.Helper()
	root, err := os.Open(base)
	b.must(err)
	defer root.Close()
	p := b.m.Pairs[0]
	r, err := etcmerge.Plan(b.t.Context(), upper{Pair{Merged: root, Image: b.empty()}}, upper{Pair{Merged: p.Image, Image: b.empty()}}, upper{p}, etcmerge.Options{From: 2, To: 3, Other: p.Path != "/etc"})
	b.must(err)
	for _, c := range r.Changes {
		if c.Path == etcmerge.ListPath {
			b.file(b.merged, c.Path, string(c.Content))
			b.must(os.Chmod(filepath.Join(b.merged, c.Path), 0o600))
		}
	}
	return r
}

// empty is a directory with nothing in it: over it, another one shows as a whole.
func (b *box) empty() *os.File {
	b.t.Helper()
	f, err := os.Open(b.t.TempDir())
	b.must(err)
	b.t.Cleanup(func() { f.Close() })
	return f
}

func (b *box) undecided() []string {
	b.t.Helper()
	all, err := b.m.Undecided(b.t.Context())
	b.must(err)
	return Files(all)
}

func (b *box) waits(want ...string) {
	b.t.Helper()
	if have := b.undecided(); !slices.Equal(have, want) {
		b.t.Errorf("%q wait for a decision, want %q", have, want)
	}
}

// A conflict ends with the file's being changed, removed, given back, or kept; its list
// stays root's.
func TestUndecided(t *testing.T) {
	b := newBox(t)
	b.waits()
	b.clash("changed", "d/gone", "kept", "left", "mode", "reset")
	b.waits("/etc/changed", "/etc/d/gone", "/etc/kept", "/etc/left", "/etc/mode", "/etc/reset")
	b.must(os.Chtimes(filepath.Join(b.merged, "left"), date, date))
	b.file(b.merged, "unrelated", "x")
	b.file(b.merged, "changed", "both\n")
	b.must(os.Remove(filepath.Join(b.merged, "d/gone")))
	b.must(os.Chmod(filepath.Join(b.merged, "mode"), 0o600))
	b.reset("/etc/reset")
	if _, err := b.m.Keep(t.Context(), "/etc/kept"); err != nil {
		t.Error(err)
	}
	b.waits("/etc/left")
	if info, err := os.Stat(filepath.Join(b.merged, etcmerge.ListPath)); err != nil || info.Mode() != 0o600 {
		t.Errorf("the list: %v, %v", info.Mode(), err)
	}
}

// Of a directory whose mode both changed only that is taken; what lies in it stays, and so do
// its conflicts. The directory as a whole is decided likewise.
func TestTakeTheirsDirectory(t *testing.T) {
	b := newBox(t)
	base := filepath.Join(t.TempDir(), "base")
	for tree, mode := range map[string]os.FileMode{base: 0o755, b.image: 0o700, b.merged: 0o711} {
		b.file(tree, "d/file", "x "+mode.String())
		b.must(os.Chmod(filepath.Join(tree, "d"), mode))
		b.must(os.Chmod(tree, mode))
	}
	b.merge(base)
	b.waits("/etc", "/etc/d", "/etc/d/file")
	if r, err := b.m.TakeTheirs(t.Context(), "/etc/d"); err != nil || !slices.Equal(r.Given, []string{"/etc/d"}) {
		t.Errorf("%+v, %v", r, err)
	}
	b.waits("/etc", "/etc/d/file")
	for _, line := range b.list() {
		if strings.HasPrefix(line, "changed /etc/d:") {
			t.Error(line)
		}
	}
	if text, err := os.ReadFile(filepath.Join(b.merged, "d/file")); err != nil || string(text) != "x "+os.FileMode(0o711).String() {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := b.m.Keep(t.Context(), "/etc"); err != nil {
		t.Error(err)
	}
	b.waits("/etc/d/file")
}

// Where one side has a link in the place of the other's directory, what lies in that is
// judged, shown and decided like all else.
func TestDirectoryBecameLink(t *testing.T) {
	b := newBox(t)
	base := filepath.Join(t.TempDir(), "base")
	for tree, text := range map[string]string{base: "line\n", b.merged: "mine\n"} {
		b.file(tree, "foo/conf", text)
		b.file(tree, "foo/other", "line\n")
		b.file(tree, "bar/conf", text)
	}
	b.both("foo.new/conf", "image\n")
	b.file(b.image, "bar/conf", "image\n")
	b.must(os.Symlink("foo.new", filepath.Join(b.image, "foo")))
	b.merge(base)
	b.waits("/etc/bar/conf", "/etc/foo")
	b.says("changed /etc/bar/conf: content", "changed /etc/foo: a directory, in the image a link", "added /etc/foo/conf", "added /etc/foo/other", "added /etc/halogen (directory)")
	diff := func(want ...string) {
		t.Helper()
		var s strings.Builder
		if err := b.m.Diff(t.Context(), &s, "/etc"); err != nil {
			t.Error(err)
		}
		for _, w := range want {
			if !strings.Contains(s.String(), w) {
				t.Errorf("says\n%s\nlacks %q", s.String(), w)
			}
		}
	}
	diff("/etc/foo: a directory, in the image a link\n", "added    /etc/foo/conf\n", "+mine\n")
	if _, err := b.m.Keep(t.Context(), "/etc/foo"); err != nil {
		t.Error(err)
	}
	b.waits("/etc/bar/conf")
	// The other way round: who puts a link in its place has decided over what was in it.
	b.must(os.RemoveAll(filepath.Join(b.merged, "bar")))
	b.must(os.Symlink("foo", filepath.Join(b.merged, "bar")))
	b.waits()
	diff("/etc/bar: a link, in the image a directory\n", "removed  /etc/bar/conf\n", "-image\n")
	for _, name := range []string{"/etc/foo/conf", "/etc/foo/other"} {
		if r := b.reset(name); !slices.Equal(r.Removed, []string{name}) {
			t.Errorf("%+v", r)
		}
	}
	b.reset("/etc/foo")
	b.reset("/etc/bar")
	b.says("added /etc/halogen (directory)")
}

// A file of users and groups is not taken, whatever it is that conflicts.
func TestTakeTheirsAccounts(t *testing.T) {
	b := newBox(t)
	base := filepath.Join(t.TempDir(), "base")
	for tree, mode := range map[string]os.FileMode{base: 0o640, b.image: 0o600, b.merged: 0o644} {
		b.file(tree, "shadow", "root:*:20000::::::\n")
		b.must(os.Chmod(filepath.Join(tree, "shadow"), mode))
	}
	b.merge(base)
	b.waits("/etc/shadow")
	if r, err := b.m.TakeTheirs(t.Context(), "/etc/shadow"); err == nil || !strings.Contains(err.Error(), "edit it (vipw") {
		t.Errorf("%+v, %v", r, err)
	}
	b.m.Pairs[0].Path = "/usr/local" // where the name means nothing
	if r, err := b.m.TakeTheirs(t.Context(), "/usr/local/shadow"); err != nil || !slices.Equal(r.Given, []string{"/usr/local/shadow"}) {
		t.Errorf("%+v, %v", r, err)
	}
}

// A cut while the list is written leaves the old one or the new one, and the same command
// ends it.
func TestKeepCut(t *testing.T) {
	t.Setenv("TMPDIR", "/dev/shm")
	for at := 1; ; at++ {
		b := newBox(t)
		b.clash("a", "b")
		n := 0
		b.m.before = func(string) error {
			if n++; n >= at {
				return errCut
			}
			return nil
		}
		_, err := b.m.Keep(t.Context(), "/etc/a")
		if err == nil {
			if at < 4 {
				t.Errorf("only %d writes", at)
			}
			return
		}
		if !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		have := b.undecided()
		if !slices.Contains(have, "/etc/b") || len(have) > 2 {
			t.Errorf("cut at write %d: %q wait", at, have)
		}
		b.m.before = func(string) error { return nil }
		if slices.Contains(have, "/etc/a") {
			_, err = b.m.Keep(t.Context(), "/etc/a")
			b.must(err)
		}
		b.waits("/etc/b")
	}
}

// Two at once lose nothing.
func TestKeepAtOnce(t *testing.T) {
	b := newBox(t)
	names := strings.Split("a b c d e f g h", " ")
	b.clash(names...)
	var all sync.WaitGroup
	for _, name := range names {
		all.Go(func() {
			if _, err := b.m.Keep(t.Context(), "/etc/"+name); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	b.waits()
}

// What lies in the place of the list, or of its directory, is not followed, waited for or
// overwritten.
func TestHostileList(t *testing.T) {
	list := func(b *box) string { return filepath.Join(b.merged, etcmerge.ListPath) }
	for name, set := range map[string]func(b *box) error{
		"link":      func(b *box) error { return os.Symlink("/etc/hostname", list(b)) },
		"pipe":      func(b *box) error { return unix.Mkfifo(list(b), 0o600) },
		"directory": func(b *box) error { return os.Mkdir(list(b), 0o700) },
		"too large": func(b *box) error { return os.WriteFile(list(b), make([]byte, etcmerge.MaxList+1), 0o600) },
		"no list":   func(b *box) error { return os.WriteFile(list(b), []byte("{}"), 0o600) },
		"its directory": func(b *box) error {
			return errors.Join(os.Rename(filepath.Dir(list(b)), filepath.Join(b.merged, "away")), os.Symlink("away", filepath.Dir(list(b))))
		},
	} {
		b := newBox(t)
		b.clash("a")
		if name != "its directory" {
			b.must(os.Remove(list(b)))
		}
		b.must(set(b))
		if _, err := b.m.Undecided(t.Context()); err == nil || !strings.Contains(err.Error(), "/etc/halogen/changes.json") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := b.m.Keep(t.Context(), "/etc/a"); err == nil {
			t.Errorf("%s: it is kept", name)
		}
	}
}

// Nobody but root can open what the commands lock; what stands in its place is refused, and
// who waits for another command is told so.
func TestLock(t *testing.T) {
	b := newBox(t)
	b.clash("a", "b")
	place := filepath.Join(b.merged, workplace)
	for _, mode := range []os.FileMode{0o755, 0o770} {
		b.must(os.Mkdir(place, 0o700))
		b.must(os.Chmod(place, mode))
		if _, err := b.m.Keep(t.Context(), "/etc/a"); err == nil || !strings.Contains(err.Error(), "/etc/.halogenctl-changes.new: this name is taken") {
			t.Errorf("mode %o: %v", mode, err)
		}
		b.must(os.Remove(place))
	}
	seen := false
	b.m.before = func(string) error {
		if info, err := os.Lstat(place); err == nil {
			seen = true
			if info.Mode() != os.ModeDir|0o700 {
				t.Errorf("the workplace has mode %v", info.Mode())
			}
		}
		return nil
	}
	// An unprivileged user holds what they can open.
	for _, name := range []string{"", "halogen"} {
		f, err := os.Open(filepath.Join(b.merged, name))
		b.must(err)
		defer f.Close()
		b.must(unix.Flock(int(f.Fd()), unix.LOCK_EX))
	}
	_, err := b.m.Keep(t.Context(), "/etc/a")
	b.must(err)
	if _, err := os.Lstat(place); err == nil || !seen {
		t.Errorf("the workplace stays, or there was none (%v)", seen)
	}
	// Root's other command does not end.
	b.must(os.Mkdir(place, 0o700))
	f, err := os.Open(place)
	b.must(err)
	defer f.Close()
	b.must(unix.Flock(int(f.Fd()), unix.LOCK_EX))
	b.says("changed /etc/a: content", "changed /etc/b: content", "added /etc/halogen (directory)")
	b.m.wait = 3 * lockPoll
	if _, err := b.m.Keep(t.Context(), "/etc/b"); err == nil || !strings.Contains(err.Error(), "another `halogenctl changes` writes here: try again") {
		t.Errorf("%v", err)
	}
}

// second adds another directory that is laid over the image's.
func (b *box) second(path string) *box {
	b.t.Helper()
	other := newBox(b.t)
	p := other.m.Pairs[0]
	p.Path = path
	other.m.Pairs = nil
	b.m.Pairs = append(b.m.Pairs, p)
	return &box{b.t, other.merged, other.image, New(p)}
}

// Each directory has a list of its own. Conflicts are listed by whole paths, and each is
// decided in its own list, also where the same name is in both.
func TestConflictsOfOtherDirectories(t *testing.T) {
	b := newBox(t)
	local := b.second("/usr/local")
	b.clash("same")
	local.clash("d/kept", "d/left", "passwd", "reset", "same")
	b.waits("/etc/same", "/usr/local/d/kept", "/usr/local/d/left", "/usr/local/passwd", "/usr/local/reset", "/usr/local/same")
	r, err := b.m.List(t.Context())
	b.must(err)
	if len(r.Conflicts) != 6 || r.Conflicts[1].Path != "/usr/local/d/kept" {
		t.Errorf("%+v", r.Conflicts)
	}
	for _, c := range r.Changes {
		if strings.HasSuffix(c.Path, "changes.json") {
			t.Errorf("the list itself is listed: %+v", c)
		}
	}
	for _, name := range []string{"/usr/local/d/kept", "/usr/local/same"} {
		if r, err := b.m.Keep(t.Context(), name); err != nil || !slices.Equal(r.Decided, []string{name}) {
			t.Errorf("%+v, %v", r, err)
		}
	}
	if r, err := b.m.TakeTheirs(t.Context(), "/usr/local/passwd"); err != nil || !slices.Equal(r.Given, []string{"/usr/local/passwd"}) {
		t.Errorf("%+v, %v", r, err)
	}
	b.reset("/usr/local/reset")
	b.waits("/etc/same", "/usr/local/d/left")
	if text, err := os.ReadFile(filepath.Join(local.merged, "passwd")); err != nil || string(text) != "line of the image\n" {
		t.Errorf("%q, %v", text, err)
	}
}

// What was left out may lie anywhere, and is on the list of any directory.
func TestLeftOut(t *testing.T) {
	b := newBox(t)
	local := b.second("/usr/local")
	b.clash("both")
	b.file(b.image, "given", "x")
	for in, names := range map[*box][]etcmerge.Name{b: {"/etc/both", "/etc/given", "/var/lib/x"}, local: {"/systems/0/opt/upper", "/var/lib/x"}} {
		list, err := in.m.Pairs[0].list()
		b.must(err)
		list.To = 3
		for _, n := range names {
			list.LeftOut = append(list.LeftOut, etcmerge.LeftOut{Path: n, Reason: "r\u202e", Since: 3, Lasts: true})
		}
		list.LeftOut = append(list.LeftOut, etcmerge.LeftOut{Path: "/seen", Since: 3, Kept: true})
		text, err := list.Encode()
		b.must(err)
		b.file(in.merged, etcmerge.ListPath, string(text))
	}
	waits := func(want ...string) {
		t.Helper()
		w, err := b.m.Waiting(t.Context())
		if b.must(err); !slices.Equal(w.LeftOut, want) {
			t.Errorf("%q wait, want %q", w.LeftOut, want)
		}
	}
	waits("/etc/both", "/etc/given", "/systems/0/opt/upper", "/var/lib/x")
	b.reset("/etc/given")
	for _, name := range []string{"/var/lib/x", "/systems/0/opt/upper"} {
		if r, err := b.m.Keep(t.Context(), name); err != nil || !slices.Equal(r.Decided, []string{name}) {
			t.Errorf("%+v, %v", r, err)
		}
	}
	waits("/etc/both")
	b.waits("/etc/both")
	if _, err := b.m.Keep(t.Context(), "/etc/both"); err != nil { // both at once
		t.Error(err)
	}
	waits()
	b.waits()
	if _, err := b.m.Keep(t.Context(), "/seen"); err == nil {
		t.Error("what was seen is kept once more")
	}
}
