package image

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/testkit"
	"halogenos.internal/builder/config"
	"halogenos.internal/builder/rootfs/rootfstest"
)

// distributions put the same kernel and modules in different places.
var distributions = []struct {
	name, kernel, modules, suffix string
	links                         map[string]string
	packer                        []string
}{
	{"Debian", "boot/vmlinuz-V", "usr/lib/modules/V", ".ko.xz", map[string]string{"lib": "usr/lib", "vmlinuz": "boot/vmlinuz-V"}, []string{"xz", "--check=crc32"}},
	{"Arch", "usr/lib/modules/V/vmlinuz", "usr/lib/modules/V", ".ko.zst", map[string]string{"lib": "usr/lib"}, []string{"zstd", "-q"}},
	{"Fedora", "usr/lib/modules/V/vmlinuz", "usr/lib/modules/V", ".ko.xz", map[string]string{"lib": "usr/lib", "boot/vmlinuz-V": "../usr/lib/modules/V/vmlinuz", "home": "var/home", "root": "var/roothome"}, []string{"xz", "--check=crc32"}},
	{"Alpine", "boot/vmlinuz-lts", "lib/modules/V", ".ko.gz", nil, []string{"gzip"}},
	{"Gentoo", "usr/src/linux-V/arch/x86/boot/bzImage", "lib/modules/V", ".ko", map[string]string{"lib/modules/V/vmlinuz": "../../../usr/src/linux-V/arch/x86/boot/bzImage"}, nil},
}

// Debian's kernel as other distributions would have it. FAULTS 112
func TestLayoutsOfDistributions(t *testing.T) {
	debian := testkit.Debian(t)
	kernels, err := filepath.Glob(filepath.Join(debian, "usr/lib/modules/*"))
	if err != nil || len(kernels) != 1 {
		t.Fatalf("kernels %q, %v", kernels, err)
	}
	v := filepath.Base(kernels[0])
	c, err := config.Parse("[Image]\nImageID=test\nReleaseKey=none\nCompression=none\nSlotSize=256M\n[Initramfs]\nModules=erofs dm_verity overlay dm_crypt xts aesni_intel ext4 vfat nls_cp437 nls_ascii efivarfs tpm_crb nvme\n"+
		"[Allow]\nprivate-key-der=?/**!/vmlinux  the keys that the kernel tests itself with\n", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	kept := t.TempDir() // what is found in the kernel
	for _, d := range distributions {
		t.Run(d.name, func(t *testing.T) {
			source := t.TempDir()
			put := func(name string, content []byte) {
				t.Helper()
				file := filepath.Join(source, strings.ReplaceAll(name, "V", v))
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, content, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			put(d.kernel, read(t, debian, "boot/vmlinuz-"+v))
			put("boot/config-V", read(t, debian, "boot/config-"+v))
			put("etc/os-release", []byte("ID=test\n"))
			for _, file := range []string{"/" + layout.SystemStub, "/" + layout.SystemManager} {
				put(file[1:], read(t, debian, file[1:]))
			}
			for _, file := range []string{"modules.alias", "modules.builtin", "modules.builtin.modinfo", "modules.softdep"} {
				put(d.modules+"/"+file, read(t, debian, "usr/lib/modules/"+v+"/"+file))
			}
			dep := wanted(t, string(read(t, debian, "usr/lib/modules/"+v+"/modules.dep")), c)
			for line := range strings.Lines(dep) {
				file, _, _ := strings.Cut(line, ":")
				plain, err := exec.Command("xz", "-dc", filepath.Join(kernels[0], file)).Output()
				if err != nil {
					t.Fatal(err)
				}
				if d.packer != nil {
					cmd := exec.Command(testkit.Need(t, d.packer[0]), append(d.packer[1:], "-c")...)
					cmd.Stdin = bytes.NewReader(plain)
					if plain, err = cmd.Output(); err != nil {
						t.Fatal(err)
					}
				}
				put(d.modules+"/"+strings.TrimSuffix(file, ".ko.xz")+d.suffix, plain)
			}
			put(d.modules+"/modules.dep", []byte(strings.ReplaceAll(dep, ".ko.xz", d.suffix)))
			for name, target := range d.links {
				file := filepath.Join(source, strings.ReplaceAll(name, "V", v))
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(strings.ReplaceAll(target, "V", v), file); err != nil {
					t.Fatal(err)
				}
			}
			o := options(t, rootfstest.Age(t, source))
			o.Disk, o.Config, o.Cache = false, c, kept
			mustBuild(t, o)
			if d.name != "Arch" {
				return
			}
			// Without one that it needs it is refused, by name.
			less := *c
			less.Modules = less.Modules[:0:0]
			for _, m := range c.Modules {
				if m.Name != "dm_verity" {
					less.Modules = append(less.Modules, m)
				}
			}
			o.Config, o.Out = &less, filepath.Join(t.TempDir(), "out")
			if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "add dm_verity to Modules") {
				t.Errorf("without dm_verity: error %v", err)
			}
		})
	}
}

// wanted keeps the lines of modules.dep that the configuration's modules need,
// with what they would rather have beside them.
func wanted(t *testing.T, dep string, c *config.Config) string {
	t.Helper()
	need := make(map[string]bool)
	var add func(name string)
	lines := make(map[string]string)
	base := func(file string) string {
		name, _, _ := strings.Cut(filepath.Base(file), ".ko")
		return strings.ReplaceAll(name, "-", "_")
	}
	for line := range strings.Lines(dep) {
		file, _, _ := strings.Cut(line, ":")
		lines[base(file)] = line
	}
	add = func(name string) {
		if need[name] || lines[name] == "" {
			return
		}
		need[name] = true
		_, deps, _ := strings.Cut(lines[name], ":")
		for _, file := range strings.Fields(deps) {
			add(base(file))
		}
	}
	for _, m := range c.Modules {
		add(m.Name)
	}
	for _, name := range []string{"sha256_generic", "sha256_ssse3", "aes_generic", "crc32c_generic", "crc32c_intel", "ecb"} {
		add(name)
	}
	var out strings.Builder
	for line := range strings.Lines(dep) {
		file, _, _ := strings.Cut(line, ":")
		if need[base(file)] {
			out.WriteString(line)
		}
	}
	return out.String()
}

// FAULTS 112
func TestTwoKernels(t *testing.T) {
	const other = "6.13.0-other"
	files := rootfstest.Minimal()
	files["boot/vmlinuz-"+other] = rootfstest.Kernel(other)
	files["usr/lib/modules/"+other+"/kernel/fs/one.ko"] = rootfstest.Module(other)
	source := files.Write(t, false)
	o := options(t, source)
	o.Disk = false
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "2 kernels") {
		t.Errorf("nobody chose: error %v", err)
	}
	o.Config.Linux = "/boot/vmlinuz-" + rootfstest.Release
	mustBuild(t, o)
	o.Config.Linux = ""
	delete(files, "boot/vmlinuz-"+other) // what removing a kernel by hand leaves
	o.RootFS, o.Out = files.Write(t, false), filepath.Join(t.TempDir(), "out")
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), other) || !strings.Contains(err.Error(), "Linux= in [UKI]") {
		t.Errorf("modules without their kernel: error %v", err)
	}
	o.Config.Linux = "/boot/vmlinuz-" + rootfstest.Release
	// In the directory of the chosen one, another's module is a mistake.
	files["usr/lib/modules/"+rootfstest.Release+"/kernel/fs/other.ko"] = rootfstest.Module(other)
	o.RootFS, o.Out = files.Write(t, false), filepath.Join(t.TempDir(), "out")
	if _, err := Build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "was built for kernel") {
		t.Errorf("a module in the wrong place: error %v", err)
	}
}
