package modules

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
)

// A DB says whether a kernel takes the certificates of Secure Boot's db for modules.
type DB int

// Answers.
const (
	// DBUnknown: what a module is verified by was not found in the kernel.
	DBUnknown DB = iota
	// DBUnused: modules are verified by the kernel's own keyrings alone, as mainline's are.
	DBUnused
	// DBTaken: they are verified by the keyring of the platform's certificates as well, which
	// are those of db.
	DBTaken
)

// What verify_pkcs7_signature is called with for a module (Linux, include/linux/verification.h
// and kernel/module/signing.c).
const (
	secondaryKeyring = 1 // VERIFY_USE_SECONDARY_KEYRING
	platformKeyring  = 2 // VERIFY_USE_PLATFORM_KEYRING
)

// fromDB is what a kernel calls the source of the certificates that it takes from db, where it
// takes them at all (Linux, security/integrity/platform_certs/load_uefi.c).
const fromDB = "\x00UEFI:db\x00"

// takesDB looks in the kernel's code for how it verifies a module. Mainline does so by one call
// of verify_pkcs7_signature, for the secondary keyring (which has the built-in one in it).
// Distributions add a second call, for the platform keyring ("KEYS: Make use of platform keyring
// for module signature verify": Debian's, Ubuntu's, Fedora's and SUSE's kernels). No option of
// the configuration tells the two apart. The function is exported, so that its address is known
// without symbols; which keyring a call is for is its fifth argument, and that it is about a
// module is its sixth, which is 0 for nothing else (System V ABI for x86-64, section 3.2.3).
//
// A kernel whose calls look otherwise is unknown: nothing is guessed.
func takesDB(kernel []byte, f *elf.File) DB {
	text := f.Section(".text")
	at, ok := exported(f, "verify_pkcs7_signature")
	if text == nil || !ok || text.Type == elf.SHT_NOBITS || text.Size > uint64(len(kernel)) {
		return DBUnknown
	}
	code, err := text.Data()
	if err != nil {
		return DBUnknown
	}
	answer, last := DBUnknown, 0
	for rest, off := code, 0; ; {
		i := bytes.IndexByte(rest, callNear)
		if i < 0 || len(rest)-i < callSize {
			break
		}
		off += i
		target := text.Addr + uint64(off+callSize) + uint64(int64(int32(binary.LittleEndian.Uint32(rest[i+1:]))))
		if target == at {
			switch keyring(code[max(last, off-lookBack):off]) {
			case platformKeyring:
				answer = DBTaken
			case secondaryKeyring:
				answer = max(answer, DBUnused)
			case notModules:
			default:
				return DBUnknown
			}
		}
		if off >= last && target >= text.Addr && target-text.Addr < text.Size {
			last = off + callSize // which keeps no argument (section 3.2.1)
		}
		off, rest = off+1, rest[i+1:]
	}
	if answer == DBTaken && !bytes.Contains(kernel, []byte(fromDB)) {
		return DBUnused // the keyring is there, and nothing of db comes into it
	}
	return answer
}

const (
	callNear = 0xe8
	callSize = 5
	// lookBack is how many bytes before a call its arguments are looked for in. Eight of them
	// take less.
	lookBack = 48
)

const (
	notModules     = -1
	unknownKeyring = -2
)

var (
	zeroUsage = []byte{0x45, 0x31, 0xc9} // xor %r9d, %r9d
	setUsage  = []byte{0x41, 0xb9}       // mov $imm32, %r9d
	setRing   = []byte{0x41, 0xb8}       // mov $imm32, %r8d
)

// keyring is for which one a call verifies a module, from the code before it, since the call
// before. The instruction that comes last counts.
func keyring(before []byte) int {
	zero, set := bytes.LastIndex(before, zeroUsage), bytes.LastIndex(before, setUsage)
	if zero < 0 || set > zero {
		// A usage that is not a constant is the caller's, as in a function that others call.
		return notModules
	}
	at := bytes.LastIndex(before, setRing)
	if at < 0 || len(before)-at < len(setRing)+4 {
		return unknownKeyring
	}
	return int(binary.LittleEndian.Uint32(before[at+len(setRing):]))
}

const ksymSize = 12 // bytes of an entry: value, name and namespace, each relative to its own place

// exported finds the address of a symbol for modules (Linux, include/linux/export-internal.h,
// with CONFIG_HAVE_ARCH_PREL32_RELOCATIONS, as on x86-64).
func exported(f *elf.File, name string) (uint64, bool) {
	names := f.Section("__ksymtab_strings")
	if names == nil {
		return 0, false
	}
	text, err := names.Data()
	if err != nil {
		return 0, false
	}
	i := bytes.Index(text, []byte("\x00"+name+"\x00"))
	if i < 0 {
		return 0, false
	}
	want := names.Addr + uint64(i) + 1
	for _, table := range []string{"__ksymtab_gpl", "__ksymtab"} {
		section := f.Section(table)
		if section == nil {
			continue
		}
		data, err := section.Data()
		if err != nil {
			return 0, false
		}
		for at := 0; at+ksymSize <= len(data); at += ksymSize {
			relative := func(field int) uint64 {
				from := at + 4*field
				return section.Addr + uint64(from) + uint64(int64(int32(binary.LittleEndian.Uint32(data[from:]))))
			}
			if relative(1) == want {
				return relative(0), true
			}
		}
	}
	return 0, false
}
