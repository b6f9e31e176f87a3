package upper

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/etcmerge"
	"halogenos.internal/boot/testkit"
)

// lay makes files below a directory: "->x" is a link, "dir" a directory, "pipe" a pipe,
// "gone" a whiteout, and anything else a file's content after "=".
func lay(t testing.TB, root string, files map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		p := filepath.Join(root, name)
		must(t, os.MkdirAll(filepath.Dir(p), 0o755))
		switch what := files[name]; {
		case strings.HasPrefix(what, "->"):
			must(t, os.Symlink(what[2:], p))
		case what == "dir":
			must(t, os.MkdirAll(p, 0o755))
		case what == "pipe":
			must(t, unix.Mkfifo(p, 0o600))
		case what == "gone":
			must(t, unix.Mknod(p, unix.S_IFCHR, 0))
		default:
			must(t, os.WriteFile(p, []byte(strings.TrimPrefix(what, "=")), 0o644))
			must(t, os.Chtimes(p, date, date))
		}
	}
}

var date = time.Unix(1_700_000_000, 123_000_000)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// shown is what lies below a directory, in the form of lay.
func shown(t testing.TB, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		name, _ := filepath.Rel(root, p)
		switch d.Type() {
		case fs.ModeDir:
			out[name] = "dir"
		case fs.ModeSymlink:
			target, err := os.Readlink(p)
			out[name] = "->" + target
			return err
		case fs.ModeNamedPipe:
			out[name] = "pipe"
		case fs.ModeDevice | fs.ModeCharDevice:
			out[name] = "gone"
		default:
			text, err := os.ReadFile(p)
			out[name] = "=" + string(text)
			return err
		}
		return nil
	})
	must(t, err)
	return out
}

func opened(t testing.TB, directory string, upper bool) *tree {
	t.Helper()
	fd, err := unix.Open(filepath.Dir(directory), unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(fd)
	tr, err := openTree(fd, "tree", filepath.Base(directory), upper)
	must(t, err)
	t.Cleanup(func() { tr.Close() })
	return tr
}

// FAULTS 107
func TestTree(t *testing.T) {
	root := filepath.Join(t.TempDir(), "etc")
	lay(t, root, map[string]string{
		"file": "=content", "d/file": "=x", "link": "->file", "out": "->../outside", "to-d": "->d", "pipe": "pipe", "removed": "gone", "empty": "=",
	})
	lay(t, filepath.Dir(root), map[string]string{"outside": "=secret"})
	must(t, os.Chmod(filepath.Join(root, "file"), 0o640|os.ModeSetgid))
	tr := opened(t, root, true)
	for name, want := range map[string]etcmerge.Entry{
		".": {Type: etcmerge.Directory, Mode: 0o755}, "file": {Type: etcmerge.Regular, Mode: 0o2640, Size: 7}, "d/file": {Type: etcmerge.Regular, Mode: 0o644, Size: 1},
		"link": {Type: etcmerge.Link, Mode: 0o777, Target: "file"}, "out": {Type: etcmerge.Link, Mode: 0o777, Target: "../outside"}, "pipe": {Type: etcmerge.Pipe, Mode: 0o600}, "removed": {Type: etcmerge.Whiteout}, "empty": {Type: etcmerge.Regular, Mode: 0o644},
	} {
		got, err := tr.Entry(name)
		if name == "file" && !got.ModTime.Equal(date) {
			t.Errorf("%s: time is %s", name, got.ModTime)
		}
		want.UID, want.GID, want.ModTime, want.Xattrs = got.UID, got.GID, got.ModTime, got.Xattrs
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) || len(got.Xattrs) > 0 {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, want)
		}
	}
	for _, name := range []string{"none", "none/none", "to-d/file", "file/file", "link/x"} {
		if _, err := tr.Entry(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"../outside", "/etc/passwd", "d/../../outside"} {
		if e, err := tr.Entry(name); err == nil {
			t.Errorf("%s is found: %+v", name, e)
		}
		if f, err := tr.Open(name); err == nil {
			t.Errorf("%s is opened: %v", name, f)
		}
	}
	for _, name := range []string{"pipe", "removed", "link", "out", "d"} {
		if f, err := tr.Open(name); err == nil {
			t.Errorf("%s is opened: %v", name, f)
		}
	}
	f, err := tr.Open("file")
	must(t, err)
	if text, err := io.ReadAll(f); err != nil || string(text) != "content" {
		t.Errorf("content is %q, %v", text, err)
	}
	f.Close()
	names, err := tr.Names(".")
	if slices.Sort(names); err != nil || fmt.Sprint(names) != "[d empty file link out pipe removed to-d]" {
		t.Errorf("names are %v, %v", names, err)
	}
	if names, err := tr.Names("to-d"); err == nil {
		t.Errorf("a link is listed: %v", names)
	}
}

// What the overlay writes as extended attributes, which only root can.
func TestTreeOverlaid(t *testing.T) {
	testkit.Root(t, "set trusted.overlay attributes")
	root := filepath.Join(t.TempDir(), "etc")
	lay(t, root, map[string]string{"opaque": "dir", "holds-whiteouts": "dir", "holds-whiteouts/removed": "=", "holds-whiteouts/full": "=x", "moved": "dir", "split": "=x", "link": "->x"})
	for _, a := range [][3]string{
		{"opaque", opaque, "y"}, {"holds-whiteouts", opaque, "x"}, {"holds-whiteouts/removed", whiteout, "y"}, {"holds-whiteouts/full", whiteout, "y"},
		{"moved", redirect, "/x"}, {"split", metacopy, ""}, {"opaque", "trusted.overlay.origin", "x"}, {"opaque", "user.mine", "1"}, {"link", "trusted.mine", "2"},
	} {
		must(t, unix.Lsetxattr(filepath.Join(root, a[0]), a[1], []byte(a[2]), 0))
	}
	tr := opened(t, root, true)
	for name, want := range map[string]string{
		"opaque": "2 true map[user.mine:1]", "holds-whiteouts": "2 false map[]", "holds-whiteouts/removed": "8 false map[]", "holds-whiteouts/full": "1 false map[]", "link": "3 false map[trusted.mine:2]",
	} {
		e, err := tr.Entry(name)
		if got := fmt.Sprint(e.Type, e.Opaque, e.Xattrs); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", name, got, err, want)
		}
	}
	image := opened(t, root, false)
	if e, err := image.Entry("opaque"); err != nil || e.Opaque {
		t.Errorf("an image's directory is opaque: %+v, %v", e, err)
	}
}

// Everything that a plan can have is made, as it says.
func TestWrite(t *testing.T) {
	before, image, to := filepath.Join(t.TempDir(), "before"), filepath.Join(t.TempDir(), "image"), filepath.Join(t.TempDir(), "to")
	large := strings.Repeat("0123456789abcdef", 40<<10)
	lay(t, before, map[string]string{"kept": "=" + large, "d/x": "=x"})
	lay(t, image, map[string]string{"taken": "=image's"})
	must(t, os.Mkdir(to, 0o700))
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	entry := func(kind etcmerge.Type, mode uint32) etcmerge.Entry {
		return etcmerge.Entry{Type: kind, Mode: mode, UID: uid, GID: gid, ModTime: date, Xattrs: map[string]string{}}
	}
	link := entry(etcmerge.Link, 0o777)
	link.Target = "/nowhere"
	labelled := entry(etcmerge.Regular, 0o4711)
	labelled.Xattrs["user.label"] = "v"
	plan := &etcmerge.Result{Changes: []etcmerge.Change{
		{Path: ".", Action: etcmerge.Parent, Entry: entry(etcmerge.Directory, 0o751)},
		{Path: "d", Action: etcmerge.Parent, Entry: entry(etcmerge.Directory, 0o500)},
		{Path: "d/merged", Action: etcmerge.Merge, Entry: labelled, From: etcmerge.FromContent, Content: []byte("merged")},
		{Path: "d/removed", Action: etcmerge.Keep, Entry: etcmerge.Entry{Type: etcmerge.Whiteout}},
		{Path: "d/x", Action: etcmerge.Take},
		{Path: "kept", Action: etcmerge.Keep, Entry: entry(etcmerge.Regular, 0o600), From: etcmerge.FromUpper},
		{Path: "link", Action: etcmerge.Keep, Entry: link},
		{Path: "pipe", Action: etcmerge.Keep, Entry: entry(etcmerge.Pipe, 0o620)},
		{Path: "taken", Action: etcmerge.Keep, Entry: entry(etcmerge.Regular, 0o644), From: etcmerge.FromImage},
	}}
	fd, err := unix.Open(to, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(fd)
	steps := 0
	w := newWriter(fd, func(string) error { steps++; return nil }, func(path, why string) { t.Errorf("%s is left out: %s", path, why) })
	done := 0
	must(t, w.write(plan, etcmerge.Entry{}, map[etcmerge.Source]*tree{etcmerge.FromUpper: opened(t, before, true), etcmerge.FromImage: opened(t, image, false)}, func() { done++ }))
	if done != len(plan.Changes) || steps < 2*len(plan.Changes) {
		t.Errorf("%d of %d are done, in %d steps", done, len(plan.Changes), steps)
	}
	want := map[string]string{"d": "dir", "d/merged": "=merged", "d/removed": "gone", "kept": "=" + large, "link": "->/nowhere", "pipe": "pipe", "taken": "=image's"}
	if got := shown(t, to); !maps.Equal(got, want) {
		t.Errorf("it has %.300v, want %.300v", got, want)
	}
	tr := opened(t, to, true)
	for _, c := range plan.Changes {
		if c.Action == etcmerge.Take {
			continue
		}
		got, err := tr.Entry(c.Path)
		c.Entry.Size = got.Size
		if got.Xattrs == nil && c.Entry.Type != etcmerge.Whiteout {
			got.Xattrs = map[string]string{}
		}
		if err != nil || !got.ModTime.Equal(c.Entry.ModTime) {
			t.Errorf("%s: %v, of %s", c.Path, err, got.ModTime)
		}
		if got.ModTime = c.Entry.ModTime; fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", c.Entry) {
			t.Errorf("%s is %+v, want %+v", c.Path, got, c.Entry)
		}
	}
}
