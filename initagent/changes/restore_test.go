package changes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
)

func (b *box) reset(name string) *Result {
	b.t.Helper()
	r, err := b.m.Reset(b.t.Context(), name)
	if err != nil {
		b.t.Fatalf("reset %s: %v", name, err)
	}
	return r
}

// messy makes one change of each kind.
func messy(t *testing.T) *box {
	t.Helper()
	b := newBox(t)
	b.both("d/text", "one\n")
	b.file(b.merged, "d/text", "two\n")
	b.must(unix.Chmod(filepath.Join(b.image, "d/text"), 0o4750))
	b.file(b.image, "d/gone/below/file", "x\n")
	b.file(b.merged, "d/own", "mine\n")
	b.file(b.merged, "d/own-dir/file", "mine\n")
	b.both("d/mode", "x\n")
	b.must(os.Chmod(filepath.Join(b.merged, "d/mode"), 0o600))
	b.must(os.Chmod(filepath.Join(b.image, "d"), 0o750))
	b.must(os.Symlink("there", filepath.Join(b.image, "d/link")))
	b.must(os.Symlink("here", filepath.Join(b.merged, "d/link")))
	b.file(b.image, "d/was-a-dir/file", "x\n")
	b.must(os.Symlink("/", filepath.Join(b.merged, "d/was-a-dir")))
	b.file(b.image, "d/was-a-file", "x\n")
	b.must(os.Mkdir(filepath.Join(b.merged, "d/was-a-file"), 0o755))
	b.must(unix.Mkfifo(filepath.Join(b.image, "d/pipe"), 0o640))
	return b
}

// The image's is given back whole; what it does not have stays, and is named.
func TestReset(t *testing.T) {
	b := messy(t)
	r := b.reset("/etc/d")
	if want := []string{"/etc/d/own", "/etc/d/own-dir", "/etc/d/own-dir/file"}; !slices.Equal(r.Left, want) || len(r.Removed) != 0 || len(r.Given) != 11 {
		t.Errorf("%+v", r)
	}
	own := []string{"added /etc/d/own", "added /etc/d/own-dir (directory)", "added /etc/d/own-dir/file"}
	b.says(own...)
	for _, name := range []string{"d/text", "d/gone/below/file", "d/link"} {
		var here, there unix.Stat_t
		b.must(unix.Lstat(filepath.Join(b.merged, name), &here))
		b.must(unix.Lstat(filepath.Join(b.image, name), &there))
		if here.Mtim != there.Mtim || here.Mode != there.Mode {
			t.Errorf("%s has %+v, in the image %+v", name, here, there)
		}
	}
	if again := b.reset("/etc/d"); len(again.Given) != 0 {
		t.Errorf("again: %+v", again)
	}
	// Named itself, it goes; a directory only when it is empty.
	if _, err := b.m.Reset(t.Context(), "/etc/d/own-dir"); err == nil || !strings.Contains(err.Error(), "it has 1 entries") {
		t.Errorf("a directory of this machine's: %v", err)
	}
	b.says(own...)
	for _, name := range []string{"/etc/d/own", "/etc/d/own-dir/file", "/etc/d/own-dir"} {
		if r := b.reset(name); !slices.Equal(r.Removed, []string{name}) || len(r.Left) != 0 {
			t.Errorf("%s: %+v", name, r)
		}
	}
	b.says()
}

// What cannot be given back is refused before anything is written.
func TestResetRefuses(t *testing.T) {
	b := messy(t)
	b.file(b.merged, "d/was-a-file/own", "mine\n")
	before := b.list()
	for name, want := range map[string]string{
		"/etc":              "name what lies in it",
		"/etc/d":            "the image has a file in the place of this directory, and it has 1 entries",
		"/etc/d/gone/below": "the directory /etc/d/gone is not there: give that back first",
		"/etc/nothing":      "no such file",
		"/usr/x":            "lies in none of the directories that are laid over the image's: /etc",
	} {
		if r, err := b.m.Reset(t.Context(), name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("reset %s: %+v, %v", name, r, err)
		}
	}
	b.says(before...)
}

// A file of users and groups is refused, whatever differs, unless nobody is in it.
func TestResetAccounts(t *testing.T) {
	b := newBox(t)
	for _, name := range []string{"passwd", "group", "shadow", "gshadow", "subuid", "subgid"} {
		b.both(name, "root\n")
		b.file(b.merged, name, "root\nme\n")
	}
	b.must(os.Remove(filepath.Join(b.image, "subuid")))
	b.must(os.Remove(filepath.Join(b.image, "subgid")))
	b.file(b.merged, "shadow", "root\n")
	b.must(os.Chmod(filepath.Join(b.merged, "shadow"), 0o640))
	before := b.list()
	for _, name := range []string{"passwd", "group", "shadow", "gshadow", "subuid", "subgid"} {
		if r, err := b.m.Reset(t.Context(), "/etc/"+name); err == nil || !strings.Contains(err.Error(), "own users and groups") || !strings.Contains(err.Error(), "vipw") {
			t.Errorf("reset %s: %+v, %v", name, r, err)
		}
	}
	b.says(before...)
	b.must(os.Remove(filepath.Join(b.merged, "passwd")))
	b.reset("/etc/passwd")
	if r := b.reset("/etc/passwd"); len(r.Given) != 0 {
		t.Errorf("again: %+v", r)
	}
	b.both("d/passwd", "image\n")
	b.file(b.merged, "d/passwd", "mine\n")
	b.reset("/etc/d/passwd")
}

// Owners, capabilities and ACLs come back, and those of this machine's file go.
func TestResetAttributes(t *testing.T) {
	testkit.Root(t, "give files away")
	b := newBox(t)
	b.both("dir/file", "x\n")
	for tree, value := range map[string]string{b.merged: "mine", b.image: "image's"} {
		for _, name := range []string{"dir", "dir/file"} {
			b.must(unix.Setxattr(filepath.Join(tree, name), "trusted."+strings.Trim(value, "'s"), []byte(value), 0))
			b.must(unix.Setxattr(filepath.Join(tree, name), "trusted.both", []byte(value), 0))
		}
	}
	b.must(os.Lchown(filepath.Join(b.image, "dir/file"), 12, 34))
	b.must(os.Lchown(filepath.Join(b.image, "dir"), 12, 34))
	b.must(unix.Chmod(filepath.Join(b.image, "dir/file"), 0o6755))
	capability := []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0} // cap_net_raw=ep (linux/capability.h, revision 2)
	b.must(unix.Setxattr(filepath.Join(b.image, "dir/file"), "security.capability", capability, 0))
	if r := b.reset("/etc/dir"); len(r.Given) != 2 {
		t.Errorf("%+v", r)
	}
	b.says()
}

// What could not be given back, or removed, is not said to be.
func TestResetFails(t *testing.T) {
	t.Setenv("TMPDIR", "/dev/shm") // a disk would wait for each sync
	for at := 1; ; at++ {
		b := messy(t)
		n := 0
		b.m.before = func(string) error {
			if n++; n == at {
				return errCut
			}
			return nil
		}
		r, err := b.m.Reset(t.Context(), "/etc/d")
		left := b.list()
		for _, name := range r.Given {
			for _, line := range left {
				if strings.Contains(line, " "+name+":") || strings.Contains(line, " "+name+" ") || strings.HasSuffix(line, " "+name) {
					t.Errorf("failed at write %d: %s, but it is said to be given back", at, line)
				}
			}
		}
		if err == nil {
			if at < 40 {
				t.Errorf("only %d writes", at)
			}
			return
		}
		b.m.before = func(w string) error {
			if w == "remove" {
				return errCut
			}
			return nil
		}
		if r, err := b.m.Reset(t.Context(), "/etc/d/own"); err == nil || len(r.Removed) > 0 {
			t.Errorf("%+v, %v", r, err)
		}
	}
}

var errCut = errors.New("the power was cut")

// A cut at any write leaves each file as it was or as the image has it, and the same
// command ends it.
func TestResetCut(t *testing.T) {
	t.Setenv("TMPDIR", "/dev/shm") // a disk would wait for each sync
	total := 0
	for at := 1; at == 1 || at <= total; at++ {
		b := messy(t)
		n := 0
		b.m.before = func(string) error {
			if n++; n >= at {
				return errCut
			}
			return nil
		}
		if _, err := b.m.Reset(t.Context(), "/etc/d"); !errors.Is(err, errCut) {
			t.Fatalf("cut at write %d: %v", at, err)
		}
		for name, want := range map[string][]string{
			"d/text": {"one\n 4750", "two\n 644"}, "d/mode": {"x\n 600", "x\n 644"}, "d/own": {"mine\n 644"}, "d/own-dir/file": {"mine\n 644"},
		} {
			text, err := os.ReadFile(filepath.Join(b.merged, name))
			b.must(err)
			var st unix.Stat_t
			b.must(unix.Stat(filepath.Join(b.merged, name), &st))
			if have := fmt.Sprintf("%s %o", text, st.Mode&0o7777); !slices.Contains(want, have) {
				t.Errorf("cut at write %d: %s has %q", at, name, have)
			}
		}
		if to, err := os.Readlink(filepath.Join(b.merged, "d/link")); err != nil || to != "here" && to != "there" {
			t.Errorf("cut at write %d: the link leads to %q, %v", at, to, err)
		}
		n = 0
		b.m.before = func(string) error { n++; return nil }
		b.reset("/etc/d")
		if total == 0 {
			total = n
		}
		for _, line := range b.list() {
			if !strings.HasPrefix(line, "added /etc/d/own") {
				t.Errorf("cut at write %d, and again: %s", at, line)
			}
		}
	}
	if total < 40 {
		t.Errorf("only %d writes", total)
	}
}

// swapper is a user who may write to directories of the machine's, and puts a hard link to
// another file, or a directory of theirs, in the place of whatever is made there.
func (b *box) swapper(victim string, directories ...string) func(string) error {
	known := map[string]bool{}
	look := func(see func(path string)) {
		for _, d := range directories {
			all, err := os.ReadDir(filepath.Join(b.merged, d))
			b.must(err)
			for _, e := range all {
				see(filepath.Join(b.merged, d, e.Name()))
			}
		}
	}
	look(func(path string) { known[path] = true })
	return func(string) error {
		look(func(path string) {
			if info, err := os.Lstat(path); err == nil && !known[path] && !info.IsDir() {
				b.must(os.Remove(path))
				b.must(os.Link(victim, path))
			}
		})
		return nil
	}
}

// A user who may write to a directory gains nothing when something in it is given back: no
// other file gets the mode, the owner or the attributes that were meant for that.
func TestResetSwapped(t *testing.T) {
	b := messy(t)
	victim := filepath.Join(b.merged, "victim")
	b.file(b.merged, "victim", "secret\n")
	b.must(os.Chmod(victim, 0o600))
	b.m.before = b.swapper(victim, "d")
	_, err := b.m.Reset(t.Context(), "/etc/d")
	t.Logf("%v", err)
	var st unix.Stat_t
	b.must(unix.Stat(victim, &st))
	if text, err := os.ReadFile(victim); st.Mode&0o7777 != 0o600 || err != nil || string(text) != "secret\n" {
		t.Errorf("the other file has %q and mode %o, %v", text, st.Mode&0o7777, err)
	}
}
