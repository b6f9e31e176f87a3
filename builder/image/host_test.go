package image

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"halogenos.internal/boot/release"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/rootfs/rootfstest"
)

// A default access control list of the build host, as on shared directories of
// projects, makes no other image and no other stick.
func TestListsOfTheHost(t *testing.T) {
	source := rootfstest.Minimal().Write(t, false)
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("program"), 0o700); err != nil {
		t.Fatal(err)
	}
	// user::rwx user:4242:rwx group::r-x mask::rwx other::r-x
	const list = "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x07\x00\x92\x10\x00\x00\x04\x00\x05\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x05\x00\xff\xff\xff\xff"
	var first map[string][]byte
	for _, shared := range []bool{false, true} {
		o := options(t, source)
		o.Disk = false
		if shared {
			if err := unix.Setxattr(filepath.Dir(o.Out), "system.posix_acl_default", []byte(list), 0); errors.Is(err, unix.ENOTSUP) {
				testkit.Skip(t, "the directory for temporary files has no access control lists")
			} else if err != nil {
				t.Fatal(err)
			}
		}
		mustBuild(t, o)
		if err := Stick(t.Context(), o.Out, program); err != nil {
			t.Fatal(err)
		}
		have := map[string][]byte{}
		for _, name := range []string{release.ImageFile, release.UKIFile, StickFile} {
			have[name] = read(t, o.Out, name)
			if first != nil && !bytes.Equal(have[name], first[name]) {
				t.Errorf("%s is another below a directory with a default access control list", name)
			}
		}
		first = have
	}
}
