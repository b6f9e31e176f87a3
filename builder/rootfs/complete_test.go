package rootfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"halogenos.internal/boot/stateconf"
)

// treeOf makes a tree of files; "-> target" as content makes a symbolic link.
func treeOf(t *testing.T, files map[string]string) *Tree {
	t.Helper()
	tree := newTree(t)
	for name, content := range files {
		e := Entry{Name: name, Kind: Regular, Mode: 0o644, UID: os.Geteuid(), GID: os.Getegid(), ModTime: date, Size: int64(len(content))}
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			e.Kind, e.Target = Symlink, target
		}
		if err := tree.Put(e, strings.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
	return tree
}

func TestResolve(t *testing.T) {
	tree := treeOf(t, map[string]string{
		"usr/bin/sh":   "shell",
		"bin":          "-> usr/bin",
		"abs":          "-> /usr",
		"up":           "-> ../../../../usr/bin/sh",
		"usr/lib/link": "-> ../bin/sh",
		"loop":         "-> loop",
		"long":         "-> /long/long",
		"dangling":     "-> /nothing",
	})
	for name, want := range map[string]string{
		"": ".", "/": ".", "..": ".", "bin/sh": "usr/bin/sh", "/abs/bin/sh": "usr/bin/sh", "up": "usr/bin/sh", "usr/lib/link": "usr/bin/sh",
		"abs/lib/../bin/./sh": "usr/bin/sh", "abs": "usr",
	} {
		if have, err := tree.Resolve(name); err != nil || have != want {
			t.Errorf("%s is %q, %v; want %q", name, have, err, want)
		}
	}
	for name, missing := range map[string]bool{"loop": false, "long": false, "dangling": true, "usr/nothing/x": true, "usr/bin/sh/x": false} {
		if have, err := tree.Resolve(name); err == nil || errors.Is(err, fs.ErrNotExist) != missing {
			t.Errorf("%s is %q, %v", name, have, err)
		}
	}
	if text, err := tree.ReadFile("up", 5); err != nil || string(text) != "shell" {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := tree.ReadFile("up", 4); err == nil || !strings.Contains(err.Error(), "more than 4") {
		t.Errorf("error %v", err)
	}
	if _, err := tree.ReadFile("abs", 4); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("error %v", err)
	}
}

func TestComplete(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 2) + "\n"
	tree := treeOf(t, map[string]string{
		"usr/sbin":                       "-> bin",
		"usr/bin/true":                   "",
		"usr/lib/systemd/systemd":        "",
		"etc/machine-id":                 id,
		"var/lib/dbus/machine-id":        "-> /etc/machine-id",
		"var/lib/systemd/random-seed":    "seed",
		"boot/initrd.img-6":              "initrd",
		"boot/vmlinuz-6":                 "kernel",
		"boot/initramfs-linux.img":       "initrd",
		"usr/lib/halogen/something-else": "",
		"usr/share/man/man8/own.8":       "own",
		"etc/.updated":                   "of the build",
		"var/.updated":                   "of the build",
	})
	// As dpkg leaves it, who touches /usr only to add a directory to it.
	tree.dirs["usr"].ModTime = date.Add(-1000 * time.Hour)
	notes, err := tree.Complete(Commands{
		"usr/sbin/ota": []byte("ota"), "usr/share/man/man8/ota.8": []byte("page"), "usr/share/man/man8/own.8": []byte("ours"),
	}, date)
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.Seal(date); err != nil {
		t.Fatal(err)
	}
	want := "boot/vmlinuz-6 etc/machine-id usr/bin/ota usr/bin/true usr/lib/halogen/something-else usr/lib/halogen/state.conf usr/lib/systemd/systemd usr/sbin usr/share/man/man8/ota.8 usr/share/man/man8/own.8 var/lib/dbus/machine-id"
	if have := names(t, tree); have != want {
		t.Errorf("have %s\nwant %s", have, want)
	}
	for _, left := range []string{"random-seed", "initrd.img-6", "initramfs-linux.img", "machine-id", "/etc/.updated", "/var/.updated"} {
		if !strings.Contains(strings.Join(notes, "\n"), left) {
			t.Errorf("nothing is said about %s: %q", left, notes)
		}
	}
	for name, content := range map[string]string{"etc/machine-id": "", stateconf.Path: stateconf.Default, "usr/bin/ota": "ota", "usr/share/man/man8/own.8": "own"} {
		if have, err := tree.ReadFile(name, 1<<20); err != nil || string(have) != content {
			t.Errorf("%s has %q, %v", name, have, err)
		}
	}
	for name, mode := range map[string]fs.FileMode{
		"proc": 0o555, "sys": 0o555, "dev": 0o755, "run": 0o755, "tmp": 0o777 | fs.ModeSticky, "root": 0o700, "efi": 0o755,
		"srv": 0o755, "usr/local": 0o755, // by state.conf
		"usr": 0o755, // which tells machines that they were updated
	} {
		info, err := os.Lstat(filepath.Join(tree.Dir(), name))
		if err != nil || info.Mode() != mode|fs.ModeDir || !info.ModTime().Equal(date) {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

func TestCompleteKeepsWhatTheDistributorSays(t *testing.T) {
	const conf = "bind /var\ntmpfs /scratch\n"
	tree := treeOf(t, map[string]string{stateconf.Path: conf, "etc/machine-id": "uninitialized\n", "tmp": "-> var/tmp"})
	if notes, err := tree.Complete(nil, date); err != nil || len(notes) != 0 {
		t.Fatalf("%q, %v", notes, err)
	}
	for name, content := range map[string]string{stateconf.Path: conf, "etc/machine-id": "uninitialized\n"} {
		if have, err := tree.ReadFile(name, 1<<20); err != nil || string(have) != content {
			t.Errorf("%s has %q, %v", name, have, err)
		}
	}
	if _, err := tree.Resolve("scratch"); err != nil {
		t.Error(err)
	}
	if info, err := tree.Lstat("tmp"); err != nil || info.Mode().Type() != fs.ModeSymlink {
		t.Errorf("/tmp is %v, %v", info, err)
	}
}

// An initramfs of the distribution's is left out wherever distributions put one, and no
// other file is.
func TestInitrdsOfTheDistribution(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef"
	gone := []string{"boot/initrd.img-6", "boot/" + id + "/6.1/initrd", "boot/ostree/fedora-1/initramfs-6.img", "usr/lib/modules/6.1/initramfs.img", "usr/lib/modules/6.1/initrd"}
	stay := []string{"boot/" + id + "/6.1/linux", "usr/lib/modules/6.1/vmlinuz", "usr/lib/modules/6.1/kernel/initrd.ko", "boot/initrd.d/note", "usr/share/doc/initramfs-tools"}
	for _, top := range []string{"usr/lib/modules", "lib/modules"} { // /usr merged, and not
		files := map[string]string{}
		for _, name := range append(gone, stay...) {
			files[strings.Replace(name, "usr/lib/modules", top, 1)] = "text"
		}
		if top != "lib/modules" {
			files["lib"] = "-> usr/lib"
		}
		tree := treeOf(t, files)
		notes, err := tree.Complete(nil, date)
		if err != nil {
			t.Fatal(err)
		}
		said := strings.Join(notes, "\n")
		for _, name := range gone {
			name = strings.Replace(name, "usr/lib/modules", top, 1)
			if _, err := tree.Lstat(name); !errors.Is(err, fs.ErrNotExist) || strings.Count(said, "/"+name+":") != 1 {
				t.Errorf("%s: %v, and the notes are %q", name, err, said)
			}
		}
		for _, name := range stay {
			if _, err := tree.Lstat(strings.Replace(name, "usr/lib/modules", top, 1)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// What others know one machine by is said, and stays: machines in use may be known by it.
func TestIdentitiesThatAreShared(t *testing.T) {
	for _, c := range []struct{ file, text, say string }{
		{"etc/nvme/hostnqn", "nqn.2014-08.org.nvmexpress:uuid:01234567-89ab-cdef-0123-456789abcdef\n", "NVMe"},
		{"etc/nvme/hostid", "01234567-89ab-cdef-0123-456789abcdef\n", "NVMe"},
		{"etc/hostid", "\x01\x02\x03\x04", "zgenhostid"},
		{"etc/iscsi/initiatorname.iscsi", "# text\nInitiatorName=iqn.1993-08.org.debian:01:abc\n", "GenerateName=yes"},
		{"etc/iscsi/initiatorname.iscsi", "GenerateName=yes\nInitiatorName=iqn.1993-08.org.debian:01:abc\n", "GenerateName=yes"},

		{"etc/iscsi/initiatorname.iscsi", "# text\nGenerateName=yes\n", ""},
		{"etc/nvme/hostnqn", "\n", ""},
	} {
		tree := treeOf(t, map[string]string{c.file: c.text})
		notes, err := tree.Complete(nil, date)
		if err != nil {
			t.Fatal(err)
		}
		said := strings.Join(notes, "\n")
		if (c.say == "") == strings.Contains(said, "/"+c.file) || !strings.Contains(said, c.say) {
			t.Errorf("%s with %q: %q", c.file, c.text, said)
		}
		if text, err := tree.ReadFile(c.file, 1000); err != nil || string(text) != c.text {
			t.Errorf("%s has %q, %v", c.file, text, err)
		}
	}
}

func TestMachineIDWithoutSystemd(t *testing.T) {
	tree := treeOf(t, map[string]string{"etc/machine-id": "0123\n"})
	if _, err := tree.Complete(nil, date); err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Lstat("etc/machine-id"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want none to be there", err)
	}
}

// A link out of the tree must not bring a file of this machine into the image.
func TestStateConfIsNotReadFromOutside(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "state.conf")
	if err := os.WriteFile(outside, []byte("bind /secret\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tree := treeOf(t, map[string]string{stateconf.Path: "-> " + outside})
	if _, err := tree.Complete(nil, date); err != nil {
		t.Fatal(err)
	}
	if have, err := tree.ReadFile(stateconf.Path, 1<<20); err != nil || string(have) != stateconf.Default {
		t.Errorf("state.conf has %q, %v", have, err)
	}
	if text, err := os.ReadFile(outside); err != nil || string(text) != "bind /secret\n" {
		t.Errorf("the file outside has %q, %v", text, err)
	}
}

func TestCompleteRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		say   string
	}{
		{"state.conf that would undo the verification", map[string]string{stateconf.Path: "bind /usr/bin\n"}, "stays read-only"},
		{"state.conf that is a directory", map[string]string{stateconf.Path + "/file": ""}, "state.conf"},
		{"a command of the root file system's own", map[string]string{"usr/bin/ota": "other"}, "a file of its own"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := treeOf(t, c.files).Complete(Commands{"usr/bin/ota": []byte("ota")}, date)
			if err == nil || !strings.Contains(err.Error(), c.say) {
				t.Errorf("error %v, want one that says %q", err, c.say)
			}
		})
	}
}
