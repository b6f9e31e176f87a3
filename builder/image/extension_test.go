package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"halogenos.internal/boot/contract"
	"halogenos.internal/boot/modindex"
	"halogenos.internal/boot/release"
	"halogenos.internal/boot/stateconf"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/boot/uki"
	"halogenos.internal/builder/modules"
	"halogenos.internal/builder/rootfs/rootfstest"
)

const moduleDir = "usr/lib/modules/" + rootfstest.Release + "/"

// withIndexes is the smallest root file system, with what depmod writes beside its lists.
func withIndexes(t testing.TB) rootfstest.Files {
	t.Helper()
	files := rootfstest.Minimal()
	for name, index := range map[string]modindex.Index{
		"modules.dep.bin":     {"one": {{Text: "kernel/fs/one.ko: kernel/lib/two-parts.ko"}}, "two_parts": {{Priority: 1, Text: "kernel/lib/two-parts.ko:"}}},
		"modules.alias.bin":   {"fs_one": {{Text: "one"}}},
		"modules.symbols.bin": {},
	} {
		raw, err := index.Encode()
		if err != nil {
			t.Fatal(err)
		}
		files[moduleDir+name] = raw
	}
	files["etc/os-release"] = []byte("ID=test\nVERSION_ID=\"13 (of 1)\"\nPRETTY_NAME=\"Test OS\"\n")
	files["usr/lib/same/one"] = []byte("the image's")
	return files
}

// driver is a module that an extension brings.
func driver(t testing.TB, info ...string) []byte {
	t.Helper()
	info = append([]string{"vermagic=" + rootfstest.Release + rootfstest.Config, "license=GPL"}, info...)
	signed, err := modules.Sign(rootfstest.UnsignedModule(info...), rootfstest.ModuleKey().Certificate, rootfstest.ModuleKey().Key)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func vpn() rootfstest.Files {
	return rootfstest.Files{"usr/bin/vpn": []byte("#!/bin/sh\necho vpn\n"), "opt/vpn/data": bytes.Repeat([]byte("data "), 40_000), "usr/lib/same/two": []byte("the extension's")}
}

func nvidia(t testing.TB) rootfstest.Files {
	return rootfstest.Files{
		moduleDir + "extra/nvidia.ko":              driver(t, "depends=one", "alias=pci:v000010DE*", "softdep=pre: two-parts"),
		moduleDir + "modules.dep":                  []byte("kernel/of/another/machine.ko:\n"),
		"usr/share/doc/nvidia/copyright":           []byte("of Nvidia\n"),
		"var/lib/dpkg/status":                      []byte("Package: nvidia-driver\nStatus: install ok installed\nVersion: 550.1\nArchitecture: amd64\nMaintainer: Maintainer\n\n"),
		releaseDir + "/extension-release.nvidia":   []byte("ID=_any\nEXTENSION_RELOAD_MANAGER=1\n"),
		"usr/lib/firmware/nvidia/550.1/gsp_ga10x.": []byte("firmware"),
	}
}

// withExtensions are options with extensions, by name; those whose name ends in '!' are
// essential.
func withExtensions(t testing.TB, extensions map[string]rootfstest.Files) Options {
	t.Helper()
	o := options(t, withIndexes(t).Write(t, false))
	o.Disk = false
	for _, name := range slices.Sorted(maps.Keys(extensions)) {
		text := strings.TrimSuffix(name, "!") + "=" + extensions[name].Write(t, false)
		if strings.HasSuffix(name, "!") {
			text += ",essential"
		}
		if err := o.Config.AddExtension(text); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

// listed are the extensions of a build as its UKI has them.
func listed(t testing.TB, dir string) []contract.Extension {
	t.Helper()
	img, err := uki.Parse(read(t, dir, release.UKIFile))
	if err != nil {
		t.Fatal(err)
	}
	initrd, _ := img.Section(".initrd")
	list, err := contract.ExtensionsFromInitrd(initrd)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestExtensions(t *testing.T) {
	testkit.Need(t, "fsck.erofs")
	testkit.Need(t, "veritysetup")
	o := withExtensions(t, map[string]rootfstest.Files{"vpn!": vpn(), "nvidia": nvidia(t)})
	mustBuild(t, o)
	list := listed(t, o.Out)
	if len(list) != 2 || list[0].Name != "nvidia" || !list[0].Modules || list[0].Essential || list[1].Name != "vpn" || list[1].Modules || !list[1].Essential {
		t.Fatalf("the UKI lists %+v", list)
	}
	for _, e := range list {
		checkExtension(t, o.Out, &e)
	}
	root := unpackExtension(t, o.Out, &list[0])
	if got, err := os.ReadFile(filepath.Join(root, releaseFileName("nvidia"))); err != nil ||
		string(got) != "ID=test\nVERSION_ID=\"13 (of 1)\"\nIMAGE_ID=test-os\nIMAGE_VERSION=7\nEXTENSION_RELOAD_MANAGER=1\n" {
		t.Errorf("extension-release is %q, %v", got, err)
	}
	if _, err := os.Stat(filepath.Join(root, "var")); !os.IsNotExist(err) {
		t.Errorf("the list of packages is in the extension: %v", err)
	}
	if got, err := os.ReadFile(filepath.Join(root, moduleDir, "modules.dep")); err != nil || string(got) != "extra/nvidia.ko: kernel/fs/one.ko kernel/lib/two-parts.ko\n" {
		t.Errorf("modules.dep is %q, %v", got, err)
	}
	mergedLoads(t, o.RootFS, root)
	var bill struct {
		Dependencies []struct {
			Ref       string
			DependsOn []string
		}
	}
	if err := json.Unmarshal(read(t, o.Out, BillFile), &bill); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, d := range bill.Dependencies {
		found = found || d.Ref == "extension/nvidia" && len(d.DependsOn) == 1 && strings.Contains(d.DependsOn[0], "nvidia-driver@550.1")
	}
	if !found {
		t.Errorf("the bill of materials does not say what is in the extension: %+v", bill)
	}
	if !bytes.Contains(read(t, o.Out, ProvenanceFile), []byte(`"vpn.raw"`)) {
		t.Error("the provenance does not name the extension's file")
	}
}

// checkExtension has fsck.erofs and veritysetup judge an extension's file.
func checkExtension(t *testing.T, dir string, e *contract.Extension) {
	t.Helper()
	file := filepath.Join(dir, release.ExtensionFile(e.Name))
	size, err := e.FileSize()
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Size() != size || info.Mode() != 0o644 {
		t.Errorf("%s: %v, %v, want %d bytes", file, info, err, size)
	}
	testkit.Run(t, "fsck.erofs", file)
	testkit.Run(t, "veritysetup", "verify", file, file, e.Root().String(), "--hash-offset", strconv.FormatInt(e.ImageSize, 10))
	broken := read(t, dir, release.ExtensionFile(e.Name))
	broken[e.ImageSize/2] ^= 1
	other := filepath.Join(t.TempDir(), "broken")
	if err := os.WriteFile(other, broken, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("veritysetup", "verify", other, other, e.Root().String(), "--hash-offset", strconv.FormatInt(e.ImageSize, 10)).Run(); err == nil {
		t.Errorf("veritysetup takes %s with a flipped bit", e.Name)
	}
}

func unpackExtension(t *testing.T, dir string, e *contract.Extension) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "root")
	testkit.Run(t, "fsck.erofs", "--extract="+to, filepath.Join(dir, release.ExtensionFile(e.Name)))
	return to
}

// mergedLoads lays an extension over the image as a machine does, and asks modprobe.
func mergedLoads(t *testing.T, image, extension string) {
	t.Helper()
	testkit.Need(t, "modprobe")
	base := t.TempDir()
	dir := filepath.Join(base, "lib/modules", rootfstest.Release)
	for _, from := range []string{image, extension} {
		if err := os.CopyFS(filepath.Join(base, filepath.Base(from)), os.DirFS(filepath.Join(from, moduleDir))); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		testkit.Run(t, "cp", "-r", filepath.Join(base, filepath.Base(from))+"/.", dir)
	}
	for _, name := range append(modules.Texts, modules.Indexes...) {
		var parts [][]byte
		for _, from := range []string{image, extension} {
			raw, err := os.ReadFile(filepath.Join(from, moduleDir, name))
			if err == nil {
				parts = append(parts, raw)
			}
		}
		if len(parts) == 0 {
			continue
		}
		merged, err := modindex.Merge(name, parts...)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), merged, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	said := testkit.Run(t, "modprobe", "-d", base, "-S", rootfstest.Release, "--show-depends", "pci:v000010DEd1")
	var loads []string
	for line := range strings.Lines(said) {
		loads = append(loads, filepath.Base(strings.TrimSpace(line)))
	}
	if want := []string{"two-parts.ko", "one.ko", "two-parts.ko", "nvidia.ko"}; !slices.Equal(loads, want) { // first for the soft dependency
		t.Errorf("modprobe would load %q, want %q", loads, want)
	}
}

// The same sources give the same bytes, whatever the order in which files came into being, and in
// which extensions are given.
func TestExtensionsTwice(t *testing.T) {
	one := withExtensions(t, map[string]rootfstest.Files{"vpn!": vpn(), "nvidia": nvidia(t)})
	mustBuild(t, one)
	two := withExtensions(t, nil)
	for _, text := range []string{"vpn=" + vpn().Write(t, true) + ",essential", "nvidia=" + nvidia(t).Write(t, true)} {
		if err := two.Config.AddExtension(text); err != nil {
			t.Fatal(err)
		}
	}
	mustBuild(t, two)
	for _, name := range []string{"vpn.raw", "nvidia.raw", release.UKIFile, release.FileName, BillFile} {
		if !bytes.Equal(read(t, one.Out, name), read(t, two.Out, name)) {
			t.Errorf("%s is another one the second time", name)
		}
	}
	if left := listing(t, one.Out); len(left) != 8 {
		t.Errorf("the build has left %q", left)
	}
}

// FAULTS 111
func TestExtensionsThatAreRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(dir string) error
		say    string
	}{
		{"outside", write("etc/vpn.conf", "x"), "has /etc: an extension has nothing outside /usr and /opt"},
		{"os-release", write("usr/lib/os-release", "ID=other"), "has /usr/lib/os-release, which says what system this is"},
		{"a file of the image", write("usr/bin/hello", "x"), "/usr/bin/hello is in the image"},
		{"a file of the image, a directory here", write("usr/bin/hello/x", "x"), "/usr/bin/hello is a directory in the extension, and a file in the image"},
		{"a directory of the image, a link here", func(dir string) error { return os.Symlink("x", filepath.Join(dir, "usr/share")) }, "/usr/share is in the image"},
		{"another's name", write(releaseDir+"/extension-release.other", "ID=test"), "extension-release.other, which is another extension's"},
		{"another system", write(releaseDir+"/extension-release.vpn", "ID=fedora\n"), "says ID=fedora, and the image's os-release ID=test"},
		{"another version", write(releaseDir+"/extension-release.vpn", "ID=test\nVERSION_ID=12\n"), "VERSION_ID=12, and the image's os-release VERSION_ID=13 (of 1)"},
		{"another level", write(releaseDir+"/extension-release.vpn", "SYSEXT_LEVEL=2\n"), "SYSEXT_LEVEL=2, and the image's os-release has no SYSEXT_LEVEL"},
		{"another architecture", write(releaseDir+"/extension-release.vpn", "ARCHITECTURE=arm64\n"), "says ARCHITECTURE=arm64, and the image is for x86-64"},
		{"for an initramfs", write(releaseDir+"/extension-release.vpn", "SYSEXT_SCOPE=\"initrd portable\"\n"), "SYSEXT_SCOPE=initrd portable, by which it is not for a system that runs"},
		{"a link for the directory of that file", func(dir string) error { return os.Symlink("../../opt/vpn", filepath.Join(dir, releaseDir)) }, "extension-release.d is no directory"},
		{"holes for minutes", func(dir string) error {
			one, two := filepath.Join(dir, "usr/lib/one"), filepath.Join(dir, "usr/lib/two")
			return errors.Join(write("usr/lib/one", "")(dir), write("usr/lib/two", "")(dir), os.Truncate(one, 20<<30), os.Truncate(two, 20<<30))
		}, "extension vpn: its file system: it has holes"},
		{"the machine's own", write("usr/local/bin/vpn", "x"), "has /usr/local, which the boot or /usr/lib/halogen/state.conf gives to the machine"},
		{"the updater's place", write("usr/libexec/fwupd/efi/fwupdx64.efi", "x"), "has /usr/libexec/fwupd/efi, which the boot"},
		{"a whiteout by name", write("usr/lib/.wh.one", ""), "takes a file of another layer away"},
		{"a pipe", func(dir string) error { return syscall.Mkfifo(filepath.Join(dir, "usr/lib/pipe"), 0o644) }, "is a device or a pipe"},
		{"a secret", write("usr/lib/key", string(privateKey(t))), "/usr/lib/key at byte"},
		{"modules of another kernel", write("usr/lib/modules/6.12.2/extra/a.ko", "x"), "modules of another kernel than the image's, which is " + rootfstest.Release},
		{"a module of another kernel", write(moduleDir+"extra/a.ko", string(rootfstest.Module("6.12.2"))), "was built for kernel"},
		{"a module without a signature", write(moduleDir+"extra/a.ko", string(rootfstest.UnsignedModule("vermagic="+rootfstest.Release+rootfstest.Config, "license=GPL"))), "extra/a.ko: is not signed"},
		{"a module of the image's name", write(moduleDir+"extra/one.ko", string(rootfstest.Module(rootfstest.Release))), "the image has a module of that name"},
		{"a module that needs more", write(moduleDir+"extra/a.ko", string(driver(t, "depends=gone"))), "needs the module gone"},
		{"a module by link", func(dir string) error {
			return errors.Join(os.MkdirAll(filepath.Join(dir, moduleDir), 0o755), os.Symlink("/opt/a.ko", filepath.Join(dir, moduleDir, "a.ko")))
		}, "a.ko is no regular file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := withExtensions(t, map[string]rootfstest.Files{"vpn": vpn()})
			if err := c.change(o.Config.Extensions[0].Source); err != nil {
				t.Fatal(err)
			}
			_, err := Build(t.Context(), o)
			if c.say == "" && err != nil || c.say != "" && (err == nil || !strings.Contains(err.Error(), c.say)) {
				t.Fatalf("error %v, want %q", err, c.say)
			}
			if left := listing(t, o.Out); c.say != "" && len(left) > 0 {
				t.Errorf("left %q", left)
			}
		})
	}
}

// write returns what makes a file.
func write(name, content string) func(dir string) error {
	return func(dir string) error {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		return os.WriteFile(file, []byte(content), 0o644)
	}
}

// FAULTS 111
func TestExtensionSources(t *testing.T) {
	o := withExtensions(t, map[string]rootfstest.Files{"nvidia": {"usr/lib/same/two": []byte("x")}, "vpn": vpn()})
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "/usr/lib/same/two is in the extension nvidia, too") {
		t.Errorf("two with the same file: %v", err)
	}
	o = withExtensions(t, map[string]rootfstest.Files{"a": {"usr/lib/vpn/a": nil}, "b": {"usr/lib/vpn/b": nil}})
	if err := os.Chmod(filepath.Join(o.Config.Extensions[0].Source, "usr/lib/vpn"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "extension b: the directory /usr/lib/vpn has owner ") || !strings.Contains(err.Error(), "and mode 0700 in the extension a") {
		t.Errorf("a directory of two modes: %v", err)
	}
	o = options(t, rootWithoutOpt(t))
	if err := o.Config.AddExtension("vpn=" + vpn().Write(t, false)); err != nil {
		t.Fatal(err)
	}
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "has /opt, for which the image has no directory") {
		t.Errorf("an image without /opt: %v", err)
	}
	for want, source := range map[string]string{"has no source": "", "no such file": "/nonexistent", "is empty": t.TempDir(), "lies in the root file system": filepath.Dir(o.Out)} {
		o.Config.Extensions = o.Config.Extensions[:1]
		o.Config.Extensions[0].Source = source
		if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	// A tar is as good as a directory, and a directory that both have is the image's.
	dir := vpn().Write(t, false)
	if err := os.Chmod(filepath.Join(dir, "usr/lib/same"), 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "vpn.tar.gz")
	testkit.Run(t, "tar", "-C", dir, "-czf", file, ".")
	o = withExtensions(t, nil)
	if err := o.Config.AddExtension("vpn=" + file); err != nil {
		t.Fatal(err)
	}
	mustBuild(t, o)
	list := listed(t, o.Out)
	root := unpackExtension(t, o.Out, &list[0])
	if info, err := os.Stat(filepath.Join(root, "usr/lib/same")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the directory has mode %v, %v, want the image's", info, err)
	}
}

// rootWithoutOpt is a root file system whose machines have no /opt of their own either.
func rootWithoutOpt(t testing.TB) string {
	files := withIndexes(t)
	files[stateconf.Path] = []byte(strings.Replace(stateconf.Default, "bind /opt\n", "", 1))
	dir := files.Write(t, false)
	if err := os.Remove(filepath.Join(dir, "opt")); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return dir
}

// systemd-sysext takes the extensions for the image's system, and for no other version of it.
func TestSystemdTakesExtensions(t *testing.T) {
	testkit.Root(t, "systemd-sysext mounts")
	o := withExtensions(t, map[string]rootfstest.Files{"vpn": vpn(), "nvidia": nvidia(t)})
	mustBuild(t, o)
	testkit.Need(t, "systemd-sysext")
	root := t.TempDir()
	for _, e := range listed(t, o.Out) {
		to := filepath.Join(root, "var/lib/extensions", e.Name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		testkit.Run(t, "fsck.erofs", "--extract="+to, filepath.Join(o.Out, release.ExtensionFile(e.Name)))
	}
	for _, dir := range []string{"usr/lib", "opt", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	merge := func(system []byte) string {
		if err := os.WriteFile(filepath.Join(root, "etc/os-release"), system, 0o644); err != nil {
			t.Fatal(err)
		}
		// It wants /run to be a mount of its own.
		said, err := exec.Command("unshare", "--mount", "--uts", "sh", "-c", "mount -t tmpfs tmpfs /run && systemd-sysext --root="+root+" merge").CombinedOutput()
		if err != nil {
			t.Fatalf("systemd-sysext: %v: %s", err, said)
		}
		return string(said)
	}
	if said := merge(withIndexes(t)["etc/os-release"]); !strings.Contains(said, "Using extensions 'nvidia', 'vpn'") {
		t.Errorf("systemd-sysext says %q", said)
	}
	if said := merge([]byte("ID=test\nVERSION_ID=14\n")); !strings.Contains(said, "No suitable extensions found (2 ignored") {
		t.Errorf("of another version systemd-sysext says %q", said)
	}
}
