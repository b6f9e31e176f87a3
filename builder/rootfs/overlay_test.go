package rootfs

import (
	"archive/tar"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
)

// marked is a file with an attribute.
func marked(name string, kind byte, key, value string) *tar.Header {
	return header(name, kind, record(paxXattr+key, value))
}

// A layer in the form that overlayfs and fuse-overlayfs keep it in deletes and hides
// what it would when it is mounted.
func TestOverlayLayers(t *testing.T) {
	reg, dir, device := byte(tar.TypeReg), byte(tar.TypeDir), byte(tar.TypeChar)
	base := pack(t, header("usr/file", reg), header("a", dir), header("a/a", reg), header("a/b", reg))
	for name, c := range map[string]struct {
		layer []byte
		want  string
	}{
		"device 0:0":                {pack(t, header("a/a", device)), "a/b usr/file"},
		"of a directory":            {pack(t, header("a", device)), "usr/file"},
		"in a directory not there":  {pack(t, header("new/a", device)), "a/a a/b usr/file"},
		"an empty file with a mark": {pack(t, header("a", dir, record(paxXattr+"trusted.overlay.opaque", "x")), header("a/a", tar.TypeCont, record(paxXattr+"trusted.overlay.whiteout", "y"))), "a/b usr/file"},
		"opaque":                    {pack(t, marked("a", dir, "trusted.overlay.opaque", "y"), header("a/new", reg)), "a/new usr/file"},
		"opaque, by a user":         {pack(t, marked("a", dir, "user.overlay.opaque", "y"), header("a/new", reg)), "a/new usr/file"},
		"opaque, fuse-overlayfs":    {pack(t, header("a/new", reg), marked("a", dir, "user.fuseoverlayfs.opaque", "y")), "a/new usr/file"},
		"not opaque":                {pack(t, marked("a", dir, "trusted.overlay.opaque", "n"), header("a/new", reg)), "a/a a/b a/new usr/file"},
	} {
		t.Run(name, func(t *testing.T) {
			i := image{}
			i.index(t, i.manifest(t, base, c.layer))
			tree := newTree(t)
			if err := tree.Fill(t.Context(), i.directory(t), "x86_64"); err != nil {
				t.Fatal(err)
			}
			if have := names(t, tree); have != c.want {
				t.Errorf("the tree has %s, want %s", have, c.want)
			}
			if e := tree.dirs["a"]; e != nil {
				for key := range e.Xattrs {
					if strings.Contains(key, "overlay") && e.Xattrs[key] == "y" {
						t.Errorf("a keeps the attribute %s", key)
					}
				}
			}
		})
	}
}

// What is in an upper directory is not a root file system, neither as it lies there
// nor in a tar.
func TestUpperDirectories(t *testing.T) {
	for name, h := range map[string]*tar.Header{
		"device 0:0":     header("etc/passwd", tar.TypeChar),
		"opaque":         marked("etc", tar.TypeDir, "trusted.overlay.opaque", "y"),
		"user.overlay":   marked("etc", tar.TypeDir, "user.overlay.opaque", "y"),
		"fuse-overlayfs": marked("etc", tar.TypeDir, "user.fuseoverlayfs.opaque", "y"),
	} {
		if _, err := fill(t, pack(t, header("usr/file", tar.TypeReg), h)); err == nil || !strings.Contains(err.Error(), mountPoint) || !strings.Contains(err.Error(), "etc") {
			t.Errorf("%s: %v", name, err)
		}
	}
	testkit.Root(t, "a whiteout is a device node")
	upper := t.TempDir()
	if err := unix.Mknod(filepath.Join(upper, "gone"), unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	tree := newTree(t)
	if err := tree.Fill(t.Context(), upper, "x86_64"); err == nil || !strings.Contains(err.Error(), "gone: ") || !strings.Contains(err.Error(), mountPoint) {
		t.Errorf("a directory: %v", err)
	}
}

// What the kernel's own overlay leaves in its upper directory, as a directory and as
// GNU tar packs it.
func TestUpperDirectoryOfTheKernel(t *testing.T) {
	testkit.Root(t, "it mounts an overlay")
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		testkit.Skip(t, fmt.Sprintf("no tmpfs may be mounted here: %v", err))
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	for _, name := range []string{"lower/old", "upper", "work", "all"} {
		if err := os.MkdirAll(at(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(at("lower/old/file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("overlay", at("all"), "overlay", 0, "lowerdir="+at("lower")+",upperdir="+at("upper")+",workdir="+at("work")); err != nil {
		testkit.Skip(t, fmt.Sprintf("no overlay may be mounted here: %v", err))
	}
	t.Cleanup(func() { _ = unix.Unmount(at("all"), unix.MNT_DETACH) })
	if err := os.RemoveAll(at("all/old")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(at("all/old"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := newTree(t).Fill(t.Context(), at("upper"), "x86_64"); err == nil || !strings.Contains(err.Error(), mountPoint) {
		t.Errorf("the upper directory: %v", err)
	}
	packed, err := exec.Command("tar", "--xattrs", "--xattrs-include=*", "-C", at("upper"), "-cf", "-", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fill(t, packed); err == nil || !strings.Contains(err.Error(), mountPoint) {
		t.Errorf("a tar of it: %v", err)
	}
	if err := newTree(t).Fill(t.Context(), at("all"), "x86_64"); err != nil {
		t.Errorf("what the overlay is mounted on: %v", err)
	}
}

// Capabilities that rootless storage keeps for another root count on no machine.
func TestCapabilitiesOfOtherRoots(t *testing.T) {
	value := func(root uint32) string {
		v := binary.LittleEndian.AppendUint32(nil, 3<<24|1)
		v = append(v, make([]byte, 16)...)
		return string(binary.LittleEndian.AppendUint32(v, root))
	}
	_, err := fill(t, pack(t, marked("ping", tar.TypeReg, capability, value(100_000))))
	if err == nil || !strings.Contains(err.Error(), "the user 100000 is root") || !strings.Contains(err.Error(), "podman unshare") {
		t.Errorf("error %v", err)
	}
	if _, err := fill(t, pack(t, marked("ping", tar.TypeReg, capability, value(0)))); err != nil && os.Geteuid() == 0 {
		t.Errorf("for root: %v", err)
	}
}
