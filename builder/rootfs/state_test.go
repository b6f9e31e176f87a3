package rootfs

import (
	"maps"
	"os"
	"strings"
	"testing"

	"halogenos.internal/boot/stateconf"
)

// FAULTS 112 (B1)
func TestStateDirectoriesThatAreLinks(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		keeps string // entries of state.conf, but for those of every tree
		dirs  string // that must be there
	}{
		{"home in var", map[string]string{"home": "-> var/home"}, "!/home", "var/home"},
		{"absolute", map[string]string{"home": "-> /var/home", "var/home/user/file": ""}, "!/home", "var/home"},
		{"ostree and bootc", map[string]string{
			"home": "-> var/home", "root": "-> var/roothome", "srv": "-> var/srv", "opt": "-> var/opt", "mnt": "-> var/mnt", "media": "-> run/media",
			"usr/local": "-> ../var/usrlocal", "tmp": "-> sysroot/tmp",
		}, "!/home !/root !/srv !/opt !/usr/local !/tmp tmpfs:/sysroot/tmp", "var/home var/roothome var/srv var/opt var/usrlocal sysroot/tmp"},
		{"link to a link", map[string]string{"home": "-> users", "users": "-> ./var/../var/lib/users"}, "!/home", "var/lib/users"},
		{"into another one", map[string]string{"root": "-> home/root"}, "!/root", "home/root"},
		{"to a directory of its own", map[string]string{"home": "-> data/home", "data/home/file": ""}, "!/home bind:/data/home", "data/home"},
		{"that leads out of the tree", map[string]string{"srv": "-> ../../../data/srv"}, "!/srv bind:/data/srv", "data/srv"},
		{"no link", map[string]string{"home/user/file": ""}, "", "home root srv opt usr/local"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := treeOf(t, c.files)
			if _, err := tree.Complete(nil, date); err != nil {
				t.Fatal(err)
			}
			text, err := tree.ReadFile(stateconf.Path, stateconf.MaxSize)
			if err != nil {
				t.Fatal(err)
			}
			entries, err := stateconf.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			have := make(map[stateconf.Entry]bool)
			for _, e := range entries {
				have[e] = true
				// What the boot does: no part of the way may be a link.
				if at, exists, err := tree.reach(e.Path); err != nil || !exists || "/"+at != e.Path || tree.dirs[at] == nil {
					t.Errorf("%s leads to %s, %v, %v", e.Path, at, exists, err)
				}
			}
			want := map[stateconf.Entry]bool{}
			usual, err := stateconf.Parse([]byte(stateconf.Default))
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range usual {
				want[e] = true
			}
			for _, word := range strings.Fields(c.keeps) {
				if mode, path, ok := strings.Cut(word, ":"); ok {
					want[stateconf.Entry{Mode: stateconf.Mode(mode), Path: path}] = true
					continue
				}
				maps.DeleteFunc(want, func(e stateconf.Entry, _ bool) bool { return e.Path == word[1:] })
			}
			if !maps.Equal(have, want) {
				t.Errorf("state.conf has %v, want %v:\n%s", have, want, text)
			}
			for _, dir := range strings.Fields(c.dirs) {
				if tree.dirs[dir] == nil {
					t.Errorf("there is no directory %s", dir)
				}
			}
		})
	}
	tree := treeOf(t, map[string]string{"root": "-> var/roothome"})
	if _, err := tree.Complete(nil, date); err != nil || tree.dirs["var/roothome"].Mode != 0o700 {
		t.Errorf("root's own directory has the mode %o, %v", tree.dirs["var/roothome"].Mode, err)
	}
}

// FAULTS 112 (B1)
func TestStateDirectoriesThatAreNot(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		say   string
	}{
		{"file", map[string]string{"srv": "text"}, "/srv is a file"},
		{"link to a file", map[string]string{"srv": "-> etc/file", "etc/file": ""}, "/etc/file is a file"},
		{"below a file", map[string]string{"srv": "-> etc/file/srv", "etc/file": ""}, "state directory /srv"},
		{"loop", map[string]string{"srv": "-> opt", "opt": "-> srv"}, "symbolic links"},
		{"into the verified system", map[string]string{"srv": "-> usr/lib/srv"}, "stays read-only"},
		{"into what is gone at each start", map[string]string{"home": "-> run/home"}, "stays read-only"},
		{"/var itself", map[string]string{"var": "-> data/var"}, "/var is a symbolic link"},
		{"/etc itself", map[string]string{"etc": "-> data/etc", "data/etc/file": ""}, "/etc is a symbolic link"},
		{"/proc", map[string]string{"proc": "-> run"}, "/proc is a symbolic link"},
		{"/dev", map[string]string{"dev": "text"}, "/dev is not a directory"},
		{"own state.conf, in another directory", map[string]string{stateconf.Path: "bind /var\nbind /home\n", "home": "-> var/home"}, "remove the line"},
		{"own state.conf, elsewhere", map[string]string{stateconf.Path: "bind /var\nbind /data/db\n", "data": "-> real", "real/db/file": ""}, "leads to /real/db: name that"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := treeOf(t, c.files).Complete(nil, date)
			if err == nil || !strings.Contains(err.Error(), c.say) {
				t.Errorf("error %v, want one that says %q", err, c.say)
			}
		})
	}
}

// FAULTS 112
func TestEtcOfOSTree(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"no /etc":               {"usr/etc/passwd": "root:x:0:0", "usr/etc/sub/file": "x"},
		"/etc that is a link":   {"usr/etc/passwd": "root:x:0:0", "usr/etc/sub/file": "x", "etc": "-> usr/etc"},
		"/etc, absolute":        {"usr/etc/passwd": "root:x:0:0", "usr/etc/sub/file": "x", "etc": "-> /usr/etc"},
		"/etc, of which no use": {"usr/etc/passwd": "root:x:0:0", "usr/etc/sub/file": "x", "etc/.keep": ""},
	} {
		t.Run(name, func(t *testing.T) {
			tree := treeOf(t, files)
			if files["etc/.keep"] == "" {
				if _, ok := files["etc/.keep"]; ok {
					if err := tree.Remove("etc/.keep"); err != nil {
						t.Fatal(err)
					}
				}
			}
			if _, err := tree.Complete(nil, date); err != nil {
				t.Fatal(err)
			}
			if err := tree.Seal(date); err != nil {
				t.Fatal(err)
			}
			for _, file := range []string{"etc/passwd", "usr/etc/passwd", "etc/sub/file"} {
				if _, err := tree.ReadFile(file, 100); err != nil {
					t.Error(err)
				}
			}
			if info, err := os.Lstat(tree.Dir() + "/etc"); err != nil || !info.IsDir() {
				t.Errorf("/etc: %v", err)
			}
		})
	}
	// openSUSE has both.
	tree := treeOf(t, map[string]string{"usr/etc/services": "vendor", "etc/passwd": "own"})
	if _, err := tree.Complete(nil, date); err != nil {
		t.Fatal(err)
	}
	if text, err := tree.ReadFile("usr/etc/services", 100); err != nil || string(text) != "vendor" {
		t.Errorf("/usr/etc/services has %q, %v", text, err)
	}
}
