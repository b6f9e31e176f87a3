package image

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// A build leaves nothing of the one before beside its release.json, and two at a time do not
// write to one directory.
func TestImagesOfTheBuildBefore(t *testing.T) {
	o := options(t, rootfstest.Minimal().Write(t, false))
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("program"), 0o700); err != nil {
		t.Fatal(err)
	}
	mustBuild(t, o)
	if err := Stick(t.Context(), o.Out, program); err != nil {
		t.Fatal(err)
	}
	first := listing(t, o.Out)
	if !slices.Contains(first, DiskFile) || !slices.Contains(first, StickFile) {
		t.Fatalf("the first build has made %v", first)
	}

	lock, err := newOutputs(o.Out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "another build writes to it") || !strings.Contains(err.Error(), o.Out) {
		t.Errorf("a second build at the same time: error %v", err)
	}
	if err := Stick(t.Context(), o.Out, program); err == nil || !strings.Contains(err.Error(), "another build writes to it") {
		t.Errorf("a stick at the same time: error %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if have := listing(t, o.Out); !slices.Equal(have, first) {
		t.Errorf("they have left %v", have)
	}

	o.Version, o.Disk = 8, false
	mustBuild(t, o)
	if have := listing(t, o.Out); slices.Contains(have, DiskFile) || slices.Contains(have, StickFile) {
		t.Errorf("beside the next release lie images of the one before: %v", have)
	}
	o.Version, o.Disk = 9, true
	mustBuild(t, o)
	if have := listing(t, o.Out); !slices.Contains(have, DiskFile) || slices.Contains(have, StickFile) {
		t.Errorf("the third build has left %v", have)
	}
}
