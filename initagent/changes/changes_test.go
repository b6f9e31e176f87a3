package changes

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
)

var date = time.Date(2026, 11, 28, 14, 3, 0, 0, time.UTC)

// A box is a machine of two directories.
type box struct {
	t             *testing.T
	merged, image string
	m             *Machine
}

func newBox(t *testing.T) *box {
	t.Helper()
	dir := t.TempDir()
	b := &box{t: t, merged: filepath.Join(dir, "merged"), image: filepath.Join(dir, "image")}
	var files []*os.File
	for _, d := range []string{b.merged, b.image} {
		b.must(os.Mkdir(d, 0o755))
		f, err := os.Open(d)
		b.must(err)
		files = append(files, f)
	}
	b.m = New(Pair{Path: "/etc", Merged: files[0], Image: files[1]})
	t.Cleanup(func() { b.must(b.m.Close()) })
	return b
}

func (b *box) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// file writes a file in one tree, and what directories it needs.
func (b *box) file(tree, name, text string) {
	b.t.Helper()
	path := filepath.Join(tree, name)
	b.must(os.MkdirAll(filepath.Dir(path), 0o755))
	b.must(os.WriteFile(path, []byte(text), 0o644))
}

// both writes the same file in both.
func (b *box) both(name, text string) {
	b.t.Helper()
	b.file(b.merged, name, text)
	b.file(b.image, name, text)
}

// list is what the machine says, a line each.
func (b *box) list() []string {
	b.t.Helper()
	r, err := b.m.List(b.t.Context())
	b.must(err)
	var lines []string
	for _, c := range r.Changes {
		lines = append(lines, strings.Join(strings.Fields(c.String()), " "))
	}
	return lines
}

func (b *box) says(want ...string) {
	b.t.Helper()
	if have := b.list(); !slices.Equal(have, want) {
		b.t.Errorf("lists\n  %s\nwant\n  %s", strings.Join(have, "\n  "), strings.Join(want, "\n  "))
	}
}

func TestList(t *testing.T) {
	b := newBox(t)
	b.says()
	b.both("same", "x\n")
	b.both("dir/same", "x\n")
	b.file(b.merged, "new/file", "x\n")
	b.file(b.image, "old/file", "x\n")
	b.both("text", "one\n")
	b.file(b.merged, "text", "two\n")
	b.both("mode", "x\n")
	b.must(unix.Chmod(filepath.Join(b.merged, "mode"), 0o4600))
	b.both("type", "x\n")
	b.must(os.Remove(filepath.Join(b.merged, "type")))
	b.file(b.merged, "type/inside", "x\n")
	b.must(os.Symlink("here", filepath.Join(b.merged, "link")))
	b.must(os.Symlink("there", filepath.Join(b.image, "link")))
	b.must(unix.Mkfifo(filepath.Join(b.merged, "pipe"), 0o600))
	b.both("was-a-file", "x\n")
	b.must(os.Remove(filepath.Join(b.merged, "was-a-file")))
	b.must(unix.Mkfifo(filepath.Join(b.merged, "was-a-file"), 0o644))
	b.must(os.Chtimes(filepath.Join(b.merged, "same"), date, date)) // as it is
	b.must(os.Chtimes(filepath.Join(b.merged, "text"), date, date))
	b.says(
		"changed /etc/link: leads to here, in the image to there",
		"changed /etc/mode: mode 4600, in the image 0644",
		"added /etc/new (directory)",
		"added /etc/new/file",
		"removed /etc/old (directory)",
		"removed /etc/old/file",
		"added /etc/pipe (pipe)",
		"changed /etc/text: content",
		"changed /etc/type: a directory, in the image a file",
		"added /etc/type/inside",
		"changed /etc/was-a-file: a pipe, in the image a file",
	)
	r, err := b.m.List(t.Context())
	b.must(err)
	for _, c := range r.Changes {
		if (c.Time == nil) != (c.Kind == Removed) || c.Path == "/etc/text" && !c.Time.Equal(date) {
			t.Errorf("%s %s: changed at %v", c.Kind, c.Path, c.Time)
		}
		if c.Path == "/etc/mode" && time.Since(*c.Time) > time.Hour {
			t.Errorf("%s: an attribute was changed at %v", c.Path, c.Time)
		}
	}
}

// Owners, ACLs and other extended attributes count.
func TestListAttributes(t *testing.T) {
	testkit.Root(t, "give files away")
	b := newBox(t)
	b.both("owner", "x\n")
	b.must(os.Lchown(filepath.Join(b.merged, "owner"), 12, 34))
	b.both("attribute", "x\n")
	b.must(unix.Setxattr(filepath.Join(b.merged, "attribute"), "trusted.halogen", []byte("x"), 0))
	b.both("value", "x\n")
	b.must(unix.Setxattr(filepath.Join(b.merged, "value"), "trusted.halogen", []byte("x"), 0))
	b.must(unix.Setxattr(filepath.Join(b.image, "value"), "trusted.halogen", []byte("y"), 0))
	for _, tree := range []string{b.merged, b.image} {
		b.must(os.Symlink("x", filepath.Join(tree, "link")))
	}
	b.must(unix.Lsetxattr(filepath.Join(b.image, "link"), "trusted.halogen", []byte("y"), 0))
	b.says(
		"changed /etc/attribute: extended attribute trusted.halogen",
		"changed /etc/link: extended attribute trusted.halogen",
		"changed /etc/owner: owner 12:34, in the image 0:0",
		"changed /etc/value: extended attribute trusted.halogen",
	)
}

// Nothing that lies in the machine's directory makes the list wait, leads out of it, or
// steers a terminal.
func TestHostile(t *testing.T) {
	b := newBox(t)
	outside := filepath.Join(t.TempDir(), "outside")
	b.must(os.WriteFile(outside, []byte("secret\n"), 0o600))
	b.both("swapped", "secret\n")
	b.must(os.Remove(filepath.Join(b.merged, "swapped")))
	b.must(os.Symlink(outside, filepath.Join(b.merged, "swapped")))
	b.both("d/file", "secret\n")
	b.must(os.RemoveAll(filepath.Join(b.merged, "d")))
	b.must(os.Symlink(filepath.Dir(outside), filepath.Join(b.merged, "d")))
	b.must(os.Symlink(".", filepath.Join(b.merged, "loop")))
	for _, name := range []string{"a\nadded b", "\x1b[2Jx", "\xff", "\u202eabc", " space", `quo"te`} {
		b.file(b.merged, name, "")
	}
	b.says(
		`added $'/etc/\033[2Jx'`,
		`added '/etc/ space'`,
		`added $'/etc/a\012added b'`,
		`changed /etc/d: a link, in the image a directory`,
		`removed /etc/d/file`,
		`added /etc/loop (link)`,
		`added '/etc/quo"te'`,
		`changed /etc/swapped: a link, in the image a file`,
		`added $'/etc/\342\200\256abc'`,
		`added $'/etc/\377'`,
	)
	r, err := b.m.List(t.Context())
	b.must(err)
	if c := r.Changes[len(r.Changes)-1]; c.PathBytes != "L2V0Yy//" {
		t.Errorf("%q has the bytes %q", c.Path, c.PathBytes)
	}
	for _, name := range []string{"/etc/d/outside", "/etc/loop/loop"} {
		if err := b.m.Diff(t.Context(), io.Discard, name); err == nil || !strings.Contains(err.Error(), "link is on the way") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := b.m.Reset(t.Context(), name); err == nil || !strings.Contains(err.Error(), "link is on the way") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"/etc/../etc/passwd", "/usr/x", "/etcx", "etc/x", "/"} {
		if err := b.m.Diff(t.Context(), io.Discard, name); err == nil {
			t.Errorf("%s is compared", name)
		}
	}
	deep := b.merged
	for range maxDepth + 2 {
		deep = filepath.Join(deep, "d2")
	}
	b.must(os.MkdirAll(deep, 0o755))
	r, err = b.m.List(t.Context())
	b.must(err)
	want := "/etc" + strings.Repeat("/d2", maxDepth)
	if len(r.Skipped) != 1 || r.Skipped[0].Path != want || r.Skipped[0].Why != "lies 64 directories deep" {
		t.Errorf("a deep tree: %+v", r.Skipped)
	}
	if len(r.Changes) != 10+maxDepth {
		t.Errorf("%d changes", len(r.Changes))
	}
	if r, err := b.m.Reset(t.Context(), "/etc/d2"); err == nil {
		t.Errorf("what was not compared is given back: %+v", r)
	}
}

// A name that is pasted into a shell is that name, and runs nothing.
func TestShownInShell(t *testing.T) {
	shell, err := exec.LookPath("bash")
	if err != nil {
		testkit.Skip(t, "bash is not here")
	}
	ran := filepath.Join(t.TempDir(), "ran")
	names := []string{
		"/etc/plain-1.2_x:y,@%+=", "/etc/ü", "/etc/a b", "/etc/$(touch " + ran + ")", "/etc/`touch " + ran + "`", "/etc/x;touch " + ran, "/etc/it's", `/etc/"q"`, `/etc/back\slash`,
		"/etc/a\ntouch " + ran, "/etc/\t'$(touch " + ran + ")\\", "/etc/*", "/etc/{a,b}", "~root", "#x", "-rf", "=ls", "!!", "/etc/\xff1", "/etc/\x1b[2J", "/etc/\u202e1", "", " ", "/etc/\u00a0x", "a&b", "a|b", "a>b", "[a]", "a?",
	}
	var script strings.Builder
	for _, name := range names {
		if shown := Shown(name); strings.ContainsFunc(shown, func(r rune) bool { return !strconv.IsPrint(r) }) {
			t.Errorf("%q is shown as %q", name, shown)
		}
		fmt.Fprintf(&script, "printf '%%s\\0' %s\n", Shown(name))
	}
	out, err := exec.Command(shell, "-c", script.String()).Output()
	if err != nil {
		t.Fatal(err)
	}
	if have := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00"); !slices.Equal(have, names) {
		t.Errorf("the shell takes %q\nwant %q", have, names)
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("it ran something")
	}
	for name, want := range map[string]string{"/etc/plain-1.2_x": "/etc/plain-1.2_x", "/etc/it's": `'/etc/it'\''s'`, "-rf": "'-rf'", "a\nb": `$'a\012b'`} {
		if Shown(name) != want {
			t.Errorf("%q is shown as %s", name, Shown(name))
		}
	}
}

// A directory that holds too much hides nothing else, and is named.
func TestListLimit(t *testing.T) {
	b := newBox(t)
	b.clash("many/conflict", "a")
	for i := range 30 {
		b.file(b.merged, fmt.Sprintf("many/file%d", i), "")
		b.file(b.merged, fmt.Sprintf("few/file%d", i%3), "")
	}
	b.file(b.merged, "z", "")
	for _, c := range []struct {
		entries, total int
		want           string
	}{
		{30, 1000, "[/etc/many: has more than 30 entries, and was not compared]"},
		{31, 1000, "[]"},
		{31, 20, "[/etc/many: comes after more entries than are looked at, and was not compared]"},
	} {
		b.m.entries, b.m.total = c.entries, c.total
		r, err := b.m.List(t.Context())
		b.must(err)
		if have := fmt.Sprint(r.Skipped); have != c.want {
			t.Errorf("%d, %d: skips %s, want %s", c.entries, c.total, have, c.want)
		}
		lines := b.list()
		for _, want := range []string{"changed /etc/a: content", "added /etc/few/file2", "added /etc/z"} {
			if !slices.Contains(lines, want) {
				t.Errorf("%d, %d: lacks %q", c.entries, c.total, want)
			}
		}
		if len(r.Conflicts) != 2 {
			t.Errorf("conflicts %v", r.Conflicts)
		}
		if c.want == "[]" {
			continue
		}
		before := b.list()
		if r, err := b.m.Reset(t.Context(), "/etc/many"); err == nil || !strings.Contains(err.Error(), "nothing was given back") {
			t.Errorf("reset: %+v, %v", r, err)
		}
		b.says(before...)
		var s strings.Builder
		if err := b.m.Diff(t.Context(), &s, "/etc/many"); err != nil || !strings.Contains(s.String(), "was not compared") {
			t.Errorf("%v: %s", err, s.String())
		}
	}
}

// The same with the limits as they are, and with a conflict of the directory's own.
func TestListMany(t *testing.T) {
	t.Setenv("TMPDIR", "/dev/shm")
	b := newBox(t)
	base := filepath.Join(t.TempDir(), "base")
	for tree, mode := range map[string]os.FileMode{base: 0o755, b.image: 0o700, b.merged: 0o711} {
		b.file(tree, "many/file", mode.String())
		b.must(os.Chmod(filepath.Join(tree, "many"), mode))
	}
	b.must(os.RemoveAll(filepath.Join(b.image, "many")))
	b.merge(base)
	conflicts := b.undecided()
	for i := range maxEntries {
		b.must(unix.Mknod(filepath.Join(b.merged, fmt.Sprintf("many/%d", i)), unix.S_IFREG, 0))
	}
	b.file(b.merged, "z", "")
	r, err := b.m.List(t.Context())
	b.must(err)
	if len(r.Skipped) != 1 || len(r.Changes) < 2 || r.Changes[len(r.Changes)-1].Path != "/etc/z" {
		t.Errorf("%+v, %d changes", r.Skipped, len(r.Changes))
	}
	if have := b.undecided(); len(conflicts) == 0 || !slices.Equal(have, conflicts) {
		t.Errorf("%q wait for a decision, want %q: %v", have, conflicts, r.Conflicts)
	}
}

func TestDiff(t *testing.T) {
	b := newBox(t)
	b.both("text", "a\nb\nc\nd\ne\nf\ng\nh\n")
	b.file(b.merged, "text", "a\nb\nc\nd\nE\nf\ng\nh\x1b[2J\r\n")
	b.must(os.Chmod(filepath.Join(b.merged, "text"), 0o600))
	b.both("binary", "a\x00b")
	b.file(b.merged, "binary", "a\x00c")
	b.file(b.merged, "added", "x")
	b.file(b.image, "removed", "y\n")
	b.file(b.image, "mode", "y\n")
	b.file(b.merged, "mode", "y\n")
	b.must(os.Chmod(filepath.Join(b.merged, "mode"), 0o600))
	b.both("same", "x\n")
	b.both("long", strings.Repeat("x", maxDiff+5))
	b.file(b.merged, "long", strings.Repeat("x", maxDiff+4)+"y")
	b.both("lines", strings.Repeat("x\n", maxLines+5))
	b.file(b.merged, "lines", strings.Repeat("x\n", maxLines+4))
	for _, name := range []string{"text", "added"} {
		b.must(os.Chtimes(filepath.Join(b.merged, name), date, date))
	}
	for name, want := range map[string]string{
		"text": "changed  /etc/text: content; mode 0600, in the image 0644\n--- /etc/text\timage\n+++ /etc/text\t2026-11-28 14:03:00\n" +
			"@@ -2,7 +2,7 @@\n b\n c\n d\n-e\n+E\n f\n g\n-h\n+h\\x1b[2J\\r\n",
		"binary":  "changed  /etc/binary: content\nbinary files differ\n",
		"added":   "added    /etc/added\n--- /dev/null\n+++ /etc/added\t2026-11-28 14:03:00\n@@ -0,0 +1 @@\n+x\n\\ No newline at end of file\n",
		"removed": "removed  /etc/removed\n--- /etc/removed\timage\n+++ /dev/null\n@@ -1 +0,0 @@\n-y\n",
		"mode":    "changed  /etc/mode: mode 0600, in the image 0644\n",
		"same":    "/etc/same is the image's\n",
		"long":    "changed  /etc/long: content\ntoo long to be compared by line: more than 20000 lines or 1024 KiB\n",
		"lines":   "changed  /etc/lines: content\ntoo long to be compared by line: more than 20000 lines or 1024 KiB\n",
	} {
		var s strings.Builder
		if err := b.m.Diff(t.Context(), &s, "/etc/"+name); err != nil || s.String() != want {
			t.Errorf("%s: %v\n%s\nwant\n%s", name, err, s.String(), want)
		}
	}
	var all strings.Builder
	if err := b.m.Diff(t.Context(), &all, "/etc"); err != nil || strings.Count(all.String(), "changed ") != 5 {
		t.Errorf("%v\n%s", err, all.String())
	}
	if err := b.m.Diff(t.Context(), io.Discard, "/etc/nothing"); err == nil {
		t.Error("what is nowhere is compared")
	}
}
