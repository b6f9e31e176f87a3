// Package rootfstest makes small root file systems and machine programs that
// the builder takes for real. Nothing in them runs. It is for tests.
package rootfstest

import (
	"bytes"
	"compress/gzip"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"debug/elf"
	"encoding/binary"
	"io"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"halogenos.internal/boot/layout"
	"halogenos.internal/boot/uki/ukitest"
	"halogenos.internal/builder/modules"
)

// Release is the version of the kernel.
const Release = "6.12.1-test"

// Date is the modification time of all files.
var Date = time.Unix(1_700_000_000, 0)

// Kernel returns what passes for a bzImage of that version with an EFI stub.
// Packed in it is what passes for the kernel: its vermagic, and the certificate
// that Module's signatures are of.
func Kernel(release string) []byte { return bzImage(release, vmlinux(release)) }

// KernelVerifying is Kernel for one with code that verifies modules: by the keyring of db's
// certificates as well where db says so.
func KernelVerifying(release string, db bool) []byte {
	return bzImage(release, append(verifying(db), vmlinux(release)[len(Program(false)):]...))
}

// KernelCalling is KernelVerifying for one that verifies modules by its own keyrings alone, with
// more code: each piece of it ends with a call of the function that verifies.
func KernelCalling(release string, code ...string) []byte {
	return bzImage(release, append(verifying(false, code...), vmlinux(release)[len(Program(false)):]...))
}

// TakeVerifying has the files have such a kernel, with what every machine needs built in.
func (f Files) TakeVerifying(db bool) {
	f["boot/vmlinuz-"+Release] = KernelVerifying(Release, db)
	var builtin strings.Builder
	for name := range strings.FieldsSeq("dm-verity erofs sha256 overlay loop dm-crypt aes xts vfat nls_cp437 nls_utf8 efivarfs tpm_tis ext4") {
		builtin.WriteString("kernel/" + name + ".ko\n")
	}
	f["usr/lib/modules/"+Release+"/modules.builtin"] = []byte(builtin.String())
}

// verifying is an ELF file with what is looked for in a kernel: the exported function, and calls
// of it as a compiler writes them.
func verifying(db bool, more ...string) []byte {
	const textAddr, tableAddr, stringsAddr, function = 0x1000, 0x9000, 0xa000, 0x1800
	code := bytes.Repeat([]byte{0x90}, 0x1000)
	call := func(at int, arguments string) (end int) {
		n := copy(code[at:], arguments+"\xe8")
		binary.LittleEndian.PutUint32(code[at+n:], uint32(function-textAddr-at-n-4))
		return at + n + 4
	}
	call(0x100, "\x6a\x00\x45\x31\xc9\x41\xb8\x01\x00\x00\x00\x6a\x00")                     // a module, the kernel's keyrings
	call(0x300, "\x6a\x00\x41\xb9\x05\x00\x00\x00\x41\xb8\x02\x00\x00\x00\x31\xf6\x31\xff") // something else
	data := "\x00UEFI:db\x00"
	if db {
		call(0x200, "\x6a\x00\x45\x31\xc9\x41\xb8\x02\x00\x00\x00\x6a\x00\x48\x89\xef")
	}
	at := 0x400
	for _, arguments := range more {
		at = call(at, arguments)
	}
	names := "\x00other\x00verify_pkcs7_signature\x00"
	table := make([]byte, 24)
	binary.LittleEndian.PutUint32(table[12:], uint32(0x100000000+function-tableAddr-12))
	binary.LittleEndian.PutUint32(table[16:], uint32(stringsAddr+len("\x00other\x00")-tableAddr-16))
	return object(elf.ET_EXEC,
		part{".text", textAddr, code}, part{".rodata", 0xb000, []byte(data)},
		part{"__ksymtab_gpl", tableAddr, table}, part{"__ksymtab_strings", stringsAddr, []byte(names)})
}

func bzImage(release string, kernel []byte) []byte {
	image := make([]byte, 0x2000)
	copy(image, "MZ")
	image[0x1f1] = 4 // sectors of setup code, after the first
	binary.LittleEndian.PutUint16(image[0x1fe:], 0xaa55)
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(image[0x206:], 0x20f)
	binary.LittleEndian.PutUint16(image[0x20e:], 0x1000-0x200)
	copy(image[0x1000:], release+" (builder@host) #1 SMP\x00")
	packed := gzipped(kernel)
	binary.LittleEndian.PutUint32(image[0x248:], uint32(len(image)-5*512))
	binary.LittleEndian.PutUint32(image[0x24c:], uint32(len(packed)))
	return append(image, packed...)
}

// Config is how Kernel's kernels are configured, as their vermagic tells.
const Config = " SMP preempt mod_unload "

func vmlinux(release string) []byte {
	cert := ModuleKey().Certificate.Raw
	out := Program(false)
	out = append(out, "\x00"+release+Config+"\x00Linux version "+release+" (builder@host)\x00"...)
	for len(out)%8 != 0 {
		out = append(out, 0)
	}
	out = append(out, cert...)
	for len(out)%8 != 0 {
		out = append(out, 0)
	}
	out = binary.LittleEndian.AppendUint64(out, uint64(len(cert)))
	return binary.LittleEndian.AppendUint64(out, uint64(len(cert)))
}

func gzipped(data []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(data); err != nil {
		panic(err) // memory takes everything
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

// A KeyPair is a key and a certificate of it.
type KeyPair struct {
	Key         *ecdsa.PrivateKey
	Certificate *x509.Certificate
}

// NewKeyPair makes one that can sign modules, always the same of a name.
func NewKeyPair(name string) (KeyPair, error) {
	secret := sha256.Sum256([]byte("key for tests: " + name))
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), secret[:])
	if err != nil {
		return KeyPair{}, err
	}
	cert, err := Certificate(key, name)
	return KeyPair{key, cert}, err
}

// Certificate makes a certificate of a key that signs it itself, always the
// same of a key and a name.
func Certificate(key crypto.Signer, name string) (*x509.Certificate, error) {
	serial := sha256.Sum256([]byte("key for tests: " + name))
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial[:8]), Subject: pkix.Name{CommonName: name}, NotBefore: Date, NotAfter: Date.AddDate(100, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(nil, template, template, key.Public(), repeatable{key})
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// repeatable signs without chance (ECDSA as RFC 6979 has it).
type repeatable struct{ crypto.Signer }

func (r repeatable) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return r.Signer.Sign(nil, digest, opts)
}

// ModuleKey is the key that Module signs with.
var ModuleKey = sync.OnceValue(func() KeyPair {
	pair, err := NewKeyPair("key of the kernel")
	if err != nil {
		panic(err)
	}
	return pair
})

// Module returns what passes for a kernel module, signed with ModuleKey.
func Module(release string) []byte {
	signed, err := modules.Sign(UnsignedModule("vermagic="+release+Config, "license=GPL"), ModuleKey().Certificate, ModuleKey().Key)
	if err != nil {
		panic(err)
	}
	return signed
}

// UnsignedModule returns an object file with these entries in its .modinfo.
func UnsignedModule(info ...string) []byte {
	return object(elf.ET_REL, part{".modinfo", 0, []byte(strings.Join(info, "\x00") + "\x00")})
}

// A part is a section of an object file.
type part struct {
	name string
	addr uint64
	data []byte
}

// object returns an ELF file of these sections.
func object(kind elf.Type, parts ...part) []byte {
	const head, each = 64, 64
	names := "\x00"
	at := uint64(head + each*(len(parts)+2))
	sections := []elf.Section64{{}}
	var content []byte
	add := func(p part, as elf.SectionType) {
		sections = append(sections, elf.Section64{Name: uint32(len(names)), Type: uint32(as), Addr: p.addr, Off: at + uint64(len(content)), Size: uint64(len(p.data))})
		content = append(content, p.data...)
	}
	for _, p := range parts {
		add(p, elf.SHT_PROGBITS)
		names += p.name + "\x00"
	}
	const own = ".shstrtab"
	add(part{own, 0, []byte(names + own + "\x00")}, elf.SHT_STRTAB)
	header := elf.Header64{
		Type: uint16(kind), Machine: uint16(elf.EM_X86_64), Version: 1,
		Shoff: head, Ehsize: head, Shentsize: each, Shnum: uint16(len(sections)), Shstrndx: uint16(len(sections) - 1),
	}
	copy(header.Ident[:], elf.ELFMAG)
	header.Ident[elf.EI_CLASS], header.Ident[elf.EI_DATA], header.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	var out bytes.Buffer
	for _, piece := range []any{header, sections, content} {
		if err := binary.Write(&out, binary.LittleEndian, piece); err != nil {
			panic(err) // all have a fixed size
		}
	}
	return out.Bytes()
}

// Files are the files of a root file system by their names.
type Files map[string][]byte

// Minimal returns the least that can be built: kernel, modules, stub, boot
// manager, os-release.
func Minimal() Files {
	dir := "usr/lib/modules/" + Release + "/"
	return Files{
		"boot/vmlinuz-" + Release:       Kernel(Release),
		"etc/os-release":                []byte("PRETTY_NAME=\"Test OS\"\nID=test\nIMAGE_VERSION=old\n"),
		"usr/bin/hello":                 []byte("#!/bin/sh\necho hello\n"),
		layout.SystemStub:               ukitest.Stub("257.13-1"),
		layout.SystemManager:            ukitest.Manager("257.13-1"),
		dir + "kernel/fs/one.ko":        Module(Release),
		dir + "kernel/lib/two-parts.ko": Module(Release),
		dir + "modules.dep":             []byte("kernel/fs/one.ko: kernel/lib/two-parts.ko\nkernel/lib/two-parts.ko:\n"),
		dir + "modules.builtin":         []byte("kernel/drivers/tpm.ko\nkernel/fs/ext4/ext4.ko\n"),
		dir + "modules.alias":           []byte("alias fs-one one\nalias pci:v1* two_parts\nalias usb:x other\n"),
		dir + "modules.softdep":         []byte("softdep other pre: one\n"),
	}
}

// Write makes the root file system in a new directory and returns it. The files
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

// Age gives all files of a directory one time and the modes that no umask
// changed, and returns the directory.
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

// GoProgram returns a static executable that says of itself that Go built it
// with an experiment, or with none.
func GoProgram(experiment string) []byte {
	out := Program(false)
	start := (len(out) + 15) / 16 * 16
	info := []byte("\xff Go buildinf:\x08\x02")
	info = append(info, make([]byte, 16)...) // two pointers, of old versions
	const around = "0123456789abcdef"        // of the settings
	settings := around + "path\tbb\nbuild\tGOEXPERIMENT=" + experiment + "\n" + around
	for _, text := range []string{"go1.26.8", settings} {
		info = append(binary.AppendUvarint(info, uint64(len(text))), text...)
	}
	out = append(append(out, make([]byte, start-len(out))...), info...)
	var segment bytes.Buffer
	at := elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_W), Align: 4096,
		Off: uint64(start), Vaddr: uint64(start), Filesz: uint64(len(info)), Memsz: uint64(len(info)),
	}
	if err := binary.Write(&segment, binary.LittleEndian, at); err != nil {
		panic(err) // it has a fixed size
	}
	copy(out[64:], segment.Bytes())
	return out
}

// Machine makes a directory with the machine's programs and returns it.
func Machine(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string][]byte{
		"bb": GoProgram("runtimesecret"), "bb.list": []byte("# commands\ninitagent\nls\nmodprobe\n"), "ota": []byte("ota program"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
