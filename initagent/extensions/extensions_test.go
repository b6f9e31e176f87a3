package extensions

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
)

// What an overlay takes for a directory that hides those below, or for a file that was
// removed, is found out.
func TestHides(t *testing.T) {
	testkit.Root(t, "set the attributes of an overlay's directories")
	at := t.TempDir()
	lib := filepath.Join(at, "usr/lib")
	if err := os.MkdirAll(filepath.Join(lib, "more"), 0o755); err != nil {
		t.Fatal(err)
	}
	const name = "usr/lib/os-release"
	if err := hides(at, name); err != nil {
		t.Errorf("nothing is hidden: %v", err)
	}
	if err := unix.Mknod(filepath.Join(at, name), unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	if err := hides(at, name); err == nil || !strings.Contains(err.Error(), "it has /"+name) {
		t.Errorf("a whiteout: %v", err)
	}
	if err := os.Remove(filepath.Join(at, name)); err != nil {
		t.Fatal(err)
	}
	if err := leadsTo(at, modules); err != nil {
		t.Error(err)
	}
	if err := os.Symlink("/etc", filepath.Join(at, modules)); err != nil {
		t.Fatal(err)
	}
	if err := leadsTo(at, modules); err == nil || !strings.Contains(err.Error(), "it has a /usr/lib/modules that hides") {
		t.Errorf("a link in the place of the modules: %v", err)
	}
	if err := unix.Lsetxattr(lib, opaque, []byte("y"), 0); err != nil {
		testkit.Skip(t, "the file system has no trusted attributes: "+err.Error())
	}
	if err := hides(at, name); err == nil || !strings.Contains(err.Error(), "it has a /usr/lib that hides what the system has there") {
		t.Errorf("an opaque directory: %v", err)
	}
}

// Of the layers' indexes what is built into the kernel stays the image's.
func TestMergeAll(t *testing.T) {
	t.Parallel()
	image := map[string][]byte{"modules.dep": []byte("a.ko:\n"), "modules.builtin": []byte("b\n"), "modules.order": []byte("a.ko\n")}
	files, err := mergeAll(image, []map[string][]byte{{"modules.dep": []byte("c.ko:\n"), "modules.builtin": nil, "modules.builtin.bin": nil}, {"modules.dep": []byte("d.ko:\n")}})
	if err != nil || len(files) != 2 || string(files["modules.dep"]) != "a.ko:\nc.ko:\nd.ko:\n" || string(files["modules.builtin"]) != "b\n" {
		t.Errorf("%q, %v", files, err)
	}
	if _, err := mergeAll(image, []map[string][]byte{{"modules.dep.bin": []byte("x")}, {"modules.dep.bin": []byte("y")}}); err == nil {
		t.Error("what is no index is merged")
	}
}
