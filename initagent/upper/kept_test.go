package upper

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/testkit"
)

// What chattr made of a file through the overlay stays with the file that is kept.
func TestCarryKeepsFlags(t *testing.T) {
	testkit.Root(t, "set trusted.overlay attributes")
	d := newDisk(t, Directory+"/"+hash("a"))
	etcOf := filepath.Join(d.root, Directory, hash("a"), "etc/upper")
	lay(t, etcOf, map[string]string{"theirs": "=mine"}) // a conflict
	for _, name := range []string{"ours", "theirs"} {
		must(t, unix.Lsetxattr(filepath.Join(etcOf, name), protected, []byte("i"), 0))
	}
	_, err := d.store.Carry(t.Context(), d.carry(Source{System: hash("a")}))
	must(t, err)
	for _, name := range []string{"ours", "theirs"} {
		if _, err := unix.Lgetxattr(filepath.Join(d.root, own(hash("b"), "etc", "upper"), name), protected, nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
