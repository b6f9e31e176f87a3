package changes

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/stateconf"
	"halogenos.internal/boot/testkit"
)

// system mounts a system as the boot does: an image, and what may change over it.
func system(t *testing.T, conf string) (root string, upper string) {
	t.Helper()
	testkit.Root(t, "mount an overlay")
	root, state := t.TempDir(), t.TempDir()
	mount := func(source, target, kind string, flags uintptr, data string) {
		t.Helper()
		if err := unix.Mount(source, target, kind, flags, data); err != nil {
			testkit.Skip(t, fmt.Sprintf("%s may not be mounted here: %v", kind, err))
		}
		t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	}
	mount("tmpfs", root, "tmpfs", 0, "")
	mount("tmpfs", state, "tmpfs", 0, "")
	for name, text := range map[string]string{stateconf.Path: conf, "etc/motd": "root:x:0:0\n", "etc/hosts": "image\n", "etc/d/gone": "image\n", "srv/data": "image\n"} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	upper, work := filepath.Join(state, "upper"), filepath.Join(state, "work")
	for _, dir := range []string{upper, work} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount("overlay", filepath.Join(root, "etc"), "overlay", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", filepath.Join(root, "etc"), upper, work))
	mount(state, filepath.Join(root, "srv"), "", unix.MS_BIND, "")
	return root, upper
}

// The image's directory is found under the kernel's own overlay, also where something is
// mounted over a file of it; what is given back lies in the overlay.
func TestOverlay(t *testing.T) {
	root, upper := system(t, "overlay /etc\nbind /srv\noverlay /missing\n")
	etc := func(name string) string { return filepath.Join(root, "etc", name) }
	b := &box{t: t}
	b.must(os.WriteFile(etc("motd"), []byte("root:x:0:0\nme:x:1000:1000\n"), 0o644))
	b.must(os.WriteFile(etc("own"), nil, 0o644))
	b.must(os.RemoveAll(etc("d")))
	b.must(unix.Mount(etc("own"), etc("hosts"), "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(etc("hosts"), unix.MNT_DETACH) })
	var err error
	b.m, err = at(root)
	b.must(err)
	defer b.m.Close()
	if len(b.m.Pairs) != 1 || b.m.Pairs[0].Path != "/etc" {
		t.Fatalf("%+v", b.m.Pairs)
	}
	b.says("removed /etc/d (directory)", "removed /etc/d/gone", "changed /etc/motd: content", "added /etc/own")
	b.reset("/etc/motd")
	b.reset("/etc/d")
	b.says("added /etc/own")
	b.reset("/etc/own")
	b.says()
	for _, name := range []string{"motd", "d/gone"} {
		if _, err := os.Stat(filepath.Join(upper, name)); err != nil {
			t.Error(err)
		}
	}
	if text, err := os.ReadFile(etc("d/gone")); err != nil || string(text) != "image\n" {
		t.Errorf("%q, %v", text, err)
	}
}

// A file that cannot be read, on either side, is listed, and so is everything else.
func TestUnreadable(t *testing.T) {
	testkit.Root(t, "mount a file that cannot be read")
	b := newBox(t)
	b.clash("conflict")
	for tree, name := range map[string]string{b.merged: "here", b.image: "there"} {
		b.both(name, "")
		path := filepath.Join(tree, name)
		if err := unix.Mount("/proc/self/mem", path, "", unix.MS_BIND, ""); err != nil { // no page is at 0
			testkit.Skip(t, fmt.Sprintf("a file may not be mounted here: %v", err))
		}
		t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	}
	b.file(b.merged, "z", "mine\n")
	lines := b.list()
	for i, want := range []string{"changed /etc/conflict: content", "added /etc/halogen (directory)",
		"changed /etc/here: cannot be compared with the image's (read", "changed /etc/there: cannot be compared with the image's (read", "added /etc/z"} {
		if len(lines) != 5 || !strings.HasPrefix(lines[i], want) {
			t.Fatalf("lists\n  %s\nwant %s", strings.Join(lines, "\n  "), want)
		}
	}
	b.waits("/etc/conflict")
	var s strings.Builder
	if err := b.m.Diff(t.Context(), &s, "/etc"); err != nil || strings.Count(s.String(), "cannot be read: ") != 2 || !strings.Contains(s.String(), "+mine\n") {
		t.Errorf("%v\n%s", err, s.String())
	}
}

// So is everything else where a directory cannot be read: here the one of a process that has
// ended.
func TestUnreadableDirectory(t *testing.T) {
	testkit.Root(t, "mount a directory that cannot be read")
	b := newBox(t)
	process := exec.Command("sleep", "60")
	b.must(process.Start())
	b.must(os.Mkdir(filepath.Join(b.merged, "dead"), 0o755))
	path := filepath.Join(b.merged, "dead")
	err := unix.Mount(fmt.Sprintf("/proc/%d", process.Process.Pid), path, "", unix.MS_BIND, "")
	b.must(process.Process.Kill())
	_ = process.Wait()
	if err != nil {
		testkit.Skip(t, fmt.Sprintf("a directory may not be mounted here: %v", err))
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	b.file(b.merged, "z", "mine\n")
	b.says("added /etc/dead (directory)", "added /etc/z")
	r, err := b.m.List(t.Context())
	if b.must(err); len(r.Skipped) != 1 || !strings.HasPrefix(r.Skipped[0].String(), "/etc/dead: cannot be read (") {
		t.Errorf("%v", r.Skipped)
	}
}

// A system that lays nothing over its image has nothing to compare.
func TestNoOverlay(t *testing.T) {
	root, _ := system(t, "bind /etc\n")
	if _, err := at(root); err == nil || !strings.Contains(err.Error(), "state.conf(5)") {
		t.Errorf("%v", err)
	}
}
