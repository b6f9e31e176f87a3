package image

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/release"
	"halogenos.internal/builder/rootfs/rootfstest"
)

var outputFiles = []string{release.ImageFile, release.UKIFile, release.BootManagerFile, release.FileName, BillFile, ProvenanceFile, DiskFile}

// A build with a cache makes the same as one without, whatever has become of the cache.
func TestCacheChangesNothing(t *testing.T) {
	files := rootfstest.Minimal()
	tree := files.Write(t, false)
	plain := options(t, tree)
	mustBuild(t, plain)
	kept := filepath.Join(t.TempDir(), "cache")
	damage := func(change func([]byte) []byte) func() {
		return func() {
			for _, name := range listing(t, kept) {
				content := read(t, kept, name)
				if err := os.WriteFile(filepath.Join(kept, name), change(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for _, c := range []struct {
		name   string
		before func()
	}{
		{"first", func() {}},
		{"again", func() {}},
		{"torn", damage(func(b []byte) []byte { return b[:len(b)/2] })},
		{"empty", damage(func([]byte) []byte { return nil })},
		{"zeros", damage(func(b []byte) []byte { return make([]byte, len(b)) })},
		{"deleted", func() {
			if err := os.RemoveAll(kept); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		c.before()
		o := options(t, tree)
		o.Cache = kept
		o.Machine = plain.Machine
		mustBuild(t, o)
		for _, name := range outputFiles {
			if !bytes.Equal(read(t, o.Out, name), read(t, plain.Out, name)) {
				t.Errorf("%s: %s has other bytes", c.name, name)
			}
		}
	}
	if have := listing(t, kept); len(have) != 3 {
		t.Errorf("the cache has %q", have)
	}
}

// A secret is found by a build that knows the rest, by the one after it, and where the cache
// was damaged or comes from a build that had allowed it.
func TestCacheHidesNoSecret(t *testing.T) {
	files := rootfstest.Minimal()
	kept := filepath.Join(t.TempDir(), "cache")
	o := options(t, files.Write(t, false))
	o.Cache = kept
	mustBuild(t, o)
	files["usr/share/thing"] = privateKey(t)
	tree := files.Write(t, false)
	for i := range 3 {
		o := options(t, tree)
		o.Cache = kept
		if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "/usr/share/thing at byte 0: private-key-pem") {
			t.Errorf("build %d: %v", i, err)
		}
		if i == 1 {
			for _, name := range listing(t, kept) {
				content := read(t, kept, name)
				content[len(content)-1] ^= 1
				if err := os.WriteFile(filepath.Join(kept, name), content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// A module that was good for one build is refused where another name or kernel makes it bad.
func TestCacheJudgesModules(t *testing.T) {
	files := rootfstest.Minimal()
	o := options(t, files.Write(t, false))
	o.Cache = filepath.Join(t.TempDir(), "cache")
	mustBuild(t, o)
	directory := "usr/lib/modules/" + rootfstest.Release
	files[directory+"/extra/other.ko"] = rootfstest.UnsignedModule("vermagic="+rootfstest.Release+rootfstest.Config, "license=GPL", "name=other", "depends=")
	again := options(t, files.Write(t, false))
	again.Cache = o.Cache
	for range 2 {
		if _, err := Build(t.Context(), again); err == nil || !strings.Contains(err.Error(), "other.ko: is not signed") {
			t.Errorf("error %v", err)
		}
	}
}

func TestCachesThatAreRefused(t *testing.T) {
	o := options(t, rootfstest.Minimal().Write(t, false))
	o.Cache = filepath.Join(o.RootFS, "var/cache")
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "lies in the root file system") {
		t.Errorf("inside the root file system: %v", err)
	}
	o.Cache = t.TempDir()
	if err := os.Chmod(o.Cache, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "others than its owner can write it") {
		t.Errorf("others can write it: %v", err)
	}
	if len(listing(t, o.Out)) > 0 {
		t.Error("a build that was refused left something")
	}
}
