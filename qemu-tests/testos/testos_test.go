package testos

import (
	"debug/elf"
	"encoding/binary"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"halogenos.internal/boot/stateconf"
)

// program is the smallest ELF file that needs an interpreter, or nothing at all.
func program(interp string) string {
	b := make([]byte, 64+56, 64+56+len(interp)+1)
	copy(b, elf.ELFMAG)
	b[elf.EI_CLASS], b[elf.EI_DATA], b[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	binary.LittleEndian.PutUint16(b[16:], uint16(elf.ET_EXEC))
	binary.LittleEndian.PutUint16(b[18:], uint16(elf.EM_X86_64))
	binary.LittleEndian.PutUint32(b[20:], 1)
	binary.LittleEndian.PutUint16(b[52:], 64)
	if interp == "" {
		return string(b)
	}
	binary.LittleEndian.PutUint64(b[32:], 64) // one program header, right behind
	binary.LittleEndian.PutUint16(b[54:], 56)
	binary.LittleEndian.PutUint16(b[56:], 1)
	binary.LittleEndian.PutUint32(b[64:], uint32(elf.PT_INTERP))
	binary.LittleEndian.PutUint64(b[72:], 120)
	binary.LittleEndian.PutUint64(b[96:], uint64(len(interp)+1))
	return string(b) + interp + "\x00"
}

const modulesDir = "usr/lib/modules/6.1/"

// debian is a tree with everything in it, as files by name.
func debian() map[string]string {
	return map[string]string{
		"boot/vmlinuz-6.1":                                "kernel",
		"usr/lib/systemd/boot/efi/linuxx64.efi.stub":      "stub",
		"usr/lib/systemd/boot/efi/systemd-bootx64.efi":    "boot manager",
		"etc/mke2fs.conf":                                 "[defaults]\n",
		"usr/sbin/mke2fs":                                 program("/lib64/ld.so"),
		"usr/sbin/e2fsck":                                 program(""),
		"usr/lib64/ld.so":                                 program(""),
		modulesDir + "kernel/fs/erofs.ko.xz":              "erofs",
		modulesDir + "kernel/lib/libcrc32c.ko.xz":         "libcrc32c",
		modulesDir + "kernel/crypto/crc32c-generic.ko.xz": "crc32c",
		modulesDir + "kernel/other.ko.xz":                 "other",
		modulesDir + "modules.dep": "kernel/fs/erofs.ko.xz: kernel/lib/libcrc32c.ko.xz\nkernel/lib/libcrc32c.ko.xz:\n" +
			"kernel/crypto/crc32c-generic.ko.xz:\nkernel/other.ko.xz:\n",
		modulesDir + "modules.builtin": "kernel/drivers/virtio/virtio_pci.ko\n",
		modulesDir + "modules.softdep": "# comment\nsoftdep libcrc32c pre: crypto-crc32c post: absent\n",
		modulesDir + "modules.alias":   "alias crypto-crc32c crc32c_generic\nalias pci:v*d* other\n",
		modulesDir + "modules.order":   "kernel/fs/erofs.ko\n",
	}
}

// lay writes the files into a new directory.
func lay(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func options(t *testing.T, files map[string]string) Options {
	t.Helper()
	return Options{Debian: lay(t, files), Init: filepath.Join(lay(t, map[string]string{"init": program("")}), "init"),
		Out: filepath.Join(t.TempDir(), "out"), Modules: []string{"erofs", "virtio-pci", "?nowhere"}}
}

func TestMake(t *testing.T) {
	files := debian()
	o := options(t, files)
	if err := Make(o); err != nil {
		t.Fatal(err)
	}
	root := os.DirFS(o.Out)
	for name, want := range map[string]string{
		"boot/vmlinuz-6.1": "kernel", "usr/sbin/init": program(""), "usr/lib64/ld.so": program(""), "sbin/mkfs.ext4": program("/lib64/ld.so"),
		"usr/lib/systemd/boot/efi/linuxx64.efi.stub": "stub", "etc/os-release": osRelease,
		modulesDir + "modules.alias": files[modulesDir+"modules.alias"],
		modulesDir + "modules.dep": "kernel/crypto/crc32c-generic.ko.xz:\nkernel/fs/erofs.ko.xz: kernel/lib/libcrc32c.ko.xz\n" +
			"kernel/lib/libcrc32c.ko.xz:\n",
	} {
		if got, err := fs.ReadFile(root, name); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
	modules, err := fs.Glob(root, modulesDir+"kernel/*/*")
	if err != nil || len(modules) != 3 {
		t.Errorf("modules %q, %v", modules, err)
	}
	for _, dir := range []string{"proc", "sys", "dev", "run", "var", "home", "tmp", "efi"} {
		if info, err := fs.Stat(root, dir); err != nil || !info.IsDir() {
			t.Errorf("mount point %s: %v", dir, err)
		}
	}
	text, err := fs.ReadFile(root, stateconf.Path)
	if err != nil {
		t.Fatal(err)
	}
	if entries, err := stateconf.Parse(text); err != nil || len(entries) != 4 {
		t.Errorf("state.conf: %v, %v", entries, err)
	}
	if err := Make(o); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("a second time into the same directory: %v", err)
	}
}

func TestMakeRefuses(t *testing.T) {
	tests := []struct {
		name   string
		change func(files map[string]string, o *Options)
		want   string
	}{
		{"no kernel", func(f map[string]string, _ *Options) { delete(f, "boot/vmlinuz-6.1") }, "found 0"},
		{"two kernels", func(f map[string]string, _ *Options) { f["boot/vmlinuz-6.2"] = "" }, "found 2"},
		{"no stub", func(f map[string]string, _ *Options) { delete(f, "usr/lib/systemd/boot/efi/linuxx64.efi.stub") }, "package systemd-boot-efi"},
		{"no mke2fs", func(f map[string]string, _ *Options) { delete(f, "usr/sbin/mke2fs") }, "package e2fsprogs"},
		{"no interpreter", func(f map[string]string, _ *Options) { delete(f, "usr/lib64/ld.so") }, "ld.so"},
		{"no modules.dep", func(f map[string]string, _ *Options) { delete(f, modulesDir+"modules.dep") }, "modules.dep"},
		{"module file gone", func(f map[string]string, _ *Options) { delete(f, modulesDir+"kernel/lib/libcrc32c.ko.xz") }, "libcrc32c"},
		{"unknown module", func(_ map[string]string, o *Options) { o.Modules = append(o.Modules, "", "zfs") }, "kernel module"},
		{"no tree", func(_ map[string]string, o *Options) { o.Debian += "/absent" }, "Debian tree"},
		{"init is not a program", func(_ map[string]string, o *Options) { o.Init = filepath.Join(o.Debian, "boot/vmlinuz-6.1") }, "init"},
		{"init is dynamic", func(_ map[string]string, o *Options) { o.Init = filepath.Join(o.Debian, "usr/sbin/mke2fs") }, "not statically linked"},
	}
	for _, tt := range tests {
		files := debian()
		var none Options
		tt.change(files, &none) // the files; the options do not exist yet
		o := options(t, files)
		tt.change(files, &o)
		if err := Make(o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", tt.name, err, tt.want)
		}
	}
}

// TestModulesOfConfig: the image has what its own uki.conf wants.
func TestModulesOfConfig(t *testing.T) {
	conf := filepath.Join(lay(t, map[string]string{"uki.conf": "[UKI]\nCmdline=quiet\n[Image]\nImageID=x\nReleaseKey=none\n" +
		"[Initramfs]\nModules=other ?nowhere2\n"}), "uki.conf")
	o := options(t, debian())
	o.Config = conf
	if err := Make(o); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(o.Out, modulesDir, "kernel/other.ko.xz")); err != nil {
		t.Error(err)
	}
	o.Config, o.Out = filepath.Join(t.TempDir(), "absent"), filepath.Join(t.TempDir(), "out")
	if err := Make(o); err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("without its uki.conf: %v", err)
	}
}
