package extensions

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
	"halogenos.internal/initagent/host"
	"halogenos.internal/initagent/hw"
)

// An overlay looks for each name of the image in the extension's directory first: where that
// cannot be read, the image's own files are gone with it, the system's init among them. So
// such an extension is left out. EROFS says of a block without names in it what dm-verity
// says of a changed one: an error. FAULTS 111
func TestDirectoryThatCannotBeRead(t *testing.T) {
	testkit.Root(t, "mount an image")
	mkfs := testkit.Need(t, "mkfs.erofs")
	top := t.TempDir()
	const lib = "usr/lib/systemd/system"
	h := &host.Host{Given: host.Given{Root: top}}
	source := filepath.Join(top, "source")
	for _, directory := range []string{filepath.Join(source, lib), h.Path(host.SystemDirectory, "usr")} {
		if err := os.MkdirAll(directory, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	name := func(n int) string { return "unit-" + strings.Repeat("x", 100) + "-" + string(rune('a'+n)) }
	for n := range 26 * 4 { // more names than a block has room for
		if err := os.WriteFile(filepath.Join(source, lib, name(n%26)+strings.Repeat("y", n/26)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(top, "image")
	testkit.Run(t, mkfs, "-T0", image, source)
	content, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(top, "good")
	mount(t, top, content, good)
	if err := fits(h, good, nil); err != nil {
		t.Errorf("a whole one: %v", err)
	}
	if _, err := os.Stat(filepath.Join(good, lib, name(12))); err != nil {
		t.Error(err)
	}
	const block = 4096
	at := bytes.Index(content, []byte(name(12))) / block * block
	if at <= 0 {
		t.Fatal("the image has no block of names")
	}
	clear(content[at : at+block])
	bad := filepath.Join(top, "bad")
	mount(t, top, content, bad)
	if err := fits(h, bad, nil); err == nil || !strings.Contains(err.Error(), "/"+lib) || !strings.Contains(err.Error(), "would hide the system's") {
		t.Errorf("a directory without names: %v", err)
	}
}

// mount mounts an image, by a loop device.
func mount(t *testing.T, top string, content []byte, at string) {
	t.Helper()
	name := filepath.Base(at) + ".raw"
	if err := os.WriteFile(filepath.Join(top, name), content, fs.FileMode(0o600)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	image, err := hw.LinuxStore{Root: top}.OpenImage(name, int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	node, err := image.Attach()
	if err == nil {
		err = unix.Mount(node, at, "erofs", unix.MS_RDONLY, "")
	}
	if err != nil {
		testkit.Skip(t, "no EROFS image may be mounted here: "+err.Error())
	}
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
}
