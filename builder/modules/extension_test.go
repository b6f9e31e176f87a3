package modules_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"halogenos.internal/boot/modindex"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/modules"
	"halogenos.internal/builder/rootfs/rootfstest"
)

// apart is a directory of modules of Debian's, of which some are an extension's.
type apart struct {
	base, dir string
	own       []string // paths below dir
}

const apartRelease = "6.12.0-test"

// extensions are what the extension of the test has: of each a module that is used by
// others, one with aliases, one with soft dependencies, and one with a device node.
var extensions = []string{"drivers/net/wireguard/", "drivers/gpu/drm/virtio/", "fs/fuse/cuse", "drivers/vhost/", "fs/btrfs/"}

func newApart(t *testing.T) *apart {
	t.Helper()
	testkit.Need(t, "depmod")
	kernels, err := filepath.Glob(testkit.Debian(t) + "/usr/lib/modules/*/kernel")
	if err != nil || len(kernels) != 1 {
		t.Fatalf("kernels %q, %v", kernels, err)
	}
	a := &apart{base: t.TempDir()}
	a.dir = filepath.Join(a.base, "lib/modules", apartRelease)
	for _, pattern := range []string{
		"net", "lib", "crypto", "arch", "fs/btrfs", "fs/fuse", "drivers/net/wireguard", "drivers/net/t[au][pn].ko.xz", "drivers/gpu/drm/virtio", "drivers/gpu/drm/*.ko.xz",
		"drivers/vhost/vhost.ko.xz", "drivers/vhost/vhost_net.ko.xz", "drivers/vhost/vhost_iotlb.ko.xz", "drivers/virtio/*.ko.xz",
	} {
		parts, err := filepath.Glob(filepath.Join(kernels[0], pattern))
		if err != nil || len(parts) == 0 {
			t.Fatalf("%s: %q, %v", pattern, parts, err)
		}
		for _, part := range parts {
			a.copy(t, kernels[0], part)
		}
	}
	return a
}

// copy takes the modules at a path below a directory.
func (a *apart) copy(t *testing.T, kernel, part string) {
	t.Helper()
	err := filepath.WalkDir(part, func(file string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !modules.IsModule(file) {
			return err
		}
		name, err := filepath.Rel(kernel, file)
		if err != nil {
			return err
		}
		to := filepath.Join(a.dir, "kernel", name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		raw, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(extensions, func(e string) bool { return strings.HasPrefix(name, e) }) {
			a.own = append(a.own, "kernel/"+name)
		}
		return os.WriteFile(to, raw, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// merge merges a list of the image's with the extension's, as machines do.
func (a *apart) merge(t *testing.T, name string, extension []byte) []byte {
	t.Helper()
	merged, err := modindex.Merge(name, a.read(t, name), extension)
	if err != nil {
		t.Fatal(err)
	}
	return merged
}

func (a *apart) read(t *testing.T, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(a.dir, name))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return raw
}

// What Depmod writes of an extension's modules is what depmod writes of them among all
// others, and modprobe finds their needs in the merged indexes.
func TestDepmodOfExtension(t *testing.T) {
	t.Parallel()
	a := newApart(t)
	testkit.Run(t, "depmod", "-b", a.base, apartRelease)
	all := make(map[string][]byte)
	for _, name := range append(modules.Texts, modules.Indexes...) {
		all[name] = a.read(t, name)
	}
	show := func() string {
		var said strings.Builder
		for _, name := range []string{"wireguard", "virtio-gpu", "cuse", "vhost_net", "btrfs", "symbol:vhost_dev_init", "fs-btrfs", "devname:vhost-net"} {
			said.WriteString(testkit.Run(t, "modprobe", "-d", a.base, "-S", apartRelease, "--show-depends", name))
		}
		return said.String()
	}
	want := show()
	files := make([]modules.File, 0, len(a.own))
	for _, name := range a.own {
		plain, err := modules.Unpack(name, a.read(t, name))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, modules.File{Path: name, Content: plain})
		if err := os.Rename(filepath.Join(a.dir, name), filepath.Join(a.base, filepath.Base(name))); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Run(t, "depmod", "-b", a.base, apartRelease)
	made, err := modules.Depmod(files, modules.Lists{Dep: a.read(t, "modules.dep"), Symbols: a.read(t, "modules.symbols"), Builtin: nil})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range modules.Texts {
		merged := a.merge(t, name, made[name])
		if err := os.WriteFile(filepath.Join(a.dir, name), merged, 0o644); err != nil {
			t.Fatal(err)
		}
		have, want := lines(merged), lines(all[name])
		for _, line := range slices.Sorted(maps.Keys(want)) {
			if !have[line] {
				t.Errorf("%s lacks %q", name, line)
			}
		}
		for _, line := range slices.Sorted(maps.Keys(have)) {
			if !want[line] {
				t.Errorf("%s has %q", name, line)
			}
		}
	}
	for _, name := range modules.Indexes {
		merged := a.merge(t, name, made[name])
		have, want := entries(t, merged), entries(t, all[name])
		if !maps.EqualFunc(have, want, slices.Equal) {
			t.Errorf("%s has %d keys, want %d with the same values", name, len(have), len(want))
		}
		if err := os.WriteFile(filepath.Join(a.dir, name), merged, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range a.own { // modprobe does not look for them, but this is the tree that it sees
		if err := os.Rename(filepath.Join(a.base, filepath.Base(name)), filepath.Join(a.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if have := show(); !sameLoads(have, want) {
		t.Errorf("modprobe would load\n%s\nwant\n%s", have, want)
	}
}

// lines are the lines of a list; those of modules.dep with the needs in order, as any
// order does in which none comes after what needs it.
func lines(text []byte) map[string]bool {
	all := make(map[string]bool)
	for line := range strings.Lines(string(text)) {
		first, rest, _ := strings.Cut(strings.TrimSpace(line), ": ")
		words := strings.Fields(rest)
		if strings.HasPrefix(first, "kernel/") {
			slices.Sort(words)
		}
		all[strings.Join(append([]string{first}, words...), " ")] = true
	}
	return all
}

func entries(t *testing.T, raw []byte) map[string][]string {
	t.Helper()
	index, err := modindex.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string][]string)
	for key, values := range index {
		for _, v := range values {
			for line := range lines([]byte(v.Text)) {
				all[key] = append(all[key], line)
			}
		}
		slices.Sort(all[key])
	}
	return all
}

// sameLoads reports whether modprobe loads the same modules, each after what it needs:
// both are lists of it, in which independent ones may change places.
func sameLoads(a, b string) bool {
	return maps.Equal(lines([]byte(a)), lines([]byte(b))) && strings.Count(a, "\n") == strings.Count(b, "\n")
}

// FAULTS 111
func TestDepmodRefuses(t *testing.T) {
	t.Parallel()
	module := func(info ...string) []byte {
		return rootfstest.UnsignedModule(append([]string{"vermagic=" + rootfstest.Release + rootfstest.Config, "license=GPL"}, info...)...)
	}
	image := modules.Lists{Dep: []byte("kernel/fs/one.ko:\n"), Builtin: []byte("kernel/fs/ext4.ko\n")}
	for want, files := range map[string][]modules.File{
		"the image has a module of that name":    {{"extra/one.ko", module()}},
		"a module of that name built in":         {{"extra/ext4.ko.zst", module()}},
		"the extension has another of that name": {{"extra/a-b.ko", module()}, {"more/a_b.ko.xz", module()}},
		"needs the module gone":                  {{"extra/two.ko", module("depends=one,gone")}},
		"needs itself":                           {{"extra/a.ko", module("depends=b")}, {"extra/b.ko", module("depends=a")}},
		"is not an ELF file":                     {{"extra/two.ko", []byte("text")}},
		"no name with a space":                   {{"extra/t wo.ko", module()}},
		"modules.alias.bin: index of depmod's":   {{"extra/two.ko", module("alias=caf\xc3\xa9")}},
		"modules.dep.bin: index of depmod's":     {{"extra/zw\xc3\xb6lf.ko", module()}},
	} {
		if made, err := modules.Depmod(files, image); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Depmod = %q, %v, want %q", made, err, want)
		}
	}
	made, err := modules.Depmod([]modules.File{{"extra/two.ko", module("depends=one,ext4", "alias=char-major-10-223", "alias=devname:two", "softdep=pre: one", "weakdep=one", "alias=pci:v[0-9]-x")}}, image)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"modules.dep": "extra/two.ko: kernel/fs/one.ko\n", "modules.devname": "\ntwo two c10:223\n", "modules.softdep": "\nsoftdep two pre: one\n", "modules.weakdep": "\nweakdep two one\n",
		"modules.alias": "\nalias pci:v[0-9]-x two\n",
	} {
		if !strings.HasSuffix(string(made[name]), want) {
			t.Errorf("%s is %q, want it to end in %q", name, made[name], want)
		}
	}
	if index := entries(t, made["modules.alias.bin"]); len(index["pci:v[0-9]_x"]) != 1 {
		t.Errorf("the index has %q", index)
	}
}
