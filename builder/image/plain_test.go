package image

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/release"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/config"
	"halogenos.internal/builder/erofs"
	"halogenos.internal/builder/modules"
	"halogenos.internal/builder/rootfs/rootfstest"
)

// packedModules is a root file system with modules that are compressed.
func packedModules(t *testing.T) rootfstest.Files {
	t.Helper()
	files := rootfstest.Minimal()
	for name, content := range files {
		if !strings.HasSuffix(name, ".ko") {
			continue
		}
		packed, err := modules.Pack(name+".xz", content)
		if err != nil {
			t.Fatal(err)
		}
		delete(files, name)
		files[name+".xz"] = packed
	}
	dep := "usr/lib/modules/" + rootfstest.Release + "/modules.dep"
	files[dep] = bytes.ReplaceAll(files[dep], []byte(".ko"), []byte(".ko.xz"))
	return files
}

// With Modules=plain the image has the modules as they are signed, in runs of blocks, under
// names that modules.dep knows; links lead there.
func TestPlainModules(t *testing.T) {
	files := packedModules(t)
	source := files.Write(t, false)
	dir := "usr/lib/modules/" + rootfstest.Release
	if err := os.Symlink("kernel/fs/one.ko.xz", filepath.Join(source, dir, "weak.ko.xz")); err != nil {
		t.Fatal(err)
	}
	o := options(t, source)
	c, err := config.Parse(strings.Replace(configuration, "[Initramfs]", "Modules=plain\n[Initramfs]", 1), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	o.Config, o.Disk = c, false
	mustBuild(t, o)
	file := filepath.Join(o.Out, release.ImageFile)
	testkit.Run(t, "fsck.erofs", file)
	image := read(t, o.Out, release.ImageFile)
	var names []string
	kernel := false
	err = erofs.Walk(bytes.NewReader(image), func(f erofs.File) error {
		kernel = kernel || f.Plain && strings.HasPrefix(f.Name, "boot/vmlinuz-")
		if !modules.IsModule(f.Name) {
			return nil
		}
		names = append(names, strings.TrimPrefix(f.Name, dir+"/"))
		want, err := modules.Unpack(f.Name+".xz", files[f.Name+".xz"])
		if err != nil || !f.Plain || !bytes.Equal(image[int64(f.First)*erofs.BlockSize:][:f.Size], want) {
			t.Errorf("%+v: %v", f, err)
		}
		return nil
	})
	slices.Sort(names)
	if want := []string{"kernel/fs/one.ko", "kernel/lib/two-parts.ko"}; err != nil || !slices.Equal(names, want) || !kernel {
		t.Errorf("modules %q, want %q; kernel %v; %v", names, want, kernel, err)
	}
	if said := testkit.Run(t, "dump.erofs", "--path=/"+dir+"/weak.ko", file); !strings.Contains(said, "Size: 16 ") {
		t.Errorf("the link is not there:\n%s", said)
	}
}

// A module that is there twice, packed and not, is refused: which one counts cannot be told.
func TestPlainModulesTwice(t *testing.T) {
	files := packedModules(t)
	dir := "usr/lib/modules/" + rootfstest.Release + "/kernel/fs/"
	files[dir+"one.ko"] = rootfstest.Module(rootfstest.Release)
	o := options(t, files.Write(t, false))
	o.Config.PlainModules = true
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "one.ko are both in the root file system") {
		t.Errorf("error %v", err)
	}
}
