// Package rootfstest makes small root file systems and machine programs that
// the builder takes for real. Nothing in them runs. It is for tests.
package rootfstest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"halogenos.internal/boot/uki/ukitest"
)

// Release is the version of the kernel.
const Release = "6.12.1-test"

// Date is the modification time of all files.
var Date = time.Unix(1_700_000_000, 0)

// Kernel returns what passes for a bzImage of that version with an EFI stub.
func Kernel(release string) []byte {
	image := make([]byte, 0x2000)
	copy(image, "MZ")
	binary.LittleEndian.PutUint16(image[0x1fe:], 0xaa55)
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(image[0x20e:], 0x1000-0x200)
	copy(image[0x1000:], release+" (builder@host) #1 SMP\x00")
	return image
}

// Module returns what passes for a signed kernel module.
func Module(release string) []byte {
	return []byte("\x7fELF module\x00vermagic=" + release + " SMP preempt mod_unload\x00signature~Module signature appended~\n")
}

// Files are the files of a root file system by their names.
type Files map[string][]byte

// Minimal returns the least that can be built: kernel, modules, stub, boot
// manager, os-release.
func Minimal() Files {
	modules := "usr/lib/modules/" + Release + "/"
	return Files{
		"boot/vmlinuz-" + Release:                      Kernel(Release),
		"etc/os-release":                               []byte("PRETTY_NAME=\"Test OS\"\nID=test\nIMAGE_VERSION=old\n"),
		"usr/bin/hello":                                []byte("#!/bin/sh\necho hello\n"),
		"usr/lib/systemd/boot/efi/linuxx64.efi.stub":   ukitest.Stub("257.13-1"),
		"usr/lib/systemd/boot/efi/systemd-bootx64.efi": ukitest.Stub("257.13-1"),
		modules + "kernel/fs/one.ko":                   Module(Release),
		modules + "kernel/lib/two-parts.ko":            Module(Release),
		modules + "modules.dep":                        []byte("kernel/fs/one.ko: kernel/lib/two-parts.ko\nkernel/lib/two-parts.ko:\n"),
		modules + "modules.builtin":                    []byte("kernel/drivers/tpm.ko\nkernel/fs/ext4/ext4.ko\n"),
		modules + "modules.alias":                      []byte("alias fs-one one\nalias pci:v1* two_parts\nalias usb:x other\n"),
		modules + "modules.softdep":                    []byte("softdep other pre: one\n"),
	}
}

// Write makes the root file system in a new folder and returns it. The files
// come into being in the order of their names, or the other way round.
func (f Files) Write(t testing.TB, reversed bool) string {
	t.Helper()
	dir := t.TempDir()
	names := slices.Sorted(maps.Keys(f))
	if reversed {
		slices.Reverse(names)
	}
	for _, name := range names {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f[name], 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Age(t, dir)
}

// Age gives all files of a folder one time and the modes that no umask
// changed, and returns the folder.
func Age(t testing.TB, dir string) string {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.Type() == os.ModeSymlink {
			return err
		}
		mode := os.FileMode(0o644)
		if d.IsDir() {
			mode = 0o755
		}
		if err := os.Chmod(path, mode); err != nil {
			return err
		}
		return os.Chtimes(path, Date, Date)
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// Program returns a static executable, or one that wants a dynamic linker.
func Program(dynamic bool) []byte {
	header := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1,
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
	}
	copy(header.Ident[:], elf.ELFMAG)
	header.Ident[elf.EI_CLASS], header.Ident[elf.EI_DATA], header.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	segment := elf.Prog64{Type: uint32(elf.PT_LOAD), Align: 4096}
	if dynamic {
		segment.Type = uint32(elf.PT_INTERP)
	}
	var out bytes.Buffer
	for _, part := range []any{header, segment} {
		if err := binary.Write(&out, binary.LittleEndian, part); err != nil {
			panic(err) // both have a fixed size
		}
	}
	return out.Bytes()
}

// Machine makes a folder with the machine's programs and returns it.
func Machine(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string][]byte{
		"bb": Program(false), "bb.list": []byte("# commands\ninitagent\nls\nmodprobe\n"), "ota": []byte("ota program"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
