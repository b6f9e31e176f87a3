package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/testkit"
)

// built makes a source tree that has been built, as far as `make install` looks at it.
func built(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{"Makefile": string(read(t, "../../Makefile"))}
	for _, name := range []string{
		"bin/halogen", "bin/bb", "bin/ota", "bin/otad", "bin/halogenctl", "bin/bb.list", "bin/bb.modules", "bin/share/man/man8/ota.8", "bin/man/man1/halogen.1",
		"bin/man/man5/uki.conf.5", "bin/man/man8/ota.8", "README.md", "CHANGELOG.md", "out/copyright", "uki.conf", "builder/recipes/debian/make-rootfs",
		"builder/recipes/recipes_test.go", "qemu-tests/update/file", "qemu-tests/inits/file",
	} {
		files[name] = name
	}
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// makes runs make there, with what it has built taken for new.
func makes(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	c := exec.Command(testkit.Need(t, "make"), append([]string{"--assume-old=build", "--assume-old=out/copyright"}, args...)...)
	c.Dir = dir
	c.Env = append(os.Environ(), "MAKEFLAGS=", "MAKELEVEL=")
	out, err := c.CombinedOutput()
	return string(out), err
}

// What make install puts where, and that it refuses a name which the shell would take
// for several: it removes what it installs again, and would remove what is named so.
func TestMakeInstall(t *testing.T) {
	source, place := built(t), t.TempDir()
	for range 2 { // again over itself
		if out, err := makes(t, source, "install", "DESTDIR="+place+"/root", "PREFIX=/usr"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	for name, want := range map[string]string{"bin/halogen": "bin/halogen", "lib/halogen/share/man/man8/ota.8": "bin/share/man/man8/ota.8", "share/man/man5/uki.conf.5": "bin/man/man5/uki.conf.5"} {
		if have := string(read(t, filepath.Join(place, "root/usr", name))); have != want {
			t.Errorf("%s is %q, want %q", name, have, want)
		}
	}
	sentinel := filepath.Join(place, "mine", "file")
	if err := os.Mkdir(filepath.Dir(sentinel), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sentinel, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ variable, target string }{{"PREFIX", "install"}, {"DESTDIR", "install"}, {"OUT", "install"}, {"OUT", "deb"}} {
		for _, value := range []string{place + "/mine else", place + "/mine\telse", place + "/mine "} {
			out, err := makes(t, source, c.target, c.variable+"="+value)
			if err == nil || !strings.Contains(out, c.variable+" is '"+value) || !strings.Contains(out, "white space") {
				t.Errorf("make %s %s=%q: %v\n%s", c.target, c.variable, value, err, out)
			}
			if _, err := os.Stat(sentinel); err != nil {
				t.Fatalf("make %s %s=%q: %v", c.target, c.variable, value, err)
			}
		}
	}
}
